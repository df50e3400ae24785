//! What tensors of architecture `llama` are called in files, and in checkpoints of Hugging Face.

use crate::error::{Error, Result};

/// What a tensor is to the reader of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Embedding,
    Head,
    /// Its rows are those of the query heads, permuted.
    Query,
    /// Its rows are those of the key heads, permuted.
    Key,
    /// What the frequencies of positions are divided by; no tensor of a checkpoint.
    Frequencies,
    Other,
}

/// A tensor's name in a checkpoint, and what it is.
pub(super) struct Name {
    pub own: String,
    pub part: Part,
}

impl Name {
    /// Whether it is a matrix: the embedding, the head, or one of a layer.
    pub fn is_matrix(&self) -> bool {
        matches!(self.part, Part::Embedding | Part::Head) || self.own.ends_with("_proj.weight")
    }
}

/// The tensors of a layer, behind `blk.N.` and behind `model.layers.N.`.
const LAYER: [(&str, &str); 13] = [
    ("attn_norm.weight", "input_layernorm.weight"),
    ("attn_q.weight", "self_attn.q_proj.weight"),
    ("attn_k.weight", "self_attn.k_proj.weight"),
    ("attn_v.weight", "self_attn.v_proj.weight"),
    ("attn_output.weight", "self_attn.o_proj.weight"),
    ("attn_q.bias", "self_attn.q_proj.bias"),
    ("attn_k.bias", "self_attn.k_proj.bias"),
    ("attn_v.bias", "self_attn.v_proj.bias"),
    ("attn_output.bias", "self_attn.o_proj.bias"),
    ("ffn_norm.weight", "post_attention_layernorm.weight"),
    ("ffn_gate.weight", "mlp.gate_proj.weight"),
    ("ffn_up.weight", "mlp.up_proj.weight"),
    ("ffn_down.weight", "mlp.down_proj.weight"),
];

/// The tensor of this name in a file of a network of so many layers.
///
/// # Errors
/// A network of this architecture has none of this name, as it is read here.
pub(super) fn of(name: &str, layers: usize) -> Result<Name> {
    let (own, part) = match name {
        "token_embd.weight" => ("model.embed_tokens.weight".to_string(), Part::Embedding),
        "output_norm.weight" => ("model.norm.weight".to_string(), Part::Other),
        "output.weight" => ("lm_head.weight".to_string(), Part::Head),
        "rope_freqs.weight" => (name.to_string(), Part::Frequencies),
        _ => of_layer(name, layers)?,
    };
    Ok(Name { own, part })
}

fn of_layer(name: &str, layers: usize) -> Result<(String, Part)> {
    let found = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).and_then(|(layer, rest)| {
        // A number that is written otherwise, such as 01, would be a second name of one layer.
        let number: usize = layer.parse().ok().filter(|n: &usize| n.to_string() == layer)?;
        let (_, own) = LAYER.iter().find(|(file, _)| *file == rest)?;
        let part = match () {
            () if rest.starts_with("attn_q.") => Part::Query,
            () if rest.starts_with("attn_k.") => Part::Key,
            () => Part::Other,
        };
        Some((number, format!("model.layers.{number}.{own}"), part))
    });
    match found {
        Some((number, own, part)) if number < layers => Ok((own, part)),
        Some(_) => Err(Error::input(format!("the model is said to have {layers} layers only"))),
        None => {
            Err(Error::input("nothing is known that this tensor is for in a model of architecture llama")
                .hint("its logits would be others without it"))
        }
    }
}
