//! A reading with its subject and its provenance, as one flat JSON line.
//!
//! A measurement gives [`Reading`]s: what was measured ([`Subject`]), under which settings ([`Conditions`]),
//! and the measured values. A [`Run`] adds the [`Provenance`] (machine, commit, library versions) and appends
//! each reading as one line of `metrics.jsonl`. The schema is flat: every column is a key of the line.
//!
//! **Units of work.** All rows of one unit (a perplexity, one length of a passkey sweep) share a
//! [`fingerprint`] and are recorded by one append, the row named `summary` last. A unit without its summary
//! was cut short: readers drop its rows, and a resumed run measures it again.
//!
//! **Numbers that are not finite** have no spelling in JSON. A value that is NaN or infinite is written as
//! `null`, and the column `<name>_nonfinite` beside it says what it was (`"NaN"`, `"inf"`, `"-inf"`; for a
//! list `"3: NaN, 7: inf"` with positions counted from 0). A [`Frame`](crate::frame::Frame) holds the number again.
//!
//! **Versions.** Each line carries [`SCHEMA_VERSION`]. A new column does not change it; a changed meaning does. Since
//! version 2 a fingerprint covers config, tokenizer and assumptions beside the weights; until then only these.
//!
//! **A reading never leaves its subject.** When a resumed run measures anew because its model, a config, a tokenizer or
//! a text has changed, the readings of before go to `metrics.jsonl.stale` (see [`Run::set_stale_aside`]).
//!
//! **Comparing recordings.** [`Comparison`] sets two recordings of the same thing side by side. Every column has a [`Kind`]:
//! exact, numeric within [`TOLERANCES`] on another processor, a statistic that its parts must confirm, a time.

mod choice;
mod difference;
mod files;
mod fingerprint;
mod folders;
mod journal;
mod kind;
mod line;
mod machine;
mod provenance;
mod ratio;
mod reader;
mod reading;
mod relation;
mod run;
mod source;
mod stale;
mod timing;
mod tolerance;
mod unit;

pub use difference::{Comparison, Count, Difference};
pub use fingerprint::{config_hash, content_hash, fingerprint};
pub(crate) use folders::runs_named;
pub use folders::{run_folder, run_folder_in, runs_folder};
pub use kind::{KINDS, Kind};
pub use line::Record;
pub use machine::Machine;
pub use provenance::Provenance;
pub use ratio::{MEMORY, MEMORY_SLACK, TIME_SLACK, WHOLE_RUN, WITHIN_RUN};
pub use reader::{Lines, Row, read_lines};
pub use reading::{Conditions, IntoValue, Reading, Subject};
pub use run::Run;
pub use timing::{TIMING_FIELDS, is_timing_field, without_timing};
pub use tolerance::{Arithmetic, CHOICES, TOLERANCES, Tolerance};

/// Version of the meaning of the columns, written into every line.
pub const SCHEMA_VERSION: u32 = 2;

/// Name of the row that closes a unit of work.
pub const SUMMARY: &str = "summary";

/// Name of the row that closes a part of a measurement, which is a unit of work of its own; its summary follows all parts.
pub const PART: &str = "part";

/// Name of the row that stands in the place of a measurement that cannot be made of its subject; its `warning` says why.
pub const LEFT_OUT: &str = "left_out";

/// What the name of a column ends with that says what a value was, where it is not finite.
pub const NONFINITE: &str = "_nonfinite";

/// The columns that every record has, in the order in which they are written; values follow them.
pub const COLUMNS: &[&str] = &[
    "schema_version",
    "run_id",
    "timestamp",
    "measure",
    "measure_version",
    "row",
    "fingerprint",
    "model",
    "model_revision",
    "model_hash",
    "config_hash",
    "tokenizer",
    "tokenizer_hash",
    "bos_left_out",
    "assumed",
    "family",
    "parameters",
    "weight_bytes",
    "dtype",
    "stored_as",
    "device",
    "scheme",
    "w_bits",
    "a_bits",
    "head_format",
    "group_size",
    "per_channel",
    "quant_backend",
    "quantizing_version",
    "calib_method",
    "calibration",
    "batch_size",
    "seq_len",
    "stride",
    "gen_len",
    "seed",
    "threads",
    "notes",
    "git_commit",
    "git_dirty",
    "host",
    "os",
    "cpu_model",
    "cpu_threads",
    "cpu_features",
    "memory_bytes",
    "gpu",
    "driver",
    "lowbit_version",
    "candle_version",
    "rustc",
    "profile",
];
