//! Checkpoints that Python's `torch.save` pickled (`.bin`, `.pt`, `.pth`), in the zip format.
//!
//! Only tensors are read; no code in the pickle is run.

use crate::error::{Error, Result};
use candle_core::Tensor;
use candle_core::pickle::PthTensors;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Where training programs put the weights among other things; the file's top level is tried first.
const NESTED: [&str; 6] = ["model_state_dict", "state_dict", "model", "module", "weights", "params"];

/// Reads all tensors of a file, adding all its bytes to `hash`.
pub(super) fn read(path: &Path, hash: &mut Sha256) -> Result<BTreeMap<String, Tensor>> {
    add_to_hash(path, hash)?;
    let damaged = |e: candle_core::Error| {
        let text = e.to_string();
        let what = text.lines().next().unwrap_or("unreadable");
        Error::input(format!("not a whole file of torch.save: {what}"))
            .at(path.display())
            .hint("copy or download it again; a file from before PyTorch 1.6 must be saved anew")
    };
    let mut found = PthTensors::new(path, None).map_err(damaged)?;
    for key in NESTED {
        if !found.tensor_infos().is_empty() {
            break;
        }
        // An absent key is an error here; the next one may be there.
        if let Ok(nested) = PthTensors::new(path, Some(key)) {
            found = nested;
        }
    }
    if found.tensor_infos().is_empty() {
        return Err(Error::input("the file holds no tensors")
            .at(path.display())
            .hint(format!("they are looked for at the top and under {}", NESTED.join(", "))));
    }
    let mut tensors = BTreeMap::new();
    for name in found.tensor_infos().keys() {
        let at = |e: Error| e.at(name).at(path.display());
        if let Some(tensor) = found.get(name).map_err(|e| at(e.into()))? {
            tensors.insert(name.clone(), tensor.contiguous().map_err(|e| at(e.into()))?);
        }
    }
    Ok(tensors)
}

fn add_to_hash(path: &Path, hash: &mut Sha256) -> Result<()> {
    let io = |e: std::io::Error| Error::io(path, &e);
    let mut file = File::open(path).map_err(io)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer).map_err(io)?;
        if n == 0 {
            return Ok(());
        }
        hash.update(&buffer[..n]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use std::path::PathBuf;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pickled").join(name)
    }

    fn load(path: &Path) -> Result<BTreeMap<String, Tensor>> {
        read(path, &mut Sha256::new())
    }

    #[test]
    fn tensors_are_found_at_the_top_and_nested() {
        for name in ["flat.bin", "nested.pt"] {
            let tensors = load(&fixture(name)).unwrap();
            assert_eq!(tensors.keys().collect::<Vec<_>>(), ["a.weight", "b.weight", "c.weight"], "{name}");
            let expected = Tensor::arange(0f32, 6.0, &Device::Cpu).unwrap().reshape((2, 3)).unwrap();
            let rows = |tensor: &Tensor| tensor.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
            assert_eq!(rows(&tensors["a.weight"]), rows(&expected));
            assert_eq!(tensors["b.weight"].dtype(), DType::F16);
            assert_eq!(
                tensors["b.weight"].to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap(),
                [0.5, -2.0]
            );
            // c is a transposed view of a in the file
            assert_eq!(rows(&tensors["c.weight"]), rows(&expected.t().unwrap()));
        }
    }

    #[test]
    fn the_hash_is_that_of_the_file() {
        let mut hash = Sha256::new();
        read(&fixture("flat.bin"), &mut hash).unwrap();
        assert_eq!(hash.finalize(), Sha256::digest(std::fs::read(fixture("flat.bin")).unwrap()));
    }

    #[test]
    fn damage_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pt");
        let whole = std::fs::read(fixture("nested.pt")).unwrap();
        for bytes in [&whole[..whole.len() / 2], b"no zip at all", b""] {
            std::fs::write(&path, bytes).unwrap();
            let error = load(&path).unwrap_err().to_string();
            assert!(error.contains("x.pt: not a whole file of torch.save: "), "{error}");
        }
        assert!(load(&fixture("no_tensors.pt")).unwrap_err().to_string().contains("holds no tensors"));
        assert!(
            load(&folder.path().join("none.pt")).unwrap_err().to_string().ends_with("no such file or folder")
        );
    }
}
