#!/usr/bin/env bash
# The same command on every host of a TPU VM slice, which JAX finds through the TPU's metadata.
# Usage: TPU=name ZONE=zone launch/tpu.sh [--dry-run] CONFIG WORKDIR [--config.key=value ...]
# FOLDER (default: mixcon) holds the source tree and its .venv on every host; WORKDIR must be seen by all of them.
set -euo pipefail
dry=""
if [ "${1:-}" = --dry-run ]; then dry=yes && shift; fi
if [ $# -lt 2 ] || [ -z "${TPU:-}" ] || [ -z "${ZONE:-}" ]; then
  echo "usage: TPU=name ZONE=zone launch/tpu.sh [--dry-run] CONFIG WORKDIR [--config.key=value ...]" >&2 && exit 2
fi
config=$1 workdir=$2
shift 2
printf -v train '%q ' .venv/bin/mixcon train --config "$config" --workdir "$workdir" --no-progress "$@"
printf -v folder '%q' "${FOLDER:-mixcon}"
command=(gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all --command "cd $folder && exec ${train% }")
if [ -n "$dry" ]; then printf '%q ' "${command[@]}" && echo && exit; fi
exec "${command[@]}"
