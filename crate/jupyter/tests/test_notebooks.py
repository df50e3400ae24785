"""Notebooks run without a front end: parameters, provenance, and whether outputs are still those of the run."""
import json
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = KernelSpecManager().get_kernel_spec("lowbit").argv[0]


def lab(*arguments, **environment):
    environment = {**os.environ, "LOWBIT_HOME": str(ROOT), **environment}
    return subprocess.run([PROGRAM, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True)


class Notebooks(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = Path(folder.name)
        cls.path = cls.folder / "a.ipynb"
        notebook = nbformat.v4.new_notebook()
        defaults = nbformat.v4.new_code_cell('let trials: usize = 50;\nlet scheme = "w4a8";')
        defaults.metadata.tags = ["parameters"]
        use = nbformat.v4.new_code_cell('format!("{scheme} {}", vec![0; trials].len())')
        notebook.cells = [nbformat.v4.new_markdown_cell("# A"), defaults, use]
        nbformat.write(notebook, cls.path)
        cls.before = cls.path.read_bytes()
        cls.out = cls.folder / "b.ipynb"
        cls.ran = lab("run", cls.path, "--set", "trials=7", "--set", "scheme=w4a4-g64", "--out", cls.out)

    def change(self, how):
        notebook = nbformat.read(self.out, as_version=4)
        how(notebook)
        changed = self.folder / "c.ipynb"
        nbformat.write(notebook, changed)
        return lab("check", changed)

    def test_parameters_are_set_in_a_copy(self):
        self.assertEqual(self.ran.returncode, 0, self.ran.stderr)
        self.assertEqual(self.path.read_bytes(), self.before)
        notebook = nbformat.read(self.out, as_version=4)
        nbformat.validate(notebook)
        injected = notebook.cells[2]
        self.assertEqual(injected.metadata.tags, ["injected-parameters"])
        self.assertEqual(injected.source, '// Parameters\nlet trials: usize = 7;\nlet scheme = "w4a4-g64";')
        self.assertEqual(notebook.cells[3].outputs[0].data["text/plain"], "w4a4-g64 7")

    def test_what_cannot_be_set_is_one_sentence(self):
        for arguments, part in [
            (["--set", "trial=7", "--out", self.out], 'no parameter `trial`; there are: trials = 50, scheme = "w4a8"'),
            (["--set", "trials=many", "--out", self.out], "`trials` is an integer, and `many` is not"),
            (["--set", "trials=7"], "--set wants --out FILE"),
        ]:
            told = lab("run", self.path, *arguments)
            self.assertEqual((told.returncode, len(told.stderr.splitlines())), (1, 1), told.stderr)
            self.assertIn(part, told.stderr)

    def test_outputs_have_a_provenance(self):
        note = nbformat.read(self.out, as_version=4).metadata.lowbit
        for name in ["git_commit", "git_dirty", "host", "os", "cpu_model", "rustc", "lowbit_version", "sources", "date"]:
            self.assertIn(name, note)
        self.assertEqual(len(note.cells), 3)
        told = lab("check", self.out)
        self.assertEqual(told.returncode, 0, told.stdout + told.stderr)
        self.assertIn(f"made on {note.date} at commit {note.git_commit[:10]}", told.stdout)

    def test_the_same_run_gives_the_same_bytes(self):
        again = self.folder / "d.ipynb"
        lab("run", self.path, "--set", "trials=7", "--set", "scheme=w4a4-g64", "--out", again)
        first, second = (json.loads(path.read_text()) for path in (self.out, again))
        for notebook in (first, second):
            notebook["metadata"]["lowbit"].pop("date")
        self.assertEqual(first, second)

    def test_outputs_that_are_not_of_the_cells_are_told(self):
        self.assertEqual(self.change(lambda notebook: None).returncode, 0)

        def edited(notebook):
            notebook.cells[3].source += " // edited"

        def by_hand(notebook):
            notebook.cells[3].outputs[0].data["text/plain"] = "w4a4-g64 8"

        def cleared(notebook):
            notebook.cells[3].outputs, notebook.cells[3].execution_count = [], None

        for how, part in [
            (edited, "code cell 3 was edited after the run"),
            (by_hand, "code cell 3 has other outputs than the run gave it"),
            (cleared, "code cell 3 was not run"),
        ]:
            told = self.change(how)
            self.assertEqual(told.returncode, 1, told.stdout)
            self.assertIn(part, told.stdout)

    def test_without_a_note_nothing_is_claimed(self):
        told = self.change(lambda notebook: notebook.metadata.pop("lowbit"))
        self.assertEqual(told.returncode, 0)
        self.assertIn("no provenance", told.stdout)


if __name__ == "__main__":
    unittest.main()
