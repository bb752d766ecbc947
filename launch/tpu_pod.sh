#!/usr/bin/env bash
# Runs on every host of a Cloud TPU slice: the processes find each other by the slice's metadata.
#   TPU=my-slice ZONE=us-west4-a bash launch/tpu_pod.sh [--dry-run] --config=configs/vox256.py \
#     --workdir=/shared/runs/vox256 --config.train.batch_size=256 ...
# Before, once (v5litepod-256 is v5e:16x16; v5e:4x4 is v5litepod-16):
#   gcloud compute tpus tpu-vm create my-slice --zone=us-west4-a \
#     --accelerator-type=v5litepod-256 --version=v2-alpha-tpuv5-lite
#   gcloud compute tpus tpu-vm ssh my-slice --zone=us-west4-a --worker=all --command="git clone \
#     REPOSITORY diffsda_jax && cd diffsda_jax && pip install -c constraints.txt -e '.[media,tpu]'"
# TPU, ZONE; PROJECT (gcloud's default), REMOTE_DIR (diffsda_jax), PYTHON (python3) on the hosts. The
# workdir must be on a file system that all hosts see. After a preemption the same command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh
read_dry_run "$@"
needs TPU "the slice's name"
needs ZONE "its zone"
command="cd $(quoted "${REMOTE_DIR:-diffsda_jax}") && $(quoted "${PYTHON:-python3}" -m diffsda_jax.main "${arguments[@]}")"
project=()
[ -z "${PROJECT:-}" ] || project=(--project="$PROJECT")
run gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" ${project[@]+"${project[@]}"} \
  --worker=all --command="$command"
