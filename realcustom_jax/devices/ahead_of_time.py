"""Programs compiled for a TPU slice that is not there: whether a training step fits, before anyone pays for it.

Nothing is run, and no weight is made: all arrays are shapes.
"""

import dataclasses
import functools
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from realcustom_jax.choices import check_choice
from realcustom_jax.devices import sharding
from realcustom_jax.devices.operations import flops
from realcustom_jax.devices.sharding import AxisRules
from realcustom_jax.devices.topology import tpu_devices
from realcustom_jax.files import write_json
from realcustom_jax.memory import enough_memory
from realcustom_jax.model_files import single_file, weights
from realcustom_jax.model_files.adapter import split_unet
from realcustom_jax.models.projector import Projector, ProjectorConfig
from realcustom_jax.models.unet import UNet, UNetConfig
from realcustom_jax.sampling.sampler import Conditioning, sample_latents
from realcustom_jax.sampling.solvers import make_solver
from realcustom_jax.training.loop import TrainSettings, init_state, make_train_step, place
from realcustom_jax.training.published.backbone import BackboneLoss

_TOKENS, _VIEW_TOKENS, _VISION_DIM = 77, 729, 2176  # of CLIP, and of SigLIP and DINOv2 on 384 pixels, side by side
_PARTS = 4  # that a reference is split into
PROGRAMS = ("step", "sampler")
_MEMORY = ("arguments", "temporaries", "outputs", "aliased", "together")
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8,
          "s64": 8, "u64": 8}


class Program(Protocol):
    """What can be compiled ahead of time: a function of trees of parameters and, last, of a batch."""

    parameters: tuple[str, ...]
    """What the arguments before the batch are called in a report."""

    side: int
    batch_size: int

    rows: int
    """How many of a batch are computed at once."""

    def arguments(self) -> tuple[Any, ...]:
        """Shapes."""

    def function(self, placed: Sequence[Any]) -> Callable:
        """The jitted function; `placed` are the shardings of its parameters."""


@dataclasses.dataclass(frozen=True)
class AdapterStep:
    """The training step of an adapter on a published model, from precomputed features, as shapes:
    (state, frozen, batch) → (state, metrics).

    unet_config: diffusers' JSON. side: of the pictures, in pixels. variant: of the projector. layers: of the image
    encoders, that a projector with structure reads.
    """

    unet_config: Mapping[str, Any]
    side: int
    settings: TrainSettings
    variant: str = "paper"
    layers: int = 4
    parameters = ("state", "frozen")

    @property
    def batch_size(self) -> int:
        return self.settings.batch_size

    @property
    def rows(self) -> int:
        return self.settings.batch_size // self.settings.accumulate

    def function(self, placed):
        """The jitted step, whose state stays where it is placed."""
        return make_train_step(BackboneLoss(self._unet, self._projector), self.settings, placed[0])

    @property
    def _unet(self) -> UNet:
        return _unet(self.unet_config)

    @property
    def _projector(self) -> Projector:
        width = self._unet.config.cross_attention_dim
        return Projector(ProjectorConfig(self.variant, _VISION_DIM, width), jnp.bfloat16)

    @property
    def vision_tokens(self) -> int:
        """Tokens that the projector makes of a reference."""
        return _VIEW_TOKENS * (2 if self._projector.config.with_structure else 1)

    def arguments(self) -> tuple[Any, Any, Any]:
        """Shapes of state (float32), frozen (bfloat16) and batch."""
        config = self._unet.config
        vision, base = split_unet(_unet_shapes(self._unet))
        layers = self.layers if self._projector.config.with_structure else 1
        features = (*[_array(_VIEW_TOKENS, _VISION_DIM)] * layers, _array(_PARTS * _VIEW_TOKENS, _VISION_DIM))
        projector = jax.eval_shape(self._projector.init, jax.random.key(0), _rows(features, 1))["params"]
        text = {"text": _array(_TOKENS, config.cross_attention_dim)}
        if config.addition_embed:
            text["pooled"] = _array(config.pooled_dim)
        trained = _cast({"projector": projector, "vision": vision}, jnp.float32)
        state = jax.eval_shape(lambda params: init_state(params, self.settings), trained)
        frozen = {"unet": _cast(base, jnp.bfloat16), "empty": text, "no_image": features}
        batch = {**text, "features": features,
                 "latents": _array(self.side // 8, self.side // 8, config.in_channels, dtype=jnp.float32)}
        if config.addition_embed:
            batch["time_ids"] = _array(6, dtype=jnp.float32)
        return state, frozen, _rows(batch, self.batch_size)


@dataclasses.dataclass(frozen=True)
class Sampler:
    """The whole fused sampler of a published model, 25 steps with the mask frozen at the 12th and one reference, as
    shapes: (UNet's parameters, (noise, positive, negative, target)) → latents.

    vision_tokens: of a reference; by default the released projector's.
    """

    unet_config: Mapping[str, Any]
    side: int
    batch_size: int = 1
    vision_tokens: int = _VIEW_TOKENS
    parameters = ("frozen",)

    @property
    def rows(self) -> int:
        return self.batch_size

    def function(self, placed):
        unet = _unet(self.unet_config)
        return jax.jit(lambda params, inputs: sample_latents(unet, params, *inputs, solver=make_solver()).latents)

    def arguments(self) -> tuple[Any, Any]:
        """Shapes of the parameters (bfloat16) and inputs (float32)."""
        unet = _unet(self.unet_config)
        config, array = unet.config, functools.partial(_array, dtype=jnp.float32)
        width = config.cross_attention_dim
        pooled = {"pooled": array(config.pooled_dim), "time_ids": array(6)} if config.addition_embed else {}
        conditioning = Conditioning(array(_TOKENS, width), vision=array(1, self.vision_tokens, width), **pooled)
        noise = array(self.side // 8, self.side // 8, config.in_channels)
        inputs = noise, conditioning, conditioning, array(1, _TOKENS)
        return _cast(_unet_shapes(unet), jnp.bfloat16), _rows(inputs, self.batch_size)


def _unet(config: Mapping[str, Any]) -> UNet:
    with_vision = {"image_prompt_settings": {"vision_projection_type": "custom"}}
    return UNet(UNetConfig.from_config({**config, **with_vision}), jnp.bfloat16)


def _unet_shapes(unet: UNet):
    args, kwargs = weights.unet_inputs(unet.config)
    return weights.parameter_shapes(unet, *args, **kwargs)


def _array(*shape: int, dtype=jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _cast(tree, dtype):
    return jax.tree.map(lambda x: _array(*x.shape, dtype=dtype), tree)


def _rows(tree, count: int):
    """Shapes of `count` of each."""
    return jax.tree.map(lambda x: _array(count, *x.shape, dtype=x.dtype), tree)


def from_config(config: Mapping[str, Any], topology: str | None, program: str = "step") -> tuple[Program, Mesh]:
    """The "step" of training or the "sampler" of a configuration's `train`, and its mesh, on a TPU slice that is not
    there or this machine's devices.

    Raises ValueError for a slice that libtpu does not know, or a mesh that does not fit it.
    """
    devices = tpu_devices(topology) if topology else jax.devices()
    check_choice("kind", config["kind"], single_file.CONFIGS)
    check_choice("program", program, PROGRAMS)
    settings = TrainSettings(**config["optimization"])
    unet_config = single_file.CONFIGS[config["kind"]]["unet"]
    mesh = sharding.make_mesh(**config["mesh"], devices=devices)
    variant, layers = config["fresh"]["variant"], len(config["fresh"]["vision_settings"]["siglip_layers"])
    step = AdapterStep(unet_config, config["side"], settings, variant, layers)
    if program == "step":
        return step, mesh
    return Sampler(unet_config, step.side, step.batch_size, step.vision_tokens), mesh


def describe(program: Program, mesh: Mesh, rules: AxisRules = AxisRules()) -> str:
    """Where every parameter lies, and its bytes on each device."""
    *parameters, _ = program.arguments()
    parts = dict(zip(program.parameters, parameters, strict=True))
    if state := parts.pop("state", None):
        parts = {"trained parameters": state.params, "optimizer": state.opt_state,
                 "averaged parameters": state.ema} | parts
    return "\n\n".join(sharding.describe(tree, place(tree, mesh, rules), title) for title, tree in parts.items())


def report(program: Program, mesh: Mesh, path: str | None) -> None:
    """Compiles, prints what `compile_ahead` finds and writes it to `path`, whose folder must be there beforehand."""
    if path and not Path(path).absolute().parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: its folder does not exist.")
    found = compile_ahead(program, mesh)
    if path:
        write_json(Path(path), found)
    for name, value in found.items():
        gib = f"  {value / 2**30:.2f} GiB on a device" if name in (*_MEMORY, *program.parameters) else ""
        print(f"{name:26}{value:,}{gib}" if isinstance(value, int) else f"{name:26}{value}")


def compile_ahead(program: Program, mesh: Mesh, rules: AxisRules = AxisRules()) -> dict[str, Any]:
    """Compiles a program for the devices of `mesh`; bytes are of one device.

    Raises ValueError where the mesh does not fit, or the program does not fit into the devices' memory.
    """
    *parameters, batch = program.arguments()
    placed = [place(tree, mesh, rules) for tree in parameters]
    rows = sharding.batch_sharding(mesh, program.rows, rules)
    arguments = [sharding.shapes(tree, where) for tree, where in zip(
        (*parameters, batch), (*placed, jax.tree.map(lambda _: rows, batch)), strict=True)]
    start = time.monotonic()
    with jax.set_mesh(mesh):
        traced = program.function(placed).trace(*arguments)
        lowered = traced.lower()
        lowering = time.monotonic() - start
        with enough_memory(f"the program does not fit {mesh.size} devices of kind "
                           f"{mesh.devices.flat[0].device_kind}; choose a larger slice, more fsdp or more accumulate"):
            compiled = lowered.compile()
    operations = flops(traced.jaxpr.jaxpr)
    memory = compiled.memory_analysis()
    return {
        "side": program.side, "batch_size": program.batch_size, "mesh": dict(mesh.shape),
        "device": mesh.devices.flat[0].device_kind,
        "arguments": memory.argument_size_in_bytes, "temporaries": memory.temp_size_in_bytes,
        "outputs": memory.output_size_in_bytes, "aliased": memory.alias_size_in_bytes,
        "together": memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
        **{name: sharding.bytes_per_device(tree, where)
           for name, tree, where in zip(program.parameters, parameters, placed, strict=True)},
        "flop": operations, "flop_per_device": operations // mesh.size,
        "collectives": collectives(compiled.as_text()),
        "trace_and_lower_seconds": round(lowering, 1), "seconds": round(time.monotonic() - start, 1)}


def collectives(program: str) -> dict[str, Mapping[str, int]]:
    """How many collectives of each kind a device takes part in when a compiled program, given as its text, runs, and
    the bytes that they make there. One in a loop counts as often as the loop goes round, one in two halves where it is
    done. A TPU's compiler writes one that goes on beside other work into all the fusions that start it, do that work
    and end it: it counts where it is started."""
    texts = computations(program)
    times, found = executions(texts), {}
    ends = set(re.findall(r"%async-collective-done[\w.-]* = .* calls=%([\w.-]+)", program))
    for name, text in texts.items():
        if name in ends or name.startswith("async_collective_fusion"):
            continue
        for shapes, kind in re.findall(rf" = (\S.*?) ({'|'.join(_COLLECTIVES)})(?:-done)?\(", text):
            entry = found.setdefault(kind, {"count": 0, "bytes": 0})
            entry["count"] += times[name]
            entry["bytes"] += times[name] * _bytes(shapes)
    return found


def computations(program: str) -> dict[str, str]:
    """The text of each computation, by name, in the program's order: what is called before who calls it."""
    return dict(re.findall(r"^(?:ENTRY )?%([\w.-]+) \([^\n]*\{\n(.*?)^\}", program, re.M | re.S))


def _bytes(shapes: str) -> int:
    return sum(_BYTES.get(dtype, 4) * math.prod(int(n) for n in sizes.split(",") if n)
               for dtype, sizes in re.findall(r"([a-z]+\d*)\[([\d,]*)\]", shapes))


def executions(texts: Mapping[str, str]) -> dict[str, int]:
    """How often each of a program's computations runs when the last one, the entry, runs once."""
    *_, entry = texts
    times = dict.fromkeys(texts, 0) | {entry: 1}
    for name, text in reversed(texts.items()):
        for line in text.splitlines():
            for role, called in re.findall(r"(\w+)=%([\w.-]+)", line):
                if called in times:
                    times[called] += times[name] * (_rounds(line, texts) if role == "body" else 1)
    return times


_CONSTANT = r"[su]32\[\]\S* constant\((\d+)\)"


def _rounds(loop: str, texts: Mapping[str, str]) -> int:
    """How often a `while` goes round that counts from 0 to a constant of its condition; of another one 1."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop):
        return int(known[1])
    condition, body = (texts[re.search(rf"{role}=%([\w.-]+)", loop)[1]] for role in ("condition", "body"))
    limits = re.findall(rf" = {_CONSTANT}", condition)
    if len(limits) != 1 or "direction=LT" not in condition:
        return 1
    return math.ceil(int(limits[0]) / _stride(condition, body))


def _stride(condition: str, body: str) -> int:
    """By how much the counter that the condition looks at, an element of the loop's tuple, grows in a round; 1 where
    that does not show. A matrix product that is divided over chips goes round by two."""
    place = re.search(r"get-tuple-element\(.*?\), index=(\d+)", condition)
    after = re.search(r"ROOT .* tuple\((.*?)\)", body)
    if not place or not after:
        return 1
    counter = re.findall(r"%[\w.-]+", after[1])[int(place[1])]
    added = re.search(rf"{re.escape(counter)} = .* add\(.*?(%[\w.-]+)\)", body)
    constant = added and re.search(rf"{re.escape(added[1])} = {_CONSTANT}", body)
    return int(constant[1]) if constant else 1
