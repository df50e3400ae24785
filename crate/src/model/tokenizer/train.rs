//! A tokenizer of a text's own: byte-pair encoding over bytes (Sennrich et al. 2016; Radford et al. 2019), trained by the tokenizers
//! library.

use crate::error::{Error, Result};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl,
};

/// The text of a `tokenizer.json` with `pieces` tokens, the 256 bytes among them, for these texts. Equal texts give equal files.
///
/// # Errors
/// If there are fewer pieces than bytes, or the library fails.
pub fn train<'a>(texts: impl Iterator<Item = &'a str> + Send, pieces: usize) -> Result<String> {
    if pieces < 256 {
        return Err(Error::input(format!("a tokenizer of bytes has at least 256 tokens, not {pieces}")));
    }
    let failed = |error: tokenizers::Error| Error::internal(format!("training a tokenizer: {error}"));
    let mut trainer = BpeTrainer::builder()
        .vocab_size(pieces)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    type Bytes =
        TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;
    let bytes = ByteLevel::new(false, true, true);
    let mut tokenizer: Bytes = TokenizerImpl::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(PreTokenizerWrapper::ByteLevel(bytes)));
    tokenizer.with_decoder(Some(DecoderWrapper::ByteLevel(bytes)));
    tokenizer.train(&mut trainer, texts).map_err(failed)?;
    tokenizer.to_string(true).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::super::{Pieces, Tokenizer};
    use super::*;

    #[test]
    fn equal_texts_give_equal_tokenizers_that_read_every_byte() {
        let texts = ["to be or not to be, that is the question".repeat(20), "whether ’tis nobler".repeat(9)];
        let all = || texts.iter().map(String::as_str);
        let file = train(all(), 280).unwrap();
        assert_eq!(file, train(all(), 280).unwrap());
        let tokenizer = Tokenizer::Pieces(Box::new(Pieces::part("own", &file, "{}").unwrap()));
        assert_eq!(tokenizer.vocab_size(), 280);
        for text in ["to be", "Ünïcödé 🦀 \u{7f}", " the  question\n"] {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
        assert!(tokenizer.encode("to be or not to be").unwrap().len() < 10);
        assert!(train(all(), 100).unwrap_err().to_string().contains("at least 256"));
    }
}
