#!/usr/bin/env bash
# Sets up .venv, trains on Japanese vowels (real speech, in the package), evaluates, and prints the
# table, where the pictures are, and last the path of one page with all of it. WORKDIR names another
# folder than runs/demo; a second call goes on from there, so a finished run is only evaluated again.
#   bash launch/demo.sh [--config.train.num_steps=200 ...]
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh
print_help "$@"
# shellcheck source=launch/setup.sh
source launch/setup.sh
setup_environment media
workdir="${WORKDIR:-runs/demo}"
config=(--config=configs/japanese_vowels.py --workdir="$workdir" "$@")
find_allocator
env ${allocator[@]+"${allocator[@]}"} "$PYTHON" -m diffsda_jax.main "${config[@]}"
echo
echo "pictures and metrics: $workdir/eval"
find "$workdir/eval" -name '*.png' | sort
"$PYTHON" -m diffsda_jax.main "${config[@]}" --mode=report
