//! A research lab for low-bit sequence models.

pub mod error;
pub mod figure;
pub mod frame;
pub mod progress;
pub mod record;
pub mod stats;

pub use error::{Error, Result};
