//! What hybrids of Mamba2 and attention have in common, whatever their names: the settings of the two mixers, how they are read and
//! written, their tensors, sites and branches.
//!
//! | file | holds |
//! |---|---|
//! | `mamba` | the settings of Mamba2's mixer |
//! | `heads` | attention: settings, tensors, sites, branch |
//! | `feed` | feed-forward matrices |

mod feed;
mod heads;
mod mamba;

use super::setting::{find, number, size};
use crate::error::{Error, Result};
pub(super) use feed::{Feed, Matrix};
pub use heads::Heads;
pub(super) use heads::Place;
pub use mamba::Mamba;
pub(super) use mamba::{Keys, SHORT};
use serde_json::Value;

/// A `config.json` on its way in, and what is assumed where it says nothing.
pub(super) struct Reading<'a> {
    pub json: &'a Value,
    pub assumed: Vec<String>,
}

impl<'a> Reading<'a> {
    pub fn new(json: &'a Value) -> Self {
        Self { json, assumed: vec![] }
    }

    /// Takes what transformers does where nothing is stated, and says so.
    pub fn size_or(&mut self, place: &str, default: usize, to: &mut usize) -> Result<()> {
        self.or(place, default, to)?;
        size(self.json, &[place], to)
    }

    /// As [`size_or`](Self::size_or), of a number.
    pub fn number_or(&mut self, place: &str, default: f64, to: &mut f64) -> Result<()> {
        self.or(place, default, to)?;
        number(self.json, &[place], to)
    }

    fn or<T: Copy + std::fmt::Display>(&mut self, place: &str, default: T, to: &mut T) -> Result<()> {
        if find(self.json, &[place]).is_none() {
            self.assumed.push(format!("{} = {default}", &place[1..]));
            *to = default;
        }
        Ok(())
    }

    /// A constant factor: 1 where nothing is stated.
    pub fn factor(&self, place: &str, to: &mut f64) -> Result<()> {
        *to = 1.0;
        number(self.json, &[place], to)
    }

    /// As [`factor`](Self::factor), of so many in a list; of a list that is null they are 1.
    pub fn factors<const N: usize>(&self, place: &str, to: &mut [f64; N]) -> Result<()> {
        *to = [1.0; N];
        let Some(found) = find(self.json, &[place]) else { return Ok(()) };
        let all = found.as_array().and_then(|all| all.iter().map(Value::as_f64).collect::<Option<Vec<_>>>());
        *to = all.and_then(|all| all.try_into().ok()).ok_or_else(|| {
            Error::input(format!("{} must be a list of {N} numbers, found {found}", &place[1..]))
        })?;
        Ok(())
    }
}

/// Refuses constants that are no positive, finite numbers.
pub(super) fn check_positive(numbers: &[(&str, f64)]) -> Result<()> {
    match numbers.iter().find(|(_, value)| !value.is_finite() || *value <= 0.0) {
        Some((name, value)) => Err(Error::input(format!("{name} must be a positive number, found {value}"))),
        None => Ok(()),
    }
}

/// Refuses constant factors that are no finite numbers.
pub(super) fn check_factors(numbers: &[(&str, f64)]) -> Result<()> {
    match numbers.iter().find(|(_, value)| !value.is_finite()) {
        Some((name, value)) => Err(Error::input(format!("{name} must be a number, found {value}"))),
        None => Ok(()),
    }
}

/// A stated list that shapes tell too.
///
/// # Errors
/// The two differ.
pub(super) fn same_list(json: &Value, place: &str, stated: Option<Value>, found: &Value) -> Result<()> {
    match stated {
        Some(stated) if stated != *found => {
            let raw = json.pointer(place).unwrap_or(&Value::Null);
            let what = format!("{} is {raw}, and the tensors are those of {found}", &place[1..]);
            Err(Error::input(what).hint("are config and checkpoint of the same model?"))
        }
        _ => Ok(()),
    }
}
