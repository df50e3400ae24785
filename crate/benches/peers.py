"""lowbit beside llama.cpp: decode, prefill and peak memory of one model at the same width of weights, in one run.

    pip download --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36     # its vendor/ has llama.cpp
    tar xzf llama_cpp_python-0.3.36.tar.gz
    cmake -S llama_cpp_python-0.3.36/vendor/llama.cpp -B llama -DCMAKE_BUILD_TYPE=Release -DLLAMA_CURL=OFF \\
        -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF \\
        -DCMAKE_CXX_FLAGS="-fno-dse -fno-tree-dse"  # GCC 12 drops what llama.cpp tells AMX: it would crash
    cmake --build llama --target llama-bench llama-quantize
    pip install gguf numpy safetensors
    cargo build --release
    python crate/benches/peers.py --llama llama/bin

Both read the same random weights, take turns, and are held to the same processors. Both run once to warm up, which is
not counted. Prints a table in Markdown: tokens/s as best / median, resident memory at its peak in the process that read
the longest prompt, and the ratios of the best.
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
from datetime import date
from pathlib import Path

import gguf
import numpy
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[2]
LOWBIT = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/lowbit"
OURS = {  # a width of llama.cpp, and what lowbit has of that width
    "F32": ["f32", "f32-lossless"],
    "F16": ["bf16", "bf16-lossless"],
    "BF16": ["bf16", "bf16-lossless"],
    "Q8_0": ["w8a8"],
    "Q4_0": ["w4a8"],
    "Q4_K_M": ["w4a8"],
}


def schemes(arguments, width):
    """What lowbit is measured in beside a width of llama.cpp, which keeps keys and values in f16."""
    half = [f"{scheme}-kv16" + ("-bf16" if width.startswith("Q") else "") for scheme in OURS[width][:1]]
    return OURS[width] if not arguments.half else half if arguments.half == "only" else OURS[width] + half


def write_gguf(folder, path):
    """A checkpoint in the Hugging Face layout as llama.cpp wants it, in f32."""
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    metadata, named = {"mamba2": (mamba2, mamba2_tensors), "llama": (llama_type, llama_tensors)}[config["model_type"]]
    writer = metadata(config, path)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for name, value in named(config, tensors):
        writer.add_tensor(name, numpy.ascontiguousarray(value, dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def mamba2(config, path):
    """Metadata of a Mamba2."""
    hidden, heads = config["hidden_size"], config["num_heads"]
    inner = heads * config["head_dim"]
    writer = gguf.GGUFWriter(path, "mamba2")
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_ssm_conv_kernel(config["conv_kernel"])
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(config["state_size"])
    writer.add_ssm_time_step_rank(heads)
    writer.add_ssm_group_count(config["n_groups"])
    writer.add_layer_norm_rms_eps(config["layer_norm_epsilon"])
    return writer


def mamba2_tensors(config, tensors):
    """Names and values of the tensors of a Mamba2 as llama.cpp has them."""
    yield "token_embd.weight", tensors["backbone.embeddings.weight"]
    yield "output_norm.weight", tensors["backbone.norm_f.weight"]
    for i in range(config["num_hidden_layers"]):
        for name, (to, change) in MAMBA2.items():
            yield f"blk.{i}.{to}", change(tensors[f"backbone.layers.{i}.{name}"], config["n_groups"])


def llama_type(config, path):
    """Metadata of a Llama-type transformer."""
    heads = config["num_attention_heads"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_theta"])
    return writer


def llama_tensors(config, tensors):
    """The same of a Llama: rows of queries and keys are in pairs there, in halves here."""
    yield "token_embd.weight", tensors["model.embed_tokens.weight"]
    yield "output_norm.weight", tensors["model.norm.weight"]
    for i in range(config["num_hidden_layers"]):
        for name, (to, heads) in LLAMA.items():
            value = tensors[f"model.layers.{i}.{name}"]
            if heads:
                value = value.reshape(config[heads], 2, -1, value.shape[-1]).swapaxes(1, 2).reshape(value.shape)
            yield f"blk.{i}.{to}", value




LLAMA = {
    "input_layernorm.weight": ("attn_norm.weight", None),
    "self_attn.q_proj.weight": ("attn_q.weight", "num_attention_heads"),
    "self_attn.k_proj.weight": ("attn_k.weight", "num_key_value_heads"),
    "self_attn.v_proj.weight": ("attn_v.weight", None),
    "self_attn.o_proj.weight": ("attn_output.weight", None),
    "post_attention_layernorm.weight": ("ffn_norm.weight", None),
    "mlp.gate_proj.weight": ("ffn_gate.weight", None),
    "mlp.up_proj.weight": ("ffn_up.weight", None),
    "mlp.down_proj.weight": ("ffn_down.weight", None),
}


def as_it_is(value, groups):
    return value


MAMBA2 = {
    "norm.weight": ("attn_norm.weight", as_it_is),
    "mixer.in_proj.weight": ("ssm_in.weight", as_it_is),
    "mixer.conv1d.weight": ("ssm_conv1d.weight", lambda value, groups: value.squeeze(1)),
    "mixer.conv1d.bias": ("ssm_conv1d.bias", as_it_is),
    "mixer.dt_bias": ("ssm_dt.bias", as_it_is),
    "mixer.A_log": ("ssm_a", lambda value, groups: -numpy.exp(value)[:, None]),
    "mixer.D": ("ssm_d", lambda value, groups: value[:, None]),
    "mixer.norm.weight": ("ssm_norm.weight", lambda value, groups: value.reshape(groups, -1)),
    "mixer.out_proj.weight": ("ssm_out.weight", as_it_is),
}


def run(command, cpus):
    """Output of a command on so many processors, and the most megabytes that it had resident."""
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            [str(word) for word in command],
            stdout=output,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: os.sched_setaffinity(0, range(cpus)),
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            raise SystemExit(f"peers: {' '.join(map(str, command))} ended with {child.returncode}")
        output.seek(0)
        return output.read().decode(), usage.ru_maxrss * 1024 / 1e6


def llama(bench, model, threads, phase, lengths, decoded):
    """Tokens/s of two repetitions by phase and length; megabytes."""
    lengths = ",".join(map(str, lengths))
    test = ["-p", lengths, "-n", 0] if phase == "prefill" else ["-p", 0, "-n", decoded, "-d", lengths]
    text, memory = run([bench, "-m", model, "-t", threads, "-r", 2, "-o", "json", *test], threads)
    length = {"prefill": "n_prompt", "decode": "n_depth"}[phase]
    return {(phase, row[length]): row["samples_ts"] for row in json.loads(text)}, memory


def lowbit(model, threads, phase, lengths, decoded):
    """The same of lowbit."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "cost.yaml")
        config.write_text(f"lengths: {lengths}\nphases: [{phase}]\ngen_len: {decoded}\nrepetitions: 2\n")
        run([LOWBIT, "-q", "cost", model, "--config", config, "--runs", folder, "--threads", threads], threads)
        (records,) = Path(folder).glob("*/metrics.jsonl")
        rows = [json.loads(line) for line in records.read_text().splitlines()]
    speeds = ("tokens_per_s_min", "tokens_per_s_max")  # of two repetitions these are all
    memory = max(row["peak_bytes"] for row in rows) / 1e6  # while it read: at its end the process draws figures
    return {(phase, row["context_length"]): [row[name] for name in speeds] for row in rows}, memory


def in_turns(arguments, models, width, threads):
    """llama.cpp and lowbit, taking turns: speeds by length, megabytes."""
    found = {who: ({}, []) for who in [width, *schemes(arguments, width)]}
    for _ in range(arguments.rounds):
        for phase, lengths in (("prefill", arguments.lengths), ("decode", arguments.depths)):
            for who, (speeds, memories) in found.items():
                tool = [arguments.llama / "llama-bench"] if who == width else []
                call = llama if who == width else lowbit
                measured, memory = call(*tool, models[who], threads, phase, lengths, arguments.decoded)
                for key, values in measured.items():
                    speeds.setdefault(key, []).extend(values)
                if phase == "prefill":
                    memories.append(memory)
    return found


def make_models(arguments):
    """The same weights for both, in every width, once."""
    folder = arguments.models / arguments.model.replace(":", "-")
    plain = folder / "f32"
    folder.mkdir(parents=True, exist_ok=True)
    if not (plain / "config.json").exists():
        subprocess.run([LOWBIT, "-q", "convert", arguments.model, "--dtype", "f32", "--out", plain], check=True)
    if not (folder / "F32.gguf").exists():
        write_gguf(plain, folder / "F32.gguf")
    models = {}
    for width in arguments.widths:
        models[width] = theirs = folder / f"{width}.gguf"
        if not theirs.exists():
            quantize = [arguments.llama / "llama-quantize", folder / "F32.gguf", theirs, width]
            subprocess.run(quantize, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for scheme in schemes(arguments, width):
            models[scheme] = ours = folder / scheme
            if not (ours / "config.json").exists():
                command = ["quantize", plain, "--scheme", scheme, "--out", ours]
                subprocess.run([LOWBIT, "-q", *command], check=True, stdout=subprocess.DEVNULL)
    return models


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama", type=Path, required=True, help="folder of llama-bench and llama-quantize")
    parser.add_argument("--model", default="random:mamba2-130m", help="a checkpoint that lowbit reads")
    parser.add_argument("--models", type=Path, default=ROOT / "target/peers", help="where the models are kept")
    parser.add_argument("--widths", nargs="+", choices=OURS, default=list(OURS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 2048])
    parser.add_argument("--depths", nargs="+", type=int, default=[16], help="tokens read before decoding")
    half = "also, or only, with keys and values in bf16, and what is not quantized beside 8 and 4 bits too: a Llama's"
    parser.add_argument("--half", choices=["also", "only"], help=half)
    parser.add_argument("--decoded", type=int, default=64, help="tokens decoded in a repetition")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each, two repetitions a turn")
    arguments = parser.parse_args()
    models = make_models(arguments)
    columns = [("decode", n) for n in arguments.depths] + [("prefill", n) for n in arguments.lengths]
    print(f"{arguments.model}, {date.today()}, {platform.machine()}\n")
    print("| threads | peer, lowbit |", *(f" {'decode after' if phase == 'decode' else phase} {n} |" for phase, n in columns), "MB |")
    print("|---|---|" + "---|" * len(columns) + "---|")
    for threads in arguments.threads:
        for width in arguments.widths:
            found = in_turns(arguments, models, width, threads)
            theirs, their_memory = found[width]
            for who, (speeds, memories) in found.items():
                cells = [f"{max(v):.0f} / {statistics.median(v):.0f}" for v in map(speeds.get, columns)]
                name = f"llama.cpp {who}" if who == width else who
                print(f"| {threads} | {name} |", *(f"{cell} |" for cell in cells), f"{max(memories):.0f} |")
                if who != width:
                    ratios = [max(speeds[c]) / max(theirs[c]) for c in columns]
                    memory = max(memories) / max(their_memory)
                    print("| | ratio |", *(f"**{r:.2f}** |" for r in ratios), f"{memory:.2f} |", flush=True)


if __name__ == "__main__":
    main()
