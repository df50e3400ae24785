//! A model in one compressed file, as small as it gets: config, tokenizer, codes, scales and everything else.
//!
//! The file is one zstd frame at level 22 around a safetensors file, whose metadata hold the `config.json` and, where text is
//! not bytes, the `tokenizer.json`. Codes of integer formats stand one to a byte, row by row, or as the words of a [range coder](crate::format::range)
//! (a tensor of u32), whichever makes the smaller file. It loads like any other weight file, to the same logits.

use super::quantization::Quantization;
use super::safetensors::{self, to_bytes};
use super::stored::{Listing, Own, Tokenizing};
use super::tokenizer::Tokenizer;
use super::{Model, saved};
use crate::error::{Error, Result};
use crate::family::{Stated, Tensors};
use crate::format::range;
use crate::json;
use crate::layer::quantized::Block;
use crate::whole::write_bytes;
use candle_core::{Device, Tensor};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// How the names of such files end.
pub const ENDING: &str = "lowbit";

/// The level of compression: the highest, since a file is written once.
const LEVEL: i32 = 22;

/// What metadata call the config and the tokenizer.
const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";

/// A model as one compressed file.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// The file.
    pub bytes: Vec<u8>,
    /// Bytes before compression, codes one to a byte.
    pub raw: usize,
    /// Bytes of the file with codes one to a byte: by zstd alone.
    pub plain: usize,
    /// Bytes of the file with codes as words of the range coder; none where there are no codes.
    pub ranged: Option<usize>,
    /// The codes of its matrices, one to a byte.
    pub codes: usize,
    /// Bytes that the codes take by the entropy of each matrix: what a coder without context comes down to.
    pub entropy: f64,
}

impl Artifact {
    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_bytes(path, &self.bytes)
    }
}

/// One zstd frame at level 22, with the size of its content in the header.
///
/// # Errors
/// If memory is short.
pub fn compressed(bytes: &[u8]) -> Result<Vec<u8>> {
    zstd::bulk::compress(bytes, LEVEL).map_err(|error| Error::internal(format!("zstd: {error}")))
}

/// Bytes of the least code for symbols with these frequencies, each on its own (Shannon 1948).
pub fn entropy(symbols: &[u8]) -> f64 {
    let mut counts = [0u64; 256];
    symbols.iter().for_each(|symbol| counts[usize::from(*symbol)] += 1);
    let total = symbols.len() as f64;
    let bits = |count: u64| -(count as f64) * (count as f64 / total).log2();
    counts.iter().filter(|count| **count > 0).map(|count| bits(*count)).sum::<f64>() / 8.0
}

impl Model {
    /// The model as one compressed file.
    ///
    /// # Errors
    /// If its quantization is simulated.
    pub fn artifact(&self) -> Result<Artifact> {
        let mut tensors = self.packed_tensors()?;
        let (mut count, mut least, mut words) = (0, 0.0, Tensors::new());
        for (name, matrix) in self.matrices() {
            for (i, block) in matrix.blocks().iter().enumerate() {
                let Block::Packed(encoded) = block else { continue };
                if let Some(codes) = saved::bytes_of_codes(encoded) {
                    (count, least) = (count + codes.len(), least + entropy(&codes));
                    let coded = range::encode(&codes)?;
                    let coded = Tensor::from_slice(&coded, coded.len(), &Device::Cpu)?;
                    let codes = Tensor::from_slice(&codes, codes.len(), &Device::Cpu)?;
                    words.insert(format!("{name}.{i}.codes"), coded);
                    tensors.insert(format!("{name}.{i}.codes"), codes);
                }
            }
        }
        let mut metadata = self.about()?;
        if let Some(report) = &self.quantization {
            let report = serde_json::to_string(&rounded(report)).map_err(Error::internal)?;
            metadata.insert("quantization".to_string(), report);
        }
        let config = json::text(&self.config.hugging_face(None)?);
        metadata.insert(CONFIG.to_string(), config);
        if let Tokenizer::Pieces(pieces) = &self.tokenizer {
            metadata.insert(TOKENIZER.to_string(), pieces.file().to_string());
        }
        let raw = to_bytes(&tensors, &metadata)?;
        let (mut bytes, mut ranged) = (compressed(&raw)?, None);
        let plain = bytes.len();
        if !words.is_empty() {
            tensors.extend(words);
            let other = compressed(&to_bytes(&tensors, &metadata)?)?;
            ranged = Some(other.len());
            if other.len() < plain {
                bytes = other;
            }
        }
        Ok(Artifact { bytes, raw: raw.len(), plain, ranged, codes: count, entropy: least })
    }
}

/// A report whose errors have three digits: of these it needs no more, and each digit takes its place.
fn rounded(report: &Quantization) -> Quantization {
    let mut report = report.clone();
    for block in report.layers.iter_mut().flat_map(|layer| &mut layer.blocks) {
        block.error = format!("{:.2e}", block.error).parse().unwrap_or(block.error);
    }
    report
}

/// Whether a file is one of these, by its name.
fn is_artifact(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case(ENDING))
}

/// The bytes of a weight file, without its compression.
///
/// # Errors
/// It cannot be opened.
pub(super) fn open(path: &Path) -> std::io::Result<Box<dyn Read>> {
    let file = File::open(path)?;
    match is_artifact(path) {
        true => Ok(Box::new(zstd::stream::read::Decoder::new(file)?)),
        false => Ok(Box::new(file)),
    }
}

/// Reads what such a file holds, without its weights.
pub(super) fn list(path: &Path) -> Result<Listing> {
    let mut reader = open(path).map_err(|error| Error::io(path, &error))?;
    let mut listing = safetensors::list_of(&mut reader, None, path)?;
    let config = listing.metadata.remove(CONFIG).ok_or_else(|| {
        Error::input(format!("not a file of `lowbit pack`: it has no {CONFIG}")).at(path.display())
    })?;
    listing.layers.clear(); // the config is its own
    let json = json::parse(&config).map_err(|error| error.at(path.display()))?;
    let stated = Stated { file: CONFIG.to_string(), json };
    let tokens = listing.metadata.remove(TOKENIZER).map(Tokenizing::File);
    let stored_as = listing.metadata.get(super::contents::STORED_AS).cloned();
    listing.own = Some(Own { stated, tokens, stored_as });
    Ok(listing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Positions;

    #[test]
    fn entropy_is_that_of_the_frequencies() {
        assert_eq!(entropy(&[7; 100]), 0.0);
        assert_eq!(entropy(&[0, 1].repeat(80)), 20.0);
        let four: Vec<u8> = (0..64).map(|i| i % 4).collect();
        assert_eq!(entropy(&four), 16.0);
    }

    #[test]
    fn a_packed_model_is_itself_again() {
        let folder = tempfile::tempdir().unwrap();
        let model = Model::load("random:lowrank-q-tiny").unwrap();
        for scheme in
            ["w6a16-sf16+*.mlp.*=w5-sf16", "w4a8-g32", "nf4+head=w8", "ternary", "bf16", "u3a16-g32"]
        {
            let small = model.quantized(&scheme.parse().unwrap()).unwrap();
            let (artifact, path) = (small.artifact().unwrap(), folder.path().join("packed.lowbit"));
            std::fs::write(&path, &artifact.bytes).unwrap();
            let again = Model::load(&path.to_string_lossy()).unwrap();
            assert_eq!(
                (&again.config, &again.assumed[..], &again.unused[..]),
                (&small.config, &[][..], &[][..])
            );
            let tokens = small.tokens(&(0..60).map(|i| i * 37 % 256).collect::<Vec<u32>>()).unwrap();
            let logits = |model: &Model| {
                let logits = model.forward(&tokens, None, Positions::All).unwrap();
                logits.flatten_all().unwrap().to_vec1::<f32>().unwrap()
            };
            assert_eq!(logits(&again), logits(&small), "{scheme}");
            assert_eq!(again.artifact().unwrap().bytes, artifact.bytes, "{scheme}");
            assert!(artifact.bytes.len() < artifact.raw && artifact.entropy <= artifact.codes as f64);
            // Within a few per cent of what the entropy of codes leaves, and of the rest as it is.
            let rest = small.bytes() as f64;
            assert!(
                (artifact.bytes.len() as f64) < 1.1 * rest + 8000.0,
                "{scheme}: {}",
                artifact.bytes.len()
            );
        }
        let path = folder.path().join("broken.lowbit");
        std::fs::write(&path, &model.artifact().unwrap().bytes[..5000]).unwrap();
        assert!(Model::load(&path.to_string_lossy()).is_err());
        std::fs::write(&path, compressed(b"not a model, but compressed like one").unwrap()).unwrap();
        let error = Model::load(&path.to_string_lossy()).unwrap_err().to_string();
        assert!(error.contains("broken.lowbit"), "{error}");
    }
}
