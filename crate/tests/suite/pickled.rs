//! Files as `torch.save` writes them: a zip, uncompressed, of a pickle and the bytes of each storage.

use candle_core::{DType, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

/// Writes f32 tensors; a name in `shared` is stored as a second name of the other's storage.
pub fn save(path: &Path, tensors: &BTreeMap<String, Tensor>, shared: &[(&str, &str)]) {
    let mut file = File::new(2);
    let weights = file.weights(tensors, shared);
    file.save(path, &weights);
}

/// A file on its way: pickled values are strings of opcodes.
pub struct File {
    protocol: u8,
    storages: Vec<Vec<u8>>,
}

type Pickled = Vec<u8>;

impl File {
    pub fn new(protocol: u8) -> Self {
        Self { protocol, storages: vec![] }
    }

    /// An OrderedDict of f32 tensors.
    pub fn weights(&mut self, tensors: &BTreeMap<String, Tensor>, shared: &[(&str, &str)]) -> Pickled {
        let mut items = vec![];
        for (name, tensor) in tensors {
            let pickled = self.tensor(tensor);
            let seconds = shared.iter().filter(|(_, first)| first == name).map(|(second, _)| *second);
            items.extend(seconds.map(|second| (second.to_string(), pickled.clone())));
            items.push((name.clone(), pickled.clone()));
        }
        let items: Vec<(&str, Pickled)> =
            items.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        [self.global("collections", "OrderedDict"), b")R".to_vec(), self.items(&items)].concat()
    }

    /// A tensor of f32 with a storage of its own.
    pub fn tensor(&mut self, tensor: &Tensor) -> Pickled {
        let values: Vec<f32> = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let storage = self.storage("FloatStorage", values.len(), bytes);
        self.view(&storage, 0, tensor.dims(), tensor.contiguous().unwrap().stride())
    }

    /// A storage of this class.
    pub fn storage(&mut self, class: &str, elements: usize, bytes: Vec<u8>) -> Pickled {
        self.storages.push(bytes);
        let key = (self.storages.len() - 1).to_string();
        let id =
            [self.text("storage"), self.global("torch", class), self.text(&key), self.text("cpu")].concat();
        [b"(", &id[..], &int(elements), b"tQ"].concat() // TUPLE, BINPERSID
    }

    /// `torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, False, OrderedDict())`.
    pub fn view(&self, storage: &[u8], offset: usize, shape: &[usize], strides: &[usize]) -> Pickled {
        let tuple =
            |ns: &[usize]| [b"(", &ns.iter().flat_map(|n| int(*n)).collect::<Vec<_>>()[..], b"t"].concat();
        [
            &self.global("torch._utils", "_rebuild_tensor_v2")[..],
            b"(",
            storage,
            &int(offset),
            &tuple(shape),
            &tuple(strides),
            b"\x89",
            &self.global("collections", "OrderedDict"),
            b")RtR",
        ]
        .concat()
    }

    /// A dict.
    pub fn dict(&self, items: &[(&str, Pickled)]) -> Pickled {
        [b"}".to_vec(), self.items(items)].concat()
    }

    /// An object of a subclass of dict, as programs have for settings.
    pub fn subclass(&self, items: &[(&str, Pickled)]) -> Pickled {
        [self.global("program.settings", "AttrDict"), b")\x81".to_vec(), self.items(items)].concat()
    }

    fn items(&self, items: &[(&str, Pickled)]) -> Pickled {
        let items: Vec<u8> =
            items.iter().flat_map(|(name, value)| [self.text(name), value.clone()].concat()).collect();
        [b"(", &items[..], b"u"].concat()
    }

    fn text(&self, text: &str) -> Pickled {
        match self.protocol {
            4.. => [&[0x8c, text.len() as u8], text.as_bytes()].concat(),
            _ => [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat(),
        }
    }

    fn global(&self, module: &str, name: &str) -> Pickled {
        match self.protocol {
            4.. => [self.text(module), self.text(name), vec![0x93]].concat(),
            _ => format!("c{module}\n{name}\n").into_bytes(),
        }
    }

    /// Writes the file of this value.
    pub fn save(&self, path: &Path, value: &[u8]) {
        std::fs::write(path, zip(&self.entries(value))).unwrap();
    }

    /// The parts of the file of this value, the pickle first.
    pub fn entries(&self, value: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut pickle = vec![0x80, self.protocol];
        if self.protocol >= 4 {
            pickle.push(0x95);
            pickle.extend((value.len() as u64 + 1).to_le_bytes());
        }
        pickle.extend([value, b"."].concat());
        let mut entries = vec![("archive/data.pkl".to_string(), pickle)];
        let storages = self.storages.iter().enumerate();
        entries.extend(storages.map(|(i, bytes)| (format!("archive/data/{i}"), bytes.clone())));
        entries
    }
}

/// An integer.
pub fn int(n: usize) -> Pickled {
    [b"J", &(n as i32).to_le_bytes()[..]].concat()
}

/// An archive of these parts.
pub fn zip(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
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
