#!/usr/bin/env bash
#SBATCH --job-name=mixcon
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --output=%x-%j.log
# One process a node. Usage: sbatch [sbatch options] launch/slurm.sh [--dry-run] CONFIG WORKDIR [--config.key=value ...]
set -euo pipefail
dry=""
if [ "${1:-}" = --dry-run ]; then dry=yes && shift; fi
if [ $# -lt 2 ]; then echo "usage: sbatch launch/slurm.sh [--dry-run] CONFIG WORKDIR [--config.key=value ...]" >&2 && exit 2; fi
config=$1 workdir=$2
shift 2
# JAX gives each task of SLURM one GPU. With one task a node that task drives all of the node's.
if [ "${SLURM_NTASKS_PER_NODE:-1}" = 1 ] && [ -n "${SLURM_GPUS_ON_NODE:-}" ]; then
  JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))
  export JAX_LOCAL_DEVICE_IDS
fi
command=(srun --kill-on-bad-exit=1 "${MIXCON:-.venv/bin/mixcon}" train --config "$config" --workdir "$workdir" --no-progress "$@")
if [ -n "$dry" ]; then
  [ -z "${JAX_LOCAL_DEVICE_IDS:-}" ] || printf 'JAX_LOCAL_DEVICE_IDS=%s ' "$JAX_LOCAL_DEVICE_IDS"
  printf '%q ' "${command[@]}" && echo && exit
fi
# SLURM sends SIGTERM to the tasks themselves, upon which they save and leave with 0.
code=0
"${command[@]}" || code=$?
# A task that was killed (128 and the signal) or that lost another (75): once more, from the last complete checkpoint.
if { [ "$code" = 75 ] || [ "$code" -gt 128 ]; } && [ "${SLURM_RESTART_COUNT:-0}" -lt "${MAX_RESTARTS:-10}" ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
