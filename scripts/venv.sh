#!/usr/bin/env bash
# Make a virtual environment with mixcon and the given extras; does nothing when it is up to date.
# Usage: scripts/venv.sh PYTHON VENV EXTRAS     e.g. scripts/venv.sh python3 .venv dev,peers
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 venv=$2 extras=${3:-}
version=$("$python" -c 'import sys; print("py%d%d" % sys.version_info[:2])')
pins="constraints/$version.txt"
stamp="$venv/.installed"
wanted="$version [$extras] $(cat pyproject.toml "$pins" 2>/dev/null | cksum)"
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && exit 0

echo "setting up $venv with $("$python" --version) and mixcon[$extras] (a few minutes the first time)"
"$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --upgrade pip
constraint=()
if [ -f "$pins" ]; then constraint=(--constraint "$pins"); else echo "no $pins: installing the newest versions that fit"; fi
"$venv/bin/python" -m pip install --progress-bar on ${constraint[@]+"${constraint[@]}"} --editable ".${extras:+[$extras]}" \
  | grep --line-buffered -vE '^(Requirement already|Looking in|  (Using|Preparing|Installing|Getting|Checking))' || true
"$venv/bin/python" -c 'import mixcon, jax, flax, optax, orbax.checkpoint, grain' # the pipe above hides pip's exit code
echo "$wanted" > "$stamp"
