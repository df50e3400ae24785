"""The same steps of training by lowbit and by PyTorch, for the benches that set one beside the other.

Every batch is one sequence, repeated: the corpus holds no other. So both read the same, and their losses can be compared step by
step, which is what makes the speeds those of the same training.
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOWBIT = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/lowbit"
RATE, BETAS, EPS = 1e-3, (0.9, 0.95), 1e-8
FAR = 2e-3  # how far two losses may be apart


def run(arguments, *command):
    """lowbit on the threads of the bench."""
    command = [str(LOWBIT), "-q", *map(str, command), "--threads", str(arguments.threads)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def one_sequence(folder, length):
    """A sequence of so many bytes and one, and a corpus of it alone in `folder`."""
    plays = sorted((ROOT / "data/corpus/train").glob("*"))
    text = next(path for path in plays if path.stat().st_size > 2 * length).read_bytes()
    text = text[: length + 1].decode("ascii", "replace").replace("\ufffd", "?").encode()
    for split in ("train", "valid"):
        (folder / split).mkdir(parents=True)
        (folder / split / "text.txt").write_bytes(text)
    return text


def by_lowbit(arguments, model, start, corpus, out):
    """Losses and tokens/s of lowbit's steps; `model` as the settings of a training name it."""
    settings = {
        "model": model,
        "start": str(start),
        "corpus": str(corpus),
        "steps": arguments.steps,
        "mixture": {"batch_size": arguments.batch, "seq_len": arguments.length, "passkey": 0.0},
        "schedule": {"peak": RATE, "warmup": 0, "floor": 1.0},
        "optimizer": {"beta1": BETAS[0], "beta2": BETAS[1], "eps": EPS, "weight_decay": 0.0, "clip": 1.0},
        "validate_every": arguments.steps,
        "validate_windows": 1,
        "checkpoint_every": arguments.steps,
    }
    out.mkdir()
    (out / "training.json").write_text(json.dumps(settings))  # JSON is YAML
    run(arguments, "train", "--config", out / "training.json", "--out", out / "run")
    rows = [json.loads(line) for line in (out / "run/log.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    return [row["loss"] for row in steps], [row["tokens_per_s"] for row in steps]


def by_pytorch(arguments, torch, network, logits, text):
    """The same of PyTorch's; `logits` are those of a batch [B, T]."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, betas=BETAS, eps=EPS, weight_decay=0.0)
    inputs = torch.tensor(list(text[:-1])).expand(arguments.batch, -1)
    targets = torch.tensor(list(text[1:])).expand(arguments.batch, -1)
    losses, speeds = [], []
    for _ in range(arguments.steps):
        began = time.monotonic()
        loss = torch.nn.functional.cross_entropy(logits(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        speeds.append(arguments.batch * arguments.length / (time.monotonic() - began))
    return losses, speeds


def apart(theirs, ours):
    """The largest distance of two runs of losses, which ends the bench if it is not the same training."""
    distances = [abs(a - b) for a, b in zip(theirs, ours, strict=True)]
    far = max(distances)
    if not all(distance <= FAR for distance in distances):  # NaN is too far
        raise SystemExit(f"not the same training; losses of PyTorch {theirs}, of lowbit {ours}")
    return far


def flags(description, hidden, layers, batch, length):
    """The flags of a bench that trains, with these sizes by default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=hidden)
    parser.add_argument("--layers", type=int, default=layers)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--length", type=int, default=length)
    parser.add_argument("--steps", type=int, default=6, help="of a turn; the first is not counted")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def beside(arguments, torch, name, parameters, model, folder, loaded):
    """Trains in turns from `folder`/start and prints tokens/s; `loaded` gives PyTorch's network and what makes logits of a batch."""
    speeds, far = {"PyTorch eager": [], "lowbit": []}, 0.0
    text = one_sequence(folder / "corpus", arguments.length)
    for turn in range(arguments.rounds):
        theirs, found = by_pytorch(arguments, torch, *loaded(), text)
        speeds["PyTorch eager"] += found[1:]
        ours, found = by_lowbit(arguments, model, folder / "start", folder / "corpus", folder / str(turn))
        speeds["lowbit"] += found[1:]
        far = max(far, apart(theirs, ours))
    print(f"{name}, {parameters / 1e6:.1f}M parameters, {arguments.batch} × {arguments.length} tokens a step,")
    print(f"{arguments.threads} threads, {date.today()}, {platform.machine()}, PyTorch {torch.__version__};")
    print(f"losses of {arguments.steps} steps from {ours[0]:.3f} to {ours[-1]:.3f}, at most {far:.1e} apart\n")
    print("| | tokens/s | ratio |\n|---|---|---|")
    best = {who: max(found) for who, found in speeds.items()}
    for who, found in speeds.items():
        print(f"| {who} | {best[who]:.0f} / {statistics.median(found):.0f} | {best[who] / best['PyTorch eager']:.2f} |")
