//! Settings in YAML files, with errors that point at the line.

use crate::error::{Error, Result};
use serde::de::DeserializeOwned;
use std::path::Path;

/// Reads settings from a YAML file; what it leaves out keeps its default.
///
/// # Errors
/// The file cannot be read, is not YAML, or holds an unknown key or an unfit value: the sentence gives line and column.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, &e))?;
    parse(&text).map_err(|e| e.at(path.display()))
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T> {
    serde_saphyr::from_str(text).map_err(|e| {
        // The library would print the lines around the mistake, and the position at the end.
        let message = e.without_snippet().to_string();
        let message = message.lines().next().unwrap_or("not YAML");
        let what = message.rsplit_once(" at line ").map_or(message, |(what, _)| what);
        let error = Error::input(what);
        match e.location() {
            Some(place) => error.at(format!("line {}, column {}", place.line(), place.column())),
            None => error,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Sweep {
        trials: usize,
        inner: Inner,
    }

    impl Default for Sweep {
        fn default() -> Self {
            Self { trials: 3, inner: Inner::default() }
        }
    }

    #[derive(Debug, Default, serde::Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Inner {
        depth: f64,
    }

    #[test]
    fn what_is_left_out_keeps_its_default() {
        let sweep: Sweep = parse("inner:\n  depth: 0.5\n").unwrap();
        assert_eq!((sweep.trials, sweep.inner.depth), (3, 0.5));
    }

    #[test]
    fn a_mistake_is_one_sentence_with_its_line() {
        for (text, sentence) in [
            (
                "trials: 4\ninner:\n  detph: 1\n",
                "line 3, column 3: unknown field `detph`, expected one of depth",
            ),
            ("inner: {depth: 1}\ntrails: 4\n", "line 2, column 1: unknown field `trails`"),
            ("trials: four\n", "line 1, column 9: invalid u64"),
            ("trials: [4\n", "line 1, column 9: "),
        ] {
            let error = parse::<Sweep>(text).unwrap_err().to_string();
            assert!(error.starts_with(sentence) && error.lines().count() == 1, "{text}: {error}");
        }
    }
}
