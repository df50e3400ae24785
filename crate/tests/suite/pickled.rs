//! Files as `torch.save` writes them: a zip, uncompressed, of a pickle and the bytes of each storage.

use candle_core::{DType, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

/// Writes f32 tensors; a name in `shared` is stored as a second name of the other's storage.
pub fn save(path: &Path, tensors: &BTreeMap<String, Tensor>, shared: &[(&str, &str)]) {
    let mut entries = vec![];
    let mut pickle = b"\x80\x02ccollections\nOrderedDict\n)R(".to_vec(); // protocol 2, OrderedDict(), MARK
    for (name, tensor) in tensors {
        pickle.extend(item(name, tensor, entries.len()));
        for (second, _) in shared.iter().filter(|(_, first)| first == name) {
            pickle.extend(item(second, tensor, entries.len()));
        }
        let values: Vec<f32> = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        entries.push((format!("archive/data/{}", entries.len()), bytes));
    }
    pickle.extend(b"u."); // SETITEMS, STOP
    entries.insert(0, ("archive/data.pkl".to_string(), pickle));
    std::fs::write(path, zip(&entries)).unwrap();
}

/// A name and `torch._utils._rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())`.
fn item(name: &str, tensor: &Tensor, storage: usize) -> Vec<u8> {
    let text = |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let int = |n: usize| [b"J", &(n as i32).to_le_bytes()[..]].concat();
    let tuple =
        |ns: &[usize]| [b"(", &ns.iter().flat_map(|n| int(*n)).collect::<Vec<_>>()[..], b"t"].concat();
    [
        &text(name)[..],
        b"ctorch._utils\n_rebuild_tensor_v2\n((",
        &text("storage"),
        b"ctorch\nFloatStorage\n",
        &text(&storage.to_string()),
        &text("cpu"),
        &int(tensor.elem_count()),
        b"tQ", // TUPLE, BINPERSID
        &int(0),
        &tuple(tensor.dims()),
        &tuple(tensor.contiguous().unwrap().stride()),
        b"\x89ccollections\nOrderedDict\n)RtR",
    ]
    .concat()
}

fn zip(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let (mut file, mut directory) = (vec![], vec![]);
    for (name, bytes) in entries {
        let offset = file.len() as u32;
        // Version 2.0, no flags, stored, 1980-01-01; checksum, both sizes, length of the name, no extra field.
        let mut about = vec![20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0];
        for number in [crc32(bytes), bytes.len() as u32, bytes.len() as u32, name.len() as u32] {
            about.extend(number.to_le_bytes());
        }
        file.extend([b"PK\x03\x04", &about[..], name.as_bytes(), bytes].concat());
        let rest = [&[0; 10][..], &offset.to_le_bytes(), name.as_bytes()].concat();
        directory.extend([b"PK\x01\x02\x14\x00", &about[..], &rest].concat());
    }
    let count = (entries.len() as u16).to_le_bytes();
    let (start, size) = ((file.len() as u32).to_le_bytes(), (directory.len() as u32).to_le_bytes());
    [&file[..], &directory, b"PK\x05\x06\0\0\0\0", &count, &count, &size, &start, &[0, 0]].concat()
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 })
    })
}
