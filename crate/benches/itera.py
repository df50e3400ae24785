"""lowbit's Itera-Lite beside PyTorch's: prefill, decode and training of one model with experts, in one run.

    pip install torch safetensors
    cargo build --release
    python crate/benches/itera.py

PyTorch is eager; the model is written below from its definition. Its published code reads a prompt token by token in Python; here
prompts are read in chunks of 64 tokens as matrix products, and every expert sees its own tokens alone, as in lowbit. The loss of
experts that are used unequally has the weight 0: PyTorch's is that of a batch, lowbit's of each sequence. See `phases.py`.
"""
from phases import beside, flags

CHUNK = 64


def shape(arguments):
    """The model's config.json, over bytes."""
    return {
        "model_type": "itera_lite",
        "vocab_size": 256,
        "hidden_size": arguments.hidden,
        "num_layers": arguments.layers,
        "ssm_state_size": 8,
        "ssm_conv_kernel": 4,
        "ssm_expand_factor": 2,
        "num_experts": arguments.experts,
        "expert_size": arguments.hidden,
        "top_k_experts": 2,
        "moe_layers": list(range(1, arguments.layers, 2)),
        "load_balance_loss_weight": 0.0,
        "max_seq_length": arguments.length + 1,
        "layer_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }


def network(torch, config):
    """The whole model as a PyTorch module."""
    from torch import nn
    from torch.nn import functional as F

    hidden, n, taps = config["hidden_size"], config["ssm_state_size"], config["ssm_conv_kernel"]
    inner = config["ssm_expand_factor"] * hidden
    linear = lambda out, of, bias=False: nn.Linear(of, out, bias=bias)
    norm = lambda: nn.LayerNorm(hidden, eps=config["layer_norm_eps"])

    class Scan(nn.Module):
        def __init__(self):
            super().__init__()
            self.A_log = nn.Parameter(torch.arange(1, n + 1).float().log())
            self.B, self.C = nn.Parameter(torch.zeros(n, inner)), nn.Parameter(torch.zeros(inner, n))
            self.D = nn.Parameter(torch.ones(inner))
            self.delta_proj = linear(inner, inner, True)

        def forward(self, x, h):
            step = F.softplus(self.delta_proj(x)).mean(-1, keepdim=True)  # [B, T, 1]
            logs, written = -step * self.A_log.exp(), step * (x @ self.B.T)  # [B, T, N]
            states = []
            for first in range(0, x.shape[1], CHUNK):
                own = slice(first, first + CHUNK)
                total = logs[:, own].cumsum(1)
                apart = total.unsqueeze(2) - total.unsqueeze(1)  # [B, Q, Q, N]
                later = torch.ones(apart.shape[1:3], dtype=torch.bool).triu(1).unsqueeze(-1)
                apart = apart.masked_fill(later, -torch.inf).exp()
                states.append(torch.einsum("btsn,bsn->btn", apart, written[:, own]) + total.exp() * h.unsqueeze(1))
                h = states[-1][:, -1]
            return torch.cat(states, 1) @ self.C.T + self.D * x, h

    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.in_proj, self.out_proj, self.norm = linear(2 * inner, hidden), linear(hidden, inner), norm()
            self.conv1d = nn.Conv1d(inner, inner, taps, groups=inner)
            self.ssm = Scan()

        def forward(self, x, state):
            a, gate = self.in_proj(self.norm(x)).chunk(2, -1)
            past, h = state
            padded = torch.cat([past, a.transpose(1, 2)], -1)
            y, h = self.ssm(F.silu(self.conv1d(padded)).transpose(1, 2), h)
            return x + self.out_proj(y * F.silu(gate)), (padded[..., 1 - taps :], h)

    class Expert(nn.Module):
        def __init__(self):
            super().__init__()
            self.w1, self.w2 = linear(config["expert_size"], hidden), linear(hidden, config["expert_size"])

        def forward(self, u):
            return self.w2(F.gelu(self.w1(u)))

    class Router(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = linear(config["num_experts"], hidden)

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.router = norm(), Router()
            self.experts = nn.ModuleList(Expert() for _ in range(config["num_experts"]))

        def forward(self, x):
            u = self.norm(x).flatten(0, 1)
            weights, chosen = self.router.gate(u).topk(config["top_k_experts"], -1)
            weights, y = weights.softmax(-1), torch.zeros_like(u)
            for i, expert in enumerate(self.experts):
                rows, places = (chosen == i).nonzero(as_tuple=True)
                if len(rows):
                    y = y.index_add(0, rows, weights[rows, places].unsqueeze(-1) * expert(u[rows]))
            return x + y.view_as(x)

    class Moe(nn.Module):
        def __init__(self, layer):
            super().__init__()
            if layer in config["moe_layers"]:
                self.layer = Experts()
            else:
                self.norm, self.ffn = norm(), Expert()

        def forward(self, x):
            return self.layer(x) if hasattr(self, "layer") else x + self.ffn(self.norm(x))

    class Layer(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.ssm, self.moe = Mixer(), Moe(layer)

        def forward(self, x, state):
            x, state = self.ssm(x, state)
            return self.moe(x), state

    class IteraLite(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(config["vocab_size"], hidden)
            self.position_embedding = nn.Embedding(config["max_seq_length"], hidden)
            self.layers = nn.ModuleList(Layer(i) for i in range(config["num_layers"]))
            self.norm = norm()

        def forward(self, ids, states=None):
            states, first = states or (self.zero_states(ids.shape[0])[0], 0)
            at = torch.arange(first, first + ids.shape[1])
            x, after = self.embedding(ids) + self.position_embedding(at), []
            for layer, state in zip(self.layers, states):
                x, state = layer(x, state)
                after.append(state)
            # A prompt asks for its last logits alone, as lowbit's prefill gives them; training for all.
            x = self.norm(x if self.training else x[:, -1:])
            return F.linear(x, self.embedding.weight), (after, first + ids.shape[1])

        def zero_states(self, batch=1):
            size = (batch, inner, taps - 1), (batch, n)
            return [tuple(torch.zeros(one) for one in size) for _ in range(config["num_layers"])], 0

    return IteraLite()


def main():
    arguments = flags(__doc__, hidden=256, layers=4, experts=4, batch=4, length=512, decoded=128)
    import torch

    torch.set_num_threads(arguments.threads)
    config = shape(arguments)
    beside(arguments, torch, f"Itera-Lite of {arguments.experts} experts", config, network, config)


if __name__ == "__main__":
    main()
