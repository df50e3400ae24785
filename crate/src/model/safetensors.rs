//! Safetensors files, read and written: eight bytes of header length, a JSON header, the tensors' bytes.
//!
//! Reading goes once through the file and makes its hash on the way. Writing gives the same bytes for the same
//! tensors and metadata, which the format's own library does not (it writes metadata in hash order).

use crate::error::{Error, Result};
use ::safetensors::tensor::{self as format, Dtype, Metadata, TensorInfo};
use candle_core::{DType, Device, Tensor};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// Tensors and metadata of one file.
pub(super) struct Contents {
    /// Tensors by name, on the CPU, in the type they are stored in.
    pub tensors: BTreeMap<String, Tensor>,
    /// The header's `__metadata__`.
    pub metadata: BTreeMap<String, String>,
}

/// The format's own limit on the header.
pub(super) const MAX_HEADER: u64 = 100_000_000;

/// Bytes read at a time, few enough to be still in the cache when they are hashed.
const PIECE: usize = 1 << 18;

/// Reads a whole file, adding all its bytes to `hash`.
pub(super) fn read(path: &Path, hash: &mut Sha256) -> Result<Contents> {
    let io = |e: std::io::Error| Error::io(path, &e);
    let damaged =
        |what: String| Error::input(what).at(path.display()).hint("copy or download the file again");
    let mut file = File::open(path).map_err(io)?;
    let found = file.metadata().map_err(io)?.len();

    let mut prefix = [0; 8];
    if found < 8 {
        return Err(damaged(format!("truncated safetensors: expected at least 8 bytes, found {found}")));
    }
    file.read_exact(&mut prefix).map_err(io)?;
    if &prefix == b"version " {
        return Err(Error::input("this is a Git LFS pointer and not the file it points to")
            .at(path.display())
            .hint("run `git lfs pull` in its repository"));
    }
    let header_bytes = u64::from_le_bytes(prefix);
    if header_bytes > MAX_HEADER {
        return Err(damaged(format!("not a safetensors file: its header would have {header_bytes} bytes")));
    }
    if found - 8 < header_bytes {
        let expected = 8 + header_bytes;
        return Err(damaged(format!(
            "truncated safetensors: expected at least {expected} bytes (the header), found {found}"
        )));
    }
    let mut header = vec![0; header_bytes as usize];
    file.read_exact(&mut header).map_err(io)?;
    let about: Metadata = serde_json::from_slice(&header)
        .map_err(|e| damaged(format!("the safetensors header is damaged: {e}")))?;
    let expected = 8 + header_bytes + about.data_len() as u64;
    if found != expected {
        let what =
            if found < expected { "truncated safetensors" } else { "safetensors with bytes left over" };
        return Err(damaged(format!("{what}: expected {expected} bytes, found {found}")));
    }
    hash.update(prefix);
    hash.update(&header);

    // One buffer for all: fresh memory for each tensor would cost more than reading it.
    let mut bytes = Vec::new();
    let mut tensors = BTreeMap::new();
    for name in about.offset_keys() {
        let Some(info) = about.info(&name) else { continue };
        bytes.resize(info.data_offsets.1 - info.data_offsets.0, 0);
        for piece in bytes.chunks_mut(PIECE) {
            file.read_exact(piece).map_err(io)?;
            hash.update(piece);
        }
        let tensor = tensor(info, &bytes).map_err(|e| e.at(&name).at(path.display()))?;
        tensors.insert(name, tensor);
    }
    let metadata = about.metadata().clone().unwrap_or_default().into_iter().collect();
    Ok(Contents { tensors, metadata })
}

fn tensor(info: &TensorInfo, bytes: &[u8]) -> Result<Tensor> {
    let Some(dtype) = DType::try_from(info.dtype).ok().filter(is_stored_plainly) else {
        return Err(Error::input(format!("tensors of type {:?} cannot be loaded", info.dtype))
            .hint("convert it to a floating-point type or to U8, U32, I16, I32 or I64"));
    };
    Ok(Tensor::from_raw_buffer(bytes, dtype, &info.shape, &Device::Cpu)?)
}

/// Whether a tensor of this type has one whole number of bytes an element and can be computed with.
fn is_stored_plainly(dtype: &DType) -> bool {
    !matches!(dtype, DType::F6E2M3 | DType::F6E3M2 | DType::F4 | DType::F8E8M0)
}

/// Writes tensors and metadata to a safetensors file, whole or not at all: the bytes go to `path` with `.tmp`
/// added, which then takes the place of `path`.
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
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let written = write(&temporary, tensors, metadata)
        .and_then(|()| std::fs::rename(&temporary, path).map_err(|e| Error::io(path, &e)));
    if written.is_err() {
        // The first error is the one to tell; a leftover is at worst a leftover.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

fn write(path: &Path, tensors: &BTreeMap<String, Tensor>, metadata: &BTreeMap<String, String>) -> Result<()> {
    // Wide types first keeps every tensor aligned; names decide the rest.
    let mut order: Vec<(&String, &Tensor)> = tensors.iter().collect();
    order.sort_by_key(|(name, tensor)| (Reverse(tensor.dtype().size_in_bytes()), *name));
    let header = header(&order, metadata)?;

    let io = |e: std::io::Error| Error::io(path, &e);
    let mut file = BufWriter::new(File::create(path).map_err(io)?);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
    file.write_all(&header).map_err(io)?;
    for (_, tensor) in order {
        let tensor = tensor.to_device(&Device::Cpu)?;
        file.write_all(&bytes(&tensor)).map_err(io)?;
    }
    let file = file.into_inner().map_err(|e| Error::io(path, e.error()))?;
    file.sync_all().map_err(io)
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

    fn load(path: &Path) -> Result<Contents> {
        read(path, &mut Sha256::new())
    }

    #[test]
    fn what_was_saved_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = saved(folder.path(), "a.safetensors");
        let mut hash = Sha256::new();
        let contents = read(&path, &mut hash).unwrap();
        let (tensors, metadata) = sample();
        assert_eq!(contents.metadata, metadata);
        assert!(contents.tensors.keys().eq(tensors.keys()));
        for (name, tensor) in &tensors {
            let again = &contents.tensors[name];
            assert_eq!((again.dtype(), again.dims()), (tensor.dtype(), tensor.dims()), "{name}");
            assert_eq!(format::View::data(again), format::View::data(tensor), "{name}");
        }
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(hash.finalize(), Sha256::digest(&bytes));
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
            load(&path).err().unwrap().to_string()
        };
        let error = file(r#"{"w.q":{"dtype":"I8","shape":[4],"data_offsets":[0,4]}}"#, 4);
        assert!(error.contains("x.safetensors: w.q: tensors of type I8 cannot be loaded"), "{error}");
        assert!(file("{oops", 0).contains("header is damaged"));
        assert!(file(r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,4]}}"#, 4).contains("damaged"));
        std::fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:0\n").unwrap();
        assert!(load(&path).err().unwrap().to_string().contains("Git LFS pointer"));
        std::fs::write(&path, b"this is not such a file at all").unwrap();
        assert!(load(&path).err().unwrap().to_string().contains("not a safetensors file"));
    }

    #[test]
    fn a_folder_that_is_not_there_is_told() {
        let (tensors, metadata) = sample();
        let error = save_safetensors(Path::new("/nowhere/x.safetensors"), &tensors, &metadata).unwrap_err();
        assert!(error.to_string().ends_with("no such file or folder"), "{error}");
    }
}
