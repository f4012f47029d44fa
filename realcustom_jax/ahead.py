"""Programs compiled for a TPU slice that is not there: whether a training step fits, before anyone pays for it.

Nothing is run, and no weight is made: all arrays are shapes.
"""

import dataclasses
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from realcustom_jax import sharding, single_file, weights
from realcustom_jax.adapter import split_unet
from realcustom_jax.arithmetic import flops
from realcustom_jax.choices import check_choice
from realcustom_jax.files import write_json
from realcustom_jax.models.projector import Projector, ProjectorConfig
from realcustom_jax.models.unet import UNet, UNetConfig
from realcustom_jax.sharding import AxisRules
from realcustom_jax.stages.backbone import BackboneLoss
from realcustom_jax.topology import tpu_devices
from realcustom_jax.training import TrainSettings, init_state, make_train_step, place

_TOKENS, _VIEW_TOKENS, _VISION_DIM = 77, 729, 2176  # of CLIP, and of SigLIP and DINOv2 on 384 pixels, side by side
_LAYERS, _PARTS = 4, 4  # layers that the `paper` projector reads, and parts that a reference is split into
_MEMORY = ("arguments", "temporaries", "outputs", "aliased", "together", "state", "frozen")
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8,
          "s64": 8, "u64": 8}


@dataclasses.dataclass(frozen=True)
class AdapterStep:
    """The training step of an adapter on a published model, as shapes: (state, frozen, batch) → (state, metrics).

    unet_config: diffusers' JSON. side: of the pictures, in pixels.
    """

    unet_config: Mapping[str, Any]
    side: int
    settings: TrainSettings

    def function(self, placed: Any):
        """The jitted step, whose state stays where `placed` says."""
        return make_train_step(BackboneLoss(self._unet, self._projector), self.settings, placed)

    @property
    def _unet(self) -> UNet:
        with_vision = {"image_prompt_settings": {"vision_projection_type": "custom"}}
        return UNet(UNetConfig.from_config({**self.unet_config, **with_vision}), jnp.bfloat16)

    @property
    def _projector(self) -> Projector:
        return Projector(ProjectorConfig("paper", _VISION_DIM, self._unet.config.cross_attention_dim), jnp.bfloat16)

    def arguments(self) -> tuple[Any, Any, Any]:
        """Shapes of state (float32), frozen (bfloat16) and batch."""
        config, batch = self._unet.config, self.settings.batch_size

        def array(*shape, dtype=jnp.bfloat16):
            return jax.ShapeDtypeStruct(shape, dtype)

        def cast(tree, dtype):
            return jax.tree.map(lambda x: array(*x.shape, dtype=dtype), tree)

        args, kwargs = weights.unet_inputs(config)
        vision, base = split_unet(weights.parameter_shapes(self._unet, *args, **kwargs))
        features = (*[array(_VIEW_TOKENS, _VISION_DIM)] * _LAYERS, array(_PARTS * _VIEW_TOKENS, _VISION_DIM))
        one = tuple(array(1, *x.shape) for x in features)
        projector = jax.eval_shape(self._projector.init, jax.random.key(0), one)["params"]
        text = {"text": array(_TOKENS, config.cross_attention_dim)}
        if config.addition_embed:
            text["pooled"] = array(config.pooled_dim)
        trained = cast({"projector": projector, "vision": vision}, jnp.float32)
        state = jax.eval_shape(lambda params: init_state(params, self.settings), trained)
        frozen = {"unet": cast(base, jnp.bfloat16), "empty": text, "no_image": features}
        rows = {**text, "features": features,
                "latents": array(self.side // 8, self.side // 8, config.in_channels, dtype=jnp.float32)}
        if config.addition_embed:
            rows["time_ids"] = array(6, dtype=jnp.float32)
        return state, frozen, jax.tree.map(lambda x: array(batch, *x.shape, dtype=x.dtype), rows)


def from_config(config: Mapping[str, Any], topology: str | None) -> tuple[AdapterStep, Mesh]:
    """The step and the mesh of a configuration's `train`, on a TPU slice that is not there or this machine's devices.

    Raises ValueError for a slice that libtpu does not know, or a mesh that does not fit it.
    """
    devices = tpu_devices(topology) if topology else jax.devices()
    check_choice("kind", config["kind"], single_file.CONFIGS)
    settings = TrainSettings(**config["optimization"])
    unet_config = single_file.CONFIGS[config["kind"]]["unet"]
    return AdapterStep(unet_config, config["side"], settings), sharding.make_mesh(**config["mesh"], devices=devices)


def describe(step: AdapterStep, mesh: Mesh, rules: AxisRules = AxisRules()) -> str:
    """Where every array of the state and every frozen one lies, and its bytes on each device."""
    state, frozen, _ = step.arguments()
    placed = [place(tree, mesh, rules) for tree in (state, frozen)]
    return "\n\n".join(sharding.describe(tree, where, title) for tree, where, title in (
        (state.params, placed[0].params, "trained parameters"), (state.opt_state, placed[0].opt_state, "optimizer"),
        (state.ema, placed[0].ema, "averaged parameters"), (frozen, placed[1], "frozen")))


def report(step: AdapterStep, mesh: Mesh, path: str | None) -> None:
    """Compiles, prints what `compile_step` finds and writes it to `path`, whose folder must be there beforehand."""
    if path and not Path(path).absolute().parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: its folder does not exist.")
    found = compile_step(step, mesh)
    if path:
        write_json(Path(path), found)
    for name, value in found.items():
        gib = f"  {value / 2**30:.2f} GiB on a device" if name in _MEMORY else ""
        print(f"{name:26}{value:,}{gib}" if isinstance(value, int) else f"{name:26}{value}")


def compile_step(step: AdapterStep, mesh: Mesh, rules: AxisRules = AxisRules()) -> dict[str, Any]:
    """Compiles the step for the devices of `mesh`; bytes are of one device.

    Raises ValueError where the mesh does not fit, or the step does not fit into the devices' memory.
    """
    state, frozen, batch = step.arguments()
    placed = [place(tree, mesh, rules) for tree in (state, frozen)]
    rows = sharding.batch_sharding(mesh, step.settings.batch_size // step.settings.accumulate, rules)
    placed.append(jax.tree.map(lambda _: rows, batch))
    arguments = [sharding.shapes(tree, where) for tree, where in zip((state, frozen, batch), placed, strict=True)]
    start = time.monotonic()
    with jax.set_mesh(mesh):
        traced = step.function(placed[0]).trace(*arguments)
        lowered = traced.lower()
        lowering = time.monotonic() - start
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise ValueError(f"The step does not fit {mesh.size} devices of kind {mesh.devices.flat[0].device_kind} "
                             f"({str(error).splitlines()[0]}); choose a larger slice, more fsdp or more accumulate.",
                             ) from None
    operations = flops(traced.jaxpr.jaxpr)
    memory = compiled.memory_analysis()
    return {
        "side": step.side, "batch_size": step.settings.batch_size, "mesh": dict(mesh.shape),
        "device": mesh.devices.flat[0].device_kind,
        "arguments": memory.argument_size_in_bytes, "temporaries": memory.temp_size_in_bytes,
        "outputs": memory.output_size_in_bytes, "aliased": memory.alias_size_in_bytes,
        "together": memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
        "state": sharding.bytes_per_device(state, placed[0]),
        "frozen": sharding.bytes_per_device(frozen["unet"], placed[1]["unet"]),
        "flop": operations, "flop_per_device": operations // mesh.size,
        "collectives": collectives(compiled.as_text()),
        "trace_and_lower_seconds": round(lowering, 1), "seconds": round(time.monotonic() - start, 1)}


def collectives(program: str) -> dict[str, Mapping[str, int]]:
    """How many collectives of each kind a compiled program's text holds, and the bytes that they make on a device; one
    in a loop counts once, one in two halves where it is done."""
    found: dict[str, dict[str, int]] = {}
    for shapes, kind in re.findall(rf" = (\S.*?) ({'|'.join(_COLLECTIVES)})(?:-done)?\(", program):
        entry = found.setdefault(kind, {"count": 0, "bytes": 0})
        entry["count"] += 1
        for dtype, sizes in re.findall(r"([a-z]+\d*)\[([\d,]*)\]", shapes):
            entry["bytes"] += _BYTES.get(dtype, 4) * int(np.prod([int(n) for n in sizes.split(",") if n]))
    return found
