"""How long a cell takes, in the research kernel and in the stock Rust kernel of evcxr.

    cargo lab setup
    cargo install evcxr_jupyter --version 0.22.0 --locked --root .lab/stock     # the peer
    .lab/venv/bin/python crate/benches/cells.py

The stock kernel gets what the research kernel has: the same crate by `:dep` and the same prelude, in its first cell.
Left to itself it would compile the crate anew in every session, so its build folder is kept (EVCXR_TMPDIR), and the
first compilation is told apart. Prints a table in Markdown: minimum and median of the repetitions, in seconds.
"""
import datetime
import json
import os
import platform
import statistics
import subprocess
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
    "cell with a figure": 'figure::passkey(&Frame::load("runs/20261121-190134-phase1-9e1242")?)?',
    "mistake": "let wrong: String = 1;",
}
FAIL = {"mistake"}


def kernel(name, argv, env):
    folder = Path(tempfile.mkdtemp())
    (folder / name).mkdir()
    spec = {"argv": argv, "display_name": name, "language": "rust", "interrupt_mode": "message", "env": env}
    (folder / name / "kernel.json").write_text(json.dumps(spec))
    manager = KernelManager(kernel_name=name, kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(folder)]))
    return manager


def run(client, cell, code):
    """Runs a cell; nothing that was not computed is timed as if it were."""
    content = client.execute_interactive(code, timeout=3600, output_hook=lambda message: None)["content"]
    if (content["status"] == "error") != (cell in FAIL):
        sys.exit(f"{cell}: {content['status']}, {content.get('evalue')}")


def measure(manager, load, cells=CELLS):
    times = {}
    started = time.monotonic()
    manager.start_kernel(cwd=str(ROOT), stdout=subprocess.DEVNULL)
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=600)
    time.sleep(PAUSE)
    if load:
        run(client, "load", LOAD)
    for cell, code in cells.items():
        begun = started if cell.startswith("start") else time.monotonic()
        run(client, cell, code)
        times[cell] = time.monotonic() - begun
    client.stop_channels()
    manager.shutdown_kernel()
    return times


def circumstances():
    def said(*command):
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()

    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return ", ".join([
        str(datetime.date.today()), f"commit {said('git', 'rev-parse', '--short', 'HEAD')}",
        f"{os.cpu_count()} threads of {model.partition(': ')[2] or platform.machine()}", said("rustc", "--version"),
        f"{REPETITIONS} sessions, {PAUSE:g} s between start and first cell",
    ])


def main():
    spec = json.loads((ROOT / ".lab/venv/share/jupyter/kernels/lowbit/kernel.json").read_text())
    kernels = {"lowbit": (spec["argv"], spec["env"], False)}
    stock = ROOT / ".lab/stock/bin/evcxr_jupyter"
    folder = ROOT / ".lab/stock/build"
    compiled = folder.exists()
    if stock.exists():
        folder.mkdir(exist_ok=True)
        argv = [str(stock), "--control_file", "{connection_file}"]
        kernels["stock evcxr"] = (argv, {"EVCXR_TMPDIR": str(folder)}, True)
    found = {}
    print(circumstances(), end="\n\n")
    for name, (argv, env, load) in kernels.items():
        if load and not compiled:
            first, code = next(iter(CELLS.items()))
            once = measure(kernel("peer", argv, env), load, {first: code})[first]
            print(f"{name}, {first}, before anything is compiled: {once:.0f} s", end="\n\n", flush=True)
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
