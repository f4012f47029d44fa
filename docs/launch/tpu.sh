#!/usr/bin/env bash
# Makes a TPU slice if there is none of that name, puts this checkout, as committed, on all of its hosts and trains
# there. Call it again after any stop: what is there is kept, and training resumes.
#
#   ZONE=us-west4-a docs/launch/tpu.sh rc16 v5litepod-16 --config=configs/sdxl.py --workdir=/mnt/shared/toys
#   ZONE=us-west4-a docs/launch/tpu.sh rc256 v5litepod-256 --config=configs/sdxl.py --workdir=/mnt/shared/toys \
#       --config.train.optimization.batch_size=256 --config.train.mesh.data=16 --config.train.mesh.fsdp=16
#
# The workdir, the pictures and the model must lie on a disk that all hosts have mounted (Filestore, gcsfuse).
# The hosts' own Python is too old: uv brings another. ZONE: of Google Cloud. VERSION: of the hosts' software
# (v2-alpha-tpuv5-lite).
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,/^set/p' "$0" | grep '^#'; exit 2; }
name=$1 type=$2 zone=${ZONE:?the zone of Google Cloud is wanted, as ZONE=us-west4-a}
shift 2
cd "$(dirname "$0")/../.."

vm() { gcloud compute tpus tpu-vm "$1" "$name" --zone="$zone" "${@:2}"; }

vm describe >/dev/null 2>&1 ||
  vm create --accelerator-type="$type" --version="${VERSION:-v2-alpha-tpuv5-lite}"
code=$(mktemp) && trap 'rm -f "$code"' EXIT
git archive --format=tar.gz --output="$code" HEAD
gcloud compute tpus tpu-vm scp "$code" "$name:realcustom.tar.gz" --zone="$zone" --worker=all
vm ssh --worker=all --command="
  set -e
  mkdir -p realcustom && tar xzf realcustom.tar.gz -C realcustom && cd realcustom
  [ -x ~/.local/bin/uv ] || curl -LsSf https://astral.sh/uv/install.sh | sh
  [ -d .venv ] || ~/.local/bin/uv venv -q --python 3.12 .venv
  ~/.local/bin/uv pip install -q --python .venv/bin/python -r requirements.txt 'jax[tpu]'
  .venv/bin/python train.py --distributed $(printf '%q ' "$@")"
