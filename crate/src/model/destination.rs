//! The folder that a model is saved to: what may be replaced in it, and how that is done as a whole.
//!
//! Files are first written beside those they replace, as `<name>.saving`. Then a list of what is to be renamed and
//! removed is put down, `.saving`, and carried out. A crash before the list leaves what was there; after it, the next
//! who opens the folder carries it out. The weights' header names the files that were saved with them, by hash, so that
//! a later save knows what it may replace: never what someone else put there.

use super::files;
use super::safetensors::MAX_HEADER;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

/// The weights of a saved model.
pub(super) const WEIGHTS: &str = "model.safetensors";

/// The key in the weights' header of the files saved with them.
pub(super) const BESIDE: &str = "saved_beside";

/// The list of what a save has still to do.
const LIST: &str = ".saving";

/// Files that say what a model is, beside weights: readers take them for the saved model's.
const SPEAKING: [&str; 15] = [
    "adapter_config.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "params.json",
    "quantize_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

/// What is left to do of a save.
#[derive(Default, Serialize, Deserialize)]
struct List {
    /// Files that lie ready.
    rename: BTreeSet<String>,
    /// Files of an earlier save that this one does not have.
    remove: BTreeSet<String>,
}

/// A folder that a model is about to be saved to.
pub(super) struct Destination<'a> {
    folder: &'a Path,
    list: List,
}

impl<'a> Destination<'a> {
    /// Admits a folder in which nothing would be lost, and nothing left that is not of the model with these `files`
    /// beside its weights. Nothing is changed yet.
    ///
    /// # Errors
    /// It holds files that speak of another model and that no earlier save put there.
    pub fn new(folder: &'a Path, files: &BTreeMap<String, Vec<u8>>) -> Result<Self> {
        let mut rename: BTreeSet<String> = files.keys().cloned().collect();
        rename.insert(WEIGHTS.to_string());
        let mut list = List { rename, remove: BTreeSet::new() };
        if !folder.exists() {
            return Ok(Self { folder, list });
        }
        if !folder.is_dir() {
            return Err(Error::io(folder, &ErrorKind::AlreadyExists.into()));
        }
        finish(folder)?;
        let earlier = Earlier::of(&folder.join(WEIGHTS));
        let mut foreign = vec![];
        for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, &e))? {
            let entry = entry.map_err(|e| Error::io(folder, &e))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !speaks(&name) {
                continue;
            }
            let replaced = list.rename.contains(&name);
            let ours = match earlier.as_ref() {
                Some(earlier) => earlier.saved(&name, &entry.path())?,
                None => false,
            };
            let same = || fs::read(entry.path()).is_ok_and(|found| files.get(&name) == Some(&found));
            if ours && !replaced {
                list.remove.insert(name);
            } else if !ours && !same() {
                foreign.push(name);
            }
        }
        foreign.sort();
        match foreign.is_empty() {
            true => Ok(Self { folder, list }),
            false => Err(Error::input(format!(
                "this folder holds what is not of the model to be saved: {}",
                foreign.join(", ")
            ))
            .at(folder.display())
            .hint("name another folder, or move these files away")),
        }
    }

    /// Where a file is to be written first.
    pub fn draft(&self, name: &str) -> PathBuf {
        draft(self.folder, name)
    }

    /// Puts the files in their places, once all drafts are written.
    pub fn commit(self) -> Result<()> {
        let list = serde_json::to_vec(&self.list).map_err(Error::internal)?;
        write(&draft(self.folder, LIST), &list)?;
        rename(&draft(self.folder, LIST), &self.folder.join(LIST))?;
        finish(self.folder)
    }
}

fn draft(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.saving"))
}

/// Writes a file and waits until it is on disk.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let written =
        File::create(path).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.map_err(|e| Error::io(path, &e))
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    match fs::rename(from, to) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(to, &e)),
        // Renamed before the crash.
        _ => Ok(()),
    }
}

/// Carries out what a save that was cut short left to do in this folder.
///
/// # Errors
/// The folder cannot be written, or the list is damaged.
pub(super) fn finish(folder: &Path) -> Result<()> {
    let path = folder.join(LIST);
    let Ok(bytes) = fs::read(&path) else { return Ok(()) };
    let told = |error: Error| {
        error.hint("a save into this folder was cut short; save the model again, into another folder")
    };
    let list: List = serde_json::from_slice(&bytes).map_err(|e| told(Error::input(e).at(path.display())))?;
    // A name with folders in it could point anywhere.
    let plain = |name: &&String| !name.contains(['/', '\\']);
    for name in list.rename.iter().filter(plain) {
        rename(&draft(folder, name), &folder.join(name)).map_err(told)?;
    }
    for name in list.remove.iter().filter(plain).filter(|name| speaks(name)) {
        let gone = folder.join(name);
        match fs::remove_file(&gone) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(told(Error::io(&gone, &e))),
            _ => {}
        }
    }
    fs::remove_file(&path).map_err(|e| told(Error::io(&path, &e)))
}

/// Whether a file of this name is taken for a part of the model in its folder.
fn speaks(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SPEAKING.contains(&name.as_str())
        || name.ends_with(".index.json")
        || files::is_weights(&name, &["safetensors", "bin", "pt", "pth", "gguf"])
}

/// What an earlier save put into a folder.
struct Earlier {
    /// SHA-256 by name; none of a save by a version that did not write them down.
    beside: Option<BTreeMap<String, String>>,
}

impl Earlier {
    /// The save that wrote these weights; none if it was not one of ours.
    fn of(weights: &Path) -> Option<Self> {
        let header = header(weights)?;
        let metadata = header.get("__metadata__")?;
        metadata.get("lowbit_version")?;
        let beside = metadata.get(BESIDE).and_then(|text| serde_json::from_str(text.as_str()?).ok());
        Some(Self { beside })
    }

    /// Whether this file is as that save left it.
    fn saved(&self, name: &str, path: &Path) -> Result<bool> {
        if name == WEIGHTS {
            return Ok(true);
        }
        let Some(beside) = &self.beside else { return Ok(name == "config.json") };
        let Some(hash) = beside.get(name) else { return Ok(false) };
        let bytes = fs::read(path).map_err(|e| Error::io(path, &e))?;
        Ok(*hash == sha256(&bytes))
    }
}

/// The header of a safetensors file, if it is one.
fn header(path: &Path) -> Option<serde_json::Value> {
    let mut file = File::open(path).ok()?;
    let mut length = [0; 8];
    file.read_exact(&mut length).ok()?;
    let length = u64::from_le_bytes(length);
    let mut header = vec![];
    file.take(length.min(MAX_HEADER)).read_to_end(&mut header).ok()?;
    serde_json::from_slice(&header).ok()
}

/// The hashes of files by name, as the weights' header holds them.
pub(super) fn hashes(files: &BTreeMap<String, Vec<u8>>) -> Result<String> {
    let hashes: BTreeMap<&String, String> = files.iter().map(|(name, bytes)| (name, sha256(bytes))).collect();
    serde_json::to_string(&hashes).map_err(Error::internal)
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::safetensors::save_safetensors;
    use super::*;

    fn files(all: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
        all.iter().map(|(name, text)| (name.to_string(), text.as_bytes().to_vec())).collect()
    }

    fn save(folder: &Path, files: &BTreeMap<String, Vec<u8>>, value: f32) -> Result<()> {
        let destination = Destination::new(folder, files)?;
        fs::create_dir_all(folder).unwrap();
        stage(&destination, files, value);
        destination.commit()
    }

    fn stage(destination: &Destination<'_>, files: &BTreeMap<String, Vec<u8>>, value: f32) {
        for (name, bytes) in files {
            write(&destination.draft(name), bytes).unwrap();
        }
        let tensor = candle_core::Tensor::new(&[value], &candle_core::Device::Cpu).unwrap();
        let metadata = BTreeMap::from([
            ("lowbit_version".to_string(), "0".to_string()),
            (BESIDE.to_string(), hashes(files).unwrap()),
        ]);
        let tensors = BTreeMap::from([("a".to_string(), tensor)]);
        save_safetensors(&destination.draft(WEIGHTS), &tensors, &metadata).unwrap();
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn an_earlier_save_is_replaced_whole_and_nothing_else_is_touched() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        save(&out, &files(&[("config.json", "1"), ("tokenizer.json", "words")]), 1.0).unwrap();
        fs::write(out.join("README.md"), "mine").unwrap();
        save(&out, &files(&[("config.json", "2")]), 2.0).unwrap();
        assert_eq!(names(&out), ["README.md", "config.json", WEIGHTS]);
        assert_eq!(fs::read(out.join("config.json")).unwrap(), b"2");

        // What someone changed or put there is theirs.
        for (name, text) in [
            ("config.json", "mended"),
            ("tokenizer.json", "{}"),
            ("model-00001-of-00002.SAFETENSORS", ""),
            ("pytorch_model.bin", ""),
            ("model.safetensors.index.json", ""),
            ("params.json", ""),
        ] {
            let before = fs::read(out.join(name)).ok();
            fs::write(out.join(name), text).unwrap();
            let error = save(&out, &files(&[("config.json", "3")]), 3.0).unwrap_err().to_string();
            assert!(error.contains(&format!("not of the model to be saved: {name};")), "{error}");
            match before {
                Some(before) => fs::write(out.join(name), before).unwrap(),
                None => fs::remove_file(out.join(name)).unwrap(),
            }
        }
        // The same bytes are no other file.
        fs::write(out.join("tokenizer.json"), "same").unwrap();
        save(&out, &files(&[("config.json", "3"), ("tokenizer.json", "same")]), 3.0).unwrap();
        // Weights of another program are not replaced.
        fs::write(out.join(WEIGHTS), "theirs").unwrap();
        let error = save(&out, &files(&[("config.json", "4")]), 4.0).unwrap_err().to_string();
        assert!(error.contains("config.json, model.safetensors"), "{error}");
    }

    #[test]
    fn a_crash_leaves_the_old_or_the_new_whole() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path();
        let (old, new) =
            (files(&[("config.json", "old"), ("vocab.txt", "v")]), files(&[("config.json", "new")]));
        let weights = |value: f32| {
            save(out, if value == 1.0 { &old } else { &new }, value).unwrap();
            fs::read(out.join(WEIGHTS)).unwrap()
        };
        let (second, first) = (weights(2.0), weights(1.0));
        let state = || (fs::read(out.join("config.json")).unwrap(), fs::read(out.join(WEIGHTS)).unwrap());

        // Before the list is put down.
        let destination = Destination::new(out, &new).unwrap();
        stage(&destination, &new, 2.0);
        finish(out).unwrap();
        assert!(state() == (b"old".to_vec(), first));
        // After it, with one file in its place already.
        let list = serde_json::to_vec(&destination.list).unwrap();
        write(&out.join(LIST), &list).unwrap();
        rename(&destination.draft("config.json"), &out.join("config.json")).unwrap();
        finish(out).unwrap();
        assert!(state() == (b"new".to_vec(), second));
        assert_eq!(names(out), ["config.json", WEIGHTS]);
    }
}
