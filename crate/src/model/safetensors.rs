//! Safetensors files, read and written: eight bytes of header length, a JSON header, the tensors' bytes.
//!
//! Writing gives the same bytes for the same tensors and metadata, which the format's own library does not (it writes
//! metadata in hash order).

use super::stored::{Listing, Stored};
use crate::error::{Error, Result};
use crate::json;
use crate::whole;
use ::safetensors::tensor::{self as format, Dtype, Metadata, TensorInfo};
use candle_core::{DType, Device, Tensor};
use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

/// The format's own limit on the header.
pub(super) const MAX_HEADER: u64 = 100_000_000;

/// Reads what a file holds, without its weights.
pub(super) fn list(path: &Path) -> Result<Listing> {
    let io = |e: std::io::Error| Error::io(path, &e);
    let mut file = File::open(path).map_err(io)?;
    let found = file.metadata().map_err(io)?.len();
    list_of(&mut file, Some(found), path)
}

/// The same of bytes from somewhere, `found` of them if that is known, which errors say are in `path`.
pub(super) fn list_of(file: &mut dyn Read, found: Option<u64>, path: &Path) -> Result<Listing> {
    let io = |e: std::io::Error| Error::io(path, &e);
    let damaged =
        |what: String| Error::input(what).at(path.display()).hint("copy or download the file again");
    let mut prefix = [0; 8];
    if let Some(found) = found.filter(|found| *found < 8) {
        return Err(damaged(format!("truncated safetensors: expected at least 8 bytes, found {found}")));
    }
    file.read_exact(&mut prefix).map_err(io)?;
    if prefix == *LFS_POINTER {
        return Err(lfs_pointer().at(path.display()));
    }
    let header_bytes = u64::from_le_bytes(prefix);
    if header_bytes > MAX_HEADER {
        return Err(damaged(format!("not a safetensors file: its header would have {header_bytes} bytes")));
    }
    if let Some(found) = found.filter(|found| found - 8 < header_bytes) {
        let expected = 8 + header_bytes;
        return Err(damaged(format!(
            "truncated safetensors: expected at least {expected} bytes (the header), found {found}"
        )));
    }
    let mut header = vec![0; header_bytes as usize];
    file.read_exact(&mut header).map_err(io)?;
    let about: Metadata = serde_json::from_slice(&header)
        .map_err(|e| damaged(format!("the safetensors header is damaged: {e}")))?;
    let start = 8 + header_bytes;
    let expected = start.saturating_add(about.data_len() as u64);
    if let Some(found) = found.filter(|found| *found != expected) {
        let what =
            if found < expected { "truncated safetensors" } else { "safetensors with bytes left over" };
        return Err(damaged(format!("{what}: expected {expected} bytes, found {found}")));
    }
    let mut listing = Listing::default();
    for (name, info) in about.tensors() {
        let (from, to) = info.data_offsets;
        let (kind, shape) = (format!("{:?}", info.dtype).into(), info.shape.clone());
        let stored = match DType::try_from(info.dtype).ok().filter(is_stored_plainly) {
            Some(dtype) => Stored::rows(dtype, kind, shape, start + from as u64..start + to as u64),
            None => Stored::foreign(kind, shape),
        };
        listing.tensors.insert(name, stored);
    }
    listing.metadata = about.metadata().clone().unwrap_or_default().into_iter().collect();
    listing.layers = listing.metadata.iter().flat_map(|(key, text)| told_layers(key, text)).collect();
    Ok(listing)
}

/// The numbers of layers that an entry of the metadata tells: itself, or in JSON that holds a configuration.
fn told_layers(key: &str, text: &str) -> Vec<(String, u64)> {
    match text.trim().parse() {
        Ok(number) if json::LAYERS.contains(&key) => vec![(key.to_string(), number)],
        _ if text.trim_start().starts_with('{') => {
            let config = json::parse(text).unwrap_or_default();
            let place = |name: &str| Some((format!("{key}.{name}"), config.get(name)?.as_u64()?));
            json::LAYERS.iter().filter_map(|name| place(name)).collect()
        }
        _ => vec![],
    }
}

/// How a pointer of Git LFS begins.
pub(super) const LFS_POINTER: &[u8; 8] = b"version ";

/// A pointer of Git LFS stands where a file should.
pub(super) fn lfs_pointer() -> Error {
    Error::input("this is a Git LFS pointer and not the file it points to")
        .hint("run `git lfs pull` in its repository")
}

/// Whether a tensor of this type has one whole number of bytes an element and can be computed with.
fn is_stored_plainly(dtype: &DType) -> bool {
    !matches!(dtype, DType::F6E2M3 | DType::F6E3M2 | DType::F4 | DType::F8E8M0)
}

/// Writes tensors and metadata to a safetensors file, whole or not at all.
///
/// Equal tensors and metadata give equal bytes.
///
/// # Errors
/// The file cannot be written (no folder, no permission, full disk), or a tensor's type has no plain bytes.
pub fn save_safetensors(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    whole::write(path, |file| write_to(file, tensors, metadata))
}

/// The bytes of such a file.
///
/// # Errors
/// If a tensor's type has no plain bytes.
pub(super) fn to_bytes(
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>> {
    let mut all = vec![];
    write_to(&mut all, tensors, metadata)?.map_err(Error::internal)?;
    Ok(all)
}

/// Writes header and tensors.
fn write_to(
    file: &mut impl Write,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<std::io::Result<()>> {
    // Wide types first keeps every tensor aligned; names decide the rest.
    let mut order: Vec<(&String, &Tensor)> = tensors.iter().collect();
    order.sort_by_key(|(name, tensor)| (Reverse(tensor.dtype().size_in_bytes()), *name));
    let header = header(&order, metadata)?;
    let tensors = order.into_iter().map(|(_, tensor)| tensor.to_device(&Device::Cpu));
    let tensors = tensors.collect::<candle_core::Result<Vec<_>>>()?;
    let begun = file.write_all(&(header.len() as u64).to_le_bytes()).and_then(|()| file.write_all(&header));
    Ok(begun.and_then(|()| tensors.iter().try_for_each(|tensor| file.write_all(&bytes(tensor)))))
}

/// The bytes of a tensor on the CPU, as files hold them.
pub(super) fn bytes(tensor: &Tensor) -> Cow<'_, [u8]> {
    format::View::data(tensor)
}

fn header(order: &[(&String, &Tensor)], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut fields = serde_json::Map::new();
    if !metadata.is_empty() {
        fields.insert("__metadata__".to_string(), serde_json::json!(metadata));
    }
    let mut start = 0;
    for (name, tensor) in order {
        if !is_stored_plainly(&tensor.dtype()) {
            return Err(
                Error::input(format!("tensors of type {:?} cannot be saved", tensor.dtype())).at(name)
            );
        }
        let end = start + tensor.elem_count() * tensor.dtype().size_in_bytes();
        let info = TensorInfo {
            dtype: Dtype::from(tensor.dtype()),
            shape: tensor.dims().to_vec(),
            data_offsets: (start, end),
        };
        let info = serde_json::to_value(info).map_err(Error::internal)?;
        fields.insert(name.to_string(), info);
        start = end;
    }
    let mut header = serde_json::to_vec(&fields).map_err(Error::internal)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn sample() -> (BTreeMap<String, Tensor>, BTreeMap<String, String>) {
        let f32s = Tensor::new(&[[1.0f32, -2.5], [0.0, 3e-9]], &Device::Cpu).unwrap();
        let tensors = BTreeMap::from([
            ("a.half".to_string(), f32s.to_dtype(DType::BF16).unwrap()),
            ("b.weight".to_string(), f32s.t().unwrap()), // not contiguous
            ("c.bytes".to_string(), Tensor::new(&[1u8, 2, 3], &Device::Cpu).unwrap()),
            ("d.float8".to_string(), f32s.to_dtype(DType::F8E4M3).unwrap()),
            ("e.none".to_string(), Tensor::zeros((0, 4), DType::F32, &Device::Cpu).unwrap()),
        ]);
        let keys = ["config", "family", "revision", "seed", "zeta", "note"];
        let metadata = keys.iter().map(|key| (key.to_string(), format!("{key} ü\n"))).collect();
        (tensors, metadata)
    }

    fn saved(folder: &Path, name: &str) -> PathBuf {
        let (tensors, metadata) = sample();
        let path = folder.join(name);
        save_safetensors(&path, &tensors, &metadata).unwrap();
        path
    }

    fn load(path: &Path) -> Result<Listing> {
        list(path)
    }

    #[test]
    fn what_was_saved_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = saved(folder.path(), "a.safetensors");
        let listing = list(&path).unwrap();
        let (tensors, metadata) = sample();
        assert_eq!(listing.metadata, metadata);
        assert!(listing.tensors.keys().eq(tensors.keys()));
        let bytes = std::fs::read(&path).unwrap();
        for (name, tensor) in &tensors {
            let stored = &listing.tensors[name];
            let again =
                stored.tensor(&bytes[stored.bytes.start as usize..stored.bytes.end as usize]).unwrap();
            assert_eq!((again.dtype(), again.dims()), (tensor.dtype(), tensor.dims()), "{name}");
            assert_eq!(format::View::data(&again), format::View::data(tensor), "{name}");
        }
        // The format's own library agrees that the file is well formed.
        assert_eq!(::safetensors::SafeTensors::deserialize(&bytes).unwrap().len(), 5);
    }

    #[test]
    fn equal_contents_are_equal_bytes_and_leave_no_temporary_file() {
        let folder = tempfile::tempdir().unwrap();
        let [one, two] = ["1.safetensors", "2.safetensors"].map(|name| saved(folder.path(), name));
        assert_eq!(std::fs::read(one).unwrap(), std::fs::read(two).unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn every_cut_is_told_with_both_sizes() {
        let folder = tempfile::tempdir().unwrap();
        let path = saved(folder.path(), "whole.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        let cut = folder.path().join("cut.safetensors");
        for length in [0, 7, 8, 100, bytes.len() - 1] {
            std::fs::write(&cut, &bytes[..length]).unwrap();
            let error = load(&cut).err().unwrap().to_string();
            assert!(error.contains("cut.safetensors: truncated safetensors: expected "), "{length}: {error}");
            assert!(error.contains(&format!("found {length};")), "{length}: {error}");
        }
        assert!(load(&cut).err().unwrap().to_string().contains(&format!("expected {} bytes", bytes.len())));
        std::fs::write(&cut, [&bytes[..], b"more"].concat()).unwrap();
        assert!(load(&cut).err().unwrap().to_string().contains("left over"));
    }

    #[test]
    fn damage_and_foreign_types_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let file = |header: &str, data: usize| {
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend_from_slice(header.as_bytes());
            bytes.resize(bytes.len() + data, 0);
            std::fs::write(&path, bytes).unwrap();
            load(&path).map_err(|error| error.to_string())
        };
        // They may lie beside the weights; only who wants them is refused.
        let foreign = file(r#"{"w.q":{"dtype":"I8","shape":[4],"data_offsets":[0,4]}}"#, 4).unwrap();
        let error = foreign.tensors["w.q"].tensor(&[]).unwrap_err().to_string();
        assert!(error.contains("tensors of type I8 cannot be loaded"), "{error}");
        assert!(file("{oops", 0).err().unwrap().contains("header is damaged"));
        let short = file(r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,4]}}"#, 4);
        assert!(short.err().unwrap().contains("damaged"));
        std::fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:0\n").unwrap();
        assert!(load(&path).err().unwrap().to_string().contains("Git LFS pointer"));
        std::fs::write(&path, b"this is not such a file at all").unwrap();
        assert!(load(&path).err().unwrap().to_string().contains("not a safetensors file"));
    }

    #[test]
    fn numbers_of_layers_in_the_metadata_are_found() {
        assert_eq!(told_layers("n_layer", " 12 "), [("n_layer".to_string(), 12)]);
        let config = r#"{"n_layers": 3, "limit": Infinity, "num_hidden_layers": "x"}"#;
        assert_eq!(told_layers("config", config), [("config.n_layers".to_string(), 3)]);
        assert!(told_layers("steps", "12").is_empty() && told_layers("config", "{").is_empty());
    }

    #[test]
    fn a_folder_that_is_not_there_is_told() {
        let (tensors, metadata) = sample();
        let error = save_safetensors(Path::new("/nowhere/x.safetensors"), &tensors, &metadata).unwrap_err();
        assert!(error.to_string().ends_with("no such file or folder"), "{error}");
    }
}
