"""lowbit's gated linear attention beside PyTorch's: prefill, decode and training of one model, in one run.

    pip install torch safetensors
    cargo build --release
    python crate/benches/gla.py

Both start from the same random weights, run on the same processors in f32 and take turns. PyTorch is eager; its chunk form is
written below from the definition (chunks of 64 tokens, sub-chunks of 16, no exponent above 0; all chunks at once but for the state),
since flash-linear-attention's own kernels need a GPU. Before a speed is printed the numbers must agree: the chunk form with the
recurrence token by token, the losses of a text by window, and those of every step of training; lowbit's chunk form alone is held to
its definition by `cargo bench`, which times it. Prints tables in Markdown: tokens/s and milliseconds as best / median, and the ratio of
the best.
"""
import math
import statistics
import subprocess
import time

from phases import beside, flags
from steps import ROOT

CHUNK, SUB = 64, 16


def shape(arguments):
    """The model's config.json, over bytes."""
    return {
        "model_type": "gla",
        "vocab_size": 256,
        "hidden_size": arguments.hidden,
        "intermediate_size": 256 * math.ceil(arguments.hidden * 8 / 3 / 256),
        "num_hidden_layers": arguments.layers,
        "num_heads": arguments.heads,
        "expand_k": 0.5,
        "expand_v": 1.0,
        "norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def recurrent(torch, q, k, v, log, state):
    """One token: q, k, log [B, H, K], v [B, H, V] and the state [B, H, K, V] → y [B, H, V] and the state."""
    state = state * log.exp().unsqueeze(-1) + k.unsqueeze(-1) * v.unsqueeze(-2)
    return (q.unsqueeze(-2) @ state).squeeze(-2), state


def chunked(torch, q, k, v, log):
    """q, k, log [B, H, T, K], v [B, H, T, V], T a multiple of CHUNK → y [B, H, T, V], from no state."""
    batch, heads, time_, key = q.shape
    cut = lambda x: x.reshape(batch, heads, time_ // CHUNK, CHUNK, x.shape[-1])
    q, k, v, g = cut(q), cut(k), cut(v), cut(log).cumsum(3)
    scores = q.new_zeros(*q.shape[:3], CHUNK, CHUNK)
    lower = torch.ones(SUB, SUB).tril()
    for first in range(0, CHUNK, SUB):
        own = slice(first, first + SUB)
        g_own = g[..., own, :]
        if first:
            start = g[..., first : first + 1, :]
            left = q[..., own, :] * (g_own - start).exp()
            right = k[..., :first, :] * (start - g[..., :first, :]).exp()
            scores[..., own, :first] = left @ right.transpose(-1, -2)
        apart = ((g_own.unsqueeze(-2) - g_own.unsqueeze(-3)) * lower.unsqueeze(-1)).exp()
        pairs = torch.einsum("...td,...sd,...tsd->...ts", q[..., own, :], k[..., own, :], apart)
        scores[..., own, own] = pairs * lower
    y = scores @ v
    end = g[..., -1:, :]
    added = (k * (end - g).exp()).transpose(-1, -2) @ v
    kept, reads = end.exp().transpose(-1, -2), q * g.exp()
    state, before = q.new_zeros(batch, heads, key, v.shape[-1]), []
    for i in range(q.shape[2]):
        before.append(state)
        state = state * kept[:, :, i] + added[:, :, i]
    y = y + reads @ torch.stack(before, 2)
    return y.reshape(batch, heads, time_, -1)


def network(torch, config):
    """The whole model as a PyTorch module."""
    from torch import nn
    from torch.nn import functional as F

    hidden, heads, inner = config["hidden_size"], config["num_heads"], config["intermediate_size"]
    keys, values = int(hidden * config["expand_k"]), int(hidden * config["expand_v"])
    linear = lambda out, of, bias=False: nn.Linear(of, out, bias=bias)
    norm = lambda width: nn.RMSNorm(width, eps=config["norm_eps"])

    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj, self.k_proj = linear(keys, hidden), linear(keys, hidden)
            self.v_proj, self.g_proj = linear(values, hidden), linear(values, hidden)
            self.gk_proj = nn.Sequential(linear(16, hidden), linear(keys, 16, True))
            self.o_proj, self.g_norm_swish_gate = linear(hidden, values), norm(values // heads)

        def forward(self, u, state=None):
            split = lambda x: x.unflatten(-1, (heads, -1)).transpose(1, 2)  # [B, H, T, ..]
            q, k, v = split(self.q_proj(u)), split(self.k_proj(u)), split(self.v_proj(u))
            log = split(F.logsigmoid(self.gk_proj(u)) / 16)
            q = q * q.shape[-1] ** -0.5
            if state is None:
                y = chunked(torch, q, k, v, log)
            else:
                y, state = recurrent(torch, *(x.squeeze(2) for x in (q, k, v, log)), state)
                y = y.unsqueeze(2)
            y = self.g_norm_swish_gate(y.transpose(1, 2)).flatten(2)
            return self.o_proj(y * F.silu(self.g_proj(u))), state

    class Mlp(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj = linear(inner, hidden), linear(inner, hidden), linear(hidden, inner)

        def forward(self, u):
            return self.down_proj(F.silu(self.gate_proj(u)) * self.up_proj(u))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn_norm, self.attn, self.mlp_norm, self.mlp = norm(hidden), Mixer(), norm(hidden), Mlp()

        def forward(self, x, state=None):
            y, state = self.attn(self.attn_norm(x), state)
            x = x + y
            return x + self.mlp(self.mlp_norm(x)), state

    class Gla(nn.Module):
        def __init__(self):
            super().__init__()
            blocks = nn.ModuleList(Block() for _ in range(config["num_hidden_layers"]))
            self.model = nn.ModuleDict(
                {"embeddings": nn.Embedding(config["vocab_size"], hidden), "layers": blocks, "norm": norm(hidden)}
            )

        def forward(self, ids, states=None):
            x, after = self.model["embeddings"](ids), []
            for i, block in enumerate(self.model["layers"]):
                x, state = block(x, states and states[i])
                after.append(state)
            x = self.model["norm"](x)
            # A prompt asks for its last logits alone, as lowbit's prefill gives them; training for all.
            return F.linear(x if self.training else x[:, -1:], self.model["embeddings"].weight), after

        def zero_states(self):
            size = (1, heads, keys // heads, values // heads)
            return [torch.zeros(size) for _ in range(config["num_hidden_layers"])]

    return Gla()


def operator(arguments, torch):
    """The recurrence alone, forward, from no state: milliseconds of 1,024 tokens by keys, as lowbit's `speed` times them."""
    command = ["cargo", "bench", "--quiet", "--bench", "speed", "--", "gla scan 1024"]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for line in printed.splitlines():
        if not line.startswith("| gla scan 1024, keys of "):
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        key, best = int(cells[0].split()[-1]), cells[1 if arguments.threads == 1 else 4].split(" / ")
        q, k, log = (torch.randn(1, 4, 1024, key) for _ in range(3))
        v, log, times = torch.randn(1, 4, 1024, 2 * key), -log.abs() / 16, []
        with torch.inference_mode():
            for _ in range(12):
                began = time.monotonic()
                chunked(torch, q, k, v, log)
                times.append(1e3 * (time.monotonic() - began))
        theirs = (min(times[2:]), statistics.median(times[2:]))  # the first ones warm up
        yield key, theirs, tuple(map(float, best))


def model_setting(config):
    """The model as settings of a training name it."""
    kept = {name: value for name, value in config.items() if name not in ("bos_token_id", "eos_token_id")}
    return kept | {"num_kv_heads": config["num_heads"]}


def main():
    arguments = flags(__doc__, hidden=256, layers=6, heads=4, batch=4, length=1024, decoded=128)
    import torch

    torch.set_num_threads(arguments.threads)
    config = shape(arguments)
    name = f"Gated linear attention of {arguments.heads} heads"
    beside(arguments, torch, name, config, network, model_setting(config))
    print("\nThe chunk form alone, four heads, 1,024 tokens, values twice as wide as keys:\n")
    print("| channels of a key | ms of PyTorch | of lowbit | ratio |\n|---|---|---|---|")
    for key, theirs, ours in operator(arguments, torch):
        shown = [f"{best:.2f} / {median:.2f}" for best, median in (theirs, ours)]
        print(f"| {key} | {shown[0]} | {shown[1]} | {theirs[0] / ours[0]:.2f} |")


if __name__ == "__main__":
    main()
