//! Checkpoints that Python's `torch.save` pickled (`.bin`, `.pt`, `.pth`), in the zip format.
//!
//! A pickle is a program that may call anything; here it builds values and calls nothing. Tensors are found wherever
//! they lie in what was saved, under the path to them: `model.backbone.norm_f.weight`.
//!
//! | file | holds |
//! |---|---|
//! | [`archive`] | the parts of the zip archive |
//! | [`machine`] | opcodes, stack and memo |
//! | [`values`] | what they build |
//! | [`calls`] | what known calls give: dicts, tensors, parameters |
//! | [`leaves`] | the tensors in what was saved, by path |
//! | [`beside`] | what lies beside the weights: a configuration, and what is told of their quantization |
//! | [`settings`] | a configuration as JSON |

mod archive;
mod beside;
mod calls;
mod leaves;
mod machine;
mod settings;
mod values;

use super::safetensors::{LFS_POINTER, lfs_pointer};
use super::stored::{Listing, Stored, Sum};
use crate::error::{Error, Result};
use archive::Part;
use machine::Machine;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use values::{Thing, Value, View};

/// What stands at the beginning of a file of PyTorch before 1.6: a number, pickled.
const LEGACY: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9";

/// What PyTorch's quantized layers call their packed matrix and bias.
const PACKED: &str = "_packed_params";

/// Reads what a file holds, without its weights.
pub(super) fn list(path: &Path) -> Result<Listing> {
    let io = |e: std::io::Error| Error::io(path, &e);
    let mut file = File::open(path).map_err(io)?;
    let len = file.metadata().map_err(io)?.len();
    let start = archive::read(&mut file, &(0..len.min(16))).unwrap_or_default();
    if start.starts_with(LFS_POINTER) {
        return Err(lfs_pointer().at(path.display()));
    }
    let save_again = "save it again by torch.save of a recent PyTorch, or as safetensors";
    if start.starts_with(b"\x80") {
        let what = match start.starts_with(LEGACY) {
            true => "this file was saved by a PyTorch before 1.6, in a format that is not read",
            false => "this is a pickle, and not one of torch.save, whose files are zip archives",
        };
        return Err(Error::input(what).at(path.display()).hint(save_again));
    }
    let damaged = |what: String| {
        Error::input(format!("not a whole file of torch.save: {what}"))
            .at(path.display())
            .hint("copy or download it again")
    };
    let parts = archive::parts(&mut file, len).map_err(damaged)?;
    let pickle = parts.iter().filter(|part| part.name == "data.pkl" || part.name.ends_with("/data.pkl"));
    let pickle = pickle.min_by_key(|part| part.name.len());
    let pickle = pickle.ok_or_else(|| damaged("its part data.pkl is missing".to_string()))?;
    let folder = pickle.name.trim_end_matches("data.pkl");
    let part = |name: &str| parts.iter().find(|part| part.name.strip_prefix(folder) == Some(name));
    if part("constants.pkl").is_some() {
        return Err(Error::input("this is a TorchScript archive and not a checkpoint")
            .at(path.display())
            .hint("load it by torch.jit.load and save its state_dict() by torch.save"));
    }
    let compressed = |part: &Part| {
        Error::input(format!("its part {} is compressed", part.name)).at(path.display()).hint(save_again)
    };
    let order = part("byteorder").and_then(|part| part.bytes.as_ref());
    let order = order.map(|order| archive::read(&mut file, &(order.start..order.end.min(order.start + 3))));
    if order.transpose().map_err(damaged)?.is_some_and(|order| order == b"big") {
        return Err(Error::input("its numbers are big-endian").at(path.display()).hint(save_again));
    }
    let stretch = pickle.bytes.as_ref().ok_or_else(|| compressed(pickle))?;
    let bytes = archive::read(&mut file, stretch).map_err(damaged)?;
    if pickle.crc != 0 && crc32fast::hash(&bytes) != pickle.crc {
        return Err(damaged("the checksum of its part data.pkl is another".to_string()));
    }
    // A value of two bytes takes some twenty times that; weights, which are most of a file, take nothing here.
    let room = (8 << 20) + usize::try_from(len).unwrap_or(usize::MAX).saturating_mul(32);
    let (mut machine, top) = Machine::run(&bytes, room).map_err(damaged)?;
    let found = leaves::leaves(&mut machine, top).map_err(damaged)?;
    if let Some(name) = packed(&found.tensors) {
        return Err(Error::input(format!("PyTorch dynamic-int8 packed weights ({name})"))
            .at(path.display())
            .hint("save the float model"));
    }
    let beside = beside::beside(&mut machine, top).map_err(damaged)?;

    let prefix = format!("{folder}data/");
    let storages: BTreeMap<&str, &Part> =
        parts.iter().filter_map(|part| Some((part.name.strip_prefix(&prefix)?, part))).collect();
    let (pickled, claim) = (beside.config, beside.claim);
    let mut listing = Listing { layers: found.layers, pickled, claim, ..Listing::default() };
    for (name, value) in found.tensors {
        let stored = match machine.thing(value) {
            Some(Thing::Tensor(view)) => match stored(&machine, view, &storages) {
                Ok(stored) => stored,
                Err(Refused::Compressed(part)) => return Err(compressed(part)),
                Err(Refused::Damaged(what)) => return Err(damaged(format!("{name}: {what}"))),
            },
            _ => Stored::foreign(kind_of_object(&machine, value).into(), vec![]),
        };
        listing.tensors.insert(name, stored);
    }
    let sum = |part: Part| Some(Sum { bytes: part.bytes?, crc: part.crc, name: part.name });
    listing.sums = parts.into_iter().filter(|part| part.crc != 0).filter_map(sum).collect();
    Ok(listing)
}

/// The first matrix that PyTorch's dynamic quantization packed, in the order of the pickle.
fn packed(tensors: &BTreeMap<String, Value>) -> Option<String> {
    let packed = tensors.iter().filter_map(|(path, value)| {
        let words: Vec<&str> = path.split('.').collect();
        let end = words.iter().position(|word| *word == PACKED)?;
        // Things have their numbers in the order in which they were built.
        let Value::Thing(number) = value else { return None };
        Some((*number, words[..=end].join(".")))
    });
    packed.min().map(|(_, name)| name)
}

enum Refused<'a> {
    Damaged(String),
    Compressed(&'a Part),
}

/// A tensor of the pickle as one of the file.
fn stored<'a>(
    machine: &Machine,
    view: &View,
    storages: &BTreeMap<&str, &'a Part>,
) -> Result<Stored, Refused<'a>> {
    let damaged = |what: String| Refused::Damaged(what);
    let of_view = machine.global(view.dtype);
    let of_storage = machine.global(view.storage.class);
    let (module, name) = of_view
        .as_ref()
        .or(of_storage.as_ref())
        .ok_or_else(|| damaged("its storage has no type".to_string()))?;
    let kind: Cow<'static, str> = format!("{module}.{name}").into();
    let Some(dtype) = calls::dtype(name) else { return Ok(Stored::foreign(kind, view.shape.clone())) };
    let key = match view.storage.key {
        Value::Int(key) => key.to_string(),
        key => machine.text(key).unwrap_or_default().into_owned(),
    };
    let part = storages.get(&*key).ok_or_else(|| damaged(format!("its part data/{key} is missing")))?;
    let bytes: Range<u64> = part.bytes.clone().ok_or(Refused::Compressed(part))?;
    // Elements of an untyped storage are bytes.
    let untyped = of_storage.is_some_and(|(_, name)| name == "UntypedStorage");
    let size = if untyped { 1 } else { dtype.size_in_bytes() as u64 };
    let declared = view.storage.elements.checked_mul(size);
    if declared.is_none_or(|declared| declared > bytes.end - bytes.start) {
        let (elements, found) = (view.storage.elements, bytes.end - bytes.start);
        return Err(damaged(format!("its storage should have {elements} elements, found {found} bytes")));
    }
    let (offset, shape, strides) = (view.offset, view.shape.clone(), view.strides.clone());
    Stored::view(dtype, kind, &bytes, offset, shape, strides).ok_or_else(|| {
        damaged(format!("shape {:?} and strides {:?} reach beyond its storage", view.shape, view.strides))
    })
}

/// What an object is, for the reader of a sentence.
fn kind_of_object(machine: &Machine, value: Value) -> String {
    let class = match machine.thing(value) {
        Some(Thing::Object(object)) => machine.global(object.class),
        _ => None,
    };
    class.map_or_else(|| "unknown".to_string(), |(module, name)| format!("{module}.{name}"))
}

#[cfg(test)]
mod tests {
    use super::super::pass;
    use super::*;
    use candle_core::{DType, Device, Tensor};
    use sha2::{Digest, Sha256};
    use std::path::PathBuf;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pickled").join(name)
    }

    fn load(path: &Path) -> Result<BTreeMap<String, Tensor>> {
        let listing = list(path)?;
        let wanted = listing.tensors.iter().map(|(name, stored)| (&**name, stored)).collect();
        let tensors = pass::read(path, wanted, &listing.sums, &mut Sha256::new(), Stored::tensor)?;
        Ok(tensors.into_iter().map(|(name, tensor)| (name.to_string(), tensor)).collect())
    }

    /// A file of torch.save of this pickle, with one storage of six f32.
    fn pickled(path: &Path, pickle: &[u8]) {
        let values: Vec<u8> = (0..6u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
        let (mut file, mut directory) = (vec![], vec![]);
        for (name, bytes) in [("a/data.pkl", pickle), ("a/data/0", &values)] {
            let (len, at) = ((bytes.len() as u32).to_le_bytes(), (file.len() as u32).to_le_bytes());
            let about = [&[0; 12][..], &crc32fast::hash(bytes).to_le_bytes(), &len, &len].concat();
            let name_len = [name.len() as u8, 0, 0, 0];
            file.extend([b"PK\x03\x04", &about[2..], &name_len, name.as_bytes(), bytes].concat());
            directory.extend([b"PK\x01\x02", &about[..], &name_len, &[0; 10], &at, name.as_bytes()].concat());
        }
        let (at, size) = ((file.len() as u32).to_le_bytes(), (directory.len() as u32).to_le_bytes());
        let end = [b"PK\x05\x06\0\0\0\0\x02\0\x02\0", &size[..], &at, &[0, 0]].concat();
        std::fs::write(path, [file, directory, end].concat()).unwrap();
    }

    #[test]
    fn tensors_are_found_at_the_top_and_nested() {
        for (name, prefix) in [("flat.bin", ""), ("nested.pt", "model_state_dict.")] {
            let tensors = load(&fixture(name)).unwrap();
            let names = ["a.weight", "b.weight", "c.weight"].map(|name| format!("{prefix}{name}"));
            assert_eq!(tensors.keys().collect::<Vec<_>>(), names.iter().collect::<Vec<_>>());
            let expected = Tensor::arange(0f32, 6.0, &Device::Cpu).unwrap().reshape((2, 3)).unwrap();
            let rows = |tensor: &Tensor| tensor.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
            assert_eq!(rows(&tensors[&names[0]]), rows(&expected));
            assert_eq!(tensors[&names[1]].dtype(), DType::F16);
            let values = tensors[&names[1]].to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(values, [0.5, -2.0]);
            // c is a transposed view of a in the file
            assert_eq!(rows(&tensors[&names[2]]), rows(&expected.t().unwrap()));
        }
    }

    #[test]
    fn old_protocols_are_read_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pt");
        // Protocol 0: {'step': 7L, 'model': {'w': tensor of [2, 3]}}.
        let text = "(dp0\nS'step'\np1\nL7L\nsS'model'\n(dp2\nVw\nctorch._utils\n_rebuild_tensor_v2\n\
                    ((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI6\ntQI0\n(I2\nI3\nt(I3\nI1\ntI00\n\
                    ccollections\nOrderedDict\n((ltRtRss.";
        pickled(&path, text.as_bytes());
        let tensors = load(&path).unwrap();
        assert_eq!(tensors["model.w"].to_vec2::<f32>().unwrap(), [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]);
    }

    #[test]
    fn matrices_packed_in_int8_are_refused_by_the_first_of_the_pickle() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pt");
        let refused = |weights: &[u8]| {
            pickled(&path, &[b"}U\x05model}(", weights, b"us."].concat());
            list(&path).err().map(|error| error.to_string())
        };
        let packed = |name: &str| {
            let name = format!("{name}._packed_params._packed_params");
            let text = [b"X", &(name.len() as u32).to_le_bytes()[..], name.as_bytes()].concat();
            [&text[..], b"ctorch._utils\n_rebuild_qtensor\n)RN\x86"].concat()
        };
        let told = format!(
            "{}: PyTorch dynamic-int8 packed weights (model.ssm.in_proj._packed_params); save the float model",
            path.display()
        );
        assert_eq!(refused(&[packed("ssm.in_proj"), packed("moe.w1")].concat()), Some(told));
        // A word that only contains this one, and what is no tensor.
        assert_eq!(refused(b"U\x10my_packed_paramsctorch._utils\n_rebuild_qtensor\n)R"), None);
        assert_eq!(refused(b"U\x0e_packed_params}U\x05dtypectorch\nqint8\ns"), None);
    }

    #[test]
    fn no_nesting_is_too_deep_and_nothing_is_walked_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pt");
        let deep = [&b"]".repeat(100_000)[..], &b"a".repeat(99_999), b"."].concat();
        // A dict that holds itself, and a list of two times the one before, sixty times over.
        let cycle = b"}q\x00X\x01\x00\x00\x00ah\x00s.".to_vec();
        let doubled = [&b"]"[..], &b"2\x86".repeat(60), b"."].concat();
        for pickle in [deep, cycle, doubled] {
            pickled(&path, &pickle);
            assert!(list(&path).unwrap().tensors.is_empty());
        }
    }

    #[test]
    fn what_would_take_much_memory_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pt");
        pickled(&path, &[&b"]\x94".repeat(3_000_000)[..], b"."].concat());
        assert!(list(&path).err().unwrap().to_string().contains("many times its size in memory"));
        // Declared and not there.
        for pickle in
            [&b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f."[..], b"B\xff\xff\xff\xff.", b"\x8b\xff\xff\xff\xff."]
        {
            pickled(&path, pickle);
            assert!(list(&path).err().unwrap().to_string().contains("cut short at byte 0 of its pickle"));
        }
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
        let mut flipped = whole.clone();
        let at = whole.windows(6).position(|bytes| bytes == b"data/0").unwrap() + 6;
        flipped[at] ^= 1;
        std::fs::write(&path, flipped).unwrap();
        assert!(
            load(&path).unwrap_err().to_string().contains("x.pt: the checksum of its part nested/data/0")
        );
        assert!(load(&fixture("no_tensors.pt")).unwrap().is_empty());
        assert!(
            load(&folder.path().join("none.pt")).unwrap_err().to_string().ends_with("no such file or folder")
        );
        for (bytes, told) in [
            (
                &b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."[..],
                "x.pt: this file was saved by a PyTorch before 1.6",
            ),
            (b"\x80\x04N.", "x.pt: this is a pickle, and not one of torch.save"),
            (b"version https://git-lfs.github.com/spec/v1\n", "x.pt: this is a Git LFS pointer"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            assert!(load(&path).unwrap_err().to_string().contains(told), "{told}");
        }
    }
}
