#!/usr/bin/env bash
# Widths by what the gradients of rows were while the models of rows-training.yaml were trained, beside those on a text. Three models, five minutes on
# two cores. Runs from the project's root; what is there already is not made again.
set -euo pipefail
lowbit=${LOWBIT:-target/release/lowbit}
out=target/rows
mkdir -p "$out"
for seed in 0 1 2; do
    [ -d "$out/$seed/model" ] || "$lowbit" train --config data/models/griot/rows-training.yaml --seed "$seed" --out "$out/$seed"
    ln -sfn "rows/$seed/model" "target/rows-$seed"
    sed "s/SEED/$seed/" data/models/griot/rows-kept.yaml > "$out/kept-$seed.yaml"
    "$lowbit" reproduce glance --config "$out/kept-$seed.yaml"
done
