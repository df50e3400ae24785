//! Settings that are counts: how large they may be.

use crate::error::{Error, Result};
use crate::model::Model;

/// Most tokens of a window, as token numbers go.
pub(super) const WINDOW: usize = u32::MAX as usize;
/// Most tokens of what is made as long as it is asked for: prompts, continuations, repetitions. Days of reading, and
/// still no more memory than machines have.
pub(super) const MADE: usize = 1 << 26;
/// Most digits of a key.
pub(super) const DIGITS: usize = 1000;

/// Refuses what no machine can measure, before memory is asked for it.
pub(super) fn at_most(name: &str, values: impl IntoIterator<Item = usize>, most: usize) -> Result<()> {
    match values.into_iter().find(|value| *value > most) {
        Some(value) => Err(Error::input(format!("{name} must be at most {most}, found {value}"))),
        None => Ok(()),
    }
}

/// The lengths of a small setting, of which none is longer than those that are set: what these fit, it fits.
pub(super) fn smaller(set: &[usize], small: [usize; 2]) -> Vec<usize> {
    let longest = set.iter().copied().max().unwrap_or_default();
    let kept: Vec<usize> = small.into_iter().filter(|length| *length <= longest).collect();
    match kept.is_empty() {
        true => set.iter().copied().min().into_iter().collect(),
        false => kept,
    }
}

/// As [`Model::fits`], of each of these.
pub(super) fn fits(model: &Model, name: &str, lengths: impl IntoIterator<Item = usize>) -> Result<()> {
    lengths.into_iter().try_for_each(|length| model.fits(name, length))
}

#[test]
fn a_small_setting_is_no_longer() {
    assert_eq!(smaller(&[64], [128, 256]), [64]);
    assert_eq!(smaller(&[160, 256], [200, 600]), [200]);
    assert_eq!(smaller(&[4096, 512], [128, 256]), [128, 256]);
    assert!(smaller(&[], [128, 256]).is_empty());
}
