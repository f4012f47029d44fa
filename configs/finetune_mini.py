"""The bundled miniature's adapter, trained further on your own pictures (docs/scale.md says what the folder holds):

    python train.py --config=configs/finetune_mini.py --workdir=runs/mine --config.train.data.folder=mine
    python sample.py --adapter runs/mine/adapter --image mine/1.png --target teapot --prompt "a teapot on the beach"

This is the training of configs/sdxl.py at a size that a CPU takes: captions use the miniature's words, and pictures
are 128 × 128. notebooks/04_train_on_your_pictures.ipynb does it from Python.
"""

import ml_collections

from realcustom_jax.model_files.locate import ASSETS
from realcustom_jax.model_files.weights import read_config
from realcustom_jax.training.published.config import published_defaults

MINIATURE = ASSETS / "mini"


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.train = published_defaults(
        model=str(MINIATURE), vision="", adapter=str(MINIATURE / "adapter"), dtype="float32", side=128,
        preset=read_config(MINIATURE / "preset.json"))
    config.train.mesh.update(data=-1, fsdp=1)  # so small a model is copied to each device
    config.train.optimization.update(
        steps=100, batch_size=8, learning_rate=3e-4, warmup=10, decay=0.5, ema=0.95, log_every=10, save_every=50,
        sample_every=100, keep_every=0)
    return config
