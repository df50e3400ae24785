//! One pass through a file of weights: its hash, its checksums, and the tensors that are wanted of it.

use super::stored::{Stored, Sum};
use crate::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::io::Read;
use std::ops::Range;
use std::path::Path;

/// Bytes read at a time, few enough to be still in the cache when they are hashed and copied.
const PIECE: usize = 1 << 18;

/// A tensor on its way, under all the names that it has.
struct Filling<'a> {
    names: Vec<&'a str>,
    stored: &'a Stored,
    bytes: Vec<u8>,
}

/// Reads a whole file, adding all its bytes to `hash`, and returns what `make` makes of the tensors that are wanted. Nothing
/// else of it is kept in memory.
pub(super) fn read<'a, T: Clone>(
    path: &Path,
    mut wanted: Vec<(&'a str, &'a Stored)>,
    sums: &[Sum],
    hash: &mut Sha256,
    make: impl Fn(&Stored, &[u8]) -> Result<T>,
) -> Result<Vec<(&'a str, T)>> {
    let io = |e: std::io::Error| Error::io(path, &e);
    let mut file = super::artifact::open(path).map_err(io)?;
    let mut tensors = vec![];
    let mut finish = |names: &[&'a str], stored: &Stored, bytes: &[u8]| -> Result<()> {
        let tensor = make(stored, bytes).map_err(|e| e.at(names[0]).at(path.display()))?;
        tensors.extend(names.iter().map(|&name| (name, tensor.clone())));
        Ok(())
    };
    wanted.sort_by_key(|(_, stored)| (stored.bytes.start, stored.bytes.end));
    let (empty, wanted): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(_, s)| s.bytes.is_empty());
    for (name, stored) in empty {
        finish(&[name], stored, &[])?;
    }
    let mut waiting = wanted.into_iter().peekable();
    let (mut filling, mut spare) = (Vec::<Filling>::new(), Vec::<Vec<u8>>::new());
    let (mut sums, mut sum) = (sums.iter().peekable(), crc32fast::Hasher::new());
    let (mut piece, mut start) = (vec![0; PIECE], 0);
    loop {
        let n = read_full(&mut *file, &mut piece).map_err(io)?;
        if n == 0 {
            break;
        }
        let (piece, here) = (&piece[..n], start..start + n as u64);
        hash.update(piece);
        while let Some(Sum { name, bytes, crc }) = sums.peek() {
            sum.update(&piece[within(bytes, &here)]);
            if bytes.end > here.end {
                break;
            }
            if std::mem::take(&mut sum).finalize() != *crc {
                return Err(Error::input(format!("the checksum of its part {name} is another"))
                    .at(path.display())
                    .hint("the file is damaged: copy or download it again"));
            }
            sums.next();
        }
        while let Some((name, stored)) = waiting.next_if(|(_, stored)| stored.bytes.start < here.end) {
            match filling.last_mut().filter(|last| last.stored == stored) {
                Some(same) => same.names.push(name),
                None => {
                    // Buffers are used again: fresh memory for each tensor would cost more than reading it.
                    let mut bytes = spare.pop().unwrap_or_default();
                    bytes.clear();
                    bytes.reserve_exact((stored.bytes.end - stored.bytes.start) as usize);
                    filling.push(Filling { names: vec![name], stored, bytes });
                }
            }
        }
        for filling in &mut filling {
            filling.bytes.extend_from_slice(&piece[within(&filling.stored.bytes, &here)]);
        }
        for done in filling.extract_if(.., |filling| filling.stored.bytes.end <= here.end) {
            finish(&done.names, done.stored, &done.bytes)?;
            spare.push(done.bytes);
        }
        start = here.end;
    }
    if !filling.is_empty() || waiting.peek().is_some() || sums.peek().is_some() {
        return Err(Error::input("the file became shorter while it was read").at(path.display()));
    }
    Ok(tensors)
}

/// The part of a stretch that is in the piece at `here`, counted from the piece's beginning.
fn within(stretch: &Range<u64>, here: &Range<u64>) -> Range<usize> {
    let at = |place: u64| (place.clamp(here.start, here.end) - here.start) as usize;
    at(stretch.start)..at(stretch.end)
}

/// Fills a buffer, or as much of it as the file still has.
fn read_full(file: &mut dyn Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;

    #[test]
    fn stretches_of_every_kind_are_read_and_the_rest_is_hashed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let bytes: Vec<u8> = (0..PIECE * 2 + 1000).map(|i| (i * 7 + i / 256) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let stored = |range: Range<usize>| {
            let shape = vec![range.len()];
            Stored::rows(DType::U8, "U8".into(), shape, range.start as u64..range.end as u64)
        };
        let end = bytes.len();
        // Within a piece, across pieces, overlapping, the same twice, none at all, up to the end.
        let ranges = [5..9, PIECE - 3..PIECE + 4, 0..end, 5..9, 7..7, end..end, PIECE..PIECE, end - 1..end];
        let all: Vec<Stored> = ranges.iter().cloned().map(stored).collect();
        let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let sum = |range: Range<usize>| Sum {
            name: "x".into(),
            crc: crc32fast::hash(&bytes[range.clone()]),
            bytes: range.start as u64..range.end as u64,
        };
        let mut sums = vec![sum(0..0), sum(3..PIECE + 1), sum(PIECE + 1..PIECE + 2), sum(end - 5..end)];
        let mut hash = Sha256::new();
        let read_all = |sums: &[Sum], hash: &mut Sha256| {
            read(&path, names.iter().copied().zip(&all).collect(), sums, hash, Stored::tensor)
        };
        let tensors = read_all(&sums, &mut hash).unwrap();
        assert_eq!(tensors.len(), names.len());
        for (name, tensor) in tensors {
            let range = &ranges[names.iter().position(|n| *n == name).unwrap()];
            assert_eq!(tensor.to_vec1::<u8>().unwrap(), bytes[range.clone()], "{name}");
        }
        assert_eq!(hash.finalize(), Sha256::digest(&bytes));
        sums[1].crc ^= 1;
        let error = read_all(&sums, &mut Sha256::new()).unwrap_err().to_string();
        assert!(error.contains("checksum of its part x"), "{error}");
    }
}
