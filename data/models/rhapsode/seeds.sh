#!/usr/bin/env bash
# Trains the hybrid again from two other seeds, prunes each to 80 % and tunes what is left on the predictions of its own whole model. Runs from
# the project's root; what is there already is not made again.
set -euo pipefail
lowbit=${LOWBIT:-target/release/lowbit}
settings=data/models/rhapsode
for seed in 1 2; do
    out=target/rhapsode/seed-$seed
    mkdir -p "$out"
    [ -d "$out/run/model" ] || "$lowbit" train --config "$settings/training.yaml" --seed "$seed" --out "$out/run"
    [ -d "$out/pruned-80" ] || "$lowbit" prune "$out/run/model" --keep 0.8 --out "$out/pruned-80"
    sed "s|target/rhapsode/run/model|$out/run/model|" "$settings/distilled.yaml" > "$out/distilled.yaml"
    [ -d "$out/run-80/model" ] ||
        "$lowbit" train --start "$out/pruned-80" --config "$out/distilled.yaml" --seed "$seed" --out "$out/run-80"
    ln -sfn "seed-$seed/run/model" "target/rhapsode/whole-$seed"
    ln -sfn "seed-$seed/run-80/model" "target/rhapsode/tuned-80-$seed"
done
