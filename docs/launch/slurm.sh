#!/usr/bin/env bash
#SBATCH --job-name=realcustom
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@180
# Trains on hosts of 8 GPUs each, one process a host. Before a time limit or a preemption SLURM's SIGTERM saves; the
# job is then put into the queue again, and resumes. So does the same command, submitted again.
#
#   sbatch docs/launch/slurm.sh --config=configs/sdxl.py --workdir=/shared/toys            # two hosts
#   sbatch --nodes=1 docs/launch/slurm.sh --config=configs/sdxl.py --workdir=/shared/toys  # one
#
# Submit it in the checkout, on a disk that all hosts see, with .venv made there:
#   python3 -m venv .venv && .venv/bin/pip install -r requirements.txt 'jax[cuda13]'
set -euo pipefail
[ $# -ge 2 ] || { grep '^#  ' "$0"; exit 2; }
# Within SLURM, JAX would give each process one GPU.
JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((${SLURM_GPUS_ON_NODE:?start this with sbatch} - 1)))
export JAX_LOCAL_DEVICE_IDS
# 75: all have stopped and saved. After another end of one process the others get two minutes, and not none, because
# those that save end one after the other.
code=0
srun --kill-on-bad-exit=0 --wait=120 --cpus-per-task="${SLURM_CPUS_ON_NODE:-1}" \
  .venv/bin/python train.py --distributed "$@" || code=$?
[ "$code" -ne 75 ] || exec scontrol requeue "${SLURM_JOB_ID:?start this with sbatch}"
exit "$code"
