//! A checkpoint as it is found, before anything is made of it: names of tensors, a configuration, where it came from.

use super::contents::Contents;
use super::finite::refuse_non_finite;
use super::gguf::Block;
use super::hub::{self, Hub};
use super::pass;
use super::stored::{Listing, Stored, Tokenizing};
use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::family::Stated;
use crate::format::Encoded;
use candle_core::Tensor;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// What is there under the names of tensors, with configuration and provenance; the tensors themselves are read as they
/// are wanted.
pub struct Checkpoint {
    /// A short name: the hub id, the folder's name, or the file's name without ending (its folder's, if the file
    /// is called `model` or `pytorch_model`).
    pub name: String,
    /// The folder or file that was found; for a hub id the folder in the hub's cache.
    pub source: PathBuf,
    /// The commit on the hub, if it came from there.
    pub revision: Option<String>,
    /// `config.json`, read by [`json::read`](crate::json::read), or else `params.json`, if there is one beside the weights. A GGUF file states
    /// itself what a `config.json` would.
    pub stated: Option<Stated>,
    /// The configuration that a pickled file has beside its weights; whether it is asked, the family says.
    pub(crate) pickled: Option<Stated>,
    /// Path of `tokenizer.json`, if there is one beside the weights, and none in them.
    pub tokenizer: Option<PathBuf>,
    /// The metadata of safetensors headers.
    pub metadata: BTreeMap<String, String>,
    /// Numbers of layers that are told elsewhere than in `stated`, by where.
    pub layers: Vec<(String, u64)>,
    /// What the weights are stored in, or were where they were first read, in a line, where that says more than a dtype.
    pub stored_as: Option<String>,
    /// The tokenizer in the weights' file.
    tokens: Option<Tokenizing>,
    /// Whether the weights say everything of the model, and nothing beside them does.
    alone: bool,
    files: Vec<(PathBuf, Listing)>,
}

/// What is wanted of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Weights to compute with: floating-point numbers.
    Weights,
    /// A part of something coded, of any type.
    Part,
}

impl Checkpoint {
    /// Opens a checkpoint.
    ///
    /// `source` is a folder (`model.safetensors`, shards with an index, another weight file; `config.json` and
    /// `tokenizer.json` beside them), a `.safetensors` file, a pickled `.bin`, `.pt` or `.pth` file, a `.gguf` file, a `.lowbit`
    /// file, or a hub id such as `state-spaces/mamba2-130m`. `revision` is a branch, tag or commit on the hub.
    ///
    /// # Errors
    /// There is no such file, folder or model; or the files are damaged (the sentence says how).
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
        let Contents { files, metadata, layers, stated, pickled, tokenizer, tokens, stored_as, alone } =
            Contents::of(path)?;
        let (name, source, revision) = (name(path), path.to_path_buf(), None);
        Ok(Self {
            name,
            source,
            revision,
            stated,
            pickled,
            tokenizer,
            metadata,
            layers,
            stored_as,
            tokens,
            alone,
            files,
        })
    }

    /// Whether the weights say everything of the model, as a GGUF file does: what lies beside them is not asked.
    pub(super) fn stands_alone(&self) -> bool {
        self.alone
    }

    /// The tokenizer that is a part of the weights' file, and what of it is assumed; none if there is no such.
    ///
    /// # Errors
    /// It is of a kind that is not known, or damaged.
    pub fn own_tokenizer(&self) -> Option<Result<(Tokenizer, Option<String>)>> {
        Some(self.tokens.as_ref()?.tokenizer(&self.name).map_err(|e| e.at(self.source.display())))
    }

    /// The shape of every tensor by name, and whether it is one of floating-point numbers.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &[usize], bool)> {
        self.stored().map(|(name, stored)| (name, &*stored.shape, stored.is_float()))
    }

    fn stored(&self) -> impl Iterator<Item = (&str, &Stored)> {
        let listings = self.files.iter().flat_map(|(_, listing)| &listing.tensors);
        listings.map(|(name, stored)| (name.as_str(), stored))
    }

    /// The type of the blocks of each tensor that is in any, by name.
    pub(super) fn blocks(&self) -> BTreeMap<String, Block> {
        self.stored().filter_map(|(name, stored)| Some((name.to_string(), stored.block()?))).collect()
    }

    /// Reads all files once, as [`read`](Self::read), for matrices in blocks that stay as they are.
    pub(super) fn read_blocks(
        &self,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<(BTreeMap<String, Encoded>, String)> {
        let (mut blocks, mut hash) = (BTreeMap::new(), Sha256::new());
        for (file, listing) in &self.files {
            let of_file = listing.tensors.iter().filter(|(name, _)| wanted(name));
            let needed = of_file.map(|(name, stored)| (name.as_str(), stored)).collect();
            let read = pass::read(file, needed, &listing.sums, &mut hash, Stored::encoded)?;
            blocks.extend(read.into_iter().map(|(name, encoded)| (name.to_string(), encoded)));
        }
        Ok((blocks, hex(hash)))
    }

    /// Reads all files once. Returns the tensors that are wanted by name, on the CPU, in the type they are stored in;
    /// and the SHA-256 over the bytes of the files, one after the other in the order of their names.
    ///
    /// # Errors
    /// A file cannot be read or is damaged; a wanted tensor is not of numbers that can be used, or not all of its
    /// numbers are finite.
    pub fn read(
        &self,
        wanted: impl Fn(&str) -> Option<Wanted>,
    ) -> Result<(BTreeMap<String, Tensor>, String)> {
        let (mut tensors, mut hash) = (BTreeMap::new(), Sha256::new());
        for (file, listing) in &self.files {
            let of_file =
                listing.tensors.iter().filter_map(|(name, stored)| Some((name, stored, wanted(name)?)));
            let mut needed = vec![];
            for (name, stored, wanted) in of_file {
                if wanted == Wanted::Weights && !stored.is_float() {
                    return Err(Error::input(format!(
                        "expected floating-point numbers, found {}",
                        stored.kind
                    ))
                    .at(name)
                    .at(file.display())
                    .hint(
                        "save it again in f32, bf16 or f16; what another program quantized cannot be read",
                    ));
                }
                needed.push((name.as_str(), stored));
            }
            for (name, tensor) in pass::read(file, needed, &listing.sums, &mut hash, Stored::tensor)? {
                refuse_non_finite(&tensor).map_err(|e| e.at(name).at(file.display()))?;
                tensors.insert(name.to_string(), tensor);
            }
        }
        Ok((tensors, hex(hash)))
    }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tensors, files) = (self.stored().count(), self.files.len());
        write!(f, "Checkpoint({}: {tensors} tensors in {files} files)", self.name)
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

#[cfg(test)]
mod tests {
    use super::super::safetensors::save_safetensors;
    use super::*;
    use crate::json;
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

    fn read(checkpoint: &Checkpoint) -> Result<(BTreeMap<String, Tensor>, String)> {
        checkpoint.read(|_| Some(Wanted::Weights))
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
        let (tensors, hash) = read(&checkpoint).unwrap();
        assert_eq!(hash, "f0f8be86af613f08db193f38185808e5e00d3dddff0d83a1472564c23735e534");
        assert!(tensors.contains_key("backbone.norm_f.weight"));
        let config = checkpoint.stated.unwrap();
        assert_eq!(json::float(&config.json["time_step_limit"][1]), Some(f64::INFINITY));
        // The file alone gives the same, and finds the configuration beside it.
        let file = open(&folder.join("model.safetensors")).unwrap();
        assert_eq!((file.name.as_str(), read(&file).unwrap().1), ("mamba2-tiny", hash));
        assert_eq!(file.stated, Some(config));
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
        let (tensors, hash) = read(&checkpoint).unwrap();
        assert_eq!(tensors.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(checkpoint.metadata["seed"], "7");
        assert_eq!(checkpoint.tokenizer, Some(at("tokenizer.json")));
        let both =
            [fs::read(at("one.safetensors")).unwrap(), fs::read(at("two.safetensors")).unwrap()].concat();
        let expected: String = Sha256::digest(both).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hash, expected);

        save(&at("two.safetensors"), &[("c", vector(&[2.0]))]);
        let error = open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("b: missing, though model.safetensors.index.json lists it"), "{error}");
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
        assert_eq!((checkpoint.name.as_str(), checkpoint.tensors().count()), ("nested", 3));
        let (tensors, _) =
            checkpoint.read(|name| name.ends_with("b.weight").then_some(Wanted::Weights)).unwrap();
        assert_eq!((tensors.len(), tensors["model_state_dict.b.weight"].dtype()), (1, DType::F16));
        let empty = open(&fixtures().join("pickled/no_tensors.pt")).unwrap_err().to_string();
        assert!(empty.ends_with("no_tensors.pt: the checkpoint holds no tensors"), "{empty}");
    }

    #[test]
    fn nan_and_infinity_are_refused_with_tensor_and_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let mut values = vec![0.25f32; 70_000];
        (values[3], values[69_999], values[66_000]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
        for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
            save(&path, &[("fine", vector(&[1.0])), ("broken", vector(&values).to_dtype(dtype).unwrap())]);
            let error = read(&open(&path).unwrap()).unwrap_err().to_string();
            assert!(
                error.contains("x.safetensors: broken: 3 of 70000 weights are NaN or infinite"),
                "{error}"
            );
        }
        let float8 = vector(&[1.0, f32::NAN, 448.0]).to_dtype(DType::F8E4M3).unwrap();
        save(&path, &[("w", float8)]);
        assert!(read(&open(&path).unwrap()).unwrap_err().to_string().contains("w: 1 of 3 weights"));
        // What nobody wants may be anything.
        let fine = open(&path).unwrap().read(|name| (name != "w").then_some(Wanted::Weights));
        assert!(fine.unwrap().0.is_empty());
        save(&path, &[("w", vector(&[f32::MAX, f32::MIN_POSITIVE, -0.0, 1e-45]))]);
        assert_eq!(read(&open(&path).unwrap()).unwrap().0["w"].elem_count(), 4);
        save(&path, &[("w", Tensor::new(&[1u8], &Device::Cpu).unwrap())]);
        let error = read(&open(&path).unwrap()).unwrap_err().to_string();
        assert!(
            error.contains("x.safetensors: w: expected floating-point numbers, found U8; save"),
            "{error}"
        );
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
        fs::write(folder.path().join("w.onnx"), "").unwrap();
        assert!(
            open(&folder.path().join("w.onnx")).unwrap_err().to_string().contains("expected .safetensors")
        );
        save(&folder.path().join("model.safetensors"), &[("a", vector(&[1.0]))]);
        fs::write(folder.path().join("config.json"), "{\"a\": }").unwrap();
        let config = open(folder.path()).unwrap_err().to_string();
        assert!(config.contains("config.json: line 1, column 7: not JSON"), "{config}");
        let revised = Checkpoint::open(folder.path().to_str().unwrap(), Some("main")).unwrap_err();
        assert!(revised.to_string().contains("hub id only"));
    }
}
