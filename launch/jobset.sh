#!/usr/bin/env bash
# Runs on a TPU slice of Google Kubernetes Engine as a JobSet (the cluster needs its controller, see
# https://jobset.sigs.k8s.io): fills launch/jobset.yaml.template and applies it. GKE tells the pods
# of each other.
#   IMAGE=REGISTRY/diffsda_jax:1 TOPOLOGY=16x16 bash launch/jobset.sh [--dry-run] \
#     --config=configs/vox256.py --workdir=/shared/runs/vox256 --config.train.batch_size=256 ...
# IMAGE has the package with the extra tpu, and configs/ in its working folder. TOPOLOGY (4x4),
# ACCELERATOR (tpu-v5-lite-podslice, which is v5e; tpu-v6e-slice, tpu-v5p-slice, tpu-v4-podslice),
# CHIPS_PER_POD (4), NAME (diffsda), CLAIM (shared: a volume claim of access mode ReadWriteMany, which
# appears as /shared), RESTARTS (10: after a failure or preemption the run resumes).
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh
read_dry_run "$@"
needs IMAGE "the container image"
topology="${TOPOLOGY:-4x4}" chips_per_pod="${CHIPS_PER_POD:-4}"
if ! [[ "$topology" =~ ^[0-9]+(x[0-9]+){1,2}$ ]] || ((${topology//x/*} % chips_per_pod)); then
  echo "error: TOPOLOGY is $topology and CHIPS_PER_POD $chips_per_pod; give a shape such as 16x16" \
    "whose chips are a multiple of those of a pod" >&2
  exit 2
fi
args=""
for word in "${arguments[@]}"; do
  word="${word//\\/\\\\}"
  args+="${args:+, }\"${word//\"/\\\"}\""
done
manifest="$(< launch/jobset.yaml.template)"
fill() { manifest="${manifest//"@$1@"/"$2"}"; }
fill NAME "${NAME:-diffsda}"
fill PODS "$((${topology//x/*} / chips_per_pod))"
fill CHIPS_PER_POD "$chips_per_pod"
fill ACCELERATOR "${ACCELERATOR:-tpu-v5-lite-podslice}"
fill TOPOLOGY "$topology"
fill IMAGE "$IMAGE"
fill CLAIM "${CLAIM:-shared}"
fill RESTARTS "${RESTARTS:-10}"
fill ARGS "$args"
if [ -n "${DRY_RUN:-}" ]; then
  echo "$manifest"
else
  kubectl apply -f - <<< "$manifest"
fi
