#!/usr/bin/env bash
# One process on this machine, with all of its devices of one kind, or one of them.
#   bash launch/local.sh [--dry-run] --config=configs/digits.py --workdir=runs/digits ...
# DEVICE=cpu, cuda or tpu chooses the kind (default: the best that JAX finds), GPU=0 one GPU, PYTHON
# an interpreter that has the package. The same command again resumes the run. Where jemalloc is
# installed (libjemalloc2 of Debian), memory comes from it, unless DEVICE or GPU names something other
# than the CPU, or LD_PRELOAD or MALLOC_CONF is set.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh
read_dry_run "$@"
settings=() allocator=()
[ -z "${DEVICE:-}" ] || settings+=("JAX_PLATFORMS=$DEVICE")
[ -z "${GPU:-}" ] || settings+=("CUDA_VISIBLE_DEVICES=$GPU")
[ "${DEVICE:-cpu}${GPU:-}" != "cpu" ] || find_allocator
settings+=(${allocator[@]+"${allocator[@]}"})
run env ${settings[@]+"${settings[@]}"} "${PYTHON:-python}" -m diffsda_jax.main "${arguments[@]}"
