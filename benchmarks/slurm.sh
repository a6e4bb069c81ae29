#!/usr/bin/env bash
# Trainings on a SLURM of one node, which this script brings up and takes down again: bash benchmarks/slurm.sh
# What ran, what was expected of it and what was seen come as a table; exit code 1 where they differ. Some five minutes.
# As root, after apt-get install -y --no-install-recommends slurm-wlm munge, with the extra [slurm] installed.
# $SLURM_FOLDER (../shared/slurm) has up.sh, down.sh and a sacct that answers in place of an accounting daemon.
set -u
cd "$(dirname "$0")/.." || exit
slurm=$(realpath "${SLURM_FOLDER:-../shared/slurm}")
work=$(mktemp -d)
chmod 755 "$work"
export PATH="$slurm:$PWD/.venv/bin:$PATH" SLURM_CONF=$work/slurm/slurm.conf OMP_NUM_THREADS=1
take_down() {
    scancel --quiet --state=PENDING,RUNNING --user="$USER" 2> "$work/scancel"
    pids=$(cat "$work"/slurm/*.pid "$work"/slurm/munge/pid 2> "$work/none")
    sleep 2
    bash "$slurm/down.sh" "$work/slurm"
    for pid in $pids; do  # they are no children of ours
        for _ in $(seq 50); do grep --quiet --no-messages "^State:.[^Z]" "/proc/$pid/status" && sleep 0.2; done
    done
    rm -rf "$work"
}
export USER=${USER:-$(id --user --name)}
trap take_down EXIT
trap 'exit 130' INT TERM

. benchmarks/seen.sh
# until it succeeds, five minutes at most
until_true() { for _ in $(seq 600); do "$@" && return; sleep 0.5; done; echo "waited in vain: $*" >&2; return 1; }
count() { find "$1" -name "$2" | wc -l; }
state() { squeue --noheader --states=all --jobs="$1" --format=%T; }
is() { [ "$(state "$1")" = "$2" ]; }
restarts() { scontrol show job "$1" | sed -n 's/.*Restarts=\([0-9]*\).*/\1/p' | head -1; }
all_jobs() { squeue --noheader --states=all --array --format=%A | wc -l; }
# the steps of a run's last checkpoint, and a hash of its weights
weights() {
    python3 - "$1" <<- 'PYTHON'
	import hashlib, sys, torch
	saved = torch.load(f"{sys.argv[1]}/checkpoints/last.ckpt", weights_only=True)
	weights = b"".join(value.numpy().tobytes() for value in saved["state_dict"].values())
	print(saved["global_step"], hashlib.sha256(weights).hexdigest()[:12])
	PYTHON
}
# whether the run in that folder has trained an epoch
begun() { [ "$(find "$1" -name metrics.csv -exec cat {} + 2> "$work/none" | wc -l)" -gt 1 ]; }
# SLURM lets a job that is queued again wait for two minutes; nobody is to wait for that here, but two seconds: begun in
# the second in which it ended, it would be given the credentials that were taken from it
hasten() { until_true is "$1" PENDING && sleep 2 && scontrol update "jobid=$1" starttime=now; }
within_an_epoch() { local step; read -r step _ <<< "$(weights "$1")"; ((step % steps_in_epoch)) && echo yes || echo "no: step $step"; }

small=(data=synthetic data.num_val=40 data.num_test=50 data.batch_size=40 model=resnet_cifar model.depth=8
       "model.widths=[4,4,4]" precision=32-true page=false trainer.max_epochs=3)
short=("${small[@]}" data.num_train=440)
long=("${small[@]}" data.num_train=8040)  # 200 steps an epoch, some five seconds
steps_in_epoch=200
queue=(hydra/launcher=submitit_slurm hydra.launcher.partition=main hydra.launcher.timeout_min=30)
# the script as docs/beyond_one_device.md shows it
sed -n '/^#!\/bin\/bash/,/^```/p' docs/beyond_one_device.md | sed '/^```/d' > "$work/train.sbatch"
preempt() { sbatch --partition=urgent --exclusive --output=/dev/null --wrap="sleep 2" > "$work/none"; }
submit() { sbatch --parsable --output="$1.log" "$work/train.sbatch" "${long[@]}" "output_dir=$1"; }

bash "$slurm/up.sh" "$work/slurm" >&2 || exit

title "a training that nobody disturbs, to compare with"
cifar-train "${long[@]}" "run_dir=$work/reference" > "$work/reference.log" 2>&1
check "exit code" 0 $?
reference=$(weights "$work/reference")

title "a sweep of three jobs: cifar-train -m seed=0,1,2 hydra/launcher=submitit_slurm"
cifar-train -m seed=0,1,2 "${queue[@]}" "${short[@]}" "output_dir=$work/sweep" > "$work/sweep.log" 2>&1
check "exit code" 0 $?
check "runs with a result" 3 "$(count "$work/sweep" result.json)"
check "jobs that SLURM was given" 3 "$(all_jobs)"
cifar-train -m seed=0,1,2 "${queue[@]}" "${short[@]}" "output_dir=$work/sweep" > "$work/sweep.log" 2>&1
check "exit code of the same command again" 0 $?
check "jobs that SLURM was given for it" 0 "$(($(all_jobs) - 3))"

title "one sweep shared by two tasks of one job: srun -n2 cifar-train -m seed=0,1,2,3"
sbatch --wait --ntasks=2 --output="$work/shared.log" \
    --wrap="srun -n2 --label cifar-train -m seed=0,1,2,3 ${long[*]@Q} output_dir=$work/shared" > "$work/none"
check "exit code" 0 $?
check "runs with a result" 4 "$(count "$work/shared" result.json)"
check "trainings begun" 4 "$(grep -c "epoch      train loss" "$work/shared.log")"
check "tasks that trained" 2 "$(sed -n 's/^\([01]\):.*epoch      train loss.*/\1/p' "$work/shared.log" | sort -u | wc -l)"

title "pre-emption: a job of the partition 'urgent' takes the place of one that submitit queued"
cifar-train -m seed=0 "${queue[@]}" "${long[@]}" "output_dir=$work/preempted" > "$work/preempted.log" 2>&1 &
sweep=$!
until_true begun "$work/preempted"
run=$(echo "$work"/preempted/train/*/run)
job=$(squeue --noheader --array --format=%A --partition=main | head -1)
sleep 1
preempt
hasten "$job"
check "stopped within an epoch, and saved" yes "$(within_an_epoch "$run")"
wait $sweep
check "exit code of the command that waits for it" 0 $?
check "times that SLURM began it anew" 1 "$(restarts "$job")"
check "steps and weights, compared with the undisturbed one" "$reference" "$(weights "$run")"

# a plain sbatch script, disturbed in its second epoch: by what, how, the state in the end and how often SLURM began it
disturb() {
    local what=$1 how=$2 expected=$3 job run
    title "$what"
    job=$(submit "$work/$how")
    until_true begun "$work/$how"
    run=$(echo "$work/$how"/train/*)
    sleep 1
    "$how" "$job"
    if [ "$how" = cancel ]; then until_true is "$job" CANCELLED; else hasten "$job"; fi
    check "stopped within an epoch, and saved" yes "$(within_an_epoch "$run")"
    if [ "$how" = cancel ]; then sleep 3; else until_true is "$job" COMPLETED; fi
    check "state in the end, times begun anew" "$expected" "$(state "$job") $(restarts "$job")"
    [ "$how" = cancel ] && until_true is "$(submit "$work/$how")" COMPLETED
    check "steps and weights, compared with the undisturbed one" "$reference" "$(weights "$run")"
}
warn() { scancel --signal=USR1 "$1"; }
requeue() { scontrol requeue "$1"; }
cancel() { scancel "$1"; }
disturb "an sbatch script, pre-empted" preempt "COMPLETED 1"
disturb "an sbatch script, warned by SIGUSR1, as --signal=USR1@60 does a minute before the time limit" warn "COMPLETED 1"
disturb "an sbatch script, queued again by scontrol requeue" requeue "COMPLETED 1"
disturb "an sbatch script, ended by scancel; then submitted again" cancel "CANCELLED 0"

title "two processes train one network: srun -n2 cifar-train trainer.devices=2 trainer.strategy=ddp"
sbatch --wait --ntasks=2 --output="$work/ddp.log" \
    --wrap="srun -n2 cifar-train trainer.devices=2 trainer.strategy=ddp ${short[*]@Q} output_dir=$work/ddp" > "$work/none"
check "exit code" 0 $?
check "run folders" 1 "$(count "$work/ddp" config.yaml)"
check "records" 1 "$(count "$work/ddp" result.json)"
check "summaries told" 1 "$(grep -c "look next" "$work/ddp.log")"
check "warnings" 0 "$(grep -ci warn "$work/ddp.log")"

((failed)) && cp "$work"/*.log "${LOGS:-/tmp}" && echo "the commands' output is in ${LOGS:-/tmp}" >&2
print_seen
exit $failed
