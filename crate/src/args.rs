//! The flags of every command. A flag that is given wins over the config file, the file over the defaults.

use clap::{Args as Flags, Parser, Subcommand};
use std::path::PathBuf;

/// A research lab for low-bit sequence models: load, measure, record, plot.
#[derive(Parser)]
#[command(version, propagate_version = true, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
    /// No progress bars.
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

#[derive(Subcommand)]
pub enum Command {
    /// Measure a whole study into one run: perplexity, passkey and cost at f32 and bf16, with figures.
    ///
    /// An interrupted run goes on where it stopped when the same command is given again.
    Reproduce(Reproduce),
    /// Perplexity and bits per byte of a text.
    Ppl(Ppl),
    /// Passkey retrieval against context length.
    Passkey(Passkey),
    /// Prefill and decode speed, and peak memory, against length.
    Cost(Cost),
    /// Train a model; the same command resumes it.
    Train(Train),
    /// Redraw the figures of a run, or of a training folder, from its records.
    Plots {
        /// A run's folder or id, or a training folder.
        run: String,
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
#[derive(Flags)]
pub struct Source {
    /// A folder, a .safetensors/.bin/.pt file, a hub id such as state-spaces/mamba2-130m, or random:mamba2-130m.
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
    /// The study: phase1. A --config file holds a study of your own, and this names the one it stands in for.
    #[arg(value_parser = lowbit::Study::NAMES)]
    pub study: String,
    /// Another model than the default one.
    #[arg(long)]
    pub model: Option<String>,
    /// Fewer lengths, prompts and tokens: a check that everything works, in under a minute.
    #[arg(long)]
    pub small: bool,
    #[command(flatten)]
    pub recording: Recording,
}

#[derive(Flags)]
pub struct Ppl {
    #[command(flatten)]
    pub source: Source,
    #[command(flatten)]
    pub recording: Recording,
    /// A text file, a JSONL file, or a folder of texts or of splits [default: data/corpus].
    #[arg(long, value_name = "PATH")]
    pub corpus: Option<PathBuf>,
    /// The split of a folder of splits [default: test, for the default corpus].
    #[arg(long)]
    pub split: Option<String>,
    /// Most tokens that a prediction is conditioned on [default: 1024].
    #[arg(long)]
    pub seq_len: Option<usize>,
    /// Tokens that a window adds [default: 512].
    #[arg(long)]
    pub stride: Option<usize>,
    /// Score only the first tokens.
    #[arg(long)]
    pub max_tokens: Option<usize>,
}

#[derive(Flags)]
pub struct Passkey {
    #[command(flatten)]
    pub source: Source,
    #[command(flatten)]
    pub recording: Recording,
    /// Prompt lengths in tokens [default: 256,512,1024,2048,4096].
    #[arg(long, value_delimiter = ',')]
    pub lengths: Option<Vec<usize>>,
    /// Prompts of each length [default: 50].
    #[arg(long)]
    pub trials: Option<usize>,
    /// Depths of the key, taken in turn [default: 10].
    #[arg(long)]
    pub depths: Option<usize>,
    /// Digits of a key [default: 5].
    #[arg(long)]
    pub digits: Option<usize>,
    /// Seed of the keys [default: 7].
    #[arg(long)]
    pub seed: Option<u64>,
}

#[derive(Flags)]
pub struct Cost {
    #[command(flatten)]
    pub source: Source,
    #[command(flatten)]
    pub recording: Recording,
    /// Prompt lengths in tokens [default: 256,512,1024,2048,4096].
    #[arg(long, value_delimiter = ',')]
    pub lengths: Option<Vec<usize>>,
    /// Tokens decoded in a repetition [default: 64].
    #[arg(long)]
    pub gen_len: Option<usize>,
    /// Timed repetitions [default: 5].
    #[arg(long)]
    pub repetitions: Option<usize>,
    /// Seed of the prompts [default: 7].
    #[arg(long)]
    pub seed: Option<u64>,
}

#[derive(Flags)]
pub struct Train {
    /// The folder of the run: settings, log, checkpoint and, at the end, the model.
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// Settings in YAML; flags win over it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder with the splits train and valid [default: data/corpus].
    #[arg(long, value_name = "FOLDER")]
    pub corpus: Option<PathBuf>,
    /// Updates in all.
    #[arg(long)]
    pub steps: Option<u64>,
    /// Seed of weights and batches.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Threads of the kernels [default: all processors].
    #[arg(long)]
    pub threads: Option<usize>,
}
