#!/usr/bin/env bash
# Trains the hybrid again from two other seeds, prunes each to 80 % by gradient and tunes what is left on the predictions of its own whole model.
# Runs from the project's root; what is there already is not made again.
set -euo pipefail
lowbit=${LOWBIT:-target/release/lowbit}
settings=data/models/scop
for seed in 1 2; do
    out=target/scop/seed-$seed
    mkdir -p "$out"
    [ -d "$out/run/model" ] || "$lowbit" train --config "$settings/training.yaml" --seed "$seed" --out "$out/run"
    [ -d "$out/gradient-80" ] || "$lowbit" prune "$out/run/model" --by gradient --keep 0.8 --out "$out/gradient-80"
    sed "s|target/scop/model|$out/run/model|" "$settings/distilled.yaml" > "$out/distilled.yaml"
    [ -d "$out/run-80/model" ] ||
        "$lowbit" train --start "$out/gradient-80" --config "$out/distilled.yaml" --seed "$seed" --out "$out/run-80"
    ln -sfn "seed-$seed/run/model" "target/scop/whole-$seed"
    ln -sfn "seed-$seed/run-80/model" "target/scop/distilled-80-$seed"
done
