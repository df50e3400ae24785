#!/usr/bin/env bash
# Prunes heads first, then channels, so that recurrence and attention become smaller too: of the hybrid that training.yaml leaves in
# target/rhapsode/run. Tunes what is left on the predictions of the whole model, and rounds it. Runs from the project's root; what is there
# already is not made again.
set -euo pipefail
lowbit=${LOWBIT:-target/release/lowbit}
out=target/rhapsode
[ -d "$out/heads-narrow" ] || "$lowbit" prune "$out/run/model" --kinds head --keep 0.9 --out "$out/heads-narrow"
[ -d "$out/pruned-narrow" ] || "$lowbit" prune "$out/heads-narrow" --kinds channel,expert --keep 0.78 --out "$out/pruned-narrow"
[ -d "$out/run-narrow/model" ] ||
    "$lowbit" train --start "$out/pruned-narrow" --config data/models/rhapsode/distilled.yaml --steps 600 --out "$out/run-narrow"
ln -sfn run-narrow/model "$out/tuned-narrow"
for scheme in w8a8 w4a8-g32; do
    [ -d "$out/narrow-$scheme" ] || "$lowbit" quantize "$out/tuned-narrow" --scheme "$scheme" --out "$out/narrow-$scheme"
done
