//! Text to tokens and back: bytes, or the pieces of a `tokenizer.json`.
//!
//! | a checkpoint with | is read with |
//! |---|---|
//! | a tokenizer in its one file (GGUF) | that, as the `tokenizer.json` that does the same |
//! | `tokenizer.json` beside the weights | that |
//! | none, and 256 tokens | bytes |
//! | none, and 257 to 512 tokens | bytes, beside which the vocabulary has room for tokens of its own: told as assumed |
//! | none, and fewer or more | nothing: its token ids can be measured, text is refused |
//! | a choice ([`Loading::tokenizer`](super::Loading), `--tokenizer`) | that choice |
//!
//! `random:SHAPE` and models made of tensors read bytes by definition: there is no tokenizer that could be missing.
//!
//! | file | holds |
//! |---|---|
//! | `pieces` | tokenizers of the tokenizers library |
//! | `encoding` | a text in tokens, and which of its bytes each stands for |
//! | `composed` | marks that went into the letter before them |
//! | `realigned` | places after letters that were dropped |

mod composed;
mod encoding;
mod pieces;
mod realigned;
pub mod train;

use crate::error::{Error, Result};
pub use encoding::Encoding;
pub use pieces::Pieces;
use std::path::{Path, PathBuf};

/// Turns text into token numbers and back.
#[derive(Clone, Debug, Default)]
pub enum Tokenizer {
    /// One token a byte of UTF-8, the token's number being the byte.
    #[default]
    Bytes,
    /// A tokenizer read from a `tokenizer.json`.
    Pieces(Box<Pieces>),
    /// There is none, and the vocabulary is not one of bytes: token ids can be measured, text cannot.
    Missing {
        /// Tokens of the vocabulary.
        vocab_size: usize,
        /// Where a `tokenizer.json` was looked for.
        folder: PathBuf,
    },
}

impl Tokenizer {
    /// Reads a `tokenizer.json`: the file, or the folder that it lies in.
    ///
    /// # Errors
    /// The file cannot be read or is not a tokenizer.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = if path.is_dir() { path.join("tokenizer.json") } else { path.to_path_buf() };
        Ok(Self::Pieces(Box::new(Pieces::load(&file)?)))
    }

    /// What a checkpoint without a `tokenizer.json` in `folder` is read with, and what is assumed by that.
    pub fn without_file(vocab_size: usize, folder: &Path) -> (Self, Option<String>) {
        match vocab_size {
            256 => (Self::Bytes, None),
            257..=512 => {
                let assumed = format!(
                    "text is bytes, though the vocabulary has {vocab_size} tokens (no tokenizer.json beside the weights)"
                );
                (Self::Bytes, Some(assumed))
            }
            _ => (Self::Missing { vocab_size, folder: folder.to_path_buf() }, None),
        }
    }

    /// Refuses to read text where there is no tokenizer.
    ///
    /// # Errors
    /// There is none; the sentence says where to put one.
    pub fn present(&self) -> Result<()> {
        let Self::Missing { vocab_size, folder } = self else { return Ok(()) };
        let what = format!(
            "text cannot be measured: there is no tokenizer.json, and a vocabulary of {vocab_size} tokens is not \
             one of bytes"
        );
        let bytes = if *vocab_size < 256 { "" } else { ", or take --tokenizer bytes for text as bytes" };
        Err(Error::input(what)
            .at(folder.display())
            .hint(format!("put the model's tokenizer.json there or name it with --tokenizer{bytes}")))
    }

    /// The tokens of a text. No token is added at its beginning or end.
    ///
    /// # Errors
    /// The tokenizer cannot represent the text, or there is none.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match self {
            Self::Bytes => Ok(text.bytes().map(u32::from).collect()),
            Self::Pieces(pieces) => pieces.encode(text),
            Self::Missing { .. } => self.present().map(|()| vec![]),
        }
    }

    /// The tokens of a text that a model is to continue: behind those that its file puts before every text, such as one for
    /// the beginning. Measurements add none; see [`measure`](crate::measure).
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        Ok([self.opening(), &self.encode(text)?].concat())
    }

    /// The special tokens that its file puts before every text, such as one for the beginning.
    pub fn opening(&self) -> &[u32] {
        match self {
            Self::Pieces(pieces) => pieces.opening(),
            Self::Bytes | Self::Missing { .. } => &[],
        }
    }

    /// The tokens of a text with their places in it.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encoding(&self, text: &str) -> Result<Encoding> {
        match self {
            Self::Bytes => Ok(Encoding::of_bytes(text)),
            Self::Pieces(pieces) => pieces.encoding(text),
            Self::Missing { .. } => self.present().map(|()| Encoding::default()),
        }
    }

    /// The tokens of a text, and those that go on after them when `answer` follows it.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn continued(&self, text: &str, answer: &str) -> Result<(Vec<u32>, Vec<u32>)> {
        let prompt = self.encode(text)?;
        let mut whole = self.encode(&format!("{text}{answer}"))?;
        // A tokenizer that joins the end of the one with the beginning of the other reads each by itself.
        let answer = match whole.starts_with(&prompt) {
            true => whole.split_off(prompt.len()),
            false => self.encode(answer)?,
        };
        Ok((prompt, answer))
    }

    /// The text of tokens. Of bytes, whatever is not UTF-8, and any number above 255 (a padded vocabulary may
    /// give one), becomes the replacement character. A decoder may add or take away blanks: nothing is counted or compared
    /// by this text.
    ///
    /// # Errors
    /// The tokenizer cannot put the tokens together, or there is none.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        match self {
            Self::Bytes => Ok(bytes(tokens)),
            Self::Pieces(pieces) => pieces.decode(tokens),
            Self::Missing { .. } => self.present().map(|()| String::new()),
        }
    }

    /// The tokens as the vocabulary spells them, one after the other with nothing between: marks of blanks and bytes beyond
    /// ASCII stay as they are written there, digits and letters are themselves.
    pub fn spell(&self, tokens: &[u32]) -> String {
        match self {
            Self::Bytes => bytes(tokens),
            Self::Pieces(pieces) => pieces.spell(tokens),
            Self::Missing { .. } => String::new(),
        }
    }

    /// One more than the greatest token number.
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Bytes => 256,
            Self::Pieces(pieces) => pieces.vocab_size(),
            Self::Missing { .. } => 0,
        }
    }

    /// A name for records: `bytes`, the folder of the `tokenizer.json` or the file that it is in, or `none`.
    pub fn name(&self) -> &str {
        match self {
            Self::Bytes => "bytes",
            Self::Pieces(pieces) => &pieces.name,
            Self::Missing { .. } => "none",
        }
    }

    /// SHA-256 of the `tokenizer.json`; the name where there is no file.
    pub fn hash(&self) -> &str {
        match self {
            Self::Pieces(pieces) => &pieces.sha256,
            Self::Bytes | Self::Missing { .. } => self.name(),
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

/// The text of bytes. 0xff never occurs in UTF-8, so it becomes the replacement character.
fn bytes(tokens: &[u32]) -> String {
    let bytes: Vec<u8> = tokens.iter().map(|&token| u8::try_from(token).unwrap_or(0xff)).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests;
