//! The registry: a measurement of any kind, as studies, the command line and reports hold it.
//!
//! One line in [`measure`](super) names a measurement; everything that needs a list of them goes through [`Instrument`].

use super::Measure;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::quantize::Scheme;
use crate::record::{Conditions, LEFT_OUT, Reading, Run, fingerprint};
use crate::settings;
use clap::{ArgMatches, Command};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::path::Path;

/// What the registry asks of a measurement beside measuring.
///
/// Its flags are the fields of its settings with their documentation, and what its command does is the documentation of the
/// settings themselves.
pub trait Listed: Measure + Clone + Default + DeserializeOwned + clap::Args {
    /// The command that measures it alone.
    const COMMAND: &'static str = Self::NAME;
    /// The tables that are shown of its records.
    const TABLES: &'static [Table];
    /// Whether it wants to be alone in memory with the model that it measures, without the one that this was made of.
    const ALONE: bool = false;

    /// The name and version of each kind of reading that it gives.
    fn gives(&self) -> Vec<(&'static str, u32)> {
        vec![(Self::NAME, Self::VERSION)]
    }

    /// Ends with the error that measuring a model in this scheme would end with, before it is quantized.
    ///
    /// # Errors
    /// If the measurement cannot be made of such a model.
    fn check_scheme(&self, _scheme: &Scheme) -> Result<()> {
        Ok(())
    }

    /// Tokens that measuring one model costs, about; see [`work`](super::work).
    fn work(&self, model: &Model) -> f64;

    /// Makes it one of few tokens, prompts and lengths: a check that everything works.
    fn small(&mut self);

    /// Takes note of the threads that the command line sets.
    fn threaded(&mut self, _threads: usize) {}
}

/// A table of a run's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Name of the measurement in records.
    pub measure: &'static str,
    /// The kind of rows that are shown.
    pub row: &'static str,
    /// Their columns.
    pub columns: &'static [&'static str],
}

impl Table {
    /// Of summaries.
    pub const fn of(measure: &'static str, columns: &'static [&'static str]) -> Self {
        Self { measure, row: crate::record::SUMMARY, columns }
    }
}

/// A listed measurement whose kind is not known at compile time.
pub trait Tool {
    /// As [`Measure::NAME`].
    fn name(&self) -> &'static str;
    /// As [`Listed::COMMAND`].
    fn command(&self) -> &'static str;
    /// As [`Listed::TABLES`].
    fn tables(&self) -> &'static [Table];
    /// As [`Listed::ALONE`].
    fn alone(&self) -> bool;
    /// As [`Listed::gives`].
    fn gives(&self) -> Vec<(&'static str, u32)>;
    /// As [`Listed::work`].
    fn work(&self, model: &Model) -> f64;
    /// As [`Listed::small`].
    fn small(&mut self);
    /// As [`Listed::threaded`].
    fn threaded(&mut self, threads: usize);
    /// As [`Listed::check_scheme`].
    ///
    /// # Errors
    /// If the measurement cannot be made of such a model.
    fn check_scheme(&self, scheme: &Scheme) -> Result<()>;
    /// As [`Measure::applies`].
    ///
    /// # Errors
    /// The reason why it does not.
    fn applies(&self, model: &Model) -> Result<(), String>;
    /// As [`Measure::check`].
    ///
    /// # Errors
    /// Those of the measurement.
    fn check(&self, model: &Model) -> Result<()>;
    /// As [`Measure::record`].
    ///
    /// # Errors
    /// Those of the measurement and of the run.
    fn record(&self, model: &Model, run: &Run) -> Result<()>;
    /// The readings that say that it was left out, and why: one of each kind that it gives.
    ///
    /// # Errors
    /// If the settings have no JSON form.
    fn left_out(&self, model: &Model, why: &str) -> Result<Vec<Reading>>;
    /// A command with a flag for each setting, whose help ends with its default, and with what the measurement does.
    fn flags(&self, command: Command) -> Command;
    /// Puts the settings of a YAML file in the place of these; what it leaves out is as by default.
    ///
    /// # Errors
    /// Those of [`settings::read`].
    fn read(&mut self, path: &Path) -> Result<()>;
    /// Puts the flags that are given in the place of what is set.
    ///
    /// # Errors
    /// A path is not Unicode or a number not finite, which records could not hold.
    fn set(&mut self, flags: &ArgMatches) -> Result<()>;
}

impl<M: Listed> Tool for M {
    fn name(&self) -> &'static str {
        M::NAME
    }

    fn command(&self) -> &'static str {
        M::COMMAND
    }

    fn tables(&self) -> &'static [Table] {
        M::TABLES
    }

    fn alone(&self) -> bool {
        M::ALONE
    }

    fn gives(&self) -> Vec<(&'static str, u32)> {
        Listed::gives(self)
    }

    fn work(&self, model: &Model) -> f64 {
        Listed::work(self, model)
    }

    fn small(&mut self) {
        Listed::small(self);
    }

    fn threaded(&mut self, threads: usize) {
        Listed::threaded(self, threads);
    }

    fn check_scheme(&self, scheme: &Scheme) -> Result<()> {
        Listed::check_scheme(self, scheme)
    }

    fn applies(&self, model: &Model) -> Result<(), String> {
        Measure::applies(self, model)
    }

    fn check(&self, model: &Model) -> Result<()> {
        Measure::check(self, model)
    }

    fn record(&self, model: &Model, run: &Run) -> Result<()> {
        Measure::record(self, model, run)
    }

    fn left_out(&self, model: &Model, why: &str) -> Result<Vec<Reading>> {
        let subject = super::subject(model);
        let reading = |(name, version): (&'static str, u32)| {
            let unit = fingerprint(name, version, self, &subject, &json!({"left out": why}))?;
            let mut reading = Reading::new(name, version, &subject, &Conditions::default())
                .row(LEFT_OUT)
                .fingerprint(&unit);
            reading.warn(&format!("{name} of {} is left out: {why}", subject.model));
            Ok(reading)
        };
        Listed::gives(self).into_iter().map(reading).collect()
    }

    fn flags(&self, command: Command) -> Command {
        with_defaults(M::augment_args_for_update(command), &json!(self))
    }

    fn read(&mut self, path: &Path) -> Result<()> {
        *self = settings::read(path)?;
        Ok(())
    }

    fn set(&mut self, flags: &ArgMatches) -> Result<()> {
        let given = |name: &str| flags.try_contains_id(name).unwrap_or(false);
        let mut all = recordable(self)?;
        // A default split belongs to the default corpus, a default stride to the default length.
        if let (true, Some(split)) = (given("corpus"), all.get_mut("split")) {
            *split = Value::Null;
        }
        if let (true, Some(stride)) = (given("seq_len"), all.get_mut("stride")) {
            *stride = json!(flags.get_one::<usize>("seq_len").map(|length| length.div_ceil(2)));
        }
        *self = serde_json::from_value(all).map_err(Error::internal)?;
        self.update_from_arg_matches(flags).map_err(Error::input)?;
        recordable(self).map(drop)
    }
}

/// The command with, at the end of each flag's help, the default of the setting of its name.
pub fn with_defaults(command: Command, defaults: &Value) -> Command {
    command.mut_args(|flag| match defaults.get(flag.get_id().as_str()).and_then(shown) {
        Some(default) => {
            let help = format!("{} [default: {default}]", flag.get_help().cloned().unwrap_or_default());
            flag.help(help)
        }
        None => flag,
    })
}

/// A default as a flag takes it; nothing where there is none.
fn shown(value: &Value) -> Option<String> {
    match value {
        Value::Null | Value::Object(_) => None,
        Value::String(text) => Some(text.clone()).filter(|text| !text.is_empty()),
        Value::Array(items) if items.is_empty() => None,
        Value::Array(items) => Some(items.iter().filter_map(shown).collect::<Vec<_>>().join(",")),
        other => Some(other.to_string()),
    }
}

/// Settings as JSON. Numbers that are not finite are refused: it would leave them out without a word.
fn recordable(settings: &impl Serialize) -> Result<Value> {
    let unfit =
        |error: &dyn std::fmt::Display| Error::input(format!("settings that cannot be recorded: {error}"));
    let yaml = serde_saphyr::to_string(settings).map_err(|error| unfit(&error))?;
    let mut fields = yaml.lines().filter_map(|line| line.trim_start().split_once(": "));
    if let Some((name, value)) = fields.find(|(_, value)| [".nan", ".inf", "-.inf"].contains(&value.trim())) {
        let value = value.trim().replace('.', "");
        return Err(Error::input(format!("{name} must be a number, found {value}")));
    }
    serde_json::to_value(settings).map_err(|error| unfit(&error))
}

/// Makes [`Instrument`] of the list of measurements: `Name(module::Settings)`, where the name in small letters is that of its
/// records.
macro_rules! instruments {
    ($($name:ident($module:ident::$settings:ident),)*) => {
        /// A measurement of any kind.
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum Instrument {
            $(
                #[doc = concat!("See [`", stringify!($settings), "`](", stringify!($module), "::", stringify!($settings), ").")]
                $name($module::$settings),
            )*
        }

        impl Instrument {
            /// Every measurement there is, with the settings that it has by default.
            pub fn all() -> Vec<Self> {
                vec![$(Self::$name(Default::default())),*]
            }
        }

        impl std::ops::Deref for Instrument {
            type Target = dyn Tool;

            fn deref(&self) -> &Self::Target {
                match self { $(Self::$name(measure) => measure,)* }
            }
        }

        impl std::ops::DerefMut for Instrument {
            fn deref_mut(&mut self) -> &mut Self::Target {
                match self { $(Self::$name(measure) => measure,)* }
            }
        }

        /// The settings of a measurement without its name, as the run of a single one keeps them.
        #[derive(Clone, Copy)]
        pub struct Settings<'a>(pub &'a Instrument);

        impl Serialize for Settings<'_> {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match self.0 { $(Instrument::$name(measure) => measure.serialize(serializer),)* }
            }
        }

        /// The settings of all measurements by name.
        pub mod every {
            $(pub use super::$module::$settings;)*
        }

        $(
            impl From<$module::$settings> for Instrument {
                fn from(measure: $module::$settings) -> Self {
                    Self::$name(measure)
                }
            }
        )*
    };
}

#[cfg(test)]
mod tests {
    use super::super::{Instrument, perplexity::Perplexity};
    use super::*;
    use std::collections::BTreeSet;
    use std::path::PathBuf;

    #[test]
    fn a_measurement_is_listed_under_its_name() {
        let all = Instrument::all();
        for measure in &all {
            let json = serde_json::to_value(measure).unwrap();
            assert!(json.get(measure.name()).is_some(), "{json}");
            assert!(measure.gives().iter().any(|(name, _)| *name == measure.name()));
            let tables: BTreeSet<_> = measure.tables().iter().map(|table| table.measure).collect();
            assert_eq!(tables, measure.gives().into_iter().map(|(name, _)| name).collect());
            // It says what it does, and each flag what it is.
            let command = measure.flags(Command::new(measure.command()));
            assert!(command.get_about().is_some(), "{}", measure.name());
            assert!(command.get_arguments().all(|flag| flag.get_help().is_some()), "{}", measure.name());
        }
        assert_eq!(all.iter().map(|measure| measure.command()).collect::<BTreeSet<_>>().len(), all.len());
    }

    #[test]
    fn what_is_not_given_stays_unless_it_belongs_to_what_is() {
        let given = |args: &[&str]| {
            let mut measure = Perplexity::default();
            let command = measure.flags(Command::new("ppl"));
            measure.set(&command.get_matches_from([&["ppl"], args].concat())).unwrap();
            measure
        };
        let default = Perplexity::default();
        assert_eq!(given(&[]), default);
        let other = given(&["--corpus", "x", "--seq-len", "101"]);
        assert_eq!((other.corpus, other.split), (PathBuf::from("x"), None));
        assert_eq!((other.seq_len, other.stride, other.max_tokens), (101, 51, default.max_tokens));
        let both = given(&["--corpus", "x", "--split", "valid", "--seq-len", "101", "--stride", "7"]);
        assert_eq!((both.split.as_deref(), both.stride), (Some("valid"), 7));
    }
}
