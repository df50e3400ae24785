//! The tokenizer inside a file, written as the `tokenizer.json` that does the same.
//!
//! The text is put together here, letter for letter, and not by the tokenizers library: its SHA-256 is the tokenizer's in
//! every record.

use super::super::tokenizer::{Pieces, Tokenizer};
use super::metadata::{Metadata, Value, required};
use super::scores;
use crate::error::{Error, Result};
use crate::json;
use serde_json::json;
use std::collections::BTreeMap;

/// What a file says of its tokenizer.
pub(in super::super) struct Tokens {
    metadata: Metadata,
    /// The file's name.
    name: String,
}

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    /// It stands for what has no token, or for something other than text; it is found in a text before anything else.
    Special,
    /// As it is written, it is found in a text before anything else.
    UserDefined,
    /// It is never made.
    Unused,
    /// A byte, as `<0x0A>`.
    Byte,
}

/// How all keys of a tokenizer begin.
const PREFIX: &str = "tokenizer.";

fn key(name: &str) -> String {
    format!("{PREFIX}ggml.{name}")
}

impl Tokens {
    /// What these settings of a file called `name` say, if they are of a tokenizer at all.
    pub(super) fn of(mut metadata: Metadata, name: &str) -> Option<Self> {
        metadata.0.retain(|key, _| key.starts_with(PREFIX));
        match metadata.0.get(&key("model")) {
            None => None,
            Some(Value::Text(model)) if model == "none" || model == "no_vocab" => None,
            Some(_) => Some(Self { metadata, name: name.to_string() }),
        }
    }

    /// The tokenizer, and what of it is assumed.
    ///
    /// # Errors
    /// It is of a kind that is not known, or damaged.
    pub fn tokenizer(&self) -> Result<(Tokenizer, Option<String>)> {
        let vocabulary = Vocabulary::read(&self.metadata)?;
        let (parts, told) = match required(self.metadata.text(&key("model"))?, &key("model"))? {
            "gpt2" => (self.bytes(&vocabulary)?, None),
            "llama" => self.pieces(&vocabulary)?,
            other => {
                return Err(Error::input(format!("tokenizers of the kind {other:?} are not read"))
                    .at(key("model"))
                    .hint("known are gpt2 and llama; name a tokenizer.json with --tokenizer"));
            }
        };
        let file = vocabulary.file(&parts, &self.template(&vocabulary)?);
        let config = self.config(&vocabulary)?;
        let pieces = Pieces::part(&self.name, &file, &config)
            .map_err(|e| Error::input(e).at(key("tokens")).hint("name a tokenizer.json with --tokenizer"))?;
        Ok((Tokenizer::Pieces(Box::new(pieces)), told))
    }

    /// Byte-level BPE.
    fn bytes(&self, vocabulary: &Vocabulary) -> Result<Parts> {
        let level = r#"{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}"#;
        let pre_tokenizer = match required(self.metadata.text(&key("pre"))?, &key("pre"))? {
            "gpt-2" => level.to_string(),
            // Every character that Unicode calls a number by itself, then the pattern of GPT-2 on the rest.
            "smollm" => format!(
                r#"{{"type":"Sequence","pretokenizers":[{{"type":"Digits","individual_digits":true}},{level}]}}"#
            ),
            other => {
                return Err(Error::input(format!("texts are split by {other:?}, which is not known here"))
                    .at(key("pre"))
                    .hint("known are gpt-2 and smollm; name the model's tokenizer.json with --tokenizer"));
            }
        };
        let mut merges = vec![];
        for merge in required(self.metadata.texts(&key("merges"))?, &key("merges"))? {
            let unfit = |what: &str| {
                Error::input(format!("the merge {merge:?} {what}"))
                    .at(key("merges"))
                    .hint("convert the model again")
            };
            let (left, right) = merge.split_once(' ').ok_or_else(|| unfit("is not of two tokens"))?;
            let joined = format!("{left}{right}");
            if [left, right, &joined].iter().any(|token| !vocabulary.ids.contains_key(token)) {
                return Err(unfit("has or makes something that is no token"));
            }
            merges.push((left, right));
        }
        Ok(Parts {
            normalizer: "null".to_string(),
            pre_tokenizer,
            decoder: level.to_string(),
            unknown: "null".to_string(),
            byte_fallback: false,
            merges: quoted_pairs(&merges),
        })
    }

    /// SentencePiece's BPE.
    fn pieces(&self, vocabulary: &Vocabulary) -> Result<(Parts, Option<String>)> {
        if let Some(pre) = self.metadata.text(&key("pre"))?.filter(|pre| *pre != "default") {
            return Err(Error::input(format!("texts are split by {pre:?}, which is not known here"))
                .at(key("pre"))
                .hint("known for the kind llama is default"));
        }
        let scores = required(self.metadata.numbers(&key("scores"))?, &key("scores"))?;
        if scores.len() != vocabulary.tokens.len() || scores.iter().any(|score| score.is_nan()) {
            let (found, all) = (scores.len(), vocabulary.tokens.len());
            return Err(Error::input(format!("expected the scores of {all} tokens, found {found} numbers"))
                .at(key("scores")));
        }
        // Such tokens are found in the text as it is, in which blanks are blanks yet; converters write them so.
        let marked = |id: &usize| vocabulary.tokens[*id].contains('\u{2581}');
        if let Some(id) = vocabulary.of(Kind::UserDefined).find(marked) {
            let token = &vocabulary.tokens[id];
            let what =
                format!("the token {token:?} of the user is to be found before blanks become ▁, and has one");
            return Err(Error::input(what)
                .at(key("tokens"))
                .hint("name the model's tokenizer.json with --tokenizer"));
        }
        let (merges, told) = scores::merges(vocabulary.tokens, &vocabulary.kinds, scores, &vocabulary.ids)?;
        let blanks = r#"{"type":"Replace","pattern":{"String":" "},"content":"▁"}"#;
        let (mut normalizers, mut decoders) = (
            vec![blanks],
            vec![
                r#"{"type":"Replace","pattern":{"String":"▁"},"content":" "}"#,
                r#"{"type":"ByteFallback"}"#,
                r#"{"type":"Fuse"}"#,
            ],
        );
        if self.metadata.flag(&key("add_space_prefix"))?.unwrap_or(true) {
            normalizers.insert(0, r#"{"type":"Prepend","prepend":"▁"}"#);
            decoders.push(r#"{"type":"Strip","content":" ","start":1,"stop":0}"#);
        }
        let unknown =
            self.special(vocabulary, "unknown")?.map_or("null".to_string(), |id| vocabulary.quoted(id));
        let parts = Parts {
            normalizer: format!(r#"{{"type":"Sequence","normalizers":[{}]}}"#, normalizers.join(",")),
            pre_tokenizer: "null".to_string(),
            decoder: format!(r#"{{"type":"Sequence","decoders":[{}]}}"#, decoders.join(",")),
            unknown,
            byte_fallback: true,
            merges: quoted_pairs(&merges),
        };
        Ok((parts, told))
    }

    /// The number of a special token such as `bos`, if the file tells it; files of the kind llama need not tell the three
    /// that SentencePiece has first.
    fn special(&self, vocabulary: &Vocabulary, name: &str) -> Result<Option<usize>> {
        let key = key(&format!("{name}_token_id"));
        let usual = ["unknown", "bos", "eos"].iter().position(|own| *own == name);
        let usual = usual.filter(|id| *id < vocabulary.tokens.len());
        let usual = if self.is_llama()? { usual } else { None };
        match self.metadata.count(&key)?.or(usual) {
            Some(id) if id >= vocabulary.tokens.len() => {
                let all = vocabulary.tokens.len();
                Err(Error::input(format!("there is no token {id} in a vocabulary of {all}")).at(key))
            }
            id => Ok(id),
        }
    }

    fn is_llama(&self) -> Result<bool> {
        Ok(self.metadata.text(&key("model"))? == Some("llama"))
    }

    /// Whether a token stands before and one after every text; files of the kind llama need not say the first.
    fn around(&self) -> Result<[bool; 2]> {
        let flag = |name: &str| self.metadata.flag(&key(name));
        Ok([flag("add_bos_token")?.unwrap_or(self.is_llama()?), flag("add_eos_token")?.unwrap_or(false)])
    }

    /// What puts tokens around a text, for other readers.
    fn template(&self, vocabulary: &Vocabulary) -> Result<String> {
        let [before, after] = self.around()?;
        let id = |wanted: bool, name: &str| match wanted {
            true => self.special(vocabulary, name),
            false => Ok(None),
        };
        let (before, after) = (id(before, "bos")?, id(after, "eos")?);
        if before.is_none() && after.is_none() {
            return Ok("null".to_string());
        }
        let token =
            |id: &usize| format!(r#"{{"SpecialToken":{{"id":{},"type_id":0}}}}"#, vocabulary.quoted(*id));
        let text = |name: &str| format!(r#"{{"Sequence":{{"id":"{name}","type_id":0}}}}"#);
        let one = |name: &str| {
            let parts = before.iter().map(token).chain([text(name)]).chain(after.iter().map(token));
            parts.collect::<Vec<_>>().join(",")
        };
        let mut ids: Vec<usize> = before.into_iter().chain(after).collect();
        ids.dedup();
        let named = ids.iter().map(|id| {
            let name = vocabulary.quoted(*id);
            format!(r#"{name}:{{"id":{name},"ids":[{id}],"tokens":[{name}]}}"#)
        });
        Ok(format!(
            r#"{{"type":"TemplateProcessing","single":[{}],"pair":[{},{}],"special_tokens":{{{}}}}}"#,
            one("A"),
            one("A"),
            one("B"),
            named.collect::<Vec<_>>().join(",")
        ))
    }

    /// The `tokenizer_config.json` by which other readers take the tokenizer as it is.
    fn config(&self, vocabulary: &Vocabulary) -> Result<String> {
        let [bos, eos] = self.around()?;
        let mut config = json!({"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": bos, "add_eos_token": eos,
            "clean_up_tokenization_spaces": false});
        for (own, name) in [("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")] {
            if let Some(id) = self.special(vocabulary, own)? {
                config[format!("{name}_token")] = vocabulary.tokens[id].as_str().into();
            }
        }
        if let Some(template) = self.metadata.text(&format!("{PREFIX}chat_template"))? {
            config["chat_template"] = template.into();
        }
        Ok(json::text(&config))
    }
}

/// All tokens with what they are.
struct Vocabulary<'a> {
    tokens: &'a [String],
    kinds: Vec<Kind>,
    ids: BTreeMap<&'a str, usize>,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &'a Metadata) -> Result<Self> {
        let tokens = required(metadata.texts(&key("tokens"))?, &key("tokens"))?;
        let kinds = match metadata.integers(&key("token_type"))? {
            Some(numbers) if numbers.len() != tokens.len() => {
                let (all, found) = (tokens.len(), numbers.len());
                return Err(Error::input(format!("expected the types of {all} tokens, found {found}"))
                    .at(key("token_type")));
            }
            Some(numbers) => numbers.iter().map(|number| kind(*number)).collect::<Result<_>>()?,
            None => vec![Kind::Normal; tokens.len()],
        };
        let mut ids = BTreeMap::new();
        for (id, token) in tokens.iter().enumerate() {
            if let Some(other) = ids.insert(token.as_str(), id) {
                return Err(
                    Error::input(format!("{token:?} is token {other} and token {id}")).at(key("tokens"))
                );
            }
        }
        Ok(Self { tokens, kinds, ids })
    }

    /// The numbers of all tokens of a kind.
    fn of(&self, kind: Kind) -> impl Iterator<Item = usize> {
        self.kinds.iter().enumerate().filter(move |(_, own)| **own == kind).map(|(id, _)| id)
    }

    fn quoted(&self, id: usize) -> String {
        quoted(&self.tokens[id])
    }

    /// The text of a `tokenizer.json`.
    fn file(&self, parts: &Parts, template: &str) -> String {
        let added = (0..self.tokens.len()).filter_map(|id| {
            let special = match self.kinds[id] {
                Kind::Special => true,
                Kind::UserDefined => false,
                _ => return None,
            };
            let token = self.quoted(id);
            Some(format!(
                r#"{{"id":{id},"content":{token},"single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":{special}}}"#
            ))
        });
        let added: Vec<String> = added.collect();
        let vocabulary: Vec<String> =
            (0..self.tokens.len()).map(|id| format!("{}:{id}", self.quoted(id))).collect();
        let Parts { normalizer, pre_tokenizer, decoder, unknown, byte_fallback: fallback, merges } = parts;
        format!(
            r#"{{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{}],"normalizer":{normalizer},"pre_tokenizer":{pre_tokenizer},"post_processor":{template},"decoder":{decoder},"model":{{"type":"BPE","dropout":null,"unk_token":{unknown},"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":{fallback},"byte_fallback":{fallback},"ignore_merges":false,"vocab":{{{}}},"merges":[{merges}]}}}}"#,
            added.join(","),
            vocabulary.join(",")
        )
    }
}

/// The parts of a `tokenizer.json` in which kinds differ.
struct Parts {
    normalizer: String,
    pre_tokenizer: String,
    decoder: String,
    unknown: String,
    byte_fallback: bool,
    merges: String,
}

fn kind(number: i64) -> Result<Kind> {
    Ok(match number {
        0 | 1 => Kind::Normal,
        2 | 3 => Kind::Special,
        4 => Kind::UserDefined,
        5 => Kind::Unused,
        6 => Kind::Byte,
        _ => return Err(Error::input(format!("no token is of type {number}")).at(key("token_type"))),
    })
}

fn quoted(text: &str) -> String {
    json!(text).to_string()
}

fn quoted_pairs(pairs: &[(&str, &str)]) -> String {
    let pairs: Vec<String> =
        pairs.iter().map(|(left, right)| format!("[{},{}]", quoted(left), quoted(right))).collect();
    pairs.join(",")
}
