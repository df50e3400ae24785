"""How long a cell takes, in the research kernel and in the stock Rust kernel of evcxr.

    cargo lab setup
    cargo install evcxr_jupyter --version 0.22.0 --root .lab/stock     # the peer
    .lab/venv/bin/python crate/benches/cells.py

The stock kernel gets what the research kernel has: the same crate by `:dep` and the same prelude, in its first cell.
Prints a table in Markdown: minimum and median of the repetitions, in seconds.
"""
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager

ROOT = Path(__file__).resolve().parents[2]
PAUSE = float(os.environ.get("PAUSE", 0))  # seconds between the start and the first cell, as of a person who reads
REPETITIONS = int(os.environ.get("REPETITIONS", 3))
LOAD = f':dep lowbit = {{ path = "{ROOT}/crate" }}\nuse lowbit::prelude::*;'
CELLS = {
    "start → first cell that uses the crate": "Passkey::default().trials",
    "first `let`": "let first = 1;",
    "trivial cell": "1 + 1",
    "variable of the crate": 'let model = Model::load("random:mamba2-tiny")?;',
    "cell with a table": "Passkey::lengths([300]).trials(1).measure(&model)?",
    "variable and a table": "let rows = Passkey::lengths([300]).trials(1).measure(&model)?; rows",
    "cell with a figure": 'figure::passkey(&Frame::load("runs/20261121-075457-phase1-85f43b")?)?',
    "mistake": "let wrong: String = 1;",
}


def kernel(name, argv, env):
    folder = Path(tempfile.mkdtemp())
    (folder / name).mkdir()
    spec = {"argv": argv, "display_name": name, "language": "rust", "interrupt_mode": "message", "env": env}
    (folder / name / "kernel.json").write_text(json.dumps(spec))
    manager = KernelManager(kernel_name=name, kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(folder)]))
    return manager


def measure(manager, load):
    times = {}
    started = time.monotonic()
    manager.start_kernel(cwd=str(ROOT))
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=600)
    time.sleep(PAUSE)
    if load:
        client.execute_interactive(LOAD, timeout=3600, output_hook=lambda message: None)
    for cell, code in CELLS.items():
        begun = started if cell.startswith("start") else time.monotonic()
        client.execute_interactive(code, timeout=3600, output_hook=lambda message: None)
        times[cell] = time.monotonic() - begun
    client.stop_channels()
    manager.shutdown_kernel()
    return times


def main():
    spec = json.loads((ROOT / ".lab/venv/share/jupyter/kernels/lowbit/kernel.json").read_text())
    kernels = {"lowbit": (spec["argv"], spec["env"], False)}
    stock = ROOT / ".lab/stock/bin/evcxr_jupyter"
    if stock.exists():
        kernels["stock evcxr"] = ([str(stock), "--control_file", "{connection_file}"], {}, True)
    found = {}
    for name, (argv, env, load) in kernels.items():
        runs = [measure(kernel("peer", argv, env), load) for _ in range(REPETITIONS)]
        found[name] = {cell: [run[cell] for run in runs] for cell in CELLS}
        print(f"{name}: {REPETITIONS} sessions", file=sys.stderr)
    print("| seconds, minimum / median |" + "".join(f" {name} |" for name in found))
    print("|---|" + "---|" * len(found))
    for cell in CELLS:
        each = (f" {min(runs[cell]):.2f} / {statistics.median(runs[cell]):.2f} |" for runs in found.values())
        print(f"| {cell} |" + "".join(each))


if __name__ == "__main__":
    main()
