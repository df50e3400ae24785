//! The settings of a file by name, each asked for as what it should be.

use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// What a setting is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Integer(i128),
    Number(f64),
    Flag(bool),
    Text(String),
    Texts(Vec<String>),
    Integers(Vec<i64>),
    Numbers(Vec<f32>),
    /// What nobody asks for, in words.
    Other(&'static str),
}

/// All settings.
#[derive(Debug, Default)]
pub(super) struct Metadata(pub BTreeMap<String, Value>);

impl Metadata {
    /// The setting of this name as `take` takes it; none if it is not there.
    fn get<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        take: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.0.get(key) else { return Ok(None) };
        let what = || Error::input(format!("expected {expected}, found {}", in_words(value))).at(key);
        take(value).map(Some).ok_or_else(what)
    }

    pub fn count(&self, key: &str) -> Result<Option<usize>> {
        self.get(key, "a count", |value| match value {
            Value::Integer(n) => u32::try_from(*n).ok().map(|n| n as usize),
            _ => None,
        })
    }

    /// A finite number; whole ones are numbers too.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key, "a number", |value| match value {
            Value::Number(x) => Some(*x).filter(|x| x.is_finite()),
            Value::Integer(n) => Some(*n as f64),
            _ => None,
        })
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.get(key, "true or false", |value| match value {
            Value::Flag(flag) => Some(*flag),
            _ => None,
        })
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.get(key, "text", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    pub fn texts(&self, key: &str) -> Result<Option<&[String]>> {
        self.get(key, "texts", |value| match value {
            Value::Texts(texts) => Some(texts.as_slice()),
            _ => None,
        })
    }

    pub fn integers(&self, key: &str) -> Result<Option<&[i64]>> {
        self.get(key, "whole numbers", |value| match value {
            Value::Integers(numbers) => Some(numbers.as_slice()),
            _ => None,
        })
    }

    pub fn numbers(&self, key: &str) -> Result<Option<&[f32]>> {
        self.get(key, "numbers", |value| match value {
            Value::Numbers(numbers) => Some(numbers.as_slice()),
            _ => None,
        })
    }

    /// The names that begin so, without that beginning.
    pub fn names<'a>(&'a self, beginning: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.keys().filter_map(move |key| key.strip_prefix(beginning))
    }
}

/// What must be there.
pub(super) fn required<T>(value: Option<T>, key: &str) -> Result<T> {
    value.ok_or_else(|| {
        Error::input("this setting is missing")
            .at(key)
            .hint("convert the model again with a recent converter")
    })
}

fn in_words(value: &Value) -> String {
    match value {
        Value::Integer(n) => n.to_string(),
        Value::Number(x) => x.to_string(),
        Value::Flag(flag) => flag.to_string(),
        Value::Text(text) => format!("{:?}", text.chars().take(40).collect::<String>()),
        Value::Texts(texts) => format!("{} texts", texts.len()),
        Value::Integers(numbers) => format!("{} whole numbers", numbers.len()),
        Value::Numbers(numbers) => format!("{} numbers", numbers.len()),
        Value::Other(what) => what.to_string(),
    }
}
