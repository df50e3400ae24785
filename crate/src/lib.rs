//! A research lab for low-bit sequence models.

pub mod corpus;
pub mod error;
pub mod model;
pub mod progress;

pub use error::{Error, Result};
