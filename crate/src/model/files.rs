//! Which files of a folder are the weights.

use crate::error::{Error, Result};
use crate::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What a folder is searched for, as told when nothing of it is there.
pub(super) const LOOKED_FOR: &str = "model.safetensors, model.safetensors.index.json with its shards, \
     another .safetensors file, pytorch_model.bin, or a .bin, .pt or .pth file";

/// Files that training leaves beside the weights, told by how their names begin.
const NOT_WEIGHTS: [&str; 5] = ["optimizer", "scheduler", "training_args", "training_state", "rng_state"];

/// The weight files of a folder, in the order of their names; all of one format, safetensors before pickles.
///
/// # Errors
/// The folder cannot be read or has no weights, a shard is missing, or there are several files and nothing says
/// which of them is meant.
pub(super) fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let names = names(folder)?;
    let wanted =
        weight_names(&names, &|index| shards(&folder.join(index))).map_err(|e| e.at(folder.display()))?;
    Ok(wanted.into_iter().map(|name| folder.join(name)).collect())
}

/// Picks the weight files among a folder's names; `shards` reads an index file, by name.
///
/// The folder need not lie on this machine: names of a hub's listing serve too.
pub(super) fn weight_names(
    names: &BTreeSet<String>,
    shards: &dyn Fn(&str) -> Result<BTreeSet<String>>,
) -> Result<Vec<String>> {
    let formats: [(&str, &[&str]); 2] =
        [("model.safetensors", &["safetensors"]), ("pytorch_model.bin", &["bin", "pt", "pth"])];
    for (usual, endings) in formats {
        if names.contains(usual) {
            return Ok(vec![usual.to_string()]);
        }
        let index = format!("{usual}.index.json");
        if names.contains(&index) {
            let shards = shards(&index)?;
            if let Some(missing) = shards.iter().find(|shard| !names.contains(*shard)) {
                return Err(Error::input(format!("the shard {missing} is missing, which {index} lists"))
                    .hint("copy or download the checkpoint again"));
            }
            return Ok(shards.into_iter().collect());
        }
        let others: Vec<&String> = names.iter().filter(|name| is_weights(name, endings)).collect();
        if others.len() > 1 && !others.iter().all(|name| is_shard(name)) {
            let list: Vec<&str> = others.iter().map(|name| name.as_str()).collect();
            return Err(Error::input(format!("several weight files: {}", list.join(", ")))
                .hint("give the path of the one you mean"));
        }
        if !others.is_empty() {
            return Ok(others.into_iter().cloned().collect());
        }
    }
    Err(Error::input("no weights in this folder").hint(format!("looked for {LOOKED_FOR}")))
}

fn names(folder: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, &e))? {
        let entry = entry.map_err(|e| Error::io(folder, &e))?;
        // A dangling link, such as a cache leaves after an interrupted download, is no file.
        if entry.path().is_file() {
            names.insert(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

/// Whether a file of this name holds weights, by one of these endings.
pub(super) fn is_weights(name: &str, endings: &[&str]) -> bool {
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    endings.contains(&ending) && !NOT_WEIGHTS.iter().any(|start| name.starts_with(start))
}

/// Whether a name is one of a numbered series, as in `model-00001-of-00003.safetensors`.
fn is_shard(name: &str) -> bool {
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    let mut parts = stem.rsplit('-');
    let number =
        |part: Option<&str>| part.is_some_and(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
    number(parts.next()) && parts.next() == Some("of") && number(parts.next())
}

/// The files that an index maps its tensors to.
pub(super) fn shards(index: &Path) -> Result<BTreeSet<String>> {
    let value = json::read(index)?;
    let map = value.get("weight_map").and_then(|map| map.as_object());
    let files: BTreeSet<String> = map
        .into_iter()
        .flat_map(|map| map.values())
        .filter_map(|file| Some(file.as_str()?.to_string()))
        .collect();
    // A name with folders in it could point anywhere.
    if files.is_empty() || files.iter().any(|file| file.contains(['/', '\\'])) {
        return Err(Error::input(
            "not an index of shards: expected weight_map, from tensors to files beside it",
        )
        .at(index.display()));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(names: &[&str]) -> Result<Vec<String>> {
        let names = names.iter().map(|name| name.to_string()).collect();
        weight_names(&names, &|_| Ok(["s-1.safetensors", "s-2.safetensors"].map(String::from).into()))
    }

    #[test]
    fn the_usual_names_win_and_safetensors_come_first() {
        let usual = ["pytorch_model.bin", "model.safetensors", "golden.safetensors", "config.json"];
        assert_eq!(pick(&usual).unwrap(), ["model.safetensors"]);
        assert_eq!(pick(&["pytorch_model.bin", "tiny.safetensors"]).unwrap(), ["tiny.safetensors"]);
        assert_eq!(pick(&["pytorch_model.bin", "optimizer.pt"]).unwrap(), ["pytorch_model.bin"]);
        assert_eq!(pick(&["best.pt", "optimizer.pt", "training_args.bin"]).unwrap(), ["best.pt"]);
    }

    #[test]
    fn shards_come_from_the_index_or_from_numbers() {
        let index =
            ["model.safetensors.index.json", "s-1.safetensors", "s-2.safetensors", "other.safetensors"];
        assert_eq!(pick(&index).unwrap(), ["s-1.safetensors", "s-2.safetensors"]);
        let error = pick(&index[..2]).unwrap_err().to_string();
        assert!(error.contains("the shard s-2.safetensors is missing"), "{error}");
        let numbered = ["m-00002-of-00002.safetensors", "m-00001-of-00002.safetensors"];
        assert_eq!(pick(&numbered).unwrap(), [numbered[1], numbered[0]]);
    }

    #[test]
    fn doubt_and_absence_are_told() {
        assert!(
            pick(&["a.pt", "b.pt"]).unwrap_err().to_string().contains("several weight files: a.pt, b.pt")
        );
        let error = pick(&["README.md"]).unwrap_err().to_string();
        assert!(error.contains("no weights") && error.contains("pytorch_model.bin"), "{error}");
    }
}
