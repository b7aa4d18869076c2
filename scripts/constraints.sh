#!/usr/bin/env bash
# Write the exact versions of an environment to constraints/<python>.txt. Usage: scripts/constraints.sh [VENV]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
name=$("$venv/bin/python" -c 'import sys; print("py%d%d" % sys.version_info[:2])')
"$venv/bin/python" -m pip freeze --exclude-editable | grep -E '^[A-Za-z0-9._-]+==' | sed 's/+cpu$//' > "constraints/$name.txt"
echo "wrote constraints/$name.txt ($(wc -l < "constraints/$name.txt") packages)"
