"""Writes a trained adapter, or a model's UNet, for torch: `python -m realcustom_jax.model_files.export --help`.

The adapter becomes one file in the released checkpoint's names (projector and `to_*_vision`), which the released torch
code loads with `load_state_dict(…, strict=False)`; a UNet becomes a folder that diffusers reads
(`UNet2DConditionModel`). Values are those of our files, bit for bit.
"""

import argparse
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors.numpy

from realcustom_jax import errors
from realcustom_jax.commands.program import path_option
from realcustom_jax.files import write_file
from realcustom_jax.model_files import bundle, weights
from realcustom_jax.model_files.adapter import adapter_tensors, find_adapter, load_adapter_projector, split_unet
from realcustom_jax.model_files.source import ModelSource

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath


def export_adapter(model: str | Path, adapter: str | Path | None, out: "AnyPath") -> int:
    """Writes an adapter of a model, by default its own, to `out` (`.safetensors`, or `.pth` where torch is installed).

    Returns the number of tensors. Raises ValueError for another ending, or if adapter and model do not fit.
    """
    source = ModelSource.open(model)
    given = find_adapter(adapter) if adapter else source.adapter()
    _, params = source.load_unet(given)
    _, projector = load_adapter_projector(given)
    tensors = adapter_tensors(projector, split_unet(params)[0])
    _write(out, _as_stored(tensors, given.tensors))
    return len(tensors)


def export_unet(model: str | Path, out: "AnyPath") -> int:
    """Writes the model's UNet, without visual attention, as a diffusers folder `out`. Returns the number of tensors."""
    source = ModelSource.open(model)
    config, stored = source.config("unet"), source.tensors("unet")
    config.pop("image_prompt_settings", None)
    tensors = _as_stored(weights.to_torch(weights.load_unet(config, stored)[1]), stored)
    bundle.save_part(out, "unet", config | {"_class_name": "UNet2DConditionModel"}, tensors)
    return len(tensors)


def _as_stored(tensors, stored) -> dict[str, np.ndarray]:
    """In the precision of the files, from which they were widened without loss."""
    return {name: value.astype(stored[name].dtype) for name, value in tensors.items()}


def _write(out: "AnyPath", tensors: dict[str, np.ndarray]) -> None:
    if out.suffix == ".safetensors":
        write_file(out, safetensors.numpy.save(tensors))
    elif out.suffix in (".pth", ".bin"):
        with errors.needs_extra("torch", f"writing {out}", "or write a .safetensors file"):
            import torch
        buffer = io.BytesIO()
        torch.save({name: _tensor(torch, value) for name, value in tensors.items()}, buffer)
        write_file(out, buffer.getvalue())
    else:
        raise ValueError(f"{out}: unknown kind {out.suffix!r}; expected .safetensors, .pth or .bin.")


def _tensor(torch, value: np.ndarray):
    if value.dtype.name == "bfloat16" or value.dtype.name.startswith("float8"):  # of which torch reads the bits alone
        bits = np.dtype(f"uint{8 * value.dtype.itemsize}")
        return torch.from_numpy(value.view(bits).copy()).view(getattr(torch, value.dtype.name))
    return torch.from_numpy(value)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("adapter", "unet"))
    parser.add_argument("--model", default="mini", help="folder, single file, name on the hub, or mini")
    parser.add_argument("--adapter", help="adapter file or folder (the model's own)")
    parser.add_argument("--out", type=path_option, required=True,
                        help="file (.pth, .safetensors) or, of a UNet, folder")
    parser.add_argument("--debug", action="store_true", help="show the traceback of whatever goes wrong")
    options = parser.parse_args(arguments)
    return errors.exit_code(lambda: _export(options), debug=options.debug)


def _export(options: argparse.Namespace) -> None:
    if options.what == "adapter":
        count = export_adapter(options.model, options.adapter, options.out)
    else:
        count = export_unet(options.model, options.out)
    print(f"Wrote {count} tensors to {options.out}")


if __name__ == "__main__":
    sys.exit(main())
