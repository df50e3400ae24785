"""lowbit's training of a low-rank-Q transformer beside PyTorch's: tokens a second of the same steps, in one run.

    pip install torch safetensors
    cargo build --release
    python crate/benches/lowrankq.py

Both start from the same random weights, read the same sequence in every step, clip and update by AdamW, on the same processors; they
take turns. PyTorch is eager; the model is written below from its definition, attention by `scaled_dot_product_attention`. Before a speed is
printed the losses of all steps must agree. Prints a table in Markdown: tokens/s as best / median of the steps, the ratio of
both.
"""
import json
import os
import tempfile
from pathlib import Path

from steps import beside, flags

EPS = 2.0**-23


def shape(arguments):
    """The model's config.json, over bytes."""
    return {
        "model_type": "lowrank_q",
        "vocab_size": 256,
        "num_layers": arguments.layers,
        "model_dim": arguments.hidden,
        "num_heads": arguments.hidden // 32,
        "num_kv_heads": arguments.hidden // 64,
        "mlp_hidden": 3 * arguments.hidden,
        "q_rank": arguments.hidden // 4,
        "bigram_vocab_size": 2048,
        "bigram_dim": 48,
        "smear_gate": True,
        "tie_embeddings": True,
        "logit_softcap": 30.0,
        "rope_base": 10000.0,
        "train_seq_len": arguments.length,
        "max_position_embeddings": arguments.length,
        "norm_eps": EPS,
    }


def network(torch, config):
    """The model, eagerly."""
    F, nn = torch.nn.functional, torch.nn
    dim, heads, shared = config["model_dim"], config["num_heads"], config["num_kv_heads"]
    head, skips = dim // heads, config["num_layers"] // 2
    norm = lambda x: F.rms_norm(x, (x.shape[-1],), eps=EPS)

    def linear(rows, cols):
        layer = nn.Linear(cols, rows, bias=False)
        nn.init.normal_(layer.weight, 0, 0.05)
        return layer

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.c_q_down, self.c_q_up = linear(config["q_rank"], dim), linear(dim, config["q_rank"])
            self.c_k, self.c_v = linear(shared * head, dim), linear(shared * head, dim)
            self.proj = linear(dim, dim)
            self.q_gain = nn.Parameter(torch.full((heads,), 1.5))

        def forward(self, u, cos, sin):
            batch, time, _ = u.shape
            cut = lambda x, count: x.reshape(batch, time, count, head).transpose(1, 2)
            q, k = cut(self.c_q_up(self.c_q_down(u)), heads), cut(self.c_k(u), shared)
            v = cut(self.c_v(u), shared)

            def turned(x):
                low, high = norm(x).chunk(2, -1)
                return torch.cat([low * cos + high * sin, high * cos - low * sin], -1)

            q = turned(q) * self.q_gain[:, None, None]
            k, v = (x.repeat_interleave(heads // shared, 1) for x in (turned(k), v))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.proj(y.transpose(1, 2).reshape(batch, time, dim))

    class Mlp(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.proj = linear(config["mlp_hidden"], dim), linear(dim, config["mlp_hidden"])

        def forward(self, u):
            return self.proj(F.relu(self.fc(u)).square())

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn, self.mlp = Attention(), Mlp()
            self.attn_scale, self.mlp_scale = (nn.Parameter(torch.ones(dim)) for _ in range(2))
            self.resid_mix = nn.Parameter(torch.stack([torch.ones(dim), torch.zeros(dim)]))

        def forward(self, x, first, cos, sin):
            x = self.resid_mix[0] * x + self.resid_mix[1] * first
            x = x + self.attn_scale * self.attn(norm(x), cos, sin)
            return x + self.mlp_scale * self.mlp(norm(x))

    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.buckets = config["bigram_vocab_size"]
            self.embed = nn.Embedding(self.buckets, config["bigram_dim"])
            self.proj = linear(dim, config["bigram_dim"])
            self.scale = nn.Parameter(torch.tensor(0.05))

        def forward(self, ids):
            ids = ids.int()
            mixed = (36313 * ids[:, 1:]) ^ (27191 * ids[:, :-1])
            first = torch.full_like(ids[:, :1], self.buckets - 1)
            at = torch.cat([first, mixed.remainder(self.buckets - 1)], 1)
            return self.scale * self.proj(self.embed(at))

    class Smear(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Parameter(torch.zeros(dim))

        def forward(self, x):
            before = F.pad(x, (0, 0, 1, 0))[:, :-1]
            share = torch.sigmoid(self.gate)
            return (1 - share) * x + share * before

    class LowrankQ(nn.Module):
        def __init__(self):
            super().__init__()
            self.tok_emb = nn.Embedding(config["vocab_size"], dim)
            self.bigram, self.smear = Pairs(), Smear()
            self.skip_weights = nn.Parameter(torch.ones(skips, dim))
            self.blocks = nn.ModuleList(Block() for _ in range(config["num_layers"]))
            nn.init.normal_(self.tok_emb.weight, 0, 0.05)
            frequencies = config["rope_base"] ** (-torch.arange(0, head, 2).float() / head)
            angles = torch.outer(torch.arange(config["train_seq_len"]).float(), frequencies)
            self.angles = angles.cos(), angles.sin()

        def forward(self, ids):
            x = first = self.smear(norm(self.tok_emb(ids) + self.bigram(ids)))
            kept = []
            for i, block in enumerate(self.blocks):
                if i >= skips and kept:
                    x = x + self.skip_weights[i - skips] * kept.pop()
                x = block(x, first, *self.angles)
                if i < skips:
                    kept.append(x)
            cap = config["logit_softcap"]
            return cap * torch.tanh(F.linear(norm(x), self.tok_emb.weight) / cap)

    return LowrankQ()


def start(folder, config, torch):
    """A model of seeded random weights, as both read it; returns how many numbers it has."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    made = network(torch, config)
    folder.mkdir()
    save_file(made.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return sum(tensor.numel() for tensor in made.parameters())


def main():
    arguments = flags(__doc__, hidden=192, layers=6, batch=8, length=512)
    os.sched_setaffinity(0, range(arguments.threads))
    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(arguments.threads)
    config = shape(arguments)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        parameters = start(folder / "start", config, torch)

        def loaded():
            made = network(torch, config)
            made.load_state_dict(load_file(folder / "start/model.safetensors"))
            return made, made

        beside(arguments, torch, "low-rank Q", parameters, config, folder, loaded)


if __name__ == "__main__":
    main()
