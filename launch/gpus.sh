#!/usr/bin/env bash
# One process on this machine that uses several GPUs: the batch is split over them, and with
# --config.mesh.fsdp=N the state over N of them.
#   bash launch/gpus.sh [--dry-run] --config=configs/vox256.py --workdir=runs/vox256 ...
# GPUS=0,1,2,3 chooses some (default: all), PYTHON an interpreter that has the package with the extra
# gpu. train.batch_size is over all GPUs, so it must be a multiple of their number.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh
read_dry_run "$@"
settings=(JAX_PLATFORMS=cuda)
[ -z "${GPUS:-}" ] || settings+=("CUDA_VISIBLE_DEVICES=$GPUS")
run env "${settings[@]}" "${PYTHON:-python}" -m diffsda_jax.main "${arguments[@]}"
