"""The check of the numbers, told lies: `python3 -m unittest discover --start-directory crate/tests/quoted`."""

import contextlib
import dataclasses
import io
import pathlib
import tempfile
import unittest
from decimal import Decimal

import check


def is_told(told: list[str], text: check.Text, start: int, stop: int) -> bool:
    """Whether a sentence names the place of a number and the number itself, or its row of a table."""
    place, number = text.where(start), text.prose[start:stop]
    row = text.where(text.prose.rfind("\n", 0, start) + 1)
    here = (sentence for sentence in told if sentence.startswith((f"{place}:", f"{row}:")))
    return any(number in sentence or sentence.startswith(f"{row}: the row") for sentence in here)


class Lies(unittest.TestCase):
    def texts(self):
        for book in check.books().values():
            yield check.Text.read(book.path), book

    def test_texts_are_as_recorded(self):
        self.assertEqual(check.texts_without_a_book(), [])
        for text, book in self.texts():
            self.assertEqual(check.check(text, book), [])

    def test_every_digit_is_vouched_for(self):
        """The first digit of every number of a text, then the second, and so on; a sentence tells of each number."""
        for text, book in self.texts():
            digits = [
                (start, stop, [at for at in range(start, stop) if text.prose[at].isdigit()])
                for start, stop in check.numbers_of(text.prose)
            ]
            for turn in range(max((len(places) for _, _, places in digits), default=0)):
                lies = [(start, stop, places[turn]) for start, stop, places in digits if turn < len(places)]
                prose = list(text.prose)
                for _, _, at in lies:
                    prose[at] = str((int(prose[at]) + 1) % 10)
                lie = dataclasses.replace(text, prose="".join(prose))
                told = check.check(lie, book)
                for start, stop, _ in lies:
                    self.assertTrue(
                        is_told(told, lie, start, stop),
                        f"{text.where(start)}: {lie.prose[start:stop]} for {text.prose[start:stop]} was not told",
                    )

    def test_recorded_numbers_are_written_into_texts(self):
        """What is recorded, put into copies that say something else, makes the texts that are here."""
        for name in ("log", "05-drift"):
            book = check.books()[name]
            text = check.Text.read(book.path)
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as said:
                copy = pathlib.Path(folder, pathlib.Path(book.path).name)
                whole = (check.records.ROOT / book.path).read_text(encoding="utf-8")
                lies = whole.replace(" .04 to ", " .07 to ").replace("(KL .07", "(KL .06")
                copy.write_text(lies, encoding="utf-8")
                self.assertNotEqual(lies, whole)
                check.mend(dataclasses.replace(book, path=str(copy)))
                self.assertEqual(copy.read_text(encoding="utf-8"), whole, f"{text.path}")
            self.assertIn(" is now ", said.getvalue())

    def test_new_numbers_lost_sentences_and_other_runs_are_told(self):
        for text, book in self.texts():
            more = dataclasses.replace(text, prose=text.prose + "\nIt is 17 % faster.\n")
            self.assertTrue(any("nobody vouches for 17" in sentence for sentence in check.check(more, book)))
            other = dataclasses.replace(text, prose=text.prose + "\nRun `20261231-235959-other-abcdef`.\n")
            told = check.check(other, book)
            self.assertTrue(any("20261231-235959-other-abcdef is not" in sentence for sentence in told))
            empty = dataclasses.replace(text, prose="\n")
            self.assertEqual(len(check.check(empty, book)), len(book.quotes) + len(book.tables))

    def test_numbers_are_rounded_to_the_digits_of_the_quote(self):
        for value, quoted, texts in [
            (0.0125, ".013", {".012", ".013"}),
            (0.0996, ".10", {".10"}),
            (0.99, "1.0", {"1.0"}),
            (0.5, "0.5", {"0.5"}),
            (-0.459, "−.46", {"−.46"}),
            (0.0522, "+.052", {"+.052"}),
            (1447040, "1,447,040", {"1,447,040"}),
            (2300, "2300", {"2300"}),
            (2.926e-6, "2.9e-6", {"2.9e-6"}),
            (Decimal(".0110"), ".011", {".011"}),
            (85.9, "86", {"86"}),
        ]:
            self.assertEqual(check.as_quoted(value, quoted), texts, f"{value} as {quoted}")
        self.assertEqual(check.as_quoted(True, "1"), set())
        self.assertEqual(check.as_quoted(check.records.Missing("no such run"), "1"), set())

    def test_what_is_a_name_is_no_reading(self):
        prose = "w4a8-g64 of `x 12` on Zen 5, AVX-512, 2026-11-22, commit 6413529, [a](b/12.md): 4.5 % (.02), −3, 1,024."
        found = [prose[start:stop] for start, stop in check.numbers_of(prose)]
        self.assertEqual(found, ["4.5", ".02", "−3", "1,024"])


if __name__ == "__main__":
    unittest.main()
