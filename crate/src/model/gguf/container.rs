//! The container: a header of settings and of tensors' places, then the tensors' bytes.
//!
//! candle's reader of the same is not used: it divides by an alignment of 0, takes two tensors of one name for one, replaces
//! what is no UTF-8, and reads a header of any size.

use super::metadata::{Metadata, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read};
use std::ops::Range;

/// Why a file is no whole one, for the end of a sentence.
pub(super) type Told<T> = Result<T, String>;

/// What stands before the bytes of the tensors.
pub(super) struct Header {
    pub metadata: Metadata,
    pub tensors: Vec<Info>,
    /// Where the bytes of the tensors begin.
    pub data: u64,
    /// What every tensor's place is a multiple of.
    pub alignment: u64,
    /// Bytes of the file.
    pub len: u64,
}

/// A tensor as the header tells of it.
pub(super) struct Info {
    pub name: String,
    /// Rows first, as everywhere but in the file.
    pub shape: Vec<usize>,
    /// The number of its type.
    pub code: u32,
    /// From the beginning of all tensors' bytes.
    offset: u64,
}

/// Bytes that a header may have; those of the largest vocabularies take some 20 MB.
const LONGEST: u64 = 256 << 20;

/// The format's limit on the dimensions of a tensor.
const DIMENSIONS: u32 = 4;

/// How deep arrays may lie in arrays.
const DEEPEST: usize = 8;

/// What stands for an alignment that is not told.
const ALIGNMENT: u64 = 32;

impl Header {
    /// Reads the header of a file of `len` bytes.
    pub fn read(file: File, len: u64) -> Told<Self> {
        let mut reader = Reader { file: BufReader::new(file), at: 0, len };
        if reader.bytes(4).is_ok_and(|magic| magic != b"GGUF") || len < 4 {
            return Err("it does not begin with GGUF".to_string());
        }
        match reader.u32()? {
            2 | 3 => {}
            version if [2, 3].contains(&version.swap_bytes()) => {
                return Err("its numbers are big-endian, which is not read".to_string());
            }
            version => return Err(format!("it is of version {version}, and versions 2 and 3 are read")),
        }
        let (tensors, settings) = (reader.u64()?, reader.u64()?);
        let mut metadata = BTreeMap::new();
        for _ in 0..settings {
            let key = reader.name()?;
            let kind = reader.u32()?;
            let value = reader.value(kind, 0).map_err(|what| format!("{key}: {what}"))?;
            if metadata.contains_key(&key) {
                return Err(format!("the setting {key} is there twice"));
            }
            metadata.insert(key, value);
        }
        let (mut found, mut names) = (vec![], BTreeSet::new());
        for _ in 0..tensors {
            let info = reader.info()?;
            if !names.insert(info.name.clone()) {
                return Err(format!("the tensor {} is there twice", info.name));
            }
            found.push(info);
        }
        let metadata = Metadata(metadata);
        let alignment = metadata.count("general.alignment").map_err(|e| e.to_string())?;
        let alignment = alignment.map_or(ALIGNMENT, |n| n as u64);
        if !alignment.is_power_of_two() {
            return Err(format!("its alignment {alignment} is no power of two"));
        }
        let data = reader.at.checked_next_multiple_of(alignment).ok_or("its alignment is beyond its end")?;
        Ok(Self { metadata, tensors: found, data, alignment, len })
    }

    /// Where the bytes of a tensor lie whose type packs `elements` elements of a row in `bytes` bytes.
    pub fn place(&self, info: &Info, elements: usize, bytes: usize) -> Told<Range<u64>> {
        let all = info.shape.iter().try_fold(1usize, |all, n| all.checked_mul(*n));
        let beyond = || "its bytes lie beyond the end of the file".to_string();
        let row = info.shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(elements) {
            return Err(format!("its rows of {row} are no whole blocks of {elements}"));
        }
        if !info.offset.is_multiple_of(self.alignment) {
            return Err(format!("its offset {} is no multiple of {}", info.offset, self.alignment));
        }
        let size = all.and_then(|all| (all / elements).checked_mul(bytes)).ok_or_else(beyond)?;
        let start = self.data.checked_add(info.offset).ok_or_else(beyond)?;
        let end = start.checked_add(size as u64).filter(|end| *end <= self.len).ok_or_else(beyond)?;
        Ok(start..end)
    }
}

/// Reads a header, never beyond the file nor the longest that a header may be.
struct Reader {
    file: BufReader<File>,
    at: u64,
    len: u64,
}

impl Reader {
    fn bytes(&mut self, n: u64) -> Told<Vec<u8>> {
        let end = self.at.checked_add(n).filter(|end| *end <= self.len);
        let end =
            end.ok_or_else(|| format!("it is cut short, or says wrong lengths, at byte {}", self.at))?;
        if end > LONGEST {
            return Err(format!("its header would have more than {} MB", LONGEST >> 20));
        }
        let mut bytes = vec![0; n as usize];
        self.file.read_exact(&mut bytes).map_err(|e| e.to_string())?;
        self.at = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Told<[u8; N]> {
        let mut all = [0; N];
        all.copy_from_slice(&self.bytes(N as u64)?);
        Ok(all)
    }

    fn u32(&mut self) -> Told<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Told<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Text that need not be any, of a length that stands before it.
    fn text(&mut self) -> Told<Result<String, Vec<u8>>> {
        let len = self.u64()?;
        Ok(String::from_utf8(self.bytes(len)?).map_err(|e| e.into_bytes()))
    }

    /// The name of a setting or of a tensor, which sentences may hold as it is.
    fn name(&mut self) -> Told<String> {
        let unfit = |bytes: &[u8]| {
            let start: String = String::from_utf8_lossy(bytes).chars().take(40).collect();
            format!("{start:?} is no name")
        };
        match self.text()? {
            Ok(name) if !name.is_empty() && !name.contains(char::is_control) => Ok(name),
            Ok(name) => Err(unfit(name.as_bytes())),
            Err(bytes) => Err(unfit(&bytes)),
        }
    }

    fn value(&mut self, kind: u32, depth: usize) -> Told<Value> {
        Ok(match kind {
            0 => Value::Integer(u8::from_le_bytes(self.array()?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Integer(self.u32()?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Number(f32::from_le_bytes(self.array()?).into()),
            7 => match self.array()? {
                [0] => Value::Flag(false),
                [1] => Value::Flag(true),
                [byte] => return Err(format!("{byte} is neither true nor false")),
            },
            8 => self.text()?.map_or(Value::Other("text that is not UTF-8"), Value::Text),
            9 => self.values(depth)?,
            10 => Value::Integer(self.u64()?.into()),
            11 => Value::Integer(i64::from_le_bytes(self.array()?).into()),
            12 => Value::Number(f64::from_le_bytes(self.array()?)),
            _ => return Err(format!("no value is of type {kind}")),
        })
    }

    fn values(&mut self, depth: usize) -> Told<Value> {
        let (of, count) = (self.u32()?, self.u64()?);
        let size = match of {
            8 => {
                // Each has eight bytes at least, so that a wrong count ends at the end of the file.
                let mut texts = Some(vec![]);
                for _ in 0..count {
                    match (self.text()?, &mut texts) {
                        (Ok(text), Some(texts)) => texts.push(text),
                        _ => texts = None,
                    }
                }
                return Ok(texts.map_or(Value::Other("texts that are not UTF-8"), Value::Texts));
            }
            9 if depth == DEEPEST => return Err("arrays lie too deep in arrays".to_string()),
            9 => {
                for _ in 0..count {
                    self.values(depth + 1)?;
                }
                return Ok(Value::Other("an array of arrays"));
            }
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            _ => return Err(format!("no value is of type {of}")),
        };
        let bytes = self.bytes(count.checked_mul(size).ok_or("an array is longer than the file")?)?;
        Ok(match of {
            4 => Value::Integers(four(&bytes).map(|own| u32::from_le_bytes(own).into()).collect()),
            5 => Value::Integers(four(&bytes).map(|own| i32::from_le_bytes(own).into()).collect()),
            6 => Value::Numbers(four(&bytes).map(f32::from_le_bytes).collect()),
            _ => Value::Other("an array of another type"),
        })
    }

    fn info(&mut self) -> Told<Info> {
        let name = self.name()?;
        let dimensions = self.u32()?;
        if dimensions > DIMENSIONS {
            return Err(format!("the tensor {name} has {dimensions} dimensions"));
        }
        let sizes: Vec<u64> = (0..dimensions).map(|_| self.u64()).collect::<Told<_>>()?;
        let shape: Option<Vec<usize>> = sizes.iter().rev().map(|n| usize::try_from(*n).ok()).collect();
        let shape =
            shape.filter(|shape| shape.iter().try_fold(1usize, |all, n| all.checked_mul(*n)).is_some());
        let shape =
            shape.ok_or_else(|| format!("the sizes of the tensor {name} multiply beyond all bounds"))?;
        Ok(Info { name, shape, code: self.u32()?, offset: self.u64()? })
    }
}

fn four(bytes: &[u8]) -> impl Iterator<Item = [u8; 4]> + '_ {
    bytes.as_chunks().0.iter().copied()
}
