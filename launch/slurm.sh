#!/usr/bin/env bash
# Submits a run to Slurm: a process for each GPU of each node, which find each other by Slurm's
# variables.
#   NODES=2 GPUS_PER_NODE=8 bash launch/slurm.sh [--dry-run] --config=configs/vox256.py \
#     --workdir=/shared/runs/vox256 ...
# NODES (1), GPUS_PER_NODE (8), CPUS_PER_GPU (8), TIME_LIMIT (24:00:00), JOB_NAME (diffsda), PYTHON (an
# interpreter that all nodes see), SBATCH_ARGS (more options, such as "--partition=gpu --account=me").
# The workdir must be on a file system that all nodes see. Five minutes before the time is over
# the run is told to save and stop; submit the same again, and it goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh
read_dry_run "$@"
gpus="${GPUS_PER_NODE:-8}"
# All GPUs of a node are visible to all of its tasks; JAX gives each task the one of its number.
options=(
  --job-name="${JOB_NAME:-diffsda}" --nodes="${NODES:-1}" --ntasks-per-node="$gpus"
  --gres=gpu:"$gpus" --cpus-per-task="${CPUS_PER_GPU:-8}" --time="${TIME_LIMIT:-24:00:00}"
  --signal=TERM@300 --open-mode=append --output="${JOB_NAME:-diffsda}-%j.log"
)
read -r -a more <<< "${SBATCH_ARGS:-}"
command="srun --kill-on-bad-exit=1 $(quoted "${PYTHON:-python}" -m diffsda_jax.main "${arguments[@]}")"
run sbatch "${options[@]}" ${more[@]+"${more[@]}"} --wrap="$command"
