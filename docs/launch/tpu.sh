#!/usr/bin/env bash
# Makes a TPU slice if there is none of that name, puts this checkout, as committed, on all of its hosts and trains
# there. After a stop that saved (exit code 75, as before maintenance) it begins again and training resumes; after any
# other stop call it again. A spot slice that was taken away has to be asked for anew: with QUEUED=1 the slice is a
# queued resource, for which this waits each time.
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
version=${VERSION:-v2-alpha-tpuv5-lite}
shift 2
cd "$(dirname "$0")/../.."

vm() { gcloud compute tpus tpu-vm "$1" "$name" --zone="$zone" "${@:2}"; }

queued() { gcloud compute tpus queued-resources "$1" "$name" --zone="$zone" "${@:2}"; }

ready() { [ "$(vm describe --format='value(state)' 2>/dev/null)" = READY ]; }

# Makes the slice, where there is none.
make() {
  if [ -z "${QUEUED:-}" ]; then
    vm describe >/dev/null 2>&1 || vm create --accelerator-type="$type" --version="$version"
  elif ! ready; then
    queued delete --force --quiet >/dev/null 2>&1 || true # what lost its slice comes to nothing any more
    queued create --node-id="$name" --accelerator-type="$type" --runtime-version="$version" --spot
    until ready; do sleep "${POLL:-60}"; done
  fi
}

train() {
  gcloud compute tpus tpu-vm scp "$code" "$name:realcustom.tar.gz" --zone="$zone" --worker=all &&
    vm ssh --worker=all --command="
  set -e
  mkdir -p realcustom && tar xzf realcustom.tar.gz -C realcustom && cd realcustom
  [ -x ~/.local/bin/uv ] || curl -LsSf https://astral.sh/uv/install.sh | sh
  [ -d .venv ] || ~/.local/bin/uv venv -q --python 3.12 .venv
  ~/.local/bin/uv pip install -q --python .venv/bin/python -r requirements.txt 'jax[tpu]'
  .venv/bin/python train.py --distributed $(printf '%q ' "$@")"
}

code=$(mktemp) && trap 'rm -f "$code"' EXIT
git archive --format=tar.gz --output="$code" HEAD
while :; do
  make
  status=0
  train "$@" || status=$?
  # 75: stopped and saved. A spot slice may be gone before anybody could say so.
  [ "$status" -eq 75 ] || { [ "$status" -ne 0 ] && [ -n "${QUEUED:-}" ] && ! ready; } || exit "$status"
done
