//! A research lab for low-bit sequence models: load a model, measure it, record every reading with its provenance,
//! read the records back as a data frame, see them as a figure.
//!
//! ```no_run
//! use lowbit::prelude::*;
//!
//! # fn main() -> lowbit::Result<()> {
//! let model = Model::load("data/models/bard")?; // a folder, a file, a hub id, or "random:mamba2-130m"
//! let run = Run::create("passkey")?; // runs/<run_id>/
//! let passkey = Passkey::lengths([256, 512, 1024, 2048]).trials(50).seed(7);
//! for scheme in ["bf16", "w4a8-g64-gptq"] {
//!     run.record(&passkey.measure(&model.quantized(&scheme.parse()?)?)?)?; // one flushed JSON line a reading
//! }
//! let recall = Frame::load(run.path())?.mean("correct", ["scheme", "context_length"])?;
//! Figure::line(&recall, "context_length", "correct").color("scheme").log2_x().save("recall.svg")?;
//! # Ok(())
//! # }
//! ```
//!
//! | to | take | of |
//! |---|---|---|
//! | hold a model | [`Model`] | [`model`], built of [`family`], [`layer`], [`kernel`] |
//! | quantize it | [`Scheme`] | [`quantize`], on [`mod@format`] |
//! | train one | [`Training`] | [`train`] |
//! | measure it | [`Perplexity`], [`Passkey`], [`Cost`] and [all others](measure::Instrument) | [`measure`] |
//! | measure many | [`Study`] | [`study`] |
//! | keep what was read | [`Run`] | [`mod@record`] |
//! | read it back | [`Frame`] | [`frame`] |
//! | see it | [`Figure`] | [`figure`] |
//! | share it | [`Report`] | [`report`] |
//! | read a text | [`Corpus`] | [`corpus`] |
//! | see any of these in a notebook | `value` as a cell's last line | [`display`] |
//! | move a slider, and see what changes | [`slider`](widget::slider)`("bits", 2..=8).bind(…)` | [`widget`] |
//!
//! Values are owned. Errors are one type, [`Error`], whose sentence says what, where, and what to try. Every long loop
//! shows its progress and stops at [`progress::interrupt`]. The kernels' threads are set by [`set_threads`].
//!
//! A lower floor never imports a higher one: kernel → format → layer → family → model → quantize → measure → study on the
//! one staircase, record → frame → figure on the other; they meet at record.

// Printing ends in a panic where nobody reads: `warning::warn` and the program's `say!` do not.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod corpus;
pub mod display;
pub mod error;
pub mod family;
pub mod figure;
pub mod format;
pub mod frame;
pub mod json;
pub mod kernel;
pub mod layer;
pub mod measure;
pub mod memory;
pub mod model;
pub mod prelude;
pub mod progress;
pub mod prune;
pub mod quantize;
pub mod record;
pub mod report;
pub mod settings;
pub mod stats;
pub mod study;
pub mod text;
pub mod threads;
pub mod train;
pub mod warning;
mod whole;
pub mod widget;

pub use corpus::Corpus;
pub use error::{Error, Result};
pub use figure::Figure;
pub use frame::Frame;
pub use measure::{Measure, every::*};
pub use model::{Loading, Model, Positions};
pub use quantize::Scheme;
pub use record::{Reading, Run};
pub use report::Report;
pub use study::Study;
pub use threads::set_threads;
pub use train::Training;

// The README's tour must compile.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
