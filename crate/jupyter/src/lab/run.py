"""Runs the notebook on standard input cell by cell; prints one line a cell; exits with 1 at the first that fails.

Arguments: the notebook's path, the file to write, this program; `--check` writes nothing.
"""
import json
import os
import subprocess
import sys
import time
from datetime import datetime, timezone

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

path, out, program = sys.argv[1:4]
check = "--check" in sys.argv[4:]
try:
    notebook = nbformat.reads(sys.stdin.read(), as_version=4)
except (nbformat.reader.NotJSONError, nbformat.ValidationError, UnicodeDecodeError, AttributeError):
    sys.exit(f"lowbit: {path} is not a notebook that can be read; give the path of an .ipynb file")
folder = path.rpartition("/")[0] or "."
client = NotebookClient(
    notebook, timeout=None, kernel_name="lowbit", resources={"metadata": {"path": folder}}, record_timing=False
)
code = [index for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
for index in code:
    notebook.cells[index].outputs, notebook.cells[index].execution_count = [], None


def provenance():
    """What the library says of itself and of the machine, in the words of the records; nothing where no cell runs any more."""
    asking = nbformat.v4.new_code_cell('println!("{}", lowbit::record::Provenance::note());')
    notebook.cells.append(asking)
    try:
        client.execute_cell(asking, len(notebook.cells) - 1)
        return json.loads("".join(output.text for output in asking.outputs if output.output_type == "stream"))
    except (CellExecutionError, DeadKernelError, ValueError) as error:
        print(f"lowbit: {path}: whoever made these outputs could not be noted: {error}", file=sys.stderr)
        return None
    finally:
        notebook.cells.pop()


failed, note = None, None
started = time.monotonic()
with client.setup_kernel():
    ready = time.monotonic()
    for number, index in enumerate(code, 1):
        cell, begun = notebook.cells[index], time.monotonic()
        head = next((line for line in cell.source.splitlines() if line.strip()), "")[:60]
        try:
            client.execute_cell(cell, index)
        except CellExecutionError as error:
            failed = f"{error.ename}: {error.evalue}"
        except DeadKernelError:
            failed = "the kernel died"
        took = time.monotonic() - begun
        print(f"  {path} [{number}/{len(code)}] {took:6.2f} s  {head}", flush=True)
        if failed:
            print(f"lowbit: {path}, cell {number} of {len(code)}: {failed}", file=sys.stderr)
            break
    total = time.monotonic() - started
    if not check:
        note = provenance()
print(f"  {path}: {len(code)} cells in {total:.1f} s, kernel ready after {ready - started:.1f} s", flush=True)
if not check:
    notebook.metadata.kernelspec = {"name": "lowbit", "display_name": "Rust (lowbit)", "language": "rust"}
    notebook.metadata.pop("lowbit", None)
    draft = f"{out}.draft"
    nbformat.write(notebook, draft)
    if note:
        note["date"] = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        note["cells"] = json.loads(subprocess.check_output([program, "prints", draft]))
        if os.environ.get("LOWBIT_SMALL") is not None:
            note["small"] = True
        notebook.metadata.lowbit = note
        nbformat.write(notebook, draft)
    os.replace(draft, out)
sys.exit(1 if failed else 0)
