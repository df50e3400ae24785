//! Working memory: buffers that a state, or a training run, keeps from call to call, so that the layers of a model and the
//! tokens of a text share a few of them instead of asking the system for pages again and again.

use crate::kernel::integer::Integers;
use std::ops::{Deref, DerefMut};

/// Buffers that nobody uses now.
#[derive(Debug, Default)]
pub struct Room {
    spare: Vec<Vec<f32>>,
    /// Activations rounded to integers.
    pub(super) integers: Integers,
}

impl Room {
    /// A buffer of `len` values, whatever they are: to be overwritten.
    pub fn take(&mut self, len: usize) -> Buffer {
        let fits = self.spare.iter().enumerate().filter(|(_, values)| values.len() >= len);
        let values = match fits.min_by_key(|(_, values)| values.len()) {
            Some((at, _)) => self.spare.swap_remove(at),
            None => vec![0.0; len],
        };
        Buffer { values, len }
    }

    /// Takes a buffer back.
    pub fn give(&mut self, buffer: Buffer) {
        self.spare.push(buffer.values);
    }
}

/// Some values in a place that may have more.
#[derive(Debug)]
pub struct Buffer {
    values: Vec<f32>,
    len: usize,
}

impl Buffer {
    /// Only the first `len` values from here on.
    pub fn shorten(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_buffer_that_is_large_enough_is_used_again() {
        let mut room = Room::default();
        let (small, large) = (room.take(10), room.take(1000));
        let places = [small.as_ptr(), large.as_ptr()];
        room.give(large);
        room.give(small);
        let (a, b, c) = (room.take(7), room.take(8), room.take(9));
        assert_eq!([a.as_ptr(), b.as_ptr()], places);
        assert_eq!((a.len(), b.len(), c.len()), (7, 8, 9));
    }
}
