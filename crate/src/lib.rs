//! A research lab for low-bit sequence models.

pub mod corpus;
pub mod error;
pub mod family;
pub mod figure;
pub mod frame;
pub mod kernel;
pub mod layer;
pub mod measure;
pub mod memory;
pub mod model;
pub mod progress;
pub mod record;
pub mod settings;
pub mod stats;
pub mod study;
pub mod train;

pub use error::{Error, Result};

// The README's tour must compile.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
