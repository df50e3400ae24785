//! What was loaded, as lines of name and value.

use super::Model;
use super::tokenizer::Tokenizer;
use crate::family::some_of;
use std::collections::BTreeMap;
use std::fmt;

impl Model {
    /// What was loaded, as lines of name and value.
    pub fn card(&self) -> Vec<(String, String)> {
        let millions = self.parameters() as f64 / 1e6;
        let size = format!("{millions:.2} M, {:.1} MB as {}", self.bytes() as f64 / 1e6, self.dtype.as_str());
        let text = match &self.tokenizer {
            Tokenizer::Missing { .. } => "no tokenizer: token ids only",
            tokenizer => tokenizer.name(),
        };
        let lines = [
            ("layers", Some(format!("{} × {} wide", self.config.layers(), self.config.hidden_size()))),
            ("experts", self.experts_told()),
            ("parameters", Some(size)),
            ("stored as", self.stored_as.as_ref().map(|told| self.with_a_word_on_blocks(told))),
            ("vocabulary", Some(format!("{} ({text})", self.config.vocab_size()))),
            (
                "quantized",
                self.quantization
                    .as_ref()
                    .map(|q| format!("{}, {:.3} bits a weight", q.scheme, q.bits_per_weight())),
            ),
            ("trained at", self.training_length.map(|length| format!("{length} tokens"))),
            ("revision", self.revision.clone()),
            ("hash", Some(self.hash[..self.hash.len().min(16)].to_string())),
            ("assumed", Some(self.assumed.join(", ")).filter(|text| !text.is_empty())),
            ("unused", Some(some_of(&self.unused)).filter(|text| !text.is_empty())),
        ];
        lines.into_iter().filter_map(|(name, value)| Some((name.to_string(), value?))).collect()
    }
}

impl Model {
    /// How many experts there are, where, and how many see a token; none where there are none.
    fn experts_told(&self) -> Option<String> {
        let mut layers: BTreeMap<usize, usize> = BTreeMap::new();
        for site in self.config.sites() {
            let (Some(layer), Some(expert)) = (site.layer, site.expert) else { continue };
            let count = layers.entry(layer).or_default();
            *count = (*count).max(expert + 1);
        }
        let counts = || layers.values().copied();
        let (least, most) = (counts().min()?, counts().max()?);
        let each = if least == most { most.to_string() } else { format!("{least} to {most}") };
        let chosen = self.config.chosen_experts();
        Some(format!("{each} in {} of the layers, {chosen} of them for each token", layers.len()))
    }

    /// What the weights were stored in, and what became of blocks that can stay packed.
    fn with_a_word_on_blocks(&self, told: &str) -> String {
        let can_stay = self.read_in().values().any(|own| own.coding.is_some());
        match self.quantization {
            None if can_stay => {
                format!("{told}; here as {}, the scheme gguf keeps blocks packed", self.dtype.as_str())
            }
            _ => told.to_string(),
        }
    }
}

/// The card as text.
impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}  ({})", self.name, self.config.family())?;
        self.card().iter().try_for_each(|(name, value)| write!(f, "\n  {name:<11} {value}"))
    }
}
