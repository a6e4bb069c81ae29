#!/usr/bin/env bash
# Train every published recipe, the most important first: bash benchmarks/recipes.sh [overrides for all of them]
# Interrupt it whenever you like: started again, it goes on where it was and skips what is done.
set -u
trap 'exit 130' INT TERM
failed=0
for recipe in best_under_5m slim_resnet50 slim_resnet34 custom_resnet_onecycle rescaled_resnet18 resnet34_ensemble \
              slim_resnet26 slim_resnet34_100; do
    cifar-train -m "experiment=$recipe" seed=0 output_dir=outputs/recipes "$@" || failed=1
done
exit $failed
