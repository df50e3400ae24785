"""The texts of this repository as prose, and where numbers are in it that may be readings."""

import bisect
import dataclasses
import json
import re

from records import ROOT

NUMBER = r"[−+]?(?:[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:e[−-]?[0-9]+)?"
NO_READINGS = re.compile(
    "|".join(
        (
            r"^```.*?^```",  # code in a block of its own,
            r"^#+ .*?$",  # a heading,
            r"`[^`]*`",  # code within a line,
            r"(?<=\])\([^)\s]*\)|https?://\S+",  # the target of a link,
            r"\b[0-9]{4}-[0-9]{2}-[0-9]{2}\b",  # a date,
            r"\b(?:[Cc]ommit|shape:)\s+[0-9a-f]{7}\b",  # a commit,
            # a version,
            r"\b(?:Zen|Rust|Python|GCC|JupyterLab|evcxr_jupyter|llama-cpp-python|OFL|BY|Apache|SHA)[ -][0-9][0-9.]*",
            r"\bAVX-512|\b[A-Za-z_][\w.-]*\d[\w+*=.-]*",  # a name that a number is part of (w4a8-g64, Mamba2, Q8_0),
            r"√\([^)]*\)+|\b130M\b",  # a formula, the shape of a model that has no other name,
            r"\b[0-9]+×[0-9]+→[0-9]+|\b[0-9]+×[0-9]+(?= \|)|\bint[0-9]×int[0-9]",  # a shape in a table of kernels.
        )
    ),
    re.MULTILINE | re.DOTALL,
)


@dataclasses.dataclass
class Text:
    """The prose of a file: a Markdown file as it is, of a notebook the Markdown cells."""

    path: str
    prose: str
    places: list[tuple[int, str]]

    @classmethod
    def read(cls, path: str) -> "Text":
        whole = (ROOT / path).read_text(encoding="utf-8")
        if not path.endswith(".ipynb"):
            return cls(path, whole, [(0, "")])
        prose, places = "", []
        for index, cell in enumerate(json.loads(whole)["cells"]):
            if cell["cell_type"] == "markdown":
                places.append((len(prose), f"cell {index}, line "))
                prose += "".join(cell["source"]) + "\n\n"
        return cls(path, prose, places)

    def where(self, offset: int) -> str:
        start, cell = self.places[bisect.bisect(self.places, offset, key=lambda place: place[0]) - 1]
        return f"{self.path}:{cell}{self.prose.count(chr(10), start, offset) + 1}"

    def write(self, changes: list[tuple[int, int, str]]):
        """Writes the file with stretches of the prose replaced."""
        file = ROOT / self.path
        whole = file.read_text(encoding="utf-8")
        if not self.path.endswith(".ipynb"):
            file.write_text(replaced(whole, changes), encoding="utf-8")
            return
        notebook = json.loads(whole)
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
        for (start, _), cell in zip(self.places, cells, strict=True):
            source = "".join(cell["source"])
            own = [(at - start, end - start, new) for at, end, new in changes if start <= at < start + len(source)]
            cell["source"] = replaced(source, own).splitlines(keepends=True)
        file.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def replaced(text: str, changes: list[tuple[int, int, str]]) -> str:
    """A text with stretches of it replaced; from the last to the first, so that their places hold."""
    for start, stop, new in sorted(changes, reverse=True):
        text = text[:start] + new + text[stop:]
    return text


def numbers_of(text: str) -> list[tuple[int, int]]:
    """Where the numbers of a text are that may be readings."""
    bare = NO_READINGS.sub(lambda found: re.sub(r"\S", "·", found[0]), text)
    return [found.span() for found in re.finditer(NUMBER, bare)]


def literal(text: str) -> str:
    """A pattern for text as it stands, wherever its lines end."""
    return r"\s+".join(map(re.escape, re.split(r"\s+", text)))
