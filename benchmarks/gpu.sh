#!/usr/bin/env bash
# What waits for a GPU, the most telling first, within ten minutes: bash benchmarks/gpu.sh [overrides for the trainings]
# What is not done within $GPU_SECONDS (540) is named, and the exit code is 1.
# Figures go to benchmarks/results/*-gpu.* and gpu/; CIFAR-10 is looked for in $CIFAR_RESNET_DATA, or else in data/.
# Whether CUDA computes what a CPU does: make test-gpu, or CIFAR_RESNET_TEST_GPU=1 pytest tests/behaviour/test_on_cuda.py
set -u
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH" PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$PWD"
trap 'kill -TERM $child 2> /dev/null; wait $child; exit 130' INT TERM
limit=${GPU_SECONDS:-540}
results=benchmarks/results
runs=outputs/gpu/$(date +%Y-%m-%d_%H-%M-%S)
failed=0
within_time() {
    echo "$SECONDS s: $*" >&2
    if ((SECONDS < limit)); then
        timeout --kill-after=10 $((limit - SECONDS)) "$@" &
        child=$!
        wait $child && return
    fi
    failed=1
    echo "not done: $*" >&2
    return 1
}
train() { within_time python3 -m cifar_resnet.train -m "seed=0,1,2" output_dir="$runs" "$@"; }
train experiment=speed94 "$@"                                   # time to 94%: three seeds, the first one warms up
within_time python3 benchmarks/throughput.py --rounds 3 --steps 20 resnet18@128 resnet18@512 resnet18@2048 \
    --json $results/throughput-gpu.json                         # share of the chip's speed, ours against the bare loop
train experiment=speed96 "$@"
within_time python3 benchmarks/overhead.py experiment=speed94 "$@" --json $results/overhead-gpu.json
within_time python3 benchmarks/step_profile.py resnet18@512 --steps 50 > $results/step_profile-gpu.part &&
    mv $results/step_profile-gpu.part $results/step_profile-gpu.txt
train experiment=custom_resnet_onecycle "$@"
within_time python3 benchmarks/optimizers.py --steps 50 --json $results/optimizers-gpu.json
within_time python3 benchmarks/ensemble.py resnet_cifar@128 resnet20@128 --sizes 2 4 10 --rounds 1 --steps 50 \
    --json $results/ensemble-gpu.json
train experiment=speed94 compile=true "$@"
within_time python3 benchmarks/overhead.py experiment=speed96 "$@" --json $results/overhead-speed96-gpu.json
timeout 40 python3 -c "import sys; from cifar_resnet import cli; sys.exit(cli.report())" "$runs" output=$results/gpu || failed=1
exit $failed
