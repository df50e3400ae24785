"""Prefill, decode and training of one model by lowbit and by PyTorch in turns, for the benches that set one beside the other.

PyTorch's network takes ids and states, if any, and gives logits and the states after; `zero_states()` are those before the first
token. Both start from the same random weights. Before a speed is printed the numbers must agree: the whole prompt with single tokens,
the losses of a text, and those of every step of training.
"""
import argparse
import json
import math
import os
import platform
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

from steps import FAR, apart, by_lowbit, by_pytorch, one_sequence, run


def start(folder, config, torch, network):
    """A model of seeded random weights, as both read it; returns how many numbers it has."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    made = network(torch, config)
    for name, tensor in made.named_parameters():
        with torch.no_grad():
            if tensor.ndim == 2:
                tensor.normal_(0, 0.02)
            elif name.endswith("bias") and "norm" not in name:
                tensor.normal_(0, 1)  # channels that forget at different rates
    folder.mkdir()
    save_file(made.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return sum(tensor.numel() for tensor in made.parameters())


def loaded(torch, config, network, folder):
    from safetensors.torch import load_file

    made = network(torch, config)
    made.load_state_dict(load_file(folder / "model.safetensors"))
    return made


def rows(folder):
    (records,) = Path(folder).glob("*/metrics.jsonl")
    return [json.loads(line) for line in records.read_text().splitlines()]


def agree(arguments, torch, made, folder, text):
    """Holds the two to each other, and PyTorch's form for prompts to its single tokens; returns the largest distance of losses."""
    (folder / "text.txt").write_bytes(text)
    run(arguments, "ppl", folder / "start", "--corpus", folder / "text.txt", "--seq-len", len(text) - 1, "--runs", folder / "ppl")
    (row,) = rows(folder / "ppl")
    ids = torch.tensor([list(text[:-1])])
    with torch.inference_mode():
        nll = torch.nn.functional.cross_entropy(made.train()(ids)[0][0], torch.tensor(list(text[1:]))).item()
        last, states = made.eval()(ids)[0], made.zero_states()
        for i in range(ids.shape[1]):
            step, states = made(ids[:, i : i + 1], states)
    distances = abs(nll - row["nll"]), (last - step).abs().max().item()
    far = max(distances) if all(map(math.isfinite, distances)) else math.nan
    if not far <= FAR:  # NaN is too far
        raise SystemExit(f"not the same model: PyTorch {nll}, lowbit {row['nll']}; prompt and steps {(last - step).abs().max()} apart")
    return far


def lowbit_cost(arguments, folder, phase):
    """Tokens/s of lowbit."""
    with tempfile.TemporaryDirectory() as out:
        length = arguments.length if phase == "prefill" else 1
        settings = {"lengths": [length], "phases": [phase], "gen_len": arguments.decoded, "repetitions": 2}
        Path(out, "cost.yaml").write_text(json.dumps(settings))
        run(arguments, "cost", folder / "start", "--config", Path(out, "cost.yaml"), "--runs", out)
        (row,) = rows(out)
        return [row["tokens_per_s_min"], row["tokens_per_s_max"]]


def pytorch_cost(arguments, torch, made, phase):
    """The same of PyTorch's."""
    ids, found = torch.randint(256, (1, arguments.length)), []
    with torch.inference_mode():
        for _ in range(3):
            began = time.monotonic()
            if phase == "prefill":
                made(ids)
                tokens = arguments.length
            else:
                states, tokens = made.zero_states(), arguments.decoded
                token = ids[:, :1]
                for _ in range(tokens):
                    logits, states = made(token, states)
                    token = logits[:, -1].argmax(-1, keepdim=True)
            found.append(tokens / (time.monotonic() - began))
    return found[1:]  # the first warms up


def flags(description, **sizes):
    """The flags of such a bench, with these sizes by default; the processors are taken."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--steps", type=int, default=5, help="of training in a turn; the first is not counted")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, range(arguments.threads))
    return arguments


def beside(arguments, torch, name, config, network, setting):
    """Runs all phases in turns and prints the table; `setting` is the model as settings of a training name it."""
    speeds = {phase: {"PyTorch": [], "lowbit": []} for phase in ("prefill", "decode", "training")}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        parameters, corpus = start(folder / "start", config, torch, network), folder / "corpus"
        text = one_sequence(corpus, arguments.length)
        again = lambda: loaded(torch, config, network, folder / "start")
        far, made = agree(arguments, torch, again(), folder, text), again().eval()
        for turn in range(arguments.rounds):
            for phase in ("prefill", "decode"):
                speeds[phase]["PyTorch"] += pytorch_cost(arguments, torch, made, phase)
                speeds[phase]["lowbit"] += lowbit_cost(arguments, folder, phase)
            trained = again().train()
            theirs, found = by_pytorch(arguments, torch, trained, lambda inputs: trained(inputs)[0], text)
            speeds["training"]["PyTorch"] += found[1:]
            ours, found = by_lowbit(arguments, setting, folder / "start", corpus, folder / str(turn))
            speeds["training"]["lowbit"] += found[1:]
            far = max(far, apart(theirs, ours))
    print(f"{name}, {parameters / 1e6:.1f}M parameters (hidden {arguments.hidden}, {arguments.layers} layers),")
    print(f"{arguments.length} tokens, {arguments.threads} threads, {date.today()}, {platform.machine()},")
    print(f"PyTorch {torch.__version__} eager; losses at most {far:.1e} apart\n")
    print("| | tokens/s of PyTorch | of lowbit | ratio |\n|---|---|---|---|")
    for phase, found in speeds.items():
        best = {who: max(values) for who, values in found.items()}
        shown = [f"{best[who]:.0f} / {statistics.median(found[who]):.0f}" for who in found]
        print(f"| {phase} | {shown[0]} | {shown[1]} | {best['lowbit'] / best['PyTorch']:.2f} |")
