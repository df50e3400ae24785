"""Every number in the texts of this repository against what vouches for it; Python 3.11 alone is enough.

python3 crate/tests/quoted/check.py           a sentence for each number that does not hold; ends with 1 if there is one
python3 crate/tests/quoted/check.py --tell    what the records say now, quote by quote; `--tell LOG` those of one text
python3 crate/tests/quoted/check.py --mend    writes that into the texts, where it differs; their sentences are to be read
                                              again then, since no words are changed

A `.toml` beside this file belongs to one text and holds four kinds of entries, each with a piece of the text:

`[[recorded]]`    a number stands as `{expression}` over the records (see `records.py`; runs are named once, under
                  `[runs]`, other long names under `[names]`). It is rounded to the digits that the text quotes and
                  compared as text. `{1024}` is a setting that the sentence repeats. `holds = [...]` are conditions of
                  what is said in words, `each = [...]` stands for `$`, one after the other.
`[[setting]]`     numbers that were chosen, written out; `from` says where.
`[[unrecorded]]`  numbers measured with no run kept, written out; `from` names command, processor and date.
`[[table]]`       the same for a whole table: `after` and `first` begin lines, the table's first is the second;
                  `sums` has a checksum for each row that holds numbers.

Names (w4a8, AVX2), dates, commits, code, headings and addresses are no readings. Any other number that no entry
vouches for fails, and so does an entry that the text does not hold, or a run that the text names and the file does not.
"""

import dataclasses
import functools
import hashlib
import pathlib
import re
import sys
import tomllib
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal

import records
from texts import NUMBER, Text, literal, numbers_of

HERE = pathlib.Path(__file__).resolve().parent


@dataclasses.dataclass
class Quote:
    """A piece of a text; `expected` has for each of its numbers what it is made of and what it is, or a `Missing`."""

    piece: str
    pattern: re.Pattern
    expected: list[tuple[str, object]]
    source: str
    times: int = 1


@dataclasses.dataclass
class Book:
    """What vouches for one text."""

    path: str
    runs: dict[str, str]
    quotes: list[Quote]
    tables: list[dict]
    faults: list[str]


def written_out(piece: str) -> tuple[str, list]:
    """The pattern of a piece whose numbers are written out, and these."""
    pattern, expected, end = "", [], 0
    for start, stop in numbers_of(piece):
        pattern += literal(piece[end:start]) + f"({NUMBER})"
        expected.append(("vouched for as it was written down", piece[start:stop]))
        end = stop
    return pattern + literal(piece[end:]), expected


def evaluated(expression: str, names: dict) -> object:
    try:
        return eval(expression, {"__builtins__": {}, **names})
    except Exception as error:  # whatever is wrong with an entry is told with the entry
        return error if isinstance(error, records.Missing) else records.Missing(f"{type(error).__name__}: {error}")


def from_records(piece: str, names: dict) -> tuple[str, list, str]:
    """The pattern of a piece with expressions, their values, and what stands between them."""
    parts = re.split(r"\{([^{}]*)\}", piece)
    pattern = "".join(f"({NUMBER})" if i % 2 else literal(part) for i, part in enumerate(parts))
    expected = [(part.strip(), evaluated(part.strip(), names)) for part in parts[1::2]]
    return pattern, expected, "{}".join(parts[::2])


def read_book(file: pathlib.Path) -> Book:
    book = tomllib.loads(file.read_text(encoding="utf-8"))
    runs, faults, quotes = book.get("runs", {}), [], []
    names = records.NAMES | runs | book.get("names", {})
    for kind in ("recorded", "setting", "unrecorded"):
        for entry in book.get(kind, []):
            for item in entry.get("each", [""]):
                piece = entry["text"].strip().replace("$", item)
                if kind == "recorded":
                    pattern, expected, bare = from_records(piece, names)
                    if numbers_of(bare):
                        faults.append(f'{file.name}: "{piece}" has a number that is no expression; write it as {{...}}')
                    for condition in entry.get("holds", []):
                        condition = condition.replace("$", item)
                        truth = evaluated(condition, names)
                        if truth is not True:
                            faults.append(f'{file.name}: "{piece}" needs {condition}, which is {truth}')
                    source = ", ".join(run for name, run in runs.items() if re.search(rf"\b{name}\b", piece))
                else:
                    pattern, expected = written_out(piece)
                    source = entry.get("from", "")
                    if not source.strip():
                        faults.append(f'{file.name}: "{piece}" does not say where it is from')
                quotes.append(Quote(piece, re.compile(pattern), expected, source, entry.get("times", 1)))
    unused = [name for name in runs if not re.search(rf"\b{name}\b(?! *= *\")", file.read_text(encoding="utf-8"))]
    faults.extend(f"{file.name}: the run {name} is used by no entry" for name in unused)
    return Book(book["file"], runs, quotes, book.get("table", []), faults)


def as_quoted(value: object, quoted: str) -> set[str]:
    """A value written with the digits of a quoted number; two texts where it lies in the middle between them."""
    if isinstance(value, str):
        return {value}
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        return set()
    exact = Decimal(value) if isinstance(value, int) else Decimal(str(value))
    mantissa, mark, power = quoted.partition("e")
    decimals = len(mantissa.partition(".")[2])
    texts = set()
    for rounding in (ROUND_HALF_UP, ROUND_HALF_EVEN):
        scaled = exact.scaleb(-int(power.replace("−", "-"))) if mark else exact
        rounded = scaled.quantize(Decimal(1).scaleb(-decimals), rounding)
        digits = f"{abs(rounded):,f}" if "," in quoted else f"{abs(rounded):f}"
        if digits.startswith("0.") and not mantissa.lstrip("−+").startswith("0"):
            digits = digits[1:]
        sign = "−" if rounded < 0 else "+" if quoted.startswith("+") else ""
        texts.add(sign + digits + mark + power)
    return texts


def told(value: object, quoted: str) -> str:
    if isinstance(value, Exception):
        return str(value)
    exact = f"{value:.8g}" if isinstance(value, (float, Decimal)) else str(value)
    return " or ".join(sorted(as_quoted(value, quoted))) + ("" if exact == quoted else f" ({exact})")


def shortened(piece: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"\{[^{}]*\}", "…", piece))


def check_quotes(text: Text, book: Book, covered: set[int]) -> list[str]:
    wrong = []
    for quote in book.quotes:
        found = list(quote.pattern.finditer(text.prose))
        if len(found) != quote.times:
            wrong.append(
                f'{text.path} has "{shortened(quote.piece)}" {len(found)} times and not {quote.times}: '
                + ("a longer piece of the text tells it from others" if found else "was the sentence changed?")
            )
        for match in found:
            for group, (expression, value) in enumerate(quote.expected, 1):
                quoted = match[group]
                covered.update(range(*match.span(group)))
                if quoted not in as_quoted(value, quoted):
                    wrong.append(
                        f'{text.where(match.start(group))}: "{shortened(match[0])}" quotes {quoted}, '
                        f"recorded is {told(value, quoted)}: {shortened(expression)}"
                        + (f" ({quote.source})" if quote.source else "")
                    )
    return wrong


def rows_after(text: Text, line: str, first: str) -> list[tuple[int, str]]:
    """The rows with numbers of the first table that begins with `first`, after a line that begins with `line`."""
    start = text.prose.find(f"\n{line}")
    start = text.prose.find(f"\n{first}", start) if start >= 0 else -1
    rows = []
    while start >= 0:
        end = text.prose.find("\n", start + 1)
        line = text.prose[start + 1 : end]
        if not line.startswith("|"):
            break
        if numbers_of(line):
            rows.append((start + 1, line))
        start = end
    return rows


def row_sum(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()[:4]


def check_tables(text: Text, book: Book, covered: set[int]) -> list[str]:
    wrong = []
    for table in book.tables:
        rows = rows_after(text, table["after"], table["first"])
        sums = table["sums"].split()
        if len(rows) != len(sums):
            wrong.append(
                f'{text.path} has {len(rows)} rows of numbers in the table after "{table["after"]}" and not {len(sums)}'
            )
        for (offset, line), expected in zip(rows, sums):
            covered.update(range(offset, offset + len(line)))
            if row_sum(line) != expected:
                wrong.append(
                    f'{text.where(offset)}: the row "{line}" is not the one vouched for (sum {row_sum(line)}, not '
                    f"{expected}); where it was measured anew, its table's entry says where and when ({table['from']})"
                )
    return wrong


def check(text: Text, book: Book) -> list[str]:
    """One sentence for each number of a text that does not hold."""
    covered: set[int] = set()
    wrong = [
        f"{text.where(found.start())}: {found[0]} is not one of the runs that vouch for this text"
        for found in re.finditer(r"\b[0-9]{8}-[0-9]{6}-[\w-]+", text.prose)
        if found[0] not in book.runs.values()
    ]
    wrong += book.faults + check_quotes(text, book, covered) + check_tables(text, book, covered)
    for start, stop in numbers_of(text.prose):
        if stop - 1 not in covered:
            around = shortened(text.prose[max(0, start - 40) : stop + 25]).strip()
            wrong.append(
                f'{text.where(start)}: nobody vouches for {text.prose[start:stop]} in "… {around} …"'
            )
    return wrong


@functools.cache
def books() -> dict[str, Book]:
    """What vouches for the texts, by the names of the files."""
    return {file.stem: read_book(file) for file in sorted(HERE.glob("*.toml"))}


def tell(book: Book):
    """What the records say, quote by quote."""
    text = Text.read(book.path)
    print(f"\n{book.path}")
    for quote in book.quotes:
        if quote.source and all(isinstance(value, str) for _, value in quote.expected):
            continue
        for match in quote.pattern.finditer(text.prose):
            said = (told(value, match[i]) for i, (_, value) in enumerate(quote.expected, 1))
            print(f"  {text.where(match.start())}: {shortened(match[0])}\n      {', '.join(said)}")
    for table in book.tables:
        rows = rows_after(text, table["after"], table["first"])
        print(f"  {table['after']}\n      sums = \"{' '.join(row_sum(line) for _, line in rows)}\"")


def mend(book: Book):
    """Writes what the records say into a text, and prints each change."""
    text, changes = Text.read(book.path), set()
    for quote in book.quotes:
        for match in quote.pattern.finditer(text.prose):
            for group, (_, value) in enumerate(quote.expected, 1):
                right = as_quoted(value, match[group])
                if right and match[group] not in right:
                    changes.add((*match.span(group), max(right)))
                    print(f'{text.where(match.start(group))}: {match[group]} is now {max(right)} in "{shortened(match[0])}"')
    if changes:
        text.write(list(changes))


def texts_without_a_book() -> list[str]:
    """Texts that nobody vouches for at all."""
    kinds = ("README.md", "runs/LOG.md", "notebooks/*.ipynb", "data/*/README.md", "data/models/*/README.md")
    there = {str(file.relative_to(records.ROOT)) for kind in kinds for file in records.ROOT.glob(kind)}
    return sorted((there | {"crate/benches/README.md"}) - {book.path for book in books().values()})


def main(arguments: list[str]) -> int:
    if arguments:
        do = {"--tell": tell, "--mend": mend}.get(arguments[0])
        if do is None:
            print(f"{arguments[0]} is not known here: --tell or --mend, and a piece of a text's path", file=sys.stderr)
            return 2
        for name, book in books().items():
            if not arguments[1:] or any(wanted in book.path or wanted == name for wanted in arguments[1:]):
                do(book)
        return 0
    wrong = [f"{path} has no file here that vouches for its numbers" for path in texts_without_a_book()]
    count = 0
    for book in books().values():
        text = Text.read(book.path)
        count += len(numbers_of(text.prose))
        wrong.extend(check(text, book))
    print("\n".join(wrong) if wrong else f"{count} numbers in {len(books())} texts are as they were recorded")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
