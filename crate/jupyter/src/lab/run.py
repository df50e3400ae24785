"""Runs a notebook cell by cell; prints one line a cell; exits with 1 at the first that fails."""
import sys
import time

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

path, check = sys.argv[1], "--check" in sys.argv
try:
    notebook = nbformat.read(path, as_version=4)
except (nbformat.reader.NotJSONError, nbformat.ValidationError, UnicodeDecodeError, OSError, AttributeError):
    sys.exit(f"lowbit: {path} is not a notebook that can be read; give the path of an .ipynb file")
folder = path.rpartition("/")[0] or "."
client = NotebookClient(
    notebook, timeout=None, kernel_name="lowbit", resources={"metadata": {"path": folder}}, record_timing=False
)
code = [index for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
for index in code:
    notebook.cells[index].outputs, notebook.cells[index].execution_count = [], None
failed = None
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
print(f"  {path}: {len(code)} cells in {total:.1f} s, kernel ready after {ready - started:.1f} s", flush=True)
if not check:
    notebook.metadata.kernelspec = {"name": "lowbit", "display_name": "Rust (lowbit)", "language": "rust"}
    nbformat.write(notebook, path)
sys.exit(1 if failed else 0)
