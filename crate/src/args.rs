//! The flags of every command. A flag that is given wins over the config file, the file over the defaults.

use clap::{ArgMatches, Args as Flags, CommandFactory, FromArgMatches, Parser, Subcommand};
use lowbit::family::group::Kind;
use lowbit::measure::{Instrument, with_defaults};
use lowbit::model::sampling::Sampling;
use lowbit::prune::Importance;
use lowbit::train;
use serde_json::json;
use std::path::PathBuf;

/// How commands end.
const ENDS: &str = "\
Exit codes: 0 done · 1 a check found differences, or a bug · 2 something given cannot be used · 3 the system refused · \
130 interrupted. A reader that stops reading (head, a pager) is no error: figures and records are made all the same.";

/// A research lab for low-bit sequence models: load, measure, record, plot.
#[derive(Parser)]
#[command(version, propagate_version = true, arg_required_else_help = true, after_long_help = ENDS)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
    /// No progress bars.
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

/// What was asked for.
pub struct Asked {
    pub command: Asking,
    pub quiet: bool,
}

/// A command: of a measurement, or any other.
pub enum Asking {
    Measuring(Box<Measuring>),
    Other(Box<Command>),
}

impl Asked {
    /// The flags that the program was started with.
    pub fn given() -> Result<Self, clap::Error> {
        let matches = command().try_get_matches()?;
        let measuring = matches.subcommand().and_then(|(name, flags)| {
            let measure = Instrument::all().into_iter().find(|measure| measure.command() == name)?;
            Some((measure, flags))
        });
        let Some((measure, flags)) = measuring else {
            let Args { command, quiet } = Args::from_arg_matches(&matches)?;
            return Ok(Self { command: Asking::Other(Box::new(command)), quiet });
        };
        let measuring = Measuring {
            source: Source::from_arg_matches(flags)?,
            recording: Recording::from_arg_matches(flags)?,
            measure,
            flags: flags.clone(),
        };
        Ok(Self { command: Asking::Measuring(Box::new(measuring)), quiet: flags.get_flag("quiet") })
    }
}

/// The command line: `reproduce`, a command for each measurement, the others.
fn command() -> clap::Command {
    let measures = Instrument::all();
    let mut places = std::iter::once(0).chain(measures.len() + 1..);
    let others =
        Args::command().mut_subcommands(|command| command.display_order(places.next().unwrap_or(usize::MAX)));
    let measures = measures.iter().enumerate().map(|(i, measure)| {
        let flags = Recording::augment_args(Source::augment_args(clap::Command::new(measure.command())));
        measure.flags(flags).display_order(1 + i)
    });
    let defaults = json!(train::Training::default());
    others.subcommands(measures).mut_subcommand("train", |command| with_defaults(command, &defaults))
}

#[derive(Subcommand)]
pub enum Command {
    /// Measure whole studies, each into one run, with figures; or check that a recorded run still says the same.
    ///
    /// glance is the one to begin with: a minute. phase1 is all studies of quality, one after the other: its own grid from full
    /// precision to ternary, then first-look, staged, drift, outliers, recall, context, sensitivity, mixed. An interrupted run
    /// goes on where it stopped when the same command is given again.
    Reproduce(Reproduce),
    /// Quantize a model and save it, packed; tells what became of each matrix.
    Quantize {
        #[command(flatten)]
        model: Source,
        /// The folder to write.
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
    },
    /// Leave whole experts, channels and heads of a model out, and save the smaller model that is left.
    Prune {
        #[command(flatten)]
        model: Source,
        /// The folder to write.
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
        /// Share of the parameters that is left, at most.
        #[arg(long, value_name = "SHARE", default_value_t = 0.6)]
        keep: f64,
        /// By what parts are judged: magnitude, use, gradient or loss.
        #[arg(long, default_value_t = Importance::Gradient)]
        by: Importance,
        /// Kinds of parts that may be left out: expert, channel, inner, head [default: all that the family has].
        #[arg(long, value_delimiter = ',')]
        kinds: Vec<Kind>,
        /// Channels are left in multiples of this.
        #[arg(long, value_name = "COUNT", default_value_t = 8)]
        multiple: usize,
    },
    /// Write a model as one compressed file, as small as it gets; tells its exact bytes and the entropy of its codes.
    Pack {
        #[command(flatten)]
        model: Source,
        /// The file to write, whose name ends in .lowbit.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Bytes that the file may take: widths, clips and floors near the scheme are tried, and the best on the calibration text
        /// is taken.
        #[arg(long, value_name = "BYTES")]
        budget: Option<u64>,
        /// Bytes that the budget holds beside the file, such as those of a contest's code.
        #[arg(long, value_name = "BYTES", default_value_t = 0)]
        beside: u64,
    },
    /// Continue a text, as it is said; greedily if nothing else is asked for.
    #[command(allow_missing_positional = true)]
    Generate {
        #[command(flatten)]
        model: Source,
        /// The text to continue; `-`: what is read from standard input.
        prompt: String,
        #[command(flatten)]
        sampling: Sampling,
    },
    /// Common schemes, and the parts of which a scheme's name is made.
    Schemes,
    /// Train a model; the same command resumes it.
    Train(Train),
    /// Train one model with and without its parts, several seeds each, into one run; the same command resumes it.
    Ablate {
        /// Settings in YAML: a training, its variants, seeds.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The folder for the trainings' own folders.
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
        /// Folder of the runs [default: runs, or $LOWBIT_RUNS].
        #[arg(long, value_name = "FOLDER")]
        runs: Option<PathBuf>,
        /// Threads of the kernels [default: all processors].
        #[arg(long)]
        threads: Option<usize>,
    },
    /// Train a tokenizer on a corpus: byte-pair encoding over bytes.
    Tokenizer {
        /// A text file, a JSONL file, or a folder of texts or of splits.
        #[arg(long, value_name = "PATH", default_value = "data/corpus")]
        corpus: PathBuf,
        /// The split of a folder of splits; the default holds for the default corpus.
        #[arg(long)]
        split: Option<String>,
        /// Tokens, the 256 bytes among them.
        #[arg(long, default_value_t = 1024)]
        pieces: usize,
        /// The tokenizer.json to write.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Redraw the figures of a run, or of a training folder, from its records.
    Plots {
        /// A run's folder or id, or a training folder.
        run: String,
    },
    /// The schemes of a run beside a baseline: differences with intervals, and whether they are more than chance.
    Compare {
        /// Runs: folders, ids or names. Readings of several are taken together.
        #[arg(required = true)]
        runs: Vec<String>,
        /// The scheme to compare with [default: the first that was recorded].
        #[arg(long, value_name = "SCHEME")]
        baseline: Option<String>,
    },
    /// A run or a notebook as one HTML file that opens anywhere: claim, figures, tables, settings, provenance.
    Report {
        /// A run's folder, id or name, or a notebook.
        what: PathBuf,
        /// The file to write, `-` for standard output [default: in the run's folder or beside the notebook, named after it].
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// What a model is: family, sizes, bytes, hash, tensors left over.
    Info {
        #[command(flatten)]
        model: Source,
        /// Also list every linear with its shape.
        #[arg(long)]
        linears: bool,
    },
    /// Save a model in the Hugging Face layout, in another dtype if asked.
    Convert {
        #[command(flatten)]
        model: Source,
        /// The folder to write.
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
        /// Longest sequence of the training, to be noted in the checkpoint.
        #[arg(long, value_name = "TOKENS")]
        training_length: Option<usize>,
    },
}

/// Which model, and how it is loaded.
#[derive(Clone, Flags)]
pub struct Source {
    /// A folder, a .safetensors/.bin/.pt/.gguf file, a hub id such as state-spaces/mamba2-130m, or random:mamba2-130m.
    #[arg(default_value = "data/models/bard")]
    pub model: String,
    /// Storage of the matrices: f32, bf16 or f16 [default: the checkpoint's].
    #[arg(long)]
    pub dtype: Option<String>,
    /// cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Hub revision: branch, tag or commit.
    #[arg(long)]
    pub revision: Option<String>,
    /// How text is read: bytes, or the path of a tokenizer.json or of its folder [default: the one beside the weights].
    #[arg(long, value_name = "bytes|PATH")]
    pub tokenizer: Option<String>,
    /// Quantize it: w8a8, w4a8-g64-gptq, …; `lowbit schemes` explains the names.
    #[arg(long)]
    pub scheme: Option<String>,
    /// Text for schemes that need one [default: the train split of data/corpus].
    #[arg(long, value_name = "PATH")]
    pub calibration: Option<PathBuf>,
    /// Windows of that text that are read [default: 128].
    #[arg(long, value_name = "COUNT")]
    pub calibration_samples: Option<usize>,
    /// Tokens of such a window [default: 512].
    #[arg(long, value_name = "TOKENS")]
    pub calibration_length: Option<usize>,
    /// Gradients of rows that a training left (rows.safetensors), for schemes with rowsftle or rowsgrad.
    #[arg(long, value_name = "FILE")]
    pub row_gradients: Option<PathBuf>,
    /// Compute with what the codes stand for, in f32, instead of the codes.
    #[arg(long)]
    pub simulate: bool,
}

/// One measurement of one model.
pub struct Measuring {
    pub source: Source,
    pub recording: Recording,
    /// The measurement with the settings that it has by default.
    pub measure: Instrument,
    /// What was given, its settings among them.
    pub flags: ArgMatches,
}

/// Where settings come from and readings go.
#[derive(Flags)]
pub struct Recording {
    /// Settings in YAML; flags win over it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder of the runs [default: runs, or $LOWBIT_RUNS].
    #[arg(long, value_name = "FOLDER")]
    pub runs: Option<PathBuf>,
    /// Threads of the kernels [default: all processors].
    #[arg(long)]
    pub threads: Option<usize>,
    /// Free text that goes into every reading.
    #[arg(long, value_name = "TEXT")]
    pub notes: Option<String>,
}

#[derive(Flags)]
pub struct Reproduce {
    /// The study. A --config file holds a study of your own, and this names the one it stands in for.
    #[arg(value_parser = lowbit::Study::NAMES, required_unless_present = "check")]
    pub study: Option<String>,
    /// Measure a recorded run again and compare: a folder, an id or a name; without one, the newest runs of the study. Exit
    /// code 1 if values differ by more than their tolerances.
    #[arg(long, value_name = "RUN", num_args = 0..=1)]
    pub check: Option<Option<PathBuf>>,
    /// Another model than the study's: a folder, a file, a hub id or random:SHAPE.
    #[arg(long)]
    pub model: Option<String>,
    /// How text is read: bytes, or the path of a tokenizer.json or of its folder [default: the one beside the weights].
    #[arg(long, value_name = "bytes|PATH")]
    pub tokenizer: Option<String>,
    /// Other schemes than the study's.
    #[arg(long, value_delimiter = ',')]
    pub schemes: Option<Vec<String>>,
    /// Fewer lengths, prompts and tokens: a check that everything works, in under a minute.
    #[arg(long)]
    pub small: bool,
    #[command(flatten)]
    pub recording: Recording,
}

#[derive(Flags)]
pub struct Train {
    /// The folder of the run: settings, log, checkpoint and, at the end, the model.
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// Settings in YAML; flags win over it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A model to start from: its weights, and its sizes in the place of the settings' own.
    #[arg(long, value_name = "MODEL")]
    pub start: Option<String>,
    /// Threads of the kernels [default: all processors].
    #[arg(long)]
    pub threads: Option<usize>,
    /// Folder with the splits train and valid.
    #[arg(long, value_name = "FOLDER")]
    pub corpus: Option<PathBuf>,
    /// Updates in all.
    #[arg(long)]
    pub steps: Option<u64>,
    /// Seed of weights and batches.
    #[arg(long)]
    pub seed: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_measurement_is_a_command() {
        let mut command = command();
        let help = command.render_help().to_string();
        // Commands are indented by two blanks, what their descriptions go on with by more.
        let lines = help.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
        let lines: Vec<&str> = lines.filter_map(|line| line.split_whitespace().next()).collect();
        let place = |name: &str| lines.iter().position(|first| *first == name);
        let measures = Instrument::all();
        let places: Vec<_> = measures.iter().map(|measure| place(measure.command()).unwrap()).collect();
        assert!(places.is_sorted() && place("reproduce").unwrap() < places[0], "{help}");
        assert!(place("quantize").unwrap() > places[places.len() - 1], "{help}");
        for measure in measures {
            let own = command.find_subcommand(measure.command()).unwrap();
            assert_ne!(own.get_about(), command.find_subcommand("info").unwrap().get_about());
        }
    }

    #[test]
    fn help_tells_the_defaults() {
        let mut command = command();
        command.clone().debug_assert();
        let mut help = |name: &str| command.find_subcommand_mut(name).unwrap().render_long_help().to_string();
        let default = lowbit::Passkey::default();
        let (passkey, ppl) = (help("passkey"), help("ppl"));
        let lengths = default.lengths.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        for value in [lengths, default.trials.to_string(), default.seed.to_string()] {
            assert!(passkey.contains(&format!("[default: {value}]")), "{value}: {passkey}");
        }
        assert!(ppl.contains("[default: data/corpus]") && ppl.contains("[default: test]"), "{ppl}");
    }
}
