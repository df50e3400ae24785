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
import subprocess
import tempfile
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOWBIT = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/lowbit"
RATE, BETAS, EPS = 1e-3, (0.9, 0.95), 1e-8
FAR = 2e-3  # how far the losses of a step may be apart


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


def lowbit(arguments, config, folder, model, corpus):
    """Losses and seconds of lowbit's steps."""
    settings = {
        "model": model_setting(config),
        "start": str(model),
        "corpus": str(corpus),
        "steps": arguments.steps,
        "mixture": {"batch_size": arguments.batch, "seq_len": arguments.length, "passkey": 0.0},
        "schedule": {"peak": RATE, "warmup": 0, "floor": 1.0},
        "optimizer": {"beta1": BETAS[0], "beta2": BETAS[1], "eps": EPS, "weight_decay": 0.0, "clip": 1.0},
        "validate_every": arguments.steps,
        "validate_windows": 1,
        "checkpoint_every": arguments.steps,
    }
    (folder / "training.json").write_text(json.dumps(settings))  # JSON is YAML
    command = [LOWBIT, "-q", "train", "--config", folder / "training.json", "--out", folder / "run"]
    subprocess.run([*map(str, command), "--threads", str(arguments.threads)], check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (folder / "run/log.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    each = arguments.batch * arguments.length
    return [row["loss"] for row in steps], [each / row["tokens_per_s"] for row in steps]


def pytorch(arguments, torch, transformers, model, text):
    """The same of PyTorch's."""
    network = transformers.LlamaForCausalLM.from_pretrained(model, attn_implementation="sdpa", dtype=torch.float32)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, betas=BETAS, eps=EPS, weight_decay=0.0)
    inputs = torch.tensor(list(text[:-1])).expand(arguments.batch, -1)
    targets = torch.tensor(list(text[1:])).expand(arguments.batch, -1)
    losses, seconds = [], []
    for _ in range(arguments.steps):
        began = time.monotonic()
        logits = network(inputs, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.monotonic() - began)
    return losses, seconds


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
    config, seconds, far = shape(arguments), {"PyTorch eager": [], "lowbit": []}, 0.0
    text = (ROOT / "data/corpus/train").glob("*")
    text = next(path for path in sorted(text) if path.stat().st_size > arguments.length).read_bytes()
    text = text[: arguments.length + 1].decode("ascii", "replace").replace("\ufffd", "?").encode()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        parameters = start(folder / "start", config, torch, transformers).num_parameters()
        for split in ("train", "valid"):
            (folder / "corpus" / split).mkdir(parents=True)
            (folder / "corpus" / split / "text.txt").write_bytes(text)
        for turn in range(arguments.rounds):
            (folder / str(turn)).mkdir()
            theirs, took = pytorch(arguments, torch, transformers, folder / "start", text)
            seconds["PyTorch eager"] += took[1:]
            ours, took = lowbit(arguments, config, folder / str(turn), folder / "start", folder / "corpus")
            seconds["lowbit"] += took[1:]
            far = max(far, *(abs(a - b) for a, b in zip(theirs, ours, strict=True)))
            if far > FAR:
                raise SystemExit(f"training: not the same training; losses of PyTorch {theirs}, of lowbit {ours}")
    print(f"Llama-type, {parameters / 1e6:.1f}M parameters, {arguments.batch} × {arguments.length} tokens a step,")
    print(f"{arguments.threads} threads, {date.today()}, {platform.machine()}, PyTorch {torch.__version__};")
    print(f"losses of {arguments.steps} steps from {ours[0]:.3f} to {ours[-1]:.3f}, at most {far:.1e} apart\n")
    print("| | tokens/s | ratio |\n|---|---|---|")
    tokens = arguments.batch * arguments.length
    best = {who: tokens / min(took) for who, took in seconds.items()}
    for who, took in seconds.items():
        ratio = best[who] / best["PyTorch eager"]
        print(f"| {who} | {best[who]:.0f} / {tokens / statistics.median(took):.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
