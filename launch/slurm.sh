#!/usr/bin/env bash
#SBATCH --job-name=mixcon
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --output=%x-%j.log
# Usage: sbatch [sbatch options] launch/slurm.sh CONFIG WORKDIR [--config.key=value ...]
set -euo pipefail
config=$1 workdir=$2
shift 2
# `exec` makes mixcon itself receive SIGTERM, upon which it saves and leaves.
exec srun --kill-on-bad-exit=1 "${MIXCON:-.venv/bin/mixcon}" train --config "$config" --workdir "$workdir" --no-progress "$@"
