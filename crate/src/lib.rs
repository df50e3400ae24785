//! A research lab for low-bit sequence models.

pub mod corpus;
pub mod error;
pub mod kernel;
pub mod layer;
pub mod progress;
pub mod record;
pub mod stats;

pub use error::{Error, Result};
