"""A folder beside a trained miniature, in which its adapter is trained another way."""

import shutil
from pathlib import Path

from realcustom_jax.model_files.locate import ASSETS


def branch(workdir: Path, place: Path, cache: Path) -> Path:
    """Makes `place`, unless it is there: with the data of `workdir`, a copy of its bundle (without one, of the bundled
    miniature), and latents in `cache`, which serve all that train on the same autoencoder."""
    place.mkdir(parents=True, exist_ok=True)
    for name, shared in (("data", workdir / "data"), ("cache", cache)):
        shared.mkdir(parents=True, exist_ok=True)
        if not (place / name).exists():
            (place / name).symlink_to(shared.absolute())
    trained = workdir / "bundle"
    if not (place / "bundle" / "model_index.json").is_file():
        shutil.copytree(trained if trained.is_dir() else ASSETS / "mini", place / "bundle", dirs_exist_ok=True)
    return place
