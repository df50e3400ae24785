"""What the records say: the names that expressions of the `.toml` files may use, each over files of this repository.

value(run, column, scheme, **where)    the one value of a column in the rows of a run that `where` leaves
column(run, column, scheme, **where)   all of them, in the order of the record; `row="head"`, `context_length=1024`, ...
steps(file, column, beside, **where)   the same of a training's record, in the steps that have a column `beside` too
field(file, name)                      of a file with one JSON object
shown(notebook, cell, row, column)     the numbers of one entry of a table in a notebook's outputs: `cell` is a piece of
                                       the code above it, `row` its first entry (or several, from the first on)
shown_text(notebook, cell, row, column)  the same entry as text
ranked(run, width, column)             the parts of a sensitivity run, each rounded alone to `width` bits, the worst first
per_weight(run, width, part)           their divergence a weight, layer by layer (`without=5`: but for that layer)
numbers(text)                          the numbers in a text, such as the name of a scheme
file_bytes(pattern), file_count(pattern), file_sha256(path)   of files
"""

import functools
import hashlib
import html.parser
import json
import math
import pathlib
import re
import statistics
from decimal import Decimal

ROOT = pathlib.Path(__file__).resolve().parents[3]


class Missing(Exception):
    """A record that is not there, or says several things."""


@functools.cache
def rows(path: str) -> list[dict]:
    """The lines of a record."""
    file = ROOT / path
    if not file.is_file():
        raise Missing(f"{path} is not there; is the run renamed?")
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def _column(kept: list[dict], path: str, column: str, where: dict) -> list:
    found = [
        row[column]
        for row in kept
        if row.get(column) is not None and all(row.get(name) == wanted for name, wanted in where.items())
    ]
    if not found:
        told = ", ".join(f"{name} = {wanted}" for name, wanted in where.items()) or "any row"
        raise Missing(f"{path} has no {column} for {told}")
    return found


def steps(file: str, column: str, beside: str | None = None, **where) -> list:
    kept = [row for row in rows(file) if beside is None or beside in row]
    return _column(kept, file, column, where)


def field(file: str, name: str):
    return json.loads((ROOT / file).read_text(encoding="utf-8"))[name]


def column(run: str, column: str, scheme: str | None = None, **where) -> list:
    path = f"runs/{run}/metrics.jsonl"
    return _column(rows(path), path, column, where if scheme is None else {"scheme": scheme, **where})


def value(run: str, name: str, scheme: str | None = None, **where):
    found = column(run, name, scheme, **where)
    if any(other != found[0] for other in found):
        raise Missing(f"{run} has {len(found)} values of {name} for {scheme} {where}: say which row")
    return found[0]


def _probe(width: int) -> str:
    return f"w{width}a16+head=w{width}"


def ranked(run: str, width: int, name: str) -> list[str]:
    where = {"measure": "sensitivity", "probe": _probe(width)}
    harm = zip(column(run, name, **where), column(run, "unit", **where), strict=True)
    return [unit for _, unit in sorted(harm, reverse=True)]


def per_weight(run: str, width: int, part: str, without: int | None = None) -> list[float]:
    where = {"measure": "sensitivity", "probe": _probe(width), "part": part}
    parts = zip(*(column(run, name, **where) for name in ("kl", "n_weights", "layer")), strict=True)
    return [kl / weights for kl, weights, layer in parts if layer != without]


class _Tables(html.parser.HTMLParser):
    """The tables of a page, as lists of rows of texts."""

    def __init__(self):
        super().__init__()
        self.tables, self._inside = [], False

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._inside = True
        elif tag == "br":
            self._inside = False

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.tables[-1][-1][-1] += data


@functools.cache
def _tables(notebook: str) -> list[tuple[str, list]]:
    cells = json.loads((ROOT / f"notebooks/{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    found = []
    for cell in cells:
        parser = _Tables()
        for output in cell.get("outputs", []):
            parser.feed("".join(output.get("data", {}).get("text/html", [])))
        found.extend(("".join(cell["source"]), table) for table in parser.tables)
    return found


def shown_text(notebook: str, cell: str, row: str | tuple, column: str) -> str:
    row = (row,) if isinstance(row, str) else tuple(map(str, row))
    found = {
        entries[table[0].index(column)]
        for source, table in _tables(notebook)
        if cell in source and column in table[0]
        for entries in table[1:]
        if tuple(entries[: len(row)]) == row
    }
    if len(found) != 1:
        raise Missing(f"notebooks/{notebook}.ipynb shows {len(found)} entries `{column}` of {row} below `{cell}`")
    return found.pop()


def shown(notebook: str, cell: str, row: str | tuple, column: str) -> list[Decimal]:
    return numbers(shown_text(notebook, cell, row, column))


def numbers(text: str) -> list[Decimal]:
    found = re.findall(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?", text.replace("−", "-"))
    return [Decimal(number) for number in found]


def file_bytes(pattern: str) -> int:
    return sum(file.stat().st_size for file in ROOT.glob(pattern))


def file_count(pattern: str) -> int:
    return len(list(ROOT.glob(pattern)))


def file_sha256(path: str) -> str:
    return hashlib.sha256((ROOT / path).read_bytes()).hexdigest()


OWN = (value, column, steps, field, shown, shown_text, numbers, ranked, per_weight)
OWN += (file_bytes, file_count, file_sha256)
PLAIN = (abs, all, any, float, len, list, max, min, range, round, set, sorted, sum, zip)
NAMES = {tool.__name__: tool for tool in OWN + PLAIN} | {
    "median": statistics.median,
    "mean": statistics.fmean,
    "log2": math.log2,
    "exp": math.exp,
}
