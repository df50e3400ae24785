//! What a folder or a file holds: weights by the names of their tensors, and what is told in them and beside them.

use super::stored::{Listing, Own, Tokenizing};
use super::{artifact, destination, files, gguf, pickle, safetensors};
use crate::error::{Error, Result};
use crate::family::Stated;
use crate::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What safetensors metadata call that which weights were stored in before they were saved here.
pub(super) const STORED_AS: &str = "stored_as";

/// What is there; see [`Checkpoint`](super::checkpoint::Checkpoint), whose fields these become.
pub(super) struct Contents {
    pub files: Vec<(PathBuf, Listing)>,
    pub metadata: BTreeMap<String, String>,
    pub layers: Vec<(String, u64)>,
    pub stated: Option<Stated>,
    pub pickled: Option<Stated>,
    pub tokenizer: Option<PathBuf>,
    pub tokens: Option<Tokenizing>,
    pub stored_as: Option<String>,
    pub alone: bool,
}

impl Contents {
    /// Lists a folder, or a file and what lies beside it.
    ///
    /// # Errors
    /// There are no weights, or they are damaged: the sentence says how.
    pub fn of(path: &Path) -> Result<Self> {
        let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
        destination::finish(folder)?;
        let found = if path.is_dir() { files::weight_files(path)? } else { files::single(path)? };
        let (mut files, mut metadata, mut layers) = (vec![], BTreeMap::new(), vec![]);
        let (mut own, mut pickled, mut claim) = (None, None, None);
        for file in found.files {
            let mut listing = list(&file)?;
            own = own.or(listing.own.take());
            metadata.extend(listing.metadata.clone());
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            layers.extend(listing.layers.iter().map(|(at, n)| (format!("{name}: {at}"), *n)));
            let config = listing.pickled.take();
            pickled = pickled.or(config.map(|json| Stated { file: format!("{name}: config"), json }));
            claim = claim.or(listing.claim.take());
            files.push((file, listing));
        }
        let mut names = BTreeMap::new();
        for (file, listing) in &files {
            for name in listing.tensors.keys() {
                if names.insert(name, file).is_some() {
                    return Err(Error::input("this tensor is also in another shard")
                        .at(name)
                        .at(file.display()));
                }
            }
        }
        if names.is_empty() {
            return Err(Error::input("the checkpoint holds no tensors").at(path.display()));
        }
        if let Some((name, index)) = found.listed.iter().find(|(name, _)| !names.contains_key(name)) {
            return Err(Error::input(format!("missing, though {index} lists it"))
                .at(name)
                .at(path.display())
                .hint("copy or download the checkpoint again"));
        }
        let alone = own.is_some();
        let (stated, tokens, stored_as) = match own {
            Some(Own { stated, tokens, stored_as }) => (Some(stated), tokens, stored_as),
            None => {
                let listings = || files.iter().map(|(_, listing)| listing);
                let claimed = || claim?.stored_as(listings());
                (stated(folder, &mut layers)?, None, metadata.get(STORED_AS).cloned().or_else(claimed))
            }
        };
        // A tokenizer.json beside a file that has no tokenizer is better than none.
        let tokenizer = if tokens.is_some() { None } else { files::beside(folder, "tokenizer.json") };
        Ok(Self { files, metadata, layers, stated, pickled, tokenizer, tokens, stored_as, alone })
    }
}

/// What `config.json` or else `params.json` of a folder states; numbers of layers that the other tells are added to
/// `layers`.
fn stated(folder: &Path, layers: &mut Vec<(String, u64)>) -> Result<Option<Stated>> {
    let [config, params] = ["config.json", "params.json"].map(|name| -> Result<Option<Stated>> {
        let Some(path) = files::beside(folder, name) else { return Ok(None) };
        Ok(Some(Stated { file: name.to_string(), json: json::read(path)? }))
    });
    let (config, params) = (config?, params?);
    if let Some(Stated { file, json }) = config.as_ref().and(params.as_ref()) {
        let told = json::LAYERS.iter().filter_map(|key| Some((key, json.get(key)?.as_u64()?)));
        layers.extend(told.map(|(key, n)| (format!("{file}: {key}"), n)));
    }
    Ok(config.or(params))
}

fn list(file: &Path) -> Result<Listing> {
    match files::ending(&file.to_string_lossy()).as_str() {
        "safetensors" => safetensors::list(file),
        "bin" | "pt" | "pth" => pickle::list(file),
        "gguf" => gguf::list(file),
        artifact::ENDING => artifact::list(file),
        _ => Err(Error::input("this file's ending is not one of weights")
            .at(file.display())
            .hint("expected .safetensors, .bin, .pt, .pth, .gguf or .lowbit")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pickled_config_and_what_is_told_of_quantization_come_with_the_weights() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/itera-tiny");
        let golden = json::read(folder.join("golden.json")).unwrap();
        let rounded = "f32; 1 tensor is already fake-quantized (quantization_info)";
        for (name, config, stored_as) in [
            ("top1", true, None),
            ("object-config", true, Some(rounded)),
            ("mix3", false, None),
            ("oldnames", false, None),
        ] {
            let found = Contents::of(&folder.join(format!("{name}.pt"))).unwrap();
            let file = format!("{name}.pt: config");
            let expected = config.then(|| Stated { file, json: golden[name]["config"].clone() });
            assert_eq!((found.pickled, found.stated), (expected, None), "{name}");
            assert_eq!(found.stored_as.as_deref(), stored_as, "{name}");
        }
    }
}
