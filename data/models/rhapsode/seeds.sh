#!/usr/bin/env bash
# Trains the hybrid again from two other seeds; prunes each as narrow.sh does and tunes what is left on the predictions of its own whole model.
# Runs from the project's root; what is there already is not made again.
set -euo pipefail
lowbit=${LOWBIT:-target/release/lowbit}
settings=data/models/rhapsode
for seed in 1 2; do
    out=target/rhapsode/seed-$seed
    mkdir -p "$out"
    [ -d "$out/run/model" ] || "$lowbit" train --config "$settings/training.yaml" --seed "$seed" --out "$out/run"
    [ -d "$out/heads-narrow" ] || "$lowbit" prune "$out/run/model" --kinds head --keep 0.9 --out "$out/heads-narrow"
    [ -d "$out/pruned-narrow" ] ||
        "$lowbit" prune "$out/heads-narrow" --kinds channel,expert --keep 0.78 --out "$out/pruned-narrow"
    sed "s|target/rhapsode/run/model|$out/run/model|" "$settings/distilled.yaml" > "$out/distilled.yaml"
    [ -d "$out/run-narrow/model" ] || "$lowbit" train --start "$out/pruned-narrow" --config "$out/distilled.yaml" \
        --steps 600 --seed "$seed" --out "$out/run-narrow"
    ln -sfn "seed-$seed/run/model" "target/rhapsode/whole-$seed"
    ln -sfn "seed-$seed/run-narrow/model" "target/rhapsode/narrow-$seed"
done
