//! Saving a model: a folder that this program and transformers read, and never the folder it came from.

use super::checkpoint::Checkpoint;
use super::contents::STORED_AS;
use super::destination::{self, BESIDE, Destination, WEIGHTS};
use super::gguf::Block;
use super::quantization::LAYOUT;
use super::safetensors::save_safetensors;
use super::tokenizer::Tokenizer;
use super::{Model, loading};
use crate::error::{Error, Result};
use crate::family;
use crate::json;
use crate::warning::warn;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Files beside a `tokenizer.json` that other readers want for it.
const OF_TOKENIZER: [&str; 9] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

/// The file beside the weights that says how other readers generate.
const OF_WEIGHTS: &str = "generation_config.json";

/// Where a model's files are, and what its `config.json` says.
#[derive(Debug)]
pub(super) struct Origin {
    /// The folder of the weights.
    folder: PathBuf,
    /// That folder, and those that its files are links into.
    folders: BTreeSet<PathBuf>,
    /// Whether nothing in the folder but the weights is of the model.
    alone: bool,
    config: Option<Value>,
    /// The types of the blocks that tensors were read in, by their names.
    pub blocks: BTreeMap<String, Block>,
}

impl Origin {
    /// That of a checkpoint on this machine.
    pub fn of(found: &Checkpoint) -> Self {
        let source = &found.source;
        let folder = match source.is_dir() {
            true => source.clone(),
            false => {
                source.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new(".")).into()
            }
        };
        let files = fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let real = |path: PathBuf| fs::canonicalize(path).ok();
        let parents = files.filter_map(real).filter_map(|file| Some(file.parent()?.to_path_buf()));
        let folders = parents.chain(real(folder.clone())).collect();
        let alone = found.stands_alone();
        let config = found.stated.as_ref().filter(|stated| alone || stated.file == "config.json");
        let config = config.map(|stated| stated.json.clone());
        Self { folders, folder, alone, config, blocks: found.blocks() }
    }

    /// Whether this is one of the model's own folders, however it is written.
    fn is(&self, folder: &Path) -> bool {
        let Ok(mut folder) = fs::canonicalize(folder) else { return false };
        if folder.is_file() {
            folder.pop();
        }
        self.folders.iter().any(|own| *own == folder || same_folder(own, &folder))
    }
}

/// Whether two names are of one folder: file systems that ignore case, or show a folder at two places, have such names.
#[cfg(unix)]
fn same_folder(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let place = |path: &Path| fs::metadata(path).ok().map(|about| (about.dev(), about.ino()));
    place(a).is_some_and(|a| place(b) == Some(a))
}

#[cfg(not(unix))]
fn same_folder(_: &Path, _: &Path) -> bool {
    false // canonical names are unique there
}

impl Model {
    /// Writes a folder: `model.safetensors`, a `config.json` that transformers reads too, the tokenizer's files if it is
    /// not bytes, byte for byte. Loading it gives identical logits. A crash leaves what was there, or the new model
    /// whole; an earlier save is replaced.
    ///
    /// # Errors
    /// It is the folder that the model itself was read from, or holds files of another model that no earlier save put
    /// there; or it cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let files = self.files_beside()?;
        self.check_folder(folder)?;
        let tensors = match self.quantization {
            Some(_) => self.packed_tensors()?,
            None => family::join(self.packed_tensors()?)?,
        };
        let destination = Destination::new(folder, &files)?;
        fs::create_dir_all(folder).map_err(|error| Error::io(folder, &error))?;
        for (name, bytes) in &files {
            destination::write(&destination.draft(name), bytes)?;
        }
        save_safetensors(&destination.draft(WEIGHTS), &tensors, &self.metadata(&files)?)?;
        destination.commit()?;
        if let Some(why) = self.config.recipe().foreign_to_transformers() {
            warn(format!("{}: transformers cannot read a model of this shape: {why}", folder.display()));
        }
        Ok(())
    }

    /// Ends with the error that [saving](Self::save) into this folder would end with, before time is spent.
    ///
    /// # Errors
    /// As [`save`](Self::save).
    pub fn check_save(&self, folder: &Path) -> Result<()> {
        self.check_folder(folder)?;
        Destination::new(folder, &self.files_beside()?).map(drop)
    }

    /// Refuses the folder that the model was read from.
    pub(crate) fn check_folder(&self, folder: &Path) -> Result<()> {
        match &self.origin {
            Some(origin) if origin.is(folder) => {
                Err(Error::input("this is the folder of the model itself, whose files would be replaced")
                    .at(folder.display())
                    .hint("name another one"))
            }
            _ => Ok(()),
        }
    }

    /// What the header of the weights says.
    fn metadata(&self, files: &BTreeMap<String, Vec<u8>>) -> Result<BTreeMap<String, String>> {
        let mut all = self.about()?;
        all.insert("saved_from".to_string(), format!("{} {}", self.name, self.hash));
        all.insert(BESIDE.to_string(), destination::hashes(files)?);
        Ok(all)
    }

    /// What a file of the weights must say beside them.
    pub(super) fn about(&self) -> Result<BTreeMap<String, String>> {
        // Older readers refuse a format they do not know: packed weights are not for them.
        let format = if self.quantization.is_some() { "lowbit" } else { "pt" };
        let mut all = BTreeMap::from([
            ("format", format.to_string()),
            ("lowbit_version", env!("CARGO_PKG_VERSION").to_string()),
            ("dtype", self.dtype.as_str().to_string()),
        ]);
        // Loaded again, it reads bytes as it does now, though its vocabulary does not tell.
        let (alone, _) = Tokenizer::without_file(self.config.vocab_size(), Path::new(""));
        if matches!((&self.tokenizer, alone), (Tokenizer::Bytes, Tokenizer::Missing { .. })) {
            all.insert(loading::TOKENIZER, self.tokenizer.name().to_string());
        }
        if let Some(stored_as) = &self.stored_as {
            all.insert(STORED_AS, stored_as.clone());
        }
        if let Some(length) = self.training_length {
            all.insert("training_length", length.to_string());
        }
        if let Some(quantization) = &self.quantization {
            all.insert("lowbit_layout", LAYOUT.to_string());
            all.insert("quantization", serde_json::to_string(quantization).map_err(Error::internal)?);
        }
        Ok(all.into_iter().map(|(name, text)| (name.to_string(), text)).collect())
    }

    /// What lies beside the weights, by name.
    fn files_beside(&self) -> Result<BTreeMap<String, Vec<u8>>> {
        let origin = self.origin.as_deref();
        let mut config = self.config.hugging_face(origin.and_then(|origin| origin.config.as_ref()))?;
        if let Some(quantization) = &self.quantization {
            // transformers refuses what names no method it knows; it would fill in random weights otherwise.
            config["quantization_config"] = json!({"format": "lowbit", "scheme": quantization.scheme});
        }
        let mut files = BTreeMap::from([("config.json".to_string(), json::text(&config).into_bytes())]);
        let mut take = |folder: &Path, name: &str| -> Result<()> {
            let path = folder.join(name);
            if path.is_file() {
                files.insert(name.to_string(), fs::read(&path).map_err(|e| Error::io(&path, &e))?);
            }
            Ok(())
        };
        let origin = origin.filter(|origin| !origin.alone);
        if let Some(origin) = origin {
            take(&origin.folder, OF_WEIGHTS)?;
        }
        let tokens = match (&self.tokenizer, origin) {
            (Tokenizer::Pieces(pieces), _) => pieces.folder(),
            // A tokenizer of another kind than is read here is still the model's.
            (_, Some(origin)) if !origin.folder.join("tokenizer.json").exists() => {
                Some(origin.folder.as_path())
            }
            _ => None,
        };
        for name in OF_TOKENIZER {
            tokens.map_or(Ok(()), |folder| take(folder, name))?;
        }
        if let Tokenizer::Pieces(pieces) = &self.tokenizer {
            files.insert("tokenizer.json".to_string(), pieces.file().as_bytes().to_vec());
            if let Some(config) = pieces.config() {
                files.insert("tokenizer_config.json".to_string(), config.as_bytes().to_vec());
            }
        }
        Ok(files)
    }
}
