//! The flags of each measurement: fields of its settings, by their names. Those that are given take the place of what is
//! set.

use clap::Args as Flags;
use lowbit::error::{Error, Result};
use lowbit::quantize::probe::Grain;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::path::PathBuf;

/// `settings` with the flags that are given in their place.
///
/// # Errors
/// A path is not Unicode or a number not finite, which records could not hold.
pub fn over<S: Serialize + DeserializeOwned>(settings: &S, flags: &impl Serialize) -> Result<S> {
    let unfit = |error: serde_json::Error| Error::input(format!("settings that cannot be recorded: {error}"));
    finite(settings)?;
    finite(flags)?;
    let mut all = serde_json::to_value(settings).map_err(unfit)?;
    let given = serde_json::to_value(flags).map_err(unfit)?;
    // A default split belongs to the default corpus, a default stride to the default length.
    if let (false, Some(split)) = (given["corpus"].is_null(), all.get_mut("split")) {
        *split = Value::Null;
    }
    if let (Some(length), Some(stride)) = (given["seq_len"].as_u64(), all.get_mut("stride")) {
        *stride = json!(length.div_ceil(2));
    }
    for (name, value) in given.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
        all[name] = value.clone();
    }
    serde_json::from_value(all).map_err(unfit)
}

/// Refuses numbers that are not finite, which JSON would leave out without a word.
fn finite(settings: &impl Serialize) -> Result<()> {
    let yaml = serde_saphyr::to_string(settings)
        .map_err(|error| Error::input(format!("settings that cannot be recorded: {error}")))?;
    let mut fields = yaml.lines().filter_map(|line| line.trim_start().split_once(": "));
    match fields.find(|(_, value)| [".nan", ".inf", "-.inf"].contains(&value.trim())) {
        Some((name, value)) => {
            let value = value.trim().replace('.', "");
            Err(Error::input(format!("{name} must be a number, found {value}")))
        }
        None => Ok(()),
    }
}

/// Which text is read.
#[derive(Flags, Serialize)]
pub struct Text {
    /// A text file, a JSONL file, or a folder of texts or of splits.
    #[arg(long, value_name = "PATH")]
    corpus: Option<PathBuf>,
    /// The split of a folder of splits; the default holds for the default corpus.
    #[arg(long)]
    split: Option<String>,
}

/// Which text is read, in windows that know nothing of each other.
#[derive(Flags, Serialize)]
pub struct Pieces {
    #[command(flatten)]
    #[serde(flatten)]
    text: Text,
    /// Tokens of a window, each read from a state of zeros.
    #[arg(long)]
    seq_len: Option<usize>,
    /// Read only the first tokens.
    #[arg(long)]
    max_tokens: Option<usize>,
}

/// Which text is scored, and in which windows.
#[derive(Flags, Serialize)]
pub struct Windows {
    #[command(flatten)]
    #[serde(flatten)]
    text: Text,
    /// Most tokens that a prediction is conditioned on.
    #[arg(long)]
    seq_len: Option<usize>,
    /// Tokens that a window adds.
    #[arg(long)]
    stride: Option<usize>,
    /// Score only the first tokens.
    #[arg(long)]
    max_tokens: Option<usize>,
}

/// What a measurement compares with.
#[derive(Flags, Serialize)]
pub struct Against {
    /// The model to compare with: a folder, a file, a hub id or random:SHAPE [default: the model itself in f32].
    #[arg(long, value_name = "MODEL")]
    reference: Option<String>,
}

#[derive(Flags, Serialize)]
pub struct Divergence {
    #[command(flatten)]
    #[serde(flatten)]
    against: Against,
    #[command(flatten)]
    #[serde(flatten)]
    windows: Windows,
}

#[derive(Flags, Serialize)]
pub struct Sqnr {
    #[command(flatten)]
    #[serde(flatten)]
    against: Against,
    #[command(flatten)]
    #[serde(flatten)]
    pieces: Pieces,
}

#[derive(Flags, Serialize)]
pub struct Drift {
    #[command(flatten)]
    #[serde(flatten)]
    against: Against,
    #[command(flatten)]
    #[serde(flatten)]
    text: Text,
    /// Pieces of the text, each read from a state of zeros.
    #[arg(long)]
    samples: Option<usize>,
    /// Tokens of a piece.
    #[arg(long)]
    length: Option<usize>,
}

#[derive(Flags, Serialize)]
pub struct Outliers {
    #[command(flatten)]
    #[serde(flatten)]
    pieces: Pieces,
    /// Share of the channels that count as a token's largest.
    #[arg(long, allow_negative_numbers = true)]
    top_share: Option<f64>,
}

#[derive(Flags, Serialize)]
pub struct Stability {
    #[command(flatten)]
    #[serde(flatten)]
    against: Against,
    #[command(flatten)]
    #[serde(flatten)]
    text: Text,
    /// Prompt lengths in tokens.
    #[arg(long, value_delimiter = ',')]
    lengths: Option<Vec<usize>>,
    /// Prompts of each length.
    #[arg(long)]
    prompts: Option<usize>,
    /// Tokens generated after each.
    #[arg(long)]
    gen_len: Option<usize>,
}

/// It has none.
#[derive(Flags, Serialize)]
pub struct Making {}

#[derive(Flags, Serialize)]
pub struct Sensitivity {
    /// Schemes of which one part at a time is applied.
    #[arg(long, value_delimiter = ',')]
    schemes: Option<Vec<String>>,
    /// How finely the model is taken apart: layer, matrix or segment.
    #[arg(long)]
    grain: Option<Grain>,
    #[command(flatten)]
    #[serde(flatten)]
    pieces: Pieces,
}

#[derive(Flags, Serialize)]
pub struct Context {
    #[command(flatten)]
    #[serde(flatten)]
    against: Against,
    #[command(flatten)]
    #[serde(flatten)]
    text: Text,
    /// Tokens of the windows, rising powers of two.
    #[arg(long, value_delimiter = ',')]
    lengths: Option<Vec<usize>>,
    /// Read only the first tokens.
    #[arg(long)]
    max_tokens: Option<usize>,
}

#[derive(Flags, Serialize)]
pub struct Passkey {
    /// Prompt lengths in tokens.
    #[arg(long, value_delimiter = ',')]
    lengths: Option<Vec<usize>>,
    /// Prompts of each length.
    #[arg(long)]
    trials: Option<usize>,
    /// Depths of the key, taken in turn.
    #[arg(long)]
    depths: Option<usize>,
    /// Digits of a key.
    #[arg(long)]
    digits: Option<usize>,
    /// Seed of the keys.
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(Flags, Serialize)]
pub struct Cost {
    /// Prompt lengths in tokens.
    #[arg(long, value_delimiter = ',')]
    lengths: Option<Vec<usize>>,
    /// Tokens decoded in a repetition.
    #[arg(long)]
    gen_len: Option<usize>,
    /// Timed repetitions.
    #[arg(long)]
    repetitions: Option<usize>,
    /// Seed of the prompts.
    #[arg(long)]
    seed: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use lowbit::measure::perplexity::Perplexity;

    fn given(text: Text, seq_len: Option<usize>, stride: Option<usize>) -> Perplexity {
        over(&Perplexity::default(), &Windows { text, seq_len, stride, max_tokens: None }).unwrap()
    }

    #[test]
    fn what_is_not_given_stays_unless_it_belongs_to_what_is() {
        let text = |corpus: Option<&str>, split: Option<&str>| Text {
            corpus: corpus.map(PathBuf::from),
            split: split.map(str::to_string),
        };
        let default = Perplexity::default();
        assert_eq!(given(text(None, None), None, None), default);
        let other = given(text(Some("x"), None), Some(101), None);
        assert_eq!((other.corpus, other.split), (PathBuf::from("x"), None));
        assert_eq!((other.seq_len, other.stride, other.max_tokens), (101, 51, default.max_tokens));
        let both = given(text(Some("x"), Some("valid")), Some(101), Some(7));
        assert_eq!((both.split.as_deref(), both.stride), (Some("valid"), 7));
    }
}
