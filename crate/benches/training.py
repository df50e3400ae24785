"""lowbit's training beside PyTorch's: tokens a second of the same steps of the same Llama-type model, in one run.

    pip install torch transformers
    cargo build --release
    python crate/benches/training.py

Both start from the same random weights and read the same sequence in every step, since the corpus holds one only; both
clip and update by AdamW, on the same processors, PyTorch eagerly, its attention by
`scaled_dot_product_attention`. They take turns. Before a speed is printed, the losses of all steps must agree: what is
timed is the same training. Prints a table in Markdown: tokens/s as best / median of the steps, the ratio of both.
"""
import json
import os
import tempfile
from pathlib import Path

from steps import beside, flags


def shape(arguments):
    """The model's config.json: Llama-type, over bytes."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 256,
        "hidden_size": arguments.hidden,
        "intermediate_size": 3 * arguments.hidden,
        "num_hidden_layers": arguments.layers,
        "num_attention_heads": arguments.hidden // 64,
        "num_key_value_heads": max(1, arguments.hidden // 128),
        "max_position_embeddings": arguments.length,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def model_setting(config):
    """The model as settings of a training name it."""
    others = ("architectures", "rope_theta", "hidden_act", "bos_token_id", "eos_token_id")
    kept = {name: value for name, value in config.items() if name not in others}
    heads = config["num_attention_heads"]
    return kept | {"head_dim": config["hidden_size"] // heads, "rope": {"theta": config["rope_theta"]}}


def start(folder, config, torch, transformers):
    """A model of seeded random weights, as both read it."""
    torch.manual_seed(0)
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    made.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    return made


def main():
    arguments = flags(__doc__, hidden=256, layers=8, batch=4, length=1024)
    os.sched_setaffinity(0, range(arguments.threads))
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    config = shape(arguments)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        parameters = start(folder / "start", config, torch, transformers).num_parameters()

        def loaded():
            how = {"attn_implementation": "sdpa", "dtype": torch.float32}
            made = transformers.LlamaForCausalLM.from_pretrained(folder / "start", **how)
            return made, lambda inputs: made(inputs, use_cache=False).logits

        beside(arguments, torch, "Llama-type", parameters, model_setting(config), folder, loaded)


if __name__ == "__main__":
    main()
