#!/usr/bin/env bash
# A sweep by Ray, which starts on this machine for it: bash benchmarks/ray.sh
# One of three jobs fails; the same command again trains only that one. What was expected and what was seen come as a
# table; exit code 1 where they differ. A minute or two, with the extra [ray] installed ($VENV names the environment).
set -u
cd "$(dirname "$0")/.." || exit
work=$(mktemp -d)
venv=$(realpath "${VENV:-.venv}")
export PATH="$venv/bin:$PATH" OMP_NUM_THREADS=1
export RAY_TMPDIR=$work/ray RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0  # nothing outside of our folder
python3 -c "import hydra_plugins.hydra_ray_launcher" || { echo "install it first: pip install -e '.[ray]'" >&2; exit 2; }
trap 'pgrep --full "$work" | xargs --no-run-if-empty kill; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

. benchmarks/seen.sh
sweep() {
    cifar-train -m optimizer.lr=0.1,1e30,0.01 hydra/launcher=ray +hydra.launcher.ray.init.num_cpus=2 \
        data=synthetic data.num_train=440 data.num_val=40 data.num_test=50 data.batch_size=40 model=resnet_cifar \
        model.depth=8 "model.widths=[4,4,4]" trainer.max_epochs=1 precision=32-true page=false output_dir="$work/sweep" \
        > "$work/$1.log" 2>&1
}
count() { find "$work/sweep" -name "$1" | wc -l; }
written() { find "$work/sweep" -name "$1" -printf '%p %T@\n' | sort; }

sweep first
check "exit code, where one of three jobs fails" 1 $?
check "runs with a result" 2 "$(count result.json)"
check "runs with a reason" 1 "$(count failure.txt)"
check "lines that tell of one" 1 "$(grep -c "1 of 3 jobs failed" "$work/first.log")"
check "warnings" 0 "$(grep -ci "warning" "$work/first.log")"
results=$(written result.json)
reasons=$(written failure.txt)

sweep second
check "exit code of the same command again" 1 $?
check "results that are as they were" "yes" "$([ "$results" = "$(written result.json)" ] && echo yes || echo no)"
check "the one that failed has been tried again" "yes" "$([ "$reasons" != "$(written failure.txt)" ] && echo yes || echo no)"
check "processes of Ray left" 0 "$(pgrep --full "$work/ray" | wc -l)"

if ((failed)); then
    tail -n 40 "$work"/*.log >&2
fi
print_seen
exit $failed
