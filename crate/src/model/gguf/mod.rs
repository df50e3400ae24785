//! GGUF files, as llama.cpp reads them: one file with weights, configuration and tokenizer, so that what lies beside it is
//! not read.
//!
//! Architecture `llama` becomes what a Hugging Face checkpoint of that family is: the same names, the same rows of q and k,
//! the same `config.json`, the same `tokenizer.json`. What has no counterpart here is refused by name.
//!
//! | file | holds |
//! |---|---|
//! | `container` | the header: settings, and where each tensor lies |
//! | `metadata` | the settings by name |
//! | `blocks` | the types of tensors and their numbers |
//! | `kept` | blocks that stay packed |
//! | `names` | what a tensor is called, and whether its rows are permuted |
//! | `config` | the settings of a network |
//! | `tokens` | the tokenizer |
//! | `scores` | merges from the scores of pieces |

mod blocks;
mod config;
mod container;
mod kept;
mod metadata;
mod names;
mod scores;
mod tokens;

use super::safetensors::{LFS_POINTER, lfs_pointer};
use super::stored::{Listing, Own, Stored, Tokenizing};
use crate::error::{Error, Result};
use crate::family::Stated;
pub(super) use blocks::Block;
use candle_core::DType;
use config::Network;
use container::{Header, Info};
use names::{Name, Part};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;
pub(super) use tokens::Tokens;

/// Reads what a file holds, without its weights.
pub(super) fn list(path: &Path) -> Result<Listing> {
    let io = |e: std::io::Error| Error::io(path, &e);
    let mut file = File::open(path).map_err(io)?;
    let len = file.metadata().map_err(io)?.len();
    let mut start = vec![];
    file.by_ref().take(8).read_to_end(&mut start).map_err(io)?;
    if start == LFS_POINTER {
        return Err(lfs_pointer().at(path.display()));
    }
    file.rewind().map_err(io)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    listing(file, len, &name).map_err(|e| e.at(path.display()))
}

fn listing(file: File, len: u64, name: &str) -> Result<Listing> {
    let damaged = |what: String| {
        Error::input(format!("not a whole GGUF file: {what}")).hint("copy or download it again")
    };
    let mut bytes = file.try_clone().map_err(Error::unavailable)?;
    let header = Header::read(file, len).map_err(damaged)?;
    config::check_kind(&header.metadata)?;
    let network = Network::read(&header.metadata)?;
    let mut tensors = vec![];
    for info in &header.tensors {
        let at = |e: Error| e.at(&info.name);
        let block = Block::of(info.code).map_err(at)?;
        let place = header.place(info, block.elements(), block.bytes()).map_err(|what| at(damaged(what)))?;
        tensors.push(Found { info, block, place, is: names::of(&info.name, network.layers).map_err(at)? });
    }
    apart(&tensors).map_err(damaged)?;
    let coded = tensors.iter().any(|tensor| tensor.block.dtype().is_none());
    config::check_version(&header.metadata, coded)?;
    // A model's matrices have one dtype: what holds all of them without rounding.
    let mut matrices = tensors.iter().filter(|tensor| tensor.is.is_matrix()).map(|tensor| tensor.block);
    let alike = matrices.next().filter(|first| matrices.all(|block| block == *first));
    let dtype = alike.and_then(Block::dtype).unwrap_or(DType::F32);

    let mut listing = Listing::default();
    let mut rope_freqs = None;
    for Found { info, block, place, is } in &tensors {
        let at = |e: Error| e.at(&info.name);
        let shape = info.shape.clone();
        let heads = match is.part {
            Part::Query => Some(network.heads),
            Part::Key => Some(network.key_heads),
            Part::Frequencies => {
                rope_freqs = Some(frequencies(&mut bytes, info, *block, place, &network).map_err(at)?);
                continue;
            }
            _ => None,
        };
        if heads.is_some_and(|heads| shape.first() != Some(&(heads * network.head_dim))) {
            let (heads, dim) = (heads.unwrap_or_default(), network.head_dim);
            let what = format!("expected the rows of {heads} heads of {dim}, found shape {shape:?}");
            return Err(at(Error::input(what)));
        }
        listing.tensors.insert(is.own.clone(), Stored::blocks(*block, dtype, shape, heads, place.clone()));
    }
    let json = network.hugging_face(&header.metadata, &listing.tensors, rope_freqs)?;
    let stored_as = stored_as(&tensors);
    let stated = Stated { file: name.to_string(), json };
    let tokens = Tokens::of(header.metadata, name).map(Tokenizing::Gguf);
    listing.own = Some(Own { stated, tokens, stored_as: Some(stored_as) });
    Ok(listing)
}

/// A tensor of the file.
struct Found<'a> {
    info: &'a Info,
    block: Block,
    place: Range<u64>,
    is: Name,
}

/// Refuses tensors that share bytes.
fn apart(tensors: &[Found]) -> Result<(), String> {
    let mut places: Vec<_> = tensors.iter().filter(|tensor| !tensor.place.is_empty()).collect();
    places.sort_by_key(|tensor| tensor.place.start);
    let overlap = places.windows(2).find(|pair| pair[0].place.end > pair[1].place.start);
    overlap.map_or(Ok(()), |pair| {
        Err(format!("the tensors {} and {} overlap", pair[0].info.name, pair[1].info.name))
    })
}

/// What the frequency of each pair of a head's dimensions is divided by.
fn frequencies(
    file: &mut File,
    info: &Info,
    block: Block,
    place: &Range<u64>,
    network: &Network,
) -> Result<Vec<f32>> {
    let expected = network.head_dim / 2;
    if block != Block::F32 || info.shape != [expected] {
        let what = format!("expected F32 [{expected}], found {} {:?}", block.name(), info.shape);
        return Err(Error::input(what));
    }
    let mut bytes = vec![0; expected * 4];
    let read = file.seek(SeekFrom::Start(place.start)).and_then(|_| file.read_exact(&mut bytes));
    read.map_err(Error::unavailable)?;
    let all: Vec<f32> = bytes.as_chunks().0.iter().map(|own| f32::from_le_bytes(*own)).collect();
    match all.iter().find(|x| !(x.is_finite() && **x > 0.0)) {
        Some(x) => Err(Error::input(format!("a frequency cannot be divided by {x}"))
            .hint("the file is damaged: copy or download it again")),
        None => Ok(all),
    }
}

/// What the weights are stored in, those of most matrices first: `Q4_1 (210 matrices), Q8_0 (embedding), F32`.
fn stored_as(tensors: &[Found]) -> String {
    let mut matrices = BTreeMap::<Block, usize>::new();
    let mut ends = BTreeMap::<Block, Vec<&str>>::new();
    for Found { block, is, .. } in tensors {
        let (count, ends) = (matrices.entry(*block).or_default(), ends.entry(*block).or_default());
        match is.part {
            Part::Embedding => ends.push("embedding"),
            Part::Head => ends.push("head"),
            _ if is.is_matrix() => *count += 1,
            _ => {}
        }
    }
    for ends in ends.values_mut() {
        ends.sort_unstable();
    }
    let mut blocks: Vec<Block> = matrices.keys().copied().collect();
    blocks.sort_by_key(|block| (std::cmp::Reverse(matrices[block]), ends[block].is_empty()));
    let words = |block: Block| {
        let matrices = match matrices[&block] {
            0 => None,
            1 => Some("1 matrix".to_string()),
            n => Some(format!("{n} matrices")),
        };
        let holders: Vec<String> =
            matrices.into_iter().chain(ends[&block].iter().map(|end| end.to_string())).collect();
        match holders.is_empty() {
            true => block.name().to_string(),
            false => format!("{} ({})", block.name(), holders.join(", ")),
        }
    };
    blocks.into_iter().map(words).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
