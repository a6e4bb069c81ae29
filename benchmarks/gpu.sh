#!/usr/bin/env bash
# What waits for a GPU, the most telling first: bash benchmarks/gpu.sh [overrides for the trainings]
# Meant to take ten minutes; it has not been run yet.
# Figures go to benchmarks/results/*-gpu.*; CIFAR-10 is looked for in $CIFAR_RESNET_DATA, or else in data/.
set -u
cd "$(dirname "$0")/.."
results=benchmarks/results
train() { python3 -m cifar_resnet.train -m "seed=range(0,3)" output_dir=outputs/gpu "$@"; }
failed=0
train experiment=speed94 "$@" || failed=1                       # time to 94%: three seeds, the first one warms up
python3 benchmarks/throughput.py --rounds 3 --steps 50 resnet18@512 resnet18@2048 \
    --json $results/throughput-gpu.json || failed=1             # share of the chip's speed, ours against the bare loop
train experiment=speed96 "$@" || failed=1
python3 benchmarks/step_profile.py resnet18@512 --steps 50 > $results/step_profile-gpu.txt || failed=1
python3 benchmarks/ensemble.py resnet_cifar@128 resnet20@128 --sizes 2 4 10 --steps 50 \
    --json $results/ensemble-gpu.json || failed=1
python3 benchmarks/optimizers.py --steps 50 --json $results/optimizers-gpu.json || failed=1
python3 -m cifar_resnet.report outputs/gpu output=$results/gpu || failed=1
exit $failed
