//! The model hub: its cache on this machine first, then the network.

use super::files;
use crate::error::{Error, Result};
use crate::progress::Progress;
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// How the hub is reached.
#[derive(Clone, Debug)]
pub struct Hub {
    /// The folder that holds `models--org--name` folders.
    pub cache: PathBuf,
    /// The address, if not the usual one.
    pub endpoint: Option<String>,
    /// Whether to leave the network alone.
    pub offline: bool,
}

/// A model's files in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The folder with the files.
    pub folder: PathBuf,
    /// The commit they are of.
    pub commit: String,
}

/// Whether a text is written like a hub id: `organization/name`.
pub fn is_id(source: &str) -> bool {
    let part = |text: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        !text.is_empty() && !text.starts_with('.') && text.bytes().all(allowed)
    };
    let weights = ["safetensors", "bin", "pt", "pth"].contains(&&*files::ending(source));
    source.split_once('/').is_some_and(|(owner, name)| part(owner) && part(name)) && !weights
}

impl Hub {
    /// The hub as the usual variables set it: `HF_HUB_CACHE` or `HF_HOME` for the cache, `HF_ENDPOINT`, and
    /// `HF_HUB_OFFLINE`, which any value but `0` and nothing switches on.
    ///
    /// # Errors
    /// There is no home folder to hold a cache, and no variable that names one.
    pub fn from_env() -> Result<Self> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let cache = match (set("HF_HUB_CACHE"), set("HF_HOME")) {
            (Some(cache), _) => PathBuf::from(cache),
            (None, Some(home)) => Path::new(&home).join("hub"),
            (None, None) => std::env::home_dir()
                .ok_or_else(|| Error::input("no home folder for the hub's cache").hint("set HF_HOME"))?
                .join(".cache/huggingface/hub"),
        };
        Ok(Self {
            cache,
            endpoint: set("HF_ENDPOINT"),
            offline: set("HF_HUB_OFFLINE").is_some_and(|value| value != "0"),
        })
    }

    /// The files of a model: from the cache if they are all there, else downloaded into it.
    ///
    /// `revision` is a branch, tag or commit; the branch `main` if none.
    ///
    /// # Errors
    /// The model is not cached and cannot be downloaded; the sentence says which files to put where.
    pub fn snapshot(&self, id: &str, revision: Option<&str>) -> Result<Snapshot> {
        let revision = revision.unwrap_or("main");
        if let Some(snapshot) = self.cached(id, revision) {
            return Ok(snapshot);
        }
        if self.offline {
            return Err(unavailable(id, revision, "HF_HUB_OFFLINE is set and the cache does not have it"));
        }
        self.download(id, revision)
    }

    /// The model's files in the cache, if its weights and configuration are all there.
    fn cached(&self, id: &str, revision: &str) -> Option<Snapshot> {
        let repository = self.cache.join(format!("models--{}", id.replace('/', "--")));
        // A branch or tag is a file that holds a commit; a commit stands for itself.
        let commit = match std::fs::read_to_string(repository.join("refs").join(revision)) {
            Ok(commit) => commit.trim().to_string(),
            Err(_) => revision.to_string(),
        };
        let folder = repository.join("snapshots").join(&commit);
        let config = ["config.json", "params.json"].iter().any(|name| folder.join(name).is_file());
        // A GGUF file is its own configuration.
        let complete = match files::weight_files(&folder) {
            Ok(found) => {
                config || found.files.iter().all(|file| files::ending(&file.to_string_lossy()) == "gguf")
            }
            Err(_) => false,
        };
        complete.then_some(Snapshot { folder, commit })
    }

    fn download(&self, id: &str, revision: &str) -> Result<Snapshot> {
        let failed = |e: ApiError| unavailable(id, revision, &e.to_string());
        let mut builder = ApiBuilder::from_cache(Cache::new(self.cache.clone()));
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        let api = builder.build().map_err(failed)?;
        let repo = Repo::with_revision(id.to_string(), RepoType::Model, revision.to_string());
        let repo = api.repo(repo);
        let about = repo.info().map_err(failed)?;
        let names: BTreeSet<String> = about.siblings.into_iter().map(|file| file.rfilename).collect();

        let index = |name: &str| files::shards(&get(&repo, name).map_err(failed)?);
        let weights = files::weight_names(&names, &index).map_err(|e| e.at(id))?;
        let beside = ["config.json", "params.json", "tokenizer.json"].map(String::from).into_iter();
        let indices =
            names.iter().filter(|name| name.ends_with(".index.json") && !name.contains('/')).cloned();
        let mut folder = None;
        for name in beside.chain(indices).chain(weights).filter(|name| names.contains(name)) {
            folder = get(&repo, &name).map_err(failed)?.parent().map(Path::to_path_buf);
        }
        let folder = folder.ok_or_else(|| unavailable(id, revision, "it has no files"))?;
        Ok(Snapshot { folder, commit: about.sha })
    }
}

fn get(repo: &ApiRepo, name: &str) -> std::result::Result<PathBuf, ApiError> {
    repo.download_with_progress(name, Bar(None))
}

/// The house's progress bar for the hub's downloads.
struct Bar(Option<Progress>);

impl hf_hub::api::Progress for Bar {
    fn init(&mut self, size: usize, name: &str) {
        self.0 = Some(Progress::new(name, size as u64, "bytes"));
    }

    fn update(&mut self, size: usize) {
        // A download cannot be stopped half-way from here; whoever ticks next will notice the interrupt.
        if let Some(bar) = &self.0
            && bar.tick(size as u64).is_err()
        {
            crate::progress::interrupt();
        }
    }

    fn finish(&mut self) {
        self.0 = None;
    }
}

fn unavailable(id: &str, revision: &str, why: &str) -> Error {
    let why = why.lines().next().unwrap_or(why);
    let folder = std::path::absolute(id).unwrap_or_else(|_| PathBuf::from(id));
    Error::unavailable(format!("the hub's model (revision {revision}) cannot be had: {why}")).at(id).hint(format!(
        "to use it without the network, put config.json, model.safetensors (or pytorch_model.bin) and, if it has \
         one, tokenizer.json into the folder {}",
        folder.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use std::fs;

    fn hub(cache: &Path, offline: bool) -> Hub {
        // Nothing listens on the discard port of the own machine.
        Hub { cache: cache.to_path_buf(), endpoint: Some("http://127.0.0.1:9".to_string()), offline }
    }

    #[test]
    fn ids_are_told_from_paths() {
        for id in ["state-spaces/mamba2-130m", "a/b.c_d"] {
            assert!(is_id(id), "{id}");
        }
        for path in ["model", "./a/b", "/a/b", "a/b/c", "a/", "~/x", "../b", "a/.b", "a/x.pt", "a\\b", ""] {
            assert!(!is_id(path), "{path}");
        }
    }

    #[test]
    fn without_network_the_sentence_says_which_files_go_where() {
        let cache = tempfile::tempdir().unwrap();
        for offline in [false, true] {
            let error = hub(cache.path(), offline).snapshot("org/name", None).unwrap_err();
            assert_eq!(error.kind(), Kind::Io);
            let sentence = error.to_string();
            assert!(
                sentence.starts_with("org/name: the hub's model (revision main) cannot be had: "),
                "{sentence}"
            );
            assert!(
                sentence.contains("config.json, model.safetensors") && sentence.ends_with("/org/name"),
                "{sentence}"
            );
            assert!(!sentence.contains('\n'), "{sentence}");
        }
    }

    #[test]
    fn a_cached_model_needs_no_network() {
        let cache = tempfile::tempdir().unwrap();
        let repository = cache.path().join("models--org--name");
        let folder = repository.join("snapshots/0123abcd");
        fs::create_dir_all(&folder).unwrap();
        fs::create_dir_all(repository.join("refs")).unwrap();
        fs::write(repository.join("refs/main"), "0123abcd\n").unwrap();
        let hub = hub(cache.path(), true);
        fs::write(folder.join("config.json"), "{}").unwrap();
        assert!(hub.snapshot("org/name", None).is_err(), "weights are missing");
        fs::write(folder.join("model.safetensors"), "").unwrap();
        let expected = Snapshot { folder, commit: "0123abcd".to_string() };
        assert_eq!(hub.snapshot("org/name", None).unwrap(), expected);
        assert_eq!(hub.snapshot("org/name", Some("0123abcd")).unwrap(), expected);
        assert!(hub.snapshot("org/name", Some("other")).is_err());
        // A file that is its own configuration needs none beside it; several of them are a question.
        let folder = expected.folder;
        for name in ["config.json", "model.safetensors"] {
            fs::remove_file(folder.join(name)).unwrap();
        }
        fs::write(folder.join("a.gguf"), "").unwrap();
        assert_eq!(hub.snapshot("org/name", None).unwrap().folder, folder);
        fs::write(folder.join("b.gguf"), "").unwrap();
        assert!(hub.snapshot("org/name", None).is_err());
    }
}
