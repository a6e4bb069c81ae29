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
[[ $limit =~ ^[0-9]+$ ]] || { echo "error: GPU_SECONDS is a number of seconds. Got $limit; give such as 540" >&2; exit 2; }
steps=${GPU_STEPS:-100}  # of a round; with few, and small networks, a machine without a GPU can try this script as well
read -ra networks <<< "${GPU_NETWORKS:-resnet18@128 resnet18@512 resnet18@2048 resnet20@128}"
runs=outputs/gpu/$(date +%Y-%m-%d_%H-%M-%S)
results=$runs/figures  # until the end: a record's commit is to be a clean one
mkdir -p "$results"
trap 'cp -r "$results"/. benchmarks/results/' EXIT
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
train() { within_time python3 -m cifar_resnet.train -m output_dir="$runs" "$@"; }
# a first minute: does CUDA compute what a CPU does, and go on from where it was stopped?
CIFAR_RESNET_TEST_GPU=1 within_time timeout 120 python3 -m pytest -q -p no:cacheprovider tests/behaviour/test_on_cuda.py \
    -k "logits or steps_of_each or graph or resumed"
train experiment=speed96 seed=0 "$@"
train experiment=speed95 seed=0,1,2 data.num_val=5000 output_dir="$runs/held_out" "$@"  # to fit a temperature on those
within_time python3 benchmarks/robustness.py "$runs"/held_out/speed95/* --num-test 1000 \
    --root "${CIFAR_RESNET_DATA:-data}" --json "$results/robustness-speed95-gpu.json"
train "experiment=ten_minutes_sgd,ten_minutes_sam,ten_minutes_adam,ten_minutes_muon" seed=0,1 "$@"
train experiment=speed94 seed=0,1,2 "$@"                        # time to 94%: three seeds, the first one warms up
within_time python3 benchmarks/throughput.py --rounds 3 --steps "$steps" "${networks[@]}" \
    --json "$results/throughput-gpu.json"         # the chip's share; ours against the bare step, eager and as one graph
within_time python3 benchmarks/step_profile.py "${networks[-1]}" graph=false --steps $((steps / 2)) \
    --json "$results/step_profile-gpu.json"       # the share of its convolutions; kernels a step
within_time python3 benchmarks/overhead.py experiment=speed94 "$@" --json "$results/overhead-gpu.json"
within_time python3 benchmarks/optimizers.py --steps "$steps" ${GPU_NETWORKS:+--network "${networks[-1]}"} \
    --json "$results/optimizers-gpu.json"
within_time python3 benchmarks/ensemble.py "resnet_cifar@${networks[-1]#*@}" "${networks[-1]}" --sizes 2 4 10 --rounds 1 \
    --steps $((steps / 2)) --json "$results/ensemble-gpu.json"
train experiment=speed94 seed=0,1,2 compile=true "$@"
within_time python3 benchmarks/overhead.py experiment=speed96_wide "$@" --json "$results/overhead-speed96-gpu.json"
report() { timeout 40 python3 -c "import sys; from cifar_resnet import cli; sys.exit(cli.report())" "$@"; }
report "$runs" output="$results/gpu" || failed=1
# and then, as published, whatever there is time for
if ((SECONDS < limit)); then
    RECIPES=$runs/recipes within_time bash benchmarks/recipes.sh "$@"
    report "$runs/recipes" output="$results/gpu-recipes" || failed=1
fi
exit $failed
