#!/usr/bin/env bash
# Train every published recipe as it was published, and best_under_5m: bash benchmarks/recipes.sh [overrides for all]
# The runs lie in $RECIPES (outputs/recipes). Interrupt it whenever you like: started again, it goes on where it was and
# skips what is done.
set -u
cd "$(dirname "$0")/.."
trap 'kill -TERM $child 2> /dev/null; wait $child; exit 130' INT TERM  # a trap alone would wait for the training's end
failed=0
for recipe in custom_resnet_onecycle rescaled_resnet18 slim_resnet26 slim_resnet34_100 slim_resnet34 slim_resnet50 \
              best_under_5m resnet34_ensemble; do
    python3 -m cifar_resnet.train -m "experiment=$recipe" seed=0 output_dir="${RECIPES:-outputs/recipes}" "$@" &
    child=$!
    wait $child || failed=1
done
exit $failed
