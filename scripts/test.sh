#!/usr/bin/env bash
# Install and test on one Python. Usage: scripts/test.sh [PYTHON] [VENV] [EXTRAS] [pytest arguments...]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3} venv=${2:-.venv} extras=${3:-dev,peers}
shift $(($# < 3 ? $# : 3))
bash scripts/venv.sh "$python" "$venv" "$extras"
exec "$venv/bin/python" -m pytest "$@"
