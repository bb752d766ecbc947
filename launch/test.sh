#!/usr/bin/env bash
# Sets up .venv and runs the checks.
#   bash launch/test.sh            everything but the slow tests
#   bash launch/test.sh slow       the slow tests (kill -9 and resume, a trained judge; minutes each)
#   bash launch/test.sh faults     kills, damaged files and mutated configs, and a table of what passed
#                                  (--kills=5 --configs=20 --media=20 for fewer of them)
#   bash launch/test.sh coverage   everything but the slow tests, measured: fails below 90 % of lines
#   bash launch/test.sh types      mypy
#   bash launch/test.sh ARGS...    passes ARGS to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh
print_help "$@"
# shellcheck source=launch/setup.sh
source launch/setup.sh
setup_environment media,test
# A file goes to one worker, which shares its compiled fixtures; more than four need much memory.
# The order is that of tests/conftest.py: long files first, and not those of many tests.
cores="$(getconf _NPROCESSORS_ONLN)"
workers=(--dist loadfile --no-loadscope-reorder --numprocesses "$((cores < 4 ? cores : 4))")
if [ "${1:-}" = "slow" ] || [ "${1:-}" = "faults" ]; then
  export JAX_DISABLE_MOST_OPTIMIZATIONS=false # programs as users have them
fi
if [ "${1:-}" = "slow" ]; then
  exec "$PYTHON" -m pytest -m slow --ignore=tests/faults "${@:2}"
fi
if [ "${1:-}" = "faults" ]; then
  exec "$PYTHON" -m pytest -m slow tests/faults "${@:2}"
fi
if [ "${1:-}" = "types" ]; then
  exec "$PYTHON" -m mypy "${@:2}"
fi
if [ "${1:-}" = "coverage" ]; then
  exec "$PYTHON" -m pytest "${workers[@]}" --cov --cov-report=term --cov-report=json:.cache/coverage/report.json "${@:2}"
fi
if [ "$#" -eq 0 ]; then
  "$PYTHON" -m ruff format --check .
  "$PYTHON" -m ruff check .
  "$PYTHON" -m mypy
  exec "$PYTHON" -m pytest "${workers[@]}"
fi
exec "$PYTHON" -m pytest "$@"
