//! A checkpoint as it is found, before anything is made of it: named tensors, a configuration, where it came from.

use super::hub::{self, Hub};
use super::{destination, files, pickle, safetensors};
use crate::error::{Error, Result};
use crate::json;
use candle_core::{CpuStorage, Storage, Tensor};
use rayon::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// Named tensors with their configuration and provenance.
#[derive(Clone)]
pub struct Checkpoint {
    /// A short name: the hub id, the folder's name, or the file's name without ending (its folder's, if the file
    /// is called `model` or `pytorch_model`).
    pub name: String,
    /// The folder or file that was read; for a hub id the folder in the hub's cache.
    pub source: PathBuf,
    /// The commit on the hub, if it came from there.
    pub revision: Option<String>,
    /// SHA-256 over the bytes of the weight files, one after the other in the order of their names.
    pub hash: String,
    /// `config.json`, read by [`json::read`], if there is one beside the weights.
    pub config: Option<Value>,
    /// Path of `tokenizer.json`, if there is one beside the weights.
    pub tokenizer: Option<PathBuf>,
    /// The metadata of safetensors headers.
    pub metadata: BTreeMap<String, String>,
    /// Tensors by name, on the CPU, in the type they are stored in.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Checkpoint {
    /// Opens a checkpoint.
    ///
    /// `source` is a folder (`model.safetensors`, shards with an index, another weight file; `config.json` and
    /// `tokenizer.json` beside them), a `.safetensors` file, a pickled `.bin`, `.pt` or `.pth` file, or a hub id
    /// such as `state-spaces/mamba2-130m`. `revision` is a branch, tag or commit on the hub.
    ///
    /// # Errors
    /// There is no such file, folder or model; the files are damaged (the sentence says how); a tensor's type
    /// cannot be loaded; a tensor holds NaN or infinity.
    pub fn open(source: &str, revision: Option<&str>) -> Result<Self> {
        let path = Path::new(source);
        if path.exists() {
            if revision.is_some() {
                return Err(
                    Error::input("a revision can be given with a hub id only, and this is a path").at(source)
                );
            }
            return Self::open_path(path);
        }
        // `runs/x` is written like a hub id; where a folder `runs` exists, a path is meant.
        let parent_exists = path.parent().is_some_and(|parent| parent.is_dir() && parent != Path::new(""));
        if !hub::is_id(source) || parent_exists {
            return Err(Error::io(path, &std::io::ErrorKind::NotFound.into())
                .hint("give a folder, a weight file, or a hub id such as state-spaces/mamba2-130m"));
        }
        let snapshot = Hub::from_env()?.snapshot(source, revision)?;
        let found = Self::open_path(&snapshot.folder)?;
        Ok(Self { name: source.to_string(), revision: Some(snapshot.commit), ..found })
    }

    fn open_path(path: &Path) -> Result<Self> {
        let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
        destination::finish(folder)?;
        let files = if path.is_dir() { files::weight_files(path)? } else { vec![path.to_path_buf()] };

        let (mut tensors, mut metadata, mut hash) = (BTreeMap::new(), BTreeMap::new(), Sha256::new());
        for file in &files {
            let contents = read_weights(file, &mut hash)?;
            for (name, tensor) in contents.tensors {
                if tensors.contains_key(&name) {
                    return Err(Error::input("this tensor is also in another shard")
                        .at(name)
                        .at(file.display()));
                }
                tensors.insert(name, tensor);
            }
            metadata.extend(contents.metadata);
        }
        if tensors.is_empty() {
            return Err(Error::input("the checkpoint holds no tensors").at(path.display()));
        }
        refuse_non_finite(&tensors).map_err(|e| e.at(path.display()))?;

        let beside = |name: &str| Some(folder.join(name)).filter(|file| file.is_file());
        Ok(Self {
            name: name(path),
            source: path.to_path_buf(),
            revision: None,
            hash: hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
            config: beside("config.json").map(json::read).transpose()?,
            tokenizer: beside("tokenizer.json"),
            metadata,
            tensors,
        })
    }

    /// The number of elements in all tensors.
    pub fn elements(&self) -> usize {
        self.tensors.values().map(Tensor::elem_count).sum()
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tensors, elements) = (self.tensors.len(), self.elements());
        write!(f, "Checkpoint({}: {tensors} tensors, {elements} elements, sha256 {})", self.name, self.hash)
    }
}

fn read_weights(file: &Path, hash: &mut Sha256) -> Result<safetensors::Contents> {
    match file.extension().and_then(|ending| ending.to_str()) {
        Some("safetensors") => safetensors::read(file, hash),
        Some("bin" | "pt" | "pth") => {
            Ok(safetensors::Contents { tensors: pickle::read(file, hash)?, metadata: BTreeMap::new() })
        }
        _ => Err(Error::input("this file's ending is not one of weights")
            .at(file.display())
            .hint("expected .safetensors, .bin, .pt or .pth")),
    }
}

/// A name to be recognized by, from a path.
fn name(path: &Path) -> String {
    // `.` has no name of its own; the folder it stands for does.
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let folder = |path: &Path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    if path.is_dir() {
        return folder(&path);
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    match path.parent() {
        Some(parent) if stem == "model" || stem == "pytorch_model" => folder(parent),
        _ => stem,
    }
}

fn refuse_non_finite(tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    for (name, tensor) in tensors {
        let found = non_finite(tensor);
        if found > 0 {
            let all = tensor.elem_count();
            return Err(Error::input(format!("{found} of {all} weights are NaN or infinite"))
                .at(name)
                .hint("the checkpoint is damaged or its training diverged; use another one"));
        }
    }
    Ok(())
}

/// How many elements of a tensor are NaN or infinite: those whose exponent bits are all set.
pub(super) fn non_finite(tensor: &Tensor) -> usize {
    // The loops without branches inside a block run at the speed of memory.
    fn count<T: Copy + Sync>(values: &[T], is_bad: impl Fn(T) -> bool + Sync) -> usize {
        let block = |block: &[T]| block.iter().map(|&value| u32::from(is_bad(value))).sum::<u32>() as usize;
        values.par_chunks(1 << 16).map(block).sum()
    }
    // Tensors just read or cast own their storage, so it holds nothing but them.
    let (storage, _) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { return 0 };
    match storage {
        CpuStorage::F64(values) => count(values, |v| !v.is_finite()),
        CpuStorage::F32(values) => count(values, |v| v.to_bits() & 0x7f80_0000 == 0x7f80_0000),
        CpuStorage::BF16(values) => count(values, |v| v.to_bits() & 0x7f80 == 0x7f80),
        CpuStorage::F16(values) => count(values, |v| v.to_bits() & 0x7c00 == 0x7c00),
        CpuStorage::F8E4M3(values) => count(values, |v| v.to_bits() & 0x7f == 0x7f),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::safetensors::save_safetensors;
    use super::*;
    use candle_core::{DType, Device};
    use std::fs;

    fn fixtures() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
    }

    fn open(path: &Path) -> Result<Checkpoint> {
        Checkpoint::open(path.to_str().unwrap(), None)
    }

    fn save(path: &Path, tensors: &[(&str, Tensor)]) {
        let tensors = tensors.iter().map(|(name, tensor)| (name.to_string(), tensor.clone())).collect();
        save_safetensors(path, &tensors, &BTreeMap::from([("seed".to_string(), "7".to_string())])).unwrap();
    }

    fn vector(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    #[test]
    fn a_folder_in_the_common_layout_opens_whole() {
        let folder = fixtures().join("mamba2-tiny");
        let checkpoint = open(&folder).unwrap();
        assert_eq!(checkpoint.name, "mamba2-tiny");
        assert_eq!((checkpoint.revision.as_ref(), checkpoint.tokenizer.as_ref()), (None, None));
        // sha256sum of model.safetensors, by another program
        assert_eq!(checkpoint.hash, "f0f8be86af613f08db193f38185808e5e00d3dddff0d83a1472564c23735e534");
        assert!(checkpoint.tensors.contains_key("backbone.norm_f.weight"));
        let config = checkpoint.config.unwrap();
        assert_eq!(json::float(&config["time_step_limit"][1]), Some(f64::INFINITY));
        // The file alone gives the same, and finds the configuration beside it.
        let file = open(&folder.join("model.safetensors")).unwrap();
        assert_eq!((file.name.as_str(), file.hash), ("mamba2-tiny", checkpoint.hash));
        assert_eq!(file.config, Some(config));
    }

    #[test]
    fn shards_are_put_together() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        save(&at("one.safetensors"), &[("a", vector(&[1.0]))]);
        save(&at("two.safetensors"), &[("b", vector(&[2.0, 3.0]))]);
        let index = r#"{"metadata": {}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#;
        fs::write(at("model.safetensors.index.json"), index).unwrap();
        fs::write(at("tokenizer.json"), "{}").unwrap();
        let checkpoint = open(folder.path()).unwrap();
        assert_eq!(checkpoint.elements(), 3);
        assert_eq!(checkpoint.metadata["seed"], "7");
        assert_eq!(checkpoint.tokenizer, Some(at("tokenizer.json")));
        let both =
            [fs::read(at("one.safetensors")).unwrap(), fs::read(at("two.safetensors")).unwrap()].concat();
        let hash: String = Sha256::digest(both).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(checkpoint.hash, hash);

        save(&at("two.safetensors"), &[("a", vector(&[2.0]))]);
        assert!(
            open(folder.path()).unwrap_err().to_string().contains("two.safetensors: a: this tensor is also")
        );
        fs::remove_file(at("two.safetensors")).unwrap();
        assert!(
            open(folder.path()).unwrap_err().to_string().contains("the shard two.safetensors is missing")
        );
    }

    #[test]
    fn pickled_files_open_too() {
        let checkpoint = open(&fixtures().join("pickled/nested.pt")).unwrap();
        assert_eq!((checkpoint.name.as_str(), checkpoint.tensors.len()), ("nested", 3));
        assert_eq!(checkpoint.tensors["b.weight"].dtype(), DType::F16);
    }

    #[test]
    fn nan_and_infinity_are_refused_with_tensor_and_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let mut values = vec![0.25f32; 70_000];
        (values[3], values[69_999], values[66_000]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
        for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
            save(&path, &[("fine", vector(&[1.0])), ("broken", vector(&values).to_dtype(dtype).unwrap())]);
            let error = open(&path).unwrap_err().to_string();
            assert!(
                error.contains("x.safetensors: broken: 3 of 70000 weights are NaN or infinite"),
                "{error}"
            );
        }
        let float8 = vector(&[1.0, f32::NAN, 448.0]).to_dtype(DType::F8E4M3).unwrap();
        save(&path, &[("w", float8)]);
        assert!(open(&path).unwrap_err().to_string().contains("w: 1 of 3 weights"));
        save(&path, &[("w", vector(&[f32::MAX, f32::MIN_POSITIVE, -0.0, 1e-45]))]);
        assert_eq!(open(&path).unwrap().elements(), 4);
    }

    #[test]
    fn each_bad_source_has_its_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let sentence = |source: &str| Checkpoint::open(source, None).unwrap_err().to_string();
        for source in ["./none", "/no/such/model", "none.safetensors", "none", "src/none", "a/b/c"] {
            assert!(sentence(source).starts_with(&format!("{source}: no such file or folder")), "{source}");
        }
        let empty = open(folder.path()).unwrap_err().to_string();
        assert!(empty.contains("no weights in this folder; looked for model.safetensors"), "{empty}");
        fs::write(folder.path().join("model.safetensors"), [9, 0, 0]).unwrap();
        assert!(open(folder.path()).unwrap_err().to_string().contains("model.safetensors: truncated"));
        fs::write(folder.path().join("w.gguf"), "").unwrap();
        assert!(
            open(&folder.path().join("w.gguf")).unwrap_err().to_string().contains("expected .safetensors")
        );
        save(&folder.path().join("model.safetensors"), &[("a", vector(&[1.0]))]);
        fs::write(folder.path().join("config.json"), "{\"a\": }").unwrap();
        let config = open(folder.path()).unwrap_err().to_string();
        assert!(config.contains("config.json: line 1, column 7: not JSON"), "{config}");
        let revised = Checkpoint::open(folder.path().to_str().unwrap(), Some("main")).unwrap_err();
        assert!(revised.to_string().contains("hub id only"));
    }
}
