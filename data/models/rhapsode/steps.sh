#!/usr/bin/env bash
# Prunes the hybrid that training.yaml leaves in target/rhapsode/run, tunes what is left on the predictions of the whole one, and rounds that.
# Runs from the project's root; what is there already is not made again.
set -euo pipefail
lowbit=${LOWBIT:-target/release/lowbit}
out=target/rhapsode
ln -sfn run/model "$out/whole"
for keep in 80 70; do
    [ -d "$out/pruned-$keep" ] || "$lowbit" prune "$out/run/model" --keep "0.$keep" --out "$out/pruned-$keep"
    [ -d "$out/run-$keep/model" ] ||
        "$lowbit" train --start "$out/pruned-$keep" --config data/models/rhapsode/distilled.yaml --out "$out/run-$keep"
    ln -sfn "run-$keep/model" "$out/tuned-$keep"
    for scheme in w8a8 w4a8-g32; do
        [ -d "$out/$keep-$scheme" ] || "$lowbit" quantize "$out/tuned-$keep" --scheme "$scheme" --out "$out/$keep-$scheme"
    done
done
