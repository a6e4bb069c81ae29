#!/usr/bin/env bash
# Train every published recipe, the most important first: bash benchmarks/recipes.sh [overrides for all of them]
# Interrupt it whenever you like: started again, it goes on where it was and skips what is done. It has not been run yet.
set -u
cd "$(dirname "$0")/.."
trap 'kill -TERM $child 2> /dev/null; wait $child; exit 130' INT TERM  # a trap alone would wait for the training's end
failed=0
for recipe in best_under_5m slim_resnet50 slim_resnet34 custom_resnet_onecycle rescaled_resnet18 resnet34_ensemble \
              slim_resnet26 slim_resnet34_100; do
    python3 -m cifar_resnet.train -m "experiment=$recipe" seed=0 output_dir=outputs/recipes "$@" &
    child=$!
    wait $child || failed=1
done
exit $failed
