//! Text to tokens and back: bytes, or the pieces of a `tokenizer.json`.

use super::caught::caught;
use crate::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::fmt;
use std::path::Path;

/// Turns text into token numbers and back.
#[derive(Clone, Debug, Default)]
pub enum Tokenizer {
    /// One token a byte of UTF-8, the token's number being the byte.
    #[default]
    Bytes,
    /// A tokenizer read from a `tokenizer.json`.
    Pieces(Box<Pieces>),
}

/// A tokenizer of the tokenizers library with its name and hash.
#[derive(Clone)]
pub struct Pieces {
    /// The tokenizer itself.
    pub tokenizer: tokenizers::Tokenizer,
    /// The name of the folder that its file lies in.
    pub name: String,
    /// SHA-256 of its file, in hexadecimal.
    pub sha256: String,
}

// The library's own output would print the whole vocabulary.
impl fmt::Debug for Pieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (sha256 {})", self.name, self.sha256)
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// The file cannot be read or is not a tokenizer.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, &e))?;
        let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes); // without a byte order mark
        let unfit = |e: &dyn fmt::Display| {
            Error::input(format!("not a tokenizer.json: {e}"))
                .at(path.display())
                .hint("copy or download the file again")
        };
        // The library panics at what is no JSON, and at some of what is.
        serde_json::from_slice::<serde::de::IgnoredAny>(text).map_err(|e| unfit(&e))?;
        let tokenizer = caught(|| tokenizers::Tokenizer::from_bytes(text)).map_err(|e| unfit(&e))?;
        let mut tokenizer = tokenizer.map_err(|e| unfit(&e))?;
        // Texts are measured whole.
        tokenizer.with_padding(None).with_truncation(None).map_err(|e| unfit(&e))?;
        let full = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        let folder = full.parent().and_then(Path::file_name);
        let name = folder.map_or_else(|| "tokenizer".to_string(), |name| name.to_string_lossy().into_owned());
        let sha256 = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self::Pieces(Box::new(Pieces { tokenizer, name, sha256 })))
    }

    /// The tokens of a text. No token is added at its beginning or end.
    ///
    /// # Errors
    /// The tokenizer cannot represent the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match self {
            Self::Bytes => Ok(text.bytes().map(u32::from).collect()),
            Self::Pieces(pieces) => {
                let encoding = pieces.tokenizer.encode_fast(text, false);
                let encoding =
                    encoding.map_err(|e| Error::input(format!("the text cannot be tokenized: {e}")))?;
                Ok(encoding.get_ids().to_vec())
            }
        }
    }

    /// The text of tokens. Of bytes, whatever is not UTF-8, and any number above 255 (a padded vocabulary may
    /// give one), becomes the replacement character.
    ///
    /// # Errors
    /// The tokenizer cannot put the tokens together.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        match self {
            Self::Bytes => {
                // 0xff never occurs in UTF-8, so it decodes to the replacement character.
                let bytes: Vec<u8> =
                    tokens.iter().map(|&token| u8::try_from(token).unwrap_or(0xff)).collect();
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Self::Pieces(pieces) => {
                let text = pieces.tokenizer.decode(tokens, false);
                text.map_err(|e| Error::input(format!("the tokens cannot be put together: {e}")))
            }
        }
    }

    /// One more than the greatest token number.
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Bytes => 256,
            // Numbers may have gaps, so that counting the tokens would be too few.
            Self::Pieces(pieces) => {
                pieces.tokenizer.get_vocab(true).values().max().map_or(0, |&token| token as usize + 1)
            }
        }
    }

    /// A name for records: `bytes`, or the folder of the `tokenizer.json`.
    pub fn name(&self) -> &str {
        match self {
            Self::Bytes => "bytes",
            Self::Pieces(pieces) => &pieces.name,
        }
    }

    /// SHA-256 of the `tokenizer.json`; `bytes` for bytes, which have no file.
    pub fn hash(&self) -> &str {
        match self {
            Self::Bytes => "bytes",
            Self::Pieces(pieces) => &pieces.sha256,
        }
    }

    /// Checks that a model with `model_vocab` embedding rows has one for every token. More rows are fine: many
    /// checkpoints pad them.
    ///
    /// # Errors
    /// The tokenizer has tokens beyond the model's rows; the sentence names both numbers.
    pub fn check(&self, model_vocab: usize) -> Result<()> {
        let own = self.vocab_size();
        if own <= model_vocab {
            return Ok(());
        }
        let name = self.name();
        let error = Error::input(format!(
            "the tokenizer '{name}' has {own} tokens, and the model has embeddings for {model_vocab}"
        ));
        Err(error.hint("use the tokenizer.json that belongs to this checkpoint"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A word tokenizer with a gap in its numbers.
    const WORDS: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"[unk]": 0, "pass": 1, "key": 7}, "unk_token": "[unk]"}}"#;

    fn words() -> Tokenizer {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, WORDS).unwrap();
        Tokenizer::load(&path).unwrap()
    }

    proptest! {
        #[test]
        fn bytes_come_back(text in ".*") {
            let tokens = Tokenizer::Bytes.encode(&text).unwrap();
            prop_assert_eq!(tokens.len(), text.len());
            prop_assert_eq!(Tokenizer::Bytes.decode(&tokens).unwrap(), text);
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        assert_eq!(Tokenizer::Bytes.decode(&[104, 105, 0xc3, 33, 300]).unwrap(), "hi\u{fffd}!\u{fffd}");
    }

    #[test]
    fn a_tokenizer_file_is_read() {
        let words = words();
        assert_eq!(words.encode("key pass lock").unwrap(), [7, 1, 0]);
        assert_eq!(words.decode(&[1, 7]).unwrap(), "pass key");
        assert_eq!(words.vocab_size(), 8);
        assert_eq!(words.hash().len(), 64);
        assert!(format!("{words:?}").len() < 200);
    }

    #[test]
    fn a_vocabulary_beyond_the_model_is_refused_with_both_numbers() {
        assert!(
            words().check(8).is_ok() && words().check(50_288).is_ok() && Tokenizer::Bytes.check(256).is_ok()
        );
        let error = words().check(5).unwrap_err().to_string();
        assert!(error.contains("has 8 tokens") && error.contains("embeddings for 5"), "{error}");
    }

    #[test]
    fn what_makes_the_library_panic_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        // A prefix that is longer than what it is to be taken off.
        let merges = r#"{"model": {"type": "BPE", "continuing_subword_prefix": "long", "vocab": {"a": 0, "b": 1},
            "merges": ["a b"]}}"#;
        for (text, part) in [(r#"{"decoder": {,}}"#, "line 1 column 14"), (merges, "out of range")] {
            std::fs::write(&path, text).unwrap();
            let error = Tokenizer::load(&path).unwrap_err().to_string();
            assert!(
                error.contains("tokenizer.json: not a tokenizer.json: ") && error.contains(part),
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_no_tokenizer_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        assert!(Tokenizer::load(&path).unwrap_err().to_string().ends_with("no such file or folder"));
        std::fs::write(&path, "{}").unwrap();
        assert!(
            Tokenizer::load(&path)
                .unwrap_err()
                .to_string()
                .contains("tokenizer.json: not a tokenizer.json: ")
        );
    }
}
