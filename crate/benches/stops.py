"""Stops at random moments: after each the session must be usable, and its variables as promised.

    cargo lab setup
    .lab/venv/bin/python crate/benches/stops.py [STOPS] [SEED]

Two kernels beside each other run cells that never end: they print, compute in lowbit, sleep, or spin. Each is stopped
once at a random moment, some while it is still being compiled. A cell that listens ends, and every variable is kept; one
that does not is said not to stop, and a second stop ends its process, which is said to cost the variables. Then `1 + 1` is
computed, and the variables are looked at. Prints a table in Markdown, and each failure; fails if there is one.
"""
import os
import random
import statistics
import sys
import threading
import time
from pathlib import Path
from queue import Empty

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "crate/jupyter/tests"))
from test_kernel import Kernel, plain  # noqa: E402

BEGUN = 'println!("begun");'
KINDS = {
    "print": [
        'for i in 0.. { println!("{i}"); }',
        'loop { print!("."); }',
        'loop { eprintln!("line"); }',
        'std::thread::scope(|s| { for t in 0..2 { s.spawn(move || loop { println!("{t}"); }); } });',
    ],
    "compute": [
        "Passkey::lengths([256, 300]).trials(1_000_000).measure(&tiny)?",
        'loop { tiny.generate("ACT I.", 20)?; }',
    ],
    "sleep": ["std::thread::sleep(std::time::Duration::from_secs(3600));"],
    "spin": ["let mut n = 0u64; loop { n = std::hint::black_box(n.wrapping_add(1)); }"],
}
LISTEN = {"print", "compute"}
EARLY = 0.2  # of all stops come while the cell is being compiled
BEGIN = 'let kept = vec![1, 2, 3]; let tiny = Model::load("random:mamba2-tiny")?;'
PATIENCE = 60  # seconds; a bound on hanging, not a target


ENOUGH = threading.Event()  # Ctrl-C: what was found so far is told


class Failure(Exception):
    pass


def answer(kernel, code):
    """A cell's reply and its value."""
    reply, messages = kernel.run(code)
    return reply, (plain(messages) or [None])[0]


def expect(kernel, code, value):
    reply, found = answer(kernel, code)
    if found != value:
        raise Failure(f"`{code}` gives {found}, {reply.get('evalue')}")


class Cell:
    """A cell that runs, as its client sees it."""

    def __init__(self, kernel, code):
        self.kernel = kernel
        self.request = kernel.send(code)
        self.begun = False
        self.said = ""
        self.reply = None
        self.idle = False

    def watch(self, seconds, until):
        """Takes what comes until something holds, or for so long; whether it holds."""
        ends = time.monotonic() + seconds
        while not until() and time.monotonic() < ends:
            for ask in [self.kernel.client.get_iopub_msg, self.kernel.client.get_shell_msg]:
                try:
                    self.take(ask(timeout=max(0, min(0.005, ends - time.monotonic()))))
                except Empty:
                    pass
        return until()

    def take(self, message):
        if message["parent_header"].get("msg_id") != self.request:
            return
        content = message["content"]
        match message["msg_type"]:
            case "stream" if content["name"] == "stdout":
                self.begun = True
            case "stream":
                self.begun |= content["text"].startswith("line\n")
                self.said += content["text"][-1000:]
            case "execute_reply":
                self.reply = content
            case "status":
                self.idle = content["execution_state"] == "idle"

    def ended(self):
        return self.reply is not None and self.idle


def stop(kernel, kind, choice):
    """Runs a cell and stops it; under which kind that counts, by how many stops it ended, and in what time."""
    code = choice.choice(KINDS[kind])
    cell = Cell(kernel, BEGUN + code)
    if choice.random() < EARLY:
        cell.watch(choice.uniform(0, 0.6), cell.ended)
    else:
        if not cell.watch(PATIENCE, lambda: cell.begun or cell.ended()) or cell.ended():
            raise Failure(f"the cell does not begin: {(cell.reply or {}).get('evalue')}")
        cell.watch(choice.uniform(0, 1.5), cell.ended)
    early = not cell.begun
    asked = time.monotonic()
    kernel.manager.interrupt_kernel()
    cell.watch(PATIENCE, lambda: cell.ended() or "does not stop" in cell.said)
    stops, told = 1, time.monotonic() - asked
    if not cell.ended():
        if "does not stop" not in cell.said:
            raise Failure(f"neither an end nor a word after {told:.0f} s")
        stops, asked = 2, time.monotonic()
        kernel.manager.interrupt_kernel()
        if not cell.watch(PATIENCE, cell.ended):
            raise Failure("no end after a second stop")
    took = time.monotonic() - asked
    ended = (cell.reply.get("ename"), cell.reply.get("evalue"))
    if stops == 2 and ended[1] == "interrupted":
        stops = 1  # it heard the first while the second was on its way
    if stops == 1:
        if ended[1] != "interrupted":
            raise Failure(f"one stop, and {ended}")
        expect(kernel, "(1 + 1, kept.len(), tiny.parameters())", "(2, 3, 3521984)")
    else:
        if ended[0] != "SessionEnded" or "variables are gone" not in ended[1]:
            raise Failure(f"a second stop, and {ended}")
        expect(kernel, "1 + 1", "2")
        if "`kept`" not in (answer(kernel, "kept")[0].get("evalue") or ""):
            raise Failure("variables are not gone")
        kernel.run(BEGIN)
        if not early and kind in LISTEN:
            raise Failure(f"it listens, and did not end by one stop: {code}")
    return f"{kind}, while it is compiled" if early else kind, stops, took, told


def session(numbers, seed, found, failures):
    """Stops with one kernel; after a failure with a new one."""
    kernel = None
    for number in numbers:
        choice = random.Random(f"{seed} {number}")
        kind = choice.choice(list(KINDS))
        if ENOUGH.is_set():
            break
        if kernel is None:
            kernel = Kernel()
            kernel.run(BEGIN)
        try:
            found.append(stop(kernel, kind, choice))
            if len(found) % 50 == 0:
                print(f"{len(found)} stops as promised", file=sys.stderr, flush=True)
        except (Failure, TimeoutError, Empty) as failure:
            failures.append((kind, f"stop {number}, {kind}: {failure}"))
            print(failures[-1][1], file=sys.stderr, flush=True)
            kernel.manager.shutdown_kernel(now=True)
            kernel = None
    if kernel is not None:
        kernel.close()


def table(found, failures):
    def of(numbers):
        return f"{min(numbers):.2f} / {statistics.median(numbers):.2f} / {max(numbers):.2f}" if numbers else ""

    print("| cell | stops | ended by one, variables kept | s | said not to listen | ended by two, variables gone | s | failures |")
    print("|---|" + "---|" * 7)
    kinds = [*KINDS, *sorted({kind for kind, *_ in found} - set(KINDS))]
    for kind in kinds:
        mine = [rest for name, *rest in found if name == kind]
        one, two = ([row for row in mine if row[0] == stops] for stops in (1, 2))
        wrong = sum(name == kind for name, _ in failures)
        print(f"| {kind} | {len(mine) + wrong} | {len(one)} | {of([row[1] for row in one])} | {of([row[2] for row in two])} "
              f"| {len(two)} | {of([row[1] for row in two])} | {wrong} |")


def main():
    stops = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    found, failures = [], []
    began = time.monotonic()
    threads = [threading.Thread(target=session, args=(range(first, stops, 2), seed, found, failures)) for first in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            try:
                thread.join()
            except KeyboardInterrupt:
                ENOUGH.set()
    stops = len(found) + len(failures)
    print(f"{stops} stops, seed {seed}, two kernels, {os.cpu_count()} threads, {(time.monotonic() - began) / 60:.0f} min;"
          " seconds as minimum / median / maximum\n")
    table(found, failures)
    print("".join(f"\n- {what}" for _, what in failures))
    sys.exit(bool(failures) or len(found) != stops)


if __name__ == "__main__":
    main()
