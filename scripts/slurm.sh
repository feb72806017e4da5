#!/usr/bin/env bash
# Train on one node or many under SLURM, one process for each GPU, and go on after every interruption.
#
#   sbatch --nodes 2 --gpus-per-node 8 --ntasks-per-node 8 scripts/slurm.sh configs/owt_16step.yaml
#
# Everything behind the configuration goes to `idlm fit`. Once is enough: the job asks for itself
# again when its time is up and when it is preempted, and continues from the last checkpoint.
#SBATCH --job-name=idlm
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=idlm-%j.out
#SBATCH --signal=B:USR1@300
set -euo pipefail

# sbatch runs a copy of this file, so the checkout is where the job was submitted, or IDLM_ROOT.
root="${IDLM_ROOT:-${SLURM_SUBMIT_DIR:-$PWD}}"
idlm="${IDLM:-$root/.venv/bin/idlm}"

if [ "$#" -eq 0 ] || [ ! -f "$1" ]; then
    echo "slurm: give a configuration first, for instance configs/owt_16step.yaml, not '${1:-}'" >&2
    exit 2
fi
if [ -z "${SLURM_JOB_ID:-}" ]; then
    echo "slurm: this is no SLURM job; submit it with sbatch scripts/slurm.sh $1" >&2
    exit 2
fi
config="$1"
shift

# The folder of the run: RUN, or what configurations and options say last.
_values() { # of a key in a YAML file, where each stands on a line of its own
    sed -n "s/^[-[:space:]]*[\"']\{0,1\}$1[\"']\{0,1\}[[:space:]]*:[[:space:]]*//p" "$2" |
        sed "s/^[\"']\([^\"']*\).*/\1/; s/[[:space:]]*#.*//; s/[[:space:],]*$//; /^null$/d; /^$/d"
}
run="."
configs=()
_read() { # an option and its value
    case "$1" in
    -c | --config)
        if [ -f "$2" ]; then
            configs+=("$2")
            local named
            named="$(_values default_root_dir "$2" | sed -n 1p)"
            run="${named:-$run}"
        fi
        ;;
    --trainer.default_root_dir) run="$2" ;;
    esac
}
_read --config "$config"
before=""
for word in "$@"; do
    case "$word" in
    -*=*) _read "${word%%=*}" "${word#*=}" ;;
    *) _read "$before" "$word" ;;
    esac
    before="$word"
done

# Its checkpoints: in `checkpoints` there, or where a configuration keeps them, which may name the
# folder of the run or stay elsewhere although that was changed on the line. last.previous.ckpt is
# all there is of a run that was killed while one file replaced the other; for a last.ckpt that is
# damaged the program itself takes another one.
folders=("${RUN:-$run}/checkpoints")
# shellcheck disable=SC2016 # the text itself
root_of_run='${trainer.default_root_dir}'
if [ -z "${RUN:-}" ]; then
    for file in "${configs[@]}"; do
        while read -r folder; do
            case "$folder" in
            "$root_of_run"*) folder="$run${folder#"$root_of_run"}" ;;
            esac
            folders+=("$folder")
        done < <(_values dirpath "$file")
    done
fi
last=""
for folder in "${folders[@]}"; do
    for name in last.ckpt last.previous.ckpt; do
        if [ -z "$last" ] && [ -e "$folder/$name" ]; then last="$folder/$name"; fi
    done
done

arguments=(
    --config "$config"
    --trainer.num_nodes "$SLURM_NNODES"
    --trainer.devices "${SLURM_NTASKS_PER_NODE:-1}"
    # Lightning's own requeueing writes a second kind of checkpoint, which it then always prefers,
    # also when last.ckpt is the newer one. Here there is one kind.
    --trainer.plugins '[{"class_path": "lightning.pytorch.plugins.environments.SLURMEnvironment", "init_args": {"auto_requeue": false}}]'
    "$@"
)
if [ -n "$last" ]; then
    echo "slurm: continuing from $last"
    arguments+=(--ckpt_path "$last")
fi

# Five minutes before the end: let the run save and stop, then ask for the job again. A preempted
# job gets SIGTERM from SLURM itself, which also puts it back into the queue (--requeue).
time_is_up=""
_stop() {
    time_is_up=yes
    echo "slurm: time is up; stopping the run"
    # to the tasks of the step; srun itself would kill them if it got SIGTERM
    scancel --signal=TERM "$SLURM_JOB_ID.0" || true
}
trap _stop USR1

srun --kill-on-bad-exit=1 "$idlm" fit "${arguments[@]}" &
step=$!
status=0
wait "$step" || status=$?
# a signal interrupts `wait`, not the run
while kill -0 "$step" 2>/dev/null; do
    status=0
    wait "$step" || status=$?
done

if [ -n "$time_is_up" ]; then
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$status"
