#!/usr/bin/env bash
# One process on each of several boxes, each driving all of its box's GPUs.
# Usage: HOSTS="box0 box1" launch/ssh.sh [--dry-run] CONFIG WORKDIR [--config.key=value ...]
# FOLDER (default: mixcon) holds the source tree and its .venv on every box; WORKDIR must be seen by all of them, and
# the boxes must reach each other on all ports. PORT (default: 9999) is where process 0 listens.
set -euo pipefail
dry=""
if [ "${1:-}" = --dry-run ]; then dry=yes && shift; fi
if [ $# -lt 2 ] || [ -z "${HOSTS:-}" ]; then
  echo 'usage: HOSTS="box0 box1" launch/ssh.sh [--dry-run] CONFIG WORKDIR [--config.key=value ...]' >&2 && exit 2
fi
config=$1 workdir=$2
shift 2
read -ra hosts <<<"$HOSTS"
printf -v train '%q ' .venv/bin/mixcon train --config "$config" --workdir "$workdir" --no-progress "$@"
printf -v folder '%q' "${FOLDER:-mixcon}"

lines=() number=0
for host in "${hosts[@]}"; do
  place="--coordinator=${hosts[0]#*@}:${PORT:-9999} --processes=${#hosts[@]} --process=$number"
  # The far shell lets mixcon save when this end goes away: sshd then sends SIGHUP. It waits twice: a signal ends a wait.
  remote="cd $folder || exit; trap 'kill -TERM \$train' HUP INT TERM; $train$place & train=\$!; wait \$train; wait \$train"
  command=(ssh -tt "$host" "$remote")
  number=$((number + 1))
  if [ -n "$dry" ]; then
    printf '%q ' "${command[@]}" && echo
  else
    "${command[@]}" </dev/null &
    lines+=($!)
  fi
done
[ -z "$dry" ] || exit 0
trap 'kill "${lines[@]}" 2>/dev/null' INT TERM
worst=0
for line in "${lines[@]}"; do
  code=0
  wait "$line" || code=$?
  if [ "$code" -gt "$worst" ]; then worst=$code; fi
done
exit "$worst"
