"""lowbit's training beside PyTorch's: tokens a second of the same steps of the same Llama-type model, in one run.

    pip install torch transformers
    cargo build --release
    python crate/benches/training.py

Both start from the same random weights and read the same sequence in every step, since the corpus holds one only; both
clip and update by AdamW, on the same processors, PyTorch eagerly, its attention by
`scaled_dot_product_attention`. They take turns. Before a speed is printed, the losses of all steps must agree: what is
timed is the same training. Prints a table in Markdown: tokens/s as best / median of the steps, the ratio of both.
"""
import argparse
import json
import os
import platform
import statistics
import tempfile
from datetime import date
from pathlib import Path

from steps import apart, by_lowbit, by_pytorch, one_sequence


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=6, help="of a turn; the first is not counted")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, range(arguments.threads))
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    config, speeds, far = shape(arguments), {"PyTorch eager": [], "lowbit": []}, 0.0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        parameters = start(folder / "start", config, torch, transformers).num_parameters()
        text = one_sequence(folder / "corpus", arguments.length)
        for turn in range(arguments.rounds):
            how = {"attn_implementation": "sdpa", "dtype": torch.float32}
            network = transformers.LlamaForCausalLM.from_pretrained(folder / "start", **how)
            theirs, found = by_pytorch(
                arguments, torch, network, lambda inputs: network(inputs, use_cache=False).logits, text
            )
            speeds["PyTorch eager"] += found[1:]
            model, out = model_setting(config), folder / str(turn)
            ours, found = by_lowbit(arguments, model, folder / "start", folder / "corpus", out)
            speeds["lowbit"] += found[1:]
            far = max(far, apart(theirs, ours))
    print(f"Llama-type, {parameters / 1e6:.1f}M parameters, {arguments.batch} × {arguments.length} tokens a step,")
    print(f"{arguments.threads} threads, {date.today()}, {platform.machine()}, PyTorch {torch.__version__};")
    print(f"losses of {arguments.steps} steps from {ours[0]:.3f} to {ours[-1]:.3f}, at most {far:.1e} apart\n")
    print("| | tokens/s | ratio |\n|---|---|---|")
    best = {who: max(found) for who, found in speeds.items()}
    for who, found in speeds.items():
        print(f"| {who} | {best[who]:.0f} / {statistics.median(found):.0f} | {best[who] / best['PyTorch eager']:.2f} |")


if __name__ == "__main__":
    main()
