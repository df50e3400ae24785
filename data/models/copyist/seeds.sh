#!/usr/bin/env bash
# Trains the four again from two other seeds, each from its own model of copying without noise. Half an hour on two cores. Runs from the
# project's root; what is there already is not made again.
set -euo pipefail
lowbit=${LOWBIT:-target/release/lowbit}
out=target/copyist
mkdir -p "$out"
for seed in 1 2; do
    train() { # settings, folder
        [ -d "$out/run-$2-$seed/model" ] || "$lowbit" train --config "data/models/copyist/training-$1.yaml" --seed "$seed" --out "$out/run-$2-$seed" "${@:3}"
        ln -sfn "run-$2-$seed/model" "$out/$2-$seed"
    }
    train pairs pairs
    for products in exact qk4 qk4-smoothqk qk4-smoothqk-svfp8; do
        train "$products" "$products" --start "$out/pairs-$seed"
    done
done
