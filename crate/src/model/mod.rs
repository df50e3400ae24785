//! Models as files: checkpoints in, checkpoints out, tokenizers.

pub mod checkpoint;
mod files;
pub mod hub;
pub mod json;
mod pickle;
mod safetensors;
pub mod tokenizer;

pub use checkpoint::Checkpoint;
pub use safetensors::save_safetensors;
pub use tokenizer::Tokenizer;
