//! The way to codes: a base for each row, and what fits none of its codes.

use super::{Coded, Exception, GROUP, MOST_COLS, NOUGHT, Place, group_lines};
use crate::kernel::line::Line;
use crate::kernel::pages::large;
use half::bf16;
use rayon::prelude::*;

impl Coded {
    /// The matrix [rows, cols] of these f32.
    ///
    /// # Panics
    /// If they are not so many, or a row has 2²³ or more.
    pub fn of_f32(rows: usize, cols: usize, values: &[f32]) -> Self {
        Self::new(rows, cols, true, values, |value| value.to_bits())
    }

    /// The matrix [rows, cols] of these bf16.
    ///
    /// # Panics
    /// As [`of_f32`](Self::of_f32).
    pub fn of_bf16(rows: usize, cols: usize, values: &[bf16]) -> Self {
        Self::new(rows, cols, false, values, |value| u32::from(value.to_bits()) << 16)
    }

    fn new<T: Sync>(rows: usize, cols: usize, single: bool, values: &[T], bits: fn(&T) -> u32) -> Self {
        assert!(values.len() == rows * cols && cols > 0 && cols < MOST_COLS);
        let mut coded = Self {
            rows,
            cols,
            single,
            lines: vec![],
            bases: vec![0; rows],
            starts: vec![0],
            exceptions: vec![],
        };
        let row_lines = coded.row_lines();
        coded.lines = large(rows * row_lines);
        coded.lines.resize(rows * row_lines, Line([0; 64]));
        let parts = coded.lines.par_chunks_mut(row_lines).zip(&mut coded.bases).zip(values.par_chunks(cols));
        let exceptions: Vec<Vec<Exception>> = parts
            .map(|((lines, base), values)| {
                let row: Vec<u32> = values.iter().map(bits).collect();
                *base = best_base(&row);
                encode(&row, *base, single, lines)
            })
            .collect();
        for exceptions in exceptions {
            coded.exceptions.extend(exceptions);
            coded.starts.push(coded.exceptions.len() as u32);
        }
        coded.exceptions.push(Exception::NONE);
        coded
    }
}

/// The exponent field from which on downward 15 of them have codes, so that the fewest weights have none.
fn best_base(row: &[u32]) -> u8 {
    let mut counts = [0u32; 256];
    row.iter().for_each(|bits| counts[(bits >> 23 & 0xff) as usize] += 1);
    let with_code = |base: usize| counts[(base + 1).saturating_sub(15).max(1)..=base].iter().sum::<u32>();
    (1..=255u8).max_by_key(|base| with_code(usize::from(*base))).unwrap_or(255)
}

/// Writes the groups of a row of f32 bits, and gives what has no code.
fn encode(row: &[u32], base: u8, single: bool, lines: &mut [Line]) -> Vec<Exception> {
    let mut exceptions = vec![];
    for (g, (group, lines)) in row.chunks(GROUP).zip(lines.chunks_mut(group_lines(single))).enumerate() {
        // Beyond the end of the row: zeros.
        lines[0] = Line([NOUGHT << 4 | NOUGHT; 64]);
        for (i, bits) in group.iter().enumerate() {
            let Place { half, byte, line, word } = Place::of(i);
            let exponent = (bits >> 23) as u8;
            let code = match base.checked_sub(exponent) {
                _ if exponent == 0 => NOUGHT,
                Some(code) if code < NOUGHT => code,
                _ => {
                    exceptions.push(Exception(((g * GROUP + i) as u32) << 8 | u32::from(exponent)));
                    0
                }
            };
            let codes = &mut lines[0].0[byte];
            *codes = *codes & !(15 << (4 * half)) | code << (4 * half);
            lines[1 + half].0[byte] = (bits >> 24) as u8 & 0x80 | (bits >> 16) as u8 & 0x7f;
            if single {
                lines[3 + line].0[2 * word..][..2].copy_from_slice(&(*bits as u16).to_le_bytes());
            }
        }
    }
    exceptions
}
