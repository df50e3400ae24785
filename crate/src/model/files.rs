//! Which files of a folder are the weights.

use crate::error::{Error, Result};
use crate::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What a folder is searched for, as told when nothing of it is there.
pub(super) const LOOKED_FOR: &str = "model.safetensors, model.safetensors.index.json with its shards, \
     another .safetensors file, pytorch_model.bin, a .bin, .pt or .pth file, a .gguf file, or a .lowbit file";

/// Files that training leaves beside the weights, told by how their names begin.
const NOT_WEIGHTS: [&str; 5] = ["optimizer", "scheduler", "training_args", "training_state", "rng_state"];

/// Files of weights.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Found {
    /// In the order of their names; all of one format.
    pub files: Vec<PathBuf>,
    /// Tensors that must be in them, with the index that lists each.
    pub listed: Vec<(String, String)>,
}

/// The weight files of a folder, safetensors before pickles before GGUF.
///
/// # Errors
/// The folder cannot be read or has no weights, a shard is missing, or there are several files and nothing says
/// which of them is meant.
pub(super) fn weight_files(folder: &Path) -> Result<Found> {
    let names = names(folder)?;
    let index = |index: &str| read_index(&folder.join(index));
    let shards = |name: &str| Ok(index(name)?.into_values().collect());
    let wanted = weight_names(&names, &shards).map_err(|e| e.at(folder.display()))?;
    // An index lists what its weights have, put together in one file too.
    let mut listed = vec![];
    for (usual, _) in FORMATS {
        if let Some(name) = named(&names, &format!("{usual}.index.json"))
            && wanted.iter().all(|file| ending(file) == ending(usual))
        {
            listed.extend(index(name)?.into_keys().map(|tensor| (tensor, name.to_string())));
        }
    }
    Ok(Found { files: wanted.into_iter().map(|name| folder.join(name)).collect(), listed })
}

/// A weight file by its path.
///
/// # Errors
/// It is one of several shards.
pub(super) fn single(path: &Path) -> Result<Found> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match shard(&name) {
        Some((_, _, count)) if count > 1 => Err(Error::input(format!("this is one shard of {count}"))
            .at(path.display())
            .hint("give its folder")),
        _ => Ok(Found { files: vec![path.to_path_buf()], listed: vec![] }),
    }
}

/// What a checkpoint of each format is usually called, and the endings of its files.
const FORMATS: [(&str, &[&str]); 4] = [
    ("model.safetensors", &["safetensors"]),
    ("pytorch_model.bin", &["bin", "pt", "pth"]),
    ("model.gguf", &["gguf"]),
    ("model.lowbit", &["lowbit"]),
];

/// Picks the weight files among a folder's names; `shards` reads an index file, by name.
///
/// The folder need not lie on this machine: names of a hub's listing serve too.
pub(super) fn weight_names(
    names: &BTreeSet<String>,
    shards: &dyn Fn(&str) -> Result<BTreeSet<String>>,
) -> Result<Vec<String>> {
    for (usual, endings) in FORMATS {
        if let Some(name) = named(names, usual) {
            return Ok(vec![name.to_string()]);
        }
        if let Some(index) = named(names, &format!("{usual}.index.json")) {
            let shards = shards(index)?.into_iter().map(|shard| {
                named(names, &shard).map(String::from).ok_or_else(|| {
                    Error::input(format!("the shard {shard} is missing, which {index} lists"))
                        .hint("copy or download the checkpoint again")
                })
            });
            return shards.collect();
        }
        let others: Vec<&String> = names.iter().filter(|name| is_weights(name, endings)).collect();
        if others.len() > 1 && !is_series(&others) {
            let list: Vec<&str> = others.iter().map(|name| name.as_str()).collect();
            return Err(Error::input(format!("several weight files: {}", list.join(", ")))
                .hint("give the path of the one you mean"));
        }
        if let Some((stem, _, count)) = others.first().and_then(|name| shard(name)) {
            let number = |i: &u64| others.iter().any(|name| shard(name).is_some_and(|(_, n, _)| n == *i));
            if let Some(missing) = (1..=count).find(|i| !number(i)) {
                return Err(Error::input(format!("shard {missing} of {count} of {stem} is missing"))
                    .hint("copy or download the checkpoint again"));
            }
        }
        if !others.is_empty() {
            return Ok(others.into_iter().cloned().collect());
        }
    }
    Err(Error::input("no weights in this folder").hint(format!("looked for {LOOKED_FOR}")))
}

/// The name among `names` that is `wanted`, or is so but for its case: some systems do not tell them apart.
fn named<'a>(names: &'a BTreeSet<String>, wanted: &str) -> Option<&'a str> {
    let exact = names.get(wanted);
    exact.or_else(|| names.iter().find(|name| name.eq_ignore_ascii_case(wanted))).map(String::as_str)
}

/// The file of this name in a folder, its case aside.
pub(super) fn beside(folder: &Path, name: &str) -> Option<PathBuf> {
    let exact = folder.join(name);
    if exact.is_file() {
        return Some(exact);
    }
    // The folder of a file that is named without one.
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let names = names(folder).ok()?;
    named(&names, name).map(|name| folder.join(name))
}

/// The ending of a name, in lower case.
pub(super) fn ending(name: &str) -> String {
    name.rsplit_once('.').map_or("", |(_, ending)| ending).to_ascii_lowercase()
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
    let beside = |start: &&str| name.get(..start.len()).is_some_and(|n| n.eq_ignore_ascii_case(start));
    endings.contains(&&*ending(name)) && !NOT_WEIGHTS.iter().any(beside)
}

/// Whether names are of one numbered series.
fn is_series(names: &[&String]) -> bool {
    let series: Option<BTreeSet<(&str, u64)>> =
        names.iter().map(|name| shard(name).map(|(stem, _, count)| (stem, count))).collect();
    series.is_some_and(|series| series.len() == 1)
}

/// What a numbered name such as `model-00001-of-00003.safetensors` says: `("model", 1, 3)`.
fn shard(name: &str) -> Option<(&str, u64, u64)> {
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    let (rest, count) = stem.rsplit_once('-')?;
    let (rest, of) = rest.rsplit_once('-')?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
    Some((stem, digits(number)?, digits(count)?)).filter(|_| of.eq_ignore_ascii_case("of"))
}

/// The files that an index maps its tensors to.
pub(super) fn shards(index: &Path) -> Result<BTreeSet<String>> {
    Ok(read_index(index)?.into_values().collect())
}

/// An index: the tensors of a checkpoint, with the file that each is in.
fn read_index(index: &Path) -> Result<BTreeMap<String, String>> {
    let value = json::read(index)?;
    let map = value.get("weight_map").and_then(|map| map.as_object());
    let map: BTreeMap<String, String> = map
        .into_iter()
        .flatten()
        .filter_map(|(tensor, file)| Some((tensor.clone(), file.as_str()?.to_string())))
        .collect();
    // A name with folders in it could point anywhere.
    if map.is_empty() || map.values().any(|file| file.contains(['/', '\\'])) {
        return Err(Error::input(
            "not an index of shards: expected weight_map, from tensors to files beside it",
        )
        .at(index.display()));
    }
    Ok(map)
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
        assert_eq!(pick(&["a.Q4_1.gguf", "best.pt"]).unwrap(), ["best.pt"]);
        assert_eq!(pick(&["a.Q4_1.gguf", "config.json"]).unwrap(), ["a.Q4_1.gguf"]);
        assert!(
            pick(&["a.Q4_1.gguf", "a.Q8_0.gguf"]).unwrap_err().to_string().contains("the path of the one")
        );
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
    fn no_shard_may_be_missing_and_one_alone_is_none() {
        let error = pick(&["m-00001-of-00003.safetensors", "m-00003-of-00003.safetensors"]).unwrap_err();
        assert!(error.to_string().contains("shard 2 of 3 of m is missing"), "{error}");
        assert!(pick(&["m-1-of-2.bin", "n-2-of-2.bin"]).unwrap_err().to_string().contains("several"));
        let error = single(Path::new("a/m-00001-of-00002.safetensors")).unwrap_err().to_string();
        assert!(error.contains("one shard of 2; give its folder"), "{error}");
        assert!(single(Path::new("a/m-00001-of-00001.safetensors")).is_ok());
    }

    #[test]
    fn the_case_of_names_does_not_matter() {
        assert_eq!(pick(&["MODEL.SAFETENSORS", "A.BIN"]).unwrap(), ["MODEL.SAFETENSORS"]);
        assert_eq!(pick(&["Best.PT", "Optimizer.PT"]).unwrap(), ["Best.PT"]);
        assert_eq!(
            pick(&["Model.SafeTensors.Index.JSON", "S-1.SAFETENSORS", "s-2.safetensors"]).unwrap(),
            ["S-1.SAFETENSORS", "s-2.safetensors"]
        );
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
