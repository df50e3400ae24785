//! Copies of the Hugging Face fixture, changed as a test needs them.

use candle_core::{Device, Tensor};
use lowbit::model::safetensors::save_safetensors;
use lowbit::model::{Model, Positions};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The fixture itself: a Mamba2 of two layers.
pub const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/mamba2-tiny");

/// The fixture's tensors.
pub fn tensors() -> BTreeMap<String, Tensor> {
    let path = format!("{FIXTURE}/model.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).unwrap().into_iter().collect()
}

/// The fixture's `config.json`.
pub fn config() -> Value {
    serde_json::from_str(&fs::read_to_string(format!("{FIXTURE}/config.json")).unwrap()).unwrap()
}

/// A folder that goes away with its value.
pub struct Folder(tempfile::TempDir);

impl Folder {
    /// An empty folder.
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A checkpoint of these tensors, and of this configuration if there is one.
    pub fn checkpoint(tensors: &BTreeMap<String, Tensor>, config: Option<&Value>) -> Self {
        let folder = Self::new();
        save_safetensors(&folder.at("model.safetensors"), tensors, &BTreeMap::new()).unwrap();
        if let Some(config) = config {
            folder.write("config.json", config.to_string());
        }
        folder
    }

    /// The fixture with one setting changed; `null` takes it away.
    pub fn with_setting(key: &str, value: Value) -> Self {
        let mut config = config();
        config[key] = value;
        Self::checkpoint(&tensors(), Some(&config))
    }

    /// The fixture with one tensor changed.
    pub fn with_tensor(name: &str, change: impl Fn(&Tensor) -> Tensor) -> Self {
        let mut tensors = tensors();
        let tensor = change(&tensors[name]);
        tensors.insert(name.to_string(), tensor);
        Self::checkpoint(&tensors, Some(&config()))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file and returns its path.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        fs::write(self.at(name), bytes).unwrap();
        self.text(name)
    }

    /// The path of a file as text.
    pub fn text(&self, name: &str) -> String {
        self.at(name).to_string_lossy().into_owned()
    }

    /// The model in the folder.
    pub fn load(&self) -> Model {
        Model::load(&self.path().to_string_lossy()).unwrap()
    }
}

/// The logits after each of a few tokens that every byte-level model knows.
pub fn logits(model: &Model) -> Vec<f32> {
    let ids: Vec<u32> = (0..40).map(|t| (t * t * 7 + 3 * t) % 251).collect();
    let logits = model.forward(&model.tokens(&ids).unwrap(), None, Positions::All).unwrap();
    logits.flatten_all().unwrap().to_vec1().unwrap()
}
