#!/usr/bin/env bash
# Prunes heads first, then channels, so that recurrence and attention become smaller too: of the hybrid that training.yaml leaves in
# target/rhapsode/run. Tunes what is left on the predictions of the whole model, and rounds it. Runs from the project's root; what is there
# already is not made again.
set -euo pipefail
lowbit=${LOWBIT:-target/release/lowbit}
out=target/rhapsode
make() { # name, share of parameters after heads, share of these after everything else
    [ -d "$out/heads-$1" ] || "$lowbit" prune "$out/run/model" --kinds head --keep "$2" --out "$out/heads-$1"
    [ -d "$out/pruned-$1" ] || "$lowbit" prune "$out/heads-$1" --kinds channel,expert --keep "$3" --out "$out/pruned-$1"
    [ -d "$out/run-$1/model" ] ||
        "$lowbit" train --start "$out/pruned-$1" --config data/models/rhapsode/distilled.yaml --steps 600 --out "$out/run-$1"
    ln -sfn "run-$1/model" "$out/tuned-$1"
    for scheme in w8a8 w4a8-g32; do
        [ -d "$out/$1-$scheme" ] || "$lowbit" quantize "$out/tuned-$1" --scheme "$scheme" --out "$out/$1-$scheme"
    done
}
make narrow 0.9 0.78
make narrower 0.85 0.75
