//! The matrix unit of a thread: what the instructions do with it, and what they refuse.

use super::decode::{Instruction, Rows};
use super::product::Tile;
use std::ptr;

/// Shapes as the processor reads them from memory: the palette and the row to begin with, then from 16 on the bytes of
/// the rows of each tile, and from 48 on their numbers.
type Config = [u8; 64];

/// Eight tiles, zeros beyond the rows and columns that are in use.
#[repr(C, align(64))]
pub struct Unit {
    config: Config,
    tiles: [Tile; 8],
}

impl Unit {
    /// As a thread begins: without shapes.
    pub const NEW: Self = Self { config: [0; 64], tiles: [[[0; 16]; 16]; 8] };

    /// Carries an instruction out, or says why the processor would not.
    ///
    /// # Safety
    /// The memory that the processor would read or write may be read or written.
    pub unsafe fn carry_out(&mut self, instruction: Instruction) -> Result<(), &'static str> {
        match instruction {
            Instruction::LoadConfig(from) => {
                // SAFETY: the caller's promise.
                let config = unsafe { ptr::with_exposed_provenance::<Config>(from).read() };
                if config[0] != 0 {
                    check(&config)?;
                }
                *self = Self { config: if config[0] == 0 { [0; 64] } else { config }, ..Self::NEW };
            }
            // SAFETY: the caller's promise.
            Instruction::StoreConfig(to) => unsafe {
                ptr::with_exposed_provenance_mut::<Config>(to).write(self.config);
            },
            Instruction::Release => *self = Self::NEW,
            Instruction::Zero(tile) => {
                self.shape(tile)?;
                self.tiles[tile] = [[0; 16]; 16];
            }
            Instruction::Load(tile, from) => {
                let (rows, row_bytes) = self.shape(tile)?;
                self.tiles[tile] = [[0; 16]; 16];
                for (i, row) in self.tiles[tile][..rows].iter_mut().enumerate() {
                    let from = ptr::with_exposed_provenance::<u8>(place(from, i));
                    // SAFETY: the caller's promise; a row has 64 bytes.
                    unsafe { ptr::copy_nonoverlapping(from, row.as_mut_ptr().cast(), row_bytes) };
                }
            }
            Instruction::Store(tile, to) => {
                let (rows, row_bytes) = self.shape(tile)?;
                for (i, row) in self.tiles[tile][..rows].iter().enumerate() {
                    let to = ptr::with_exposed_provenance_mut::<u8>(place(to, i));
                    // SAFETY: the caller's promise; a row has 64 bytes.
                    unsafe { ptr::copy_nonoverlapping(row.as_ptr().cast(), to, row_bytes) };
                }
            }
            Instruction::Add(product, sums, [left, right]) => {
                let sizes = self.sizes(sums, left, right)?;
                let [sums, left, right] =
                    self.tiles.get_disjoint_mut([sums, left, right]).map_err(|_| "a tile appears twice")?;
                product.add(sums, left, right, sizes);
            }
        }
        Ok(())
    }

    /// Rows of a tile, and their bytes.
    fn shape(&self, tile: usize) -> Result<(usize, usize), &'static str> {
        if self.config[0] == 0 {
            return Err("no shapes are set");
        }
        if tile >= self.tiles.len() {
            return Err("there is no such tile");
        }
        match shape(&self.config, tile) {
            (0, _) => Err("a tile has no shape"),
            shape => Ok(shape),
        }
    }

    /// Rows, depth in values of 32 bits, and columns of a product.
    fn sizes(&self, sums: usize, left: usize, right: usize) -> Result<[usize; 3], &'static str> {
        let (m, n) = self.shape(sums)?;
        let (left_rows, k) = self.shape(left)?;
        let (right_rows, columns) = self.shape(right)?;
        if [n, k, columns].iter().any(|bytes| bytes % 4 != 0) {
            Err("a row is no whole number of 32 bits")
        } else if m != left_rows {
            Err("the sums and the left operand have different rows")
        } else if n != columns {
            Err("the sums and the right operand have different columns")
        } else if k / 4 != right_rows {
            Err("the rows of the left operand do not reach over those of the right one")
        } else {
            Ok([m, k / 4, n / 4])
        }
    }
}

fn shape(config: &Config, tile: usize) -> (usize, usize) {
    let row_bytes = u16::from_le_bytes([config[16 + 2 * tile], config[17 + 2 * tile]]);
    (config[48 + tile].into(), row_bytes.into())
}

/// Whether shapes can be set.
fn check(config: &Config) -> Result<(), &'static str> {
    if config[0] != 1 {
        return Err("there is no such palette");
    }
    if config[1] != 0 {
        return Err("a load that goes on after a fault is not emulated");
    }
    if [&config[2..16], &config[32..48], &config[56..]].iter().any(|part| part.iter().any(|byte| *byte != 0))
    {
        return Err("the shapes have bytes that are not zero where they must be");
    }
    for (rows, row_bytes) in (0..8).map(|tile| shape(config, tile)) {
        if rows > 16 || row_bytes > 64 || (rows == 0) != (row_bytes == 0) {
            return Err("a tile cannot have such a shape");
        }
    }
    Ok(())
}

fn place(rows: Rows, row: usize) -> usize {
    rows.start.wrapping_add(row.wrapping_mul(rows.stride))
}
