#!/usr/bin/env bash
# The miniature's stages on one GPU for a few minutes at a time: stages that do not need each other run side by side.
#   docs/launch/side_by_side.sh WORKDIR SECONDS
# After SECONDS it asks whatever still runs to save and stop; run it again on the same WORKDIR to go on. FLAGS are added
# to each call of train.py, e.g. FLAGS="--config.optimization.base.steps=16000".
set -u
workdir=$1
deadline=$(($(date +%s) + $2))
export XLA_PYTHON_CLIENT_PREALLOCATE=false # several processes share the card
mkdir -p "$workdir"

stage() {
  timeout --signal=TERM --kill-after=30 $((deadline - $(date +%s))) \
    python3 train.py --config=configs/mini.py --workdir="$workdir" --config.stage="$1" ${FLAGS:-} >"$workdir/$1.log" 2>&1
  local code=$?
  echo "$1 ended with $code"
  return $code
}

(stage autoencoder && stage base) &
# One process paints the bank, the others find it painted.
until [ -f "$workdir/bank/bank.json" ] || ! kill -0 $! 2>/dev/null; do sleep 1; done
stage judge &
stage encoders &
wait
[ -d "$workdir/bundle/unet" ] && [ -d "$workdir/bundle/image_encoder_dinov2" ] && stage adapter && stage distill
