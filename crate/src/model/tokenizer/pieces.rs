//! Tokenizers of the tokenizers library, as a `tokenizer.json` holds them.

use super::super::caught::caught;
use super::composed;
use super::encoding::{Encoding, Place};
use super::realigned;
use crate::error::{Error, Result};
use crate::text;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokenizers::{ModelWrapper, PostProcessor, PreTokenizerWrapper, Token};

/// A tokenizer of the tokenizers library with its name and hash.
///
/// What a training sets for its own sake is switched off: truncation, padding, dropout of merges. Tokens that a template
/// puts around a text are left out too. [`file`](Self::file) keeps all of it as it was.
#[derive(Clone)]
pub struct Pieces {
    tokenizer: tokenizers::Tokenizer,
    /// The name of the folder that its file lies in, or of the file that it is a part of.
    pub name: String,
    /// SHA-256 of its file, in hexadecimal.
    pub sha256: String,
    /// Where its file was read; none of a part of another file.
    path: Option<PathBuf>,
    /// The `tokenizer_config.json` that belongs to it, where it is a part of another file.
    config: Option<Arc<str>>,
    /// Its file, as it was but for a byte order mark.
    file: Arc<str>,
    /// The token for what has none, and its name.
    unknown: Option<(u32, String)>,
    /// The special tokens that its template puts before a text.
    opening: Vec<u32>,
}

// The library's own output would print the whole vocabulary.
impl fmt::Debug for Pieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (sha256 {})", self.name, self.sha256)
    }
}

/// What a file says of the unknown where the library keeps it to itself.
#[derive(Deserialize)]
struct File {
    model: Unigram,
}

/// The special tokens that the template of a tokenizer puts before a text.
fn opening(tokenizer: &tokenizers::Tokenizer) -> tokenizers::Result<Vec<u32>> {
    let Some(template) = tokenizer.get_post_processor() else { return Ok(vec![]) };
    let text = Token::new(u32::MAX, "a".to_string(), (0, 1)); // a token that no vocabulary has
    let around = template.process(tokenizers::Encoding::from_tokens(vec![text], 0), None, true)?;
    let before = around.get_ids().iter().take_while(|id| **id != u32::MAX);
    Ok(before.copied().collect())
}

#[derive(Deserialize)]
struct Unigram {
    unk_id: Option<u32>,
}

impl Pieces {
    /// Reads a `tokenizer.json`.
    pub(super) fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, &e))?;
        let file = text::decode(bytes).map_err(|e| e.at(path.display()))?;
        let full = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        let folder = full.parent().and_then(Path::file_name);
        let name = folder.map_or_else(|| "tokenizer".to_string(), |name| name.to_string_lossy().into_owned());
        Self::new(name, &file).map(|new| Self { path: Some(full), ..new }).map_err(|e| e.at(path.display()))
    }

    /// A tokenizer that is a part of the file called `name`: as a `tokenizer.json`, with its `tokenizer_config.json`.
    pub(in super::super) fn part(name: &str, file: &str, config: &str) -> Result<Self> {
        Ok(Self { config: Some(config.into()), ..Self::new(name.to_string(), file)? })
    }

    fn new(name: String, file: &str) -> Result<Self> {
        let unfit = |e: &dyn fmt::Display| {
            Error::input(format!("not a tokenizer.json: {e}")).hint("copy or download the file again")
        };
        // The library panics at what is no JSON, and at some of what is.
        serde_json::from_str::<serde::de::IgnoredAny>(file).map_err(|e| unfit(&e))?;
        let tokenizer = caught(|| tokenizers::Tokenizer::from_bytes(file)).map_err(|e| unfit(&e))?;
        let mut tokenizer = tokenizer.map_err(|e| unfit(&e))?;
        tokenizer.with_padding(None).with_truncation(None).map_err(Error::internal)?;
        let opening = caught(|| opening(&tokenizer)).map_err(|e| unfit(&e))?.map_err(|e| unfit(&e))?;
        // Asked for no tokens of its own, all it would do is to take blanks out of the places of tokens.
        tokenizer.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        let unknown = match tokenizer.get_model() {
            ModelWrapper::BPE(model) => model.unk_token.clone(),
            ModelWrapper::WordPiece(model) => Some(model.unk_token.clone()),
            ModelWrapper::WordLevel(model) => Some(model.unk_token.clone()),
            ModelWrapper::Unigram(_) => {
                let File { model } = serde_json::from_str(file).map_err(|e| unfit(&e))?;
                model.unk_id.and_then(|id| tokenizer.id_to_token(id))
            }
        };
        if let ModelWrapper::BPE(model) = tokenizer.get_model()
            && model.dropout.is_some()
        {
            let mut whole = model.clone();
            whole.dropout = None;
            tokenizer.with_model(whole);
        }
        let unknown = unknown.and_then(|name| Some((tokenizer.token_to_id(&name)?, name)));
        let sha256 = Sha256::digest(file).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { tokenizer, name, sha256, path: None, config: None, file: file.into(), unknown, opening })
    }

    /// The folder that its file was read from, if it has one of its own.
    pub fn folder(&self) -> Option<&Path> {
        self.path.as_ref()?.parent()
    }

    /// The text of the `tokenizer_config.json` that belongs to it, where it came as a part of another file.
    pub fn config(&self) -> Option<&str> {
        self.config.as_deref()
    }

    /// The text of its file, with what is switched off here.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The tokens of a text.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let found = self.tokenizer.encode_fast(text, false).map_err(|e| unreadable(&e))?;
        Ok(found.get_ids().to_vec())
    }

    /// The special tokens that the file puts before a text, such as one for its beginning.
    pub(super) fn opening(&self) -> &[u32] {
        &self.opening
    }

    /// The tokens of a text with their places.
    pub(super) fn encoding(&self, text: &str) -> Result<Encoding> {
        let found = self.tokenizer.encode(text, false).map_err(|e| unreadable(&e))?;
        let unknown = self.unknown.as_ref().map(|(id, _)| id);
        let places = found.get_ids().iter().zip(found.get_offsets()).map(|(id, (start, end))| {
            let stands_for = |name: &str| text.get(*start..*end) == Some(name);
            let unknown = self.unknown.as_ref().is_some_and(|(known, name)| id == known && !stands_for(name));
            Place { start: *start, end: *end, unknown }
        });
        let mut places: Vec<Place> = places.collect();
        let tokens = found.get_tokens();
        if let (ModelWrapper::BPE(_), None) = (self.tokenizer.get_model(), unknown) {
            let added = self.tokenizer.get_added_vocabulary().get_vocab();
            let letters = realigned::letters(text, self.tokenizer.get_normalizer(), self.is_in_bytes());
            let known = |letter: char| self.tokenizer.token_to_id(letter.encode_utf8(&mut [0; 4])).is_some();
            realigned::realign(&mut places, tokens, &letters, known, |i| added.contains_key(&tokens[i]));
        }
        if let Some(normalizer) = self.tokenizer.get_normalizer() {
            composed::extend(&mut places, text, normalizer);
        }
        // A byte of a character is a token of its own name, or one letter of a token in an alphabet of bytes.
        let bytes = |i: usize| byte(&tokens[i]).map_or_else(|| tokens[i].chars().count(), |_| 1);
        Ok(Encoding::of_places(found.get_ids().to_vec(), places, bytes, text.len()))
    }

    /// The text of tokens, as the decoder puts it together.
    pub(super) fn decode(&self, tokens: &[u32]) -> Result<String> {
        let text = self.tokenizer.decode(tokens, false);
        text.map_err(|e| Error::input(format!("the tokens cannot be put together: {e}")))
    }

    /// The tokens as they are spelled in the vocabulary, one after the other. Marks for blanks and bytes beyond ASCII stay
    /// in the vocabulary's own spelling; digits, letters and punctuation are themselves.
    pub(super) fn spell(&self, tokens: &[u32]) -> String {
        let (prefix, suffix) = match self.tokenizer.get_model() {
            ModelWrapper::BPE(model) => (
                model.continuing_subword_prefix.as_deref().unwrap_or_default(),
                model.end_of_word_suffix.as_deref().unwrap_or_default(),
            ),
            ModelWrapper::WordPiece(model) => (model.continuing_subword_prefix.as_str(), ""),
            _ => ("", ""),
        };
        let mut text = String::new();
        for id in tokens {
            let Some(token) = self.tokenizer.id_to_token(*id).filter(|token| !self.is_special(token)) else {
                text.push(char::REPLACEMENT_CHARACTER);
                continue;
            };
            if let Some(byte) = byte(&token) {
                text.push(if byte.is_ascii() { char::from(byte) } else { char::REPLACEMENT_CHARACTER });
                continue;
            }
            match token.strip_prefix(prefix) {
                Some(rest) if !prefix.is_empty() => text.push_str(rest),
                _ if prefix.is_empty() => text.push_str(&token),
                _ => text.extend([" ", &token]), // a new word
            }
            if !suffix.is_empty() && text.ends_with(suffix) {
                text.truncate(text.len() - suffix.len());
                text.push(' ');
            }
        }
        text
    }

    /// Whether texts are cut into bytes once they are normalized.
    fn is_in_bytes(&self) -> bool {
        let level = |pre: &PreTokenizerWrapper| matches!(pre, PreTokenizerWrapper::ByteLevel(_));
        match self.tokenizer.get_pre_tokenizer() {
            Some(PreTokenizerWrapper::Sequence(all)) => all.as_ref().iter().any(level),
            Some(pre) => level(pre),
            None => false,
        }
    }

    fn is_special(&self, token: &str) -> bool {
        self.tokenizer.get_added_vocabulary().is_special_token(token)
    }

    /// One more than the greatest token number. Numbers may have gaps, so that counting the tokens would be too few.
    pub(super) fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab(true).values().max().map_or(0, |&token| token as usize + 1)
    }
}

/// The byte of a token `<0x0A>`, as vocabularies spell bytes that are no character of theirs.
fn byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>').filter(|digits| digits.len() == 2)?;
    u8::from_str_radix(digits, 16).ok()
}

fn unreadable(e: &dyn fmt::Display) -> Error {
    Error::input(format!("the text cannot be tokenized: {e}"))
}
