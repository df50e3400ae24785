"""How long a cell takes: in the research kernel, in the stock Rust kernel of evcxr, and in IPython.

    cargo lab setup
    cargo install evcxr_jupyter --version 0.22.0 --locked --root .lab/stock     # a peer; or STOCK=path/of/evcxr_jupyter
    .lab/venv/bin/python crate/benches/cells.py

IPython's side is what a Python user would write, with pandas and matplotlib where PYTHON (this Python, if not given) has
them. The stock kernel has no lowbit: with LOAD=1 it gets the same crate by `:dep` and the same prelude in its first cell. It
compiles the crate in every session, so its build folder is kept (EVCXR_TMPDIR), and the first compilation is told apart.

Cells run in order, in sessions of their own. Prints a table in Markdown: the first session, and the median of the others,
in seconds. Where nothing is written a kernel has no such cell.
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
from queue import Empty

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager

ROOT = Path(__file__).resolve().parents[2]
PAUSE = float(os.environ.get("PAUSE", 0))  # seconds between the start and the first cell, as of a person who reads
REPETITIONS = int(os.environ.get("REPETITIONS", 4))
LOAD = f':dep lowbit = {{ path = "{ROOT}/crate" }}\nuse lowbit::prelude::*;'
RUN = "runs/20261121-190134-phase1-9e1242"
FRAME = ('let table = df!("scheme" => ["a", "b", "a"], "ppl" => [1.0, 2.0, 4.0])?;\n'
         'table.clone().lazy().group_by([col("scheme")]).agg([col("ppl").mean()]).collect()?')
FIGURE = f'figure::passkey(&Frame::load("{RUN}")?)?'
PANDAS = ('import pandas as pd\ntable = pd.DataFrame({"scheme": ["a", "b", "a"], "ppl": [1.0, 2.0, 4.0]})\n'
          'table.groupby("scheme").ppl.mean()')
PLOT = (f'%matplotlib inline\nreadings = pd.read_json("{RUN}/metrics.jsonl", lines=True)\n'
        'readings.groupby(["context_length", "scheme"]).correct.mean().unstack().plot();')
STOP = "stop of an endless print"
# A cell in Rust, one with lowbit's names, and one in Python.
CELLS = {
    "start → first answer, `1 + 1`": ("1 + 1", None, "1 + 1"),
    "first variable": ("let first = vec![1, 2, 3];", None, "first = [1, 2, 3]"),
    "`1 + 1` again": ("1 + 1", None, "1 + 1"),
    "another variable": ("let total: i32 = first.iter().sum();", None, "total = sum(first)"),
    "its type left to be found": ("let odd = first.iter().filter(|x| *x % 2 == 1).cloned().collect::<Vec<_>>();", None,
                                  "odd = [x for x in first if x % 2 == 1]"),
    "a function, and fib(20)": ("fn fib(n: u32) -> u32 { if n < 2 { n } else { fib(n - 1) + fib(n - 2) } }\nfib(20)", None,
                                "def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)\nfib(20)"),
    "mistake": ("let wrong: String = 1;", None, '1 + "text"'),
    "200,000 printed lines": ('for i in 0..200000 { println!("{i}"); }', None, "for i in range(200000): print(i)"),
    STOP: ('for i in 0.. { println!("{i}"); }', None, "i = 0\nwhile True:\n    print(i)\n    i += 1"),
    "a frame, grouped": (None, FRAME, PANDAS),
    "a frame, grouped, again": (None, FRAME, PANDAS),
    "a figure of a recorded run": (None, FIGURE, PLOT),
    "a figure of a recorded run, again": (None, FIGURE, PLOT),
    "a model in a variable": (None, 'let model = Model::load("random:mamba2-tiny")?;', None),
    "a measurement, shown as a table": (None, "Passkey::lengths([300]).trials(1).measure(&model)?", None),
}
FAIL = {"mistake"}


def kernel(name, argv, env):
    folder = Path(tempfile.mkdtemp())
    (folder / name).mkdir()
    spec = {"argv": argv, "display_name": name, "language": "rust", "interrupt_mode": "message", "env": env}
    (folder / name / "kernel.json").write_text(json.dumps(spec))
    return KernelManager(kernel_name=name, kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(folder)]))


def run(client, cell, code):
    """Runs a cell; nothing that was not computed is timed as if it were."""
    begun = time.monotonic()
    content = client.execute_interactive(code, timeout=3600, output_hook=lambda message: None)["content"]
    if (content["status"] == "error") != (cell in FAIL):
        sys.exit(f"{cell}: {content['status']}, {content.get('evalue')}")
    return time.monotonic() - begun


def stop(manager, client, code):
    """Seconds from the stop of a cell that prints to its reply; None if a minute is not enough."""
    request = client.execute(code)
    while client.get_iopub_msg(timeout=60)["msg_type"] != "stream":
        pass
    prints_until = time.monotonic() + 1
    while time.monotonic() < prints_until:
        try:
            client.get_iopub_msg(timeout=0.01)
        except Empty:
            pass  # a kernel that cuts much output is silent here
    manager.interrupt_kernel()
    asked = time.monotonic()
    while time.monotonic() - asked < 60:
        for ask in [client.get_iopub_msg, client.get_shell_msg]:  # one that nobody reads from may hold the other up
            try:
                message = ask(timeout=0.001)
            except Empty:
                continue
            if message["msg_type"] == "execute_reply" and message["parent_header"].get("msg_id") == request:
                return time.monotonic() - asked
    return None


def measure(peer, load, cells):
    times = {}
    manager = kernel("peer", *peer)
    started = time.monotonic()
    manager.start_kernel(cwd=str(ROOT), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=600)
    time.sleep(PAUSE)
    if load:
        run(client, "load", LOAD)
    for cell, code in cells.items():
        times[cell] = stop(manager, client, code) if cell == STOP else run(client, cell, code)
        if cell.startswith("start"):
            times[cell] = time.monotonic() - started
        if times[cell] is None:
            break  # it prints on
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    return times


def circumstances():
    def said(*command):
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()

    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return ", ".join([
        str(datetime.date.today()), f"commit {said('git', 'rev-parse', '--short', 'HEAD')}",
        f"{os.cpu_count()} threads of {model.partition(': ')[2] or platform.machine()}", said("rustc", "--version"),
        f"{REPETITIONS} sessions, {PAUSE:g} s between start and first cell, {os.getloadavg()[0]:.1f} programs at work at the start",
    ])


def knows(python, *modules):
    """Whether a Python has these."""
    return subprocess.run([python, "-c", "import " + ", ".join(modules)], capture_output=True).returncode == 0


def kernels():
    """The kernels that are here: how each is started, whether it loads the crate, and its cells."""
    spec = KernelSpecManager().get_kernel_spec("lowbit")
    pick = lambda *columns: {cell: code for cell, row in CELLS.items() if (code := next((row[i] for i in columns if row[i]), None))}
    found = {"lowbit": ((spec.argv, spec.env), False, pick(0, 1))}
    stock = Path(os.environ.get("STOCK", ROOT / ".lab/stock/bin/evcxr_jupyter"))
    if stock.exists():
        load = "LOAD" in os.environ
        folder = stock.parent.parent / "build"
        compiled = folder.exists()
        folder.mkdir(exist_ok=True)
        argv = [str(stock), "--control_file", "{connection_file}"]
        # Without the crate it starts as it is installed, with a folder of its own in each session.
        peer = (argv, {"EVCXR_TMPDIR": str(folder)} if load else {})
        if load and not compiled:
            first, row = next(iter(CELLS.items()))
            once = measure(peer, load, {first: row[0]})[first]
            print(f"stock evcxr, {first}, before anything is compiled: {once:.0f} s", end="\n\n", flush=True)
        found["stock evcxr"] = (peer, load, pick(0, 1) if load else pick(0))
    python = os.environ.get("PYTHON", sys.executable)
    if knows(python, "ipykernel"):
        cells = pick(2)
        if not knows(python, "pandas", "matplotlib"):
            cells = {cell: code for cell, code in cells.items() if code not in (PANDAS, PLOT)}
        found["IPython"] = (([python, "-m", "ipykernel_launcher", "-f", "{connection_file}"], {}), False, cells)
    return found


def shown(numbers):
    if None in numbers:
        return "not within 60"
    first, *others = numbers
    return f"{first:.2f} / {statistics.median(others):.2f}" if others else f"{first:.2f}"


def main():
    print(circumstances(), end="\n\n")
    found = {}
    for name, (peer, load, cells) in kernels().items():
        runs = [measure(peer, load, cells) for _ in range(REPETITIONS)]
        found[name] = {cell: [run[cell] for run in runs if cell in run] for cell in cells}
        print(f"{name}: {REPETITIONS} sessions", file=sys.stderr)
    print("| seconds, first session / median of the others |" + "".join(f" {name} |" for name in found))
    print("|---|" + "---|" * len(found))
    for cell in CELLS:
        each = (f" {shown(runs[cell])} |" if runs.get(cell) else " |" for runs in found.values())
        print(f"| {cell} |" + "".join(each))


if __name__ == "__main__":
    main()
