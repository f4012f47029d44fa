"""Programs compiled for a TPU slice that is not there: whether a training step fits, before anyone pays for it.

Nothing is run, and no weight is made: all arrays are shapes. Networks are made for the platform of the mesh's devices,
and the step is that of the task which `training.published.run` trains, so that what is compiled is what will run.
"""

import dataclasses
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from realcustom_jax.devices import sharding
from realcustom_jax.devices.jaxprs import flops
from realcustom_jax.devices.platform import Platform
from realcustom_jax.devices.shapes import array_shape, batch_shapes, tree_shapes
from realcustom_jax.devices.sharding import AxisRules
from realcustom_jax.devices.topology import tpu_devices
from realcustom_jax.errors import check_choice
from realcustom_jax.files import write_json
from realcustom_jax.memory import enough_memory
from realcustom_jax.model_files import single_file, weights
from realcustom_jax.models import context
from realcustom_jax.models.unet import UNet, UNetConfig
from realcustom_jax.paths import as_path, is_bucket
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.presets import Preset
from realcustom_jax.sampling.lanes import Conditioning
from realcustom_jax.sampling.sampler import sample_latents
from realcustom_jax.sampling.solvers import make_solver
from realcustom_jax.training.loop import choose_shardings
from realcustom_jax.training.optimizer import step_inputs
from realcustom_jax.training.published.config import PublishedConfig
from realcustom_jax.training.published.hollow import hollow_pipeline, hollow_task, published_configs
from realcustom_jax.training.step import init_state, make_train_step

_TOKENS, _VIEW_TOKENS = 77, 729  # of CLIP, and of SigLIP and DINOv2 on 384 pixels
PROGRAMS = ("step", "sampler")
_MEMORY = ("arguments", "temporaries", "outputs", "aliased", "together")
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# What leaves a slice is sent by the host; its name says which collective it is a part of.
_ACROSS_SLICES = (r' = \((\S+), u32\[\]\S* token\[\]\) send\(.*_xla_host_transfer_rendezvous="'
                  rf'({"|".join(_COLLECTIVES)})\.')
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

    def about(self) -> dict[str, Any]:
        """What it is, for a report."""

    def arguments(self) -> tuple[Any, ...]:
        """Shapes."""

    def numbers(self) -> tuple[Any, ...]:
        """Shapes of what the function takes after its batch, a copy on every device."""

    def function(self, placed: Sequence[Any]) -> Callable:
        """The jitted function; `placed` are the shardings of its parameters."""


class AdapterStep:
    """The training step of an adapter on a published model, as shapes: (state, frozen, batch, numbers) → (state,
    metrics).

    Args:
        train: see configs/sdxl.py.
        platform: of the devices that will run it, see `Platform.of`; None: this machine's.
        configs: of the model's parts; by default of the published model `train.kind`.
    """

    parameters = ("state", "frozen")

    def __init__(self, train: PublishedConfig, platform: Any = None,
                 configs: Mapping[str, Mapping[str, Any]] | None = None):
        self._precomputed, self.side, self.settings = train.precomputed, train.side, train.optimization
        self.pipeline: Pipeline = hollow_pipeline(
            configs or published_configs(train.kind), train, Platform.of(platform))
        self.task, self._batch = hollow_task(self.pipeline, train)

    @property
    def batch_size(self) -> int:
        return self.settings.batch_size

    @property
    def rows(self) -> int:
        return self.settings.batch_size // self.settings.accumulate

    def about(self):
        unet = self.pipeline.unet.module
        step = "from features on disk" if self._precomputed else "with texts, references and latents encoded within it"
        return {"program": f"training step, {step}", "platform": unet.platform.name, "dtype": unet.dtype.name,
                "projector": self.pipeline.projector.module.config.variant}

    def function(self, placed):
        """The jitted step, whose state stays where it is placed."""
        return make_train_step(self.task.loss, self.settings, placed[0])

    def arguments(self) -> tuple[Any, Any, Any]:
        """Shapes of state (float32), frozen (of the configuration's dtype) and batch."""
        trained = tree_shapes(self.task.trained, jnp.float32)
        return jax.eval_shape(lambda x: init_state(x, self.settings), trained), self.task.frozen, self._batch

    def numbers(self) -> tuple[Any]:
        """Learning rate and the like, of a step."""
        return (tree_shapes(step_inputs(self.settings, 0)),)

    def vision_tokens(self) -> int:
        """How many tokens the projector makes of a reference."""
        deep = math.prod(self.pipeline.siglip.module.config.grid)
        return deep * (2 if self.pipeline.projector.module.config.with_structure else 1)


@dataclasses.dataclass(frozen=True)
class Sampler:
    """The whole fused sampler of a published model, 25 steps and one reference, as shapes: (UNet's parameters, (noise,
    positive, negative, target)) → latents.

    unet_config: diffusers' JSON. side: of the pictures, in pixels. vision_tokens: of a reference; by default the
    released projector's. platform: of the device that will run it, see `Platform.of`; None: this machine's. preset:
    says how masks are made, and when the last one is.
    """

    unet_config: Mapping[str, Any]
    side: int
    batch_size: int = 1
    vision_tokens: int = _VIEW_TOKENS
    dtype: str = "bfloat16"
    platform: Any = None
    preset: Preset = Preset()
    parameters = ("frozen",)

    @property
    def rows(self) -> int:
        return self.batch_size

    @property
    def unet(self) -> UNet:
        """The network, for the platform."""
        with_vision = {"image_prompt_settings": {"vision_projection_type": "custom"}}
        config = UNetConfig.from_config({**self.unet_config, **with_vision})
        return UNet(config, jnp.dtype(self.dtype), Platform.of(self.platform))

    def about(self):
        return {"program": f"sampler, fused, mask frozen at step {self.preset.freeze_mask_step}",
                "platform": self.unet.platform.name, "dtype": self.dtype}

    def function(self, placed):
        unet, side = self.unet, self.side // 8
        options = {"solver": make_solver(), "guidance_scale": self.preset.guidance_scale,
                   "mask": self.preset.mask_config(side, side), "freeze_mask_step": self.preset.freeze_mask_step}
        return jax.jit(lambda params, inputs: sample_latents(unet, params, *inputs, **options).latents,
                       compiler_options=dict(unet.platform.compiler_options))

    def arguments(self) -> tuple[Any, Any]:
        """Shapes of the parameters (of `dtype`, as the platform samples with them) and inputs (float32)."""
        unet = self.unet
        config = unet.config
        width = config.cross_attention_dim
        pooled = {"pooled": array_shape(config.pooled_dim), "time_ids": array_shape(6)} if config.addition_embed else {}
        conditioning = Conditioning(
            array_shape(_TOKENS, width), vision=array_shape(1, self.vision_tokens, width), **pooled)
        noise = array_shape(self.side // 8, self.side // 8, config.in_channels)
        inputs = noise, conditioning, conditioning, array_shape(1, _TOKENS)
        params = jax.eval_shape(lambda params: context.for_platform(params, unet.platform), _unet_shapes(unet))
        return tree_shapes(params, unet.dtype), batch_shapes(inputs, self.batch_size)

    def numbers(self) -> tuple[()]:
        return ()


def _unet_shapes(unet: UNet):
    args, kwargs = weights.unet_inputs(unet.config)
    return weights.parameter_shapes(unet, *args, **kwargs)


def from_config(config: Any, topology: str | None, program: str = "step") -> tuple[Program, Mesh]:
    """The "step" of training or the "sampler" of a configuration's `train`, and its mesh, on a TPU slice that is not
    there or this machine's devices.

    Raises ValueError for a key that cannot be used, a slice that libtpu does not know, or a mesh that does not fit it.
    """
    train = PublishedConfig.from_config(config.to_dict())
    check_choice("program", program, PROGRAMS)
    devices = tpu_devices(topology) if topology else jax.devices()
    mesh = sharding.make_mesh(**dataclasses.asdict(train.mesh), devices=devices)
    step = AdapterStep(train, devices[0])
    if program == "step":
        return step, mesh
    return Sampler(single_file.CONFIGS[train.kind]["unet"], step.side, step.batch_size, step.vision_tokens(),
                   train.dtype, devices[0], step.pipeline.preset), mesh


def describe_program(program: Program, mesh: Mesh, rules: AxisRules = AxisRules()) -> str:
    """Where every parameter lies, and its bytes on each device."""
    *parameters, _ = program.arguments()
    parts = dict(zip(program.parameters, parameters, strict=True))
    if state := parts.pop("state", None):
        parts = {"trained parameters": state.params, "optimizer": state.opt_state,
                 "averaged parameters": state.ema} | parts
    return "\n\n".join(sharding.describe_tree(tree, choose_shardings(tree, mesh, rules), title)
                       for title, tree in parts.items())


def report_compilation(program: Program, mesh: Mesh, path: str | None) -> None:
    """Compiles, prints what `compile_ahead` finds and writes it to `path`, whose folder must be there beforehand."""
    file = path and as_path(path)
    if file and not is_bucket(file) and not file.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: its folder does not exist.")
    found = compile_ahead(program, mesh)
    if file:
        write_json(file, found)
    for name, value in found.items():
        gib = f"  {value / 2**30:.2f} GiB on a device" if name in (*_MEMORY, *program.parameters) else ""
        print(f"{name:26}{value:,}{gib}" if isinstance(value, int) else f"{name:26}{value}")


def compile_ahead(program: Program, mesh: Mesh, rules: AxisRules = AxisRules()) -> dict[str, Any]:
    """Compiles a program for the devices of `mesh`; bytes are of one device.

    Raises ValueError where the mesh does not fit, or the program does not fit into the devices' memory.
    """
    *parameters, batch = program.arguments()
    placed = [choose_shardings(tree, mesh, rules) for tree in parameters]
    rows = sharding.batch_sharding(mesh, program.rows, rules)
    arguments = [sharding.shapes(tree, where) for tree, where in zip(
        (*parameters, batch), (*placed, jax.tree.map(lambda _: rows, batch)), strict=True)]
    start = time.monotonic()
    with jax.set_mesh(mesh):
        traced = program.function(placed).trace(*arguments, *program.numbers())
        lowered = traced.lower()
        lowering = time.monotonic() - start
        with enough_memory(f"the program does not fit {mesh.size} devices of kind "
                           f"{mesh.devices.flat[0].device_kind}; choose a larger slice, more fsdp or more accumulate"):
            compiled = lowered.compile()
    operations = flops(traced.jaxpr.jaxpr)
    memory = compiled.memory_analysis()
    return {
        **program.about(), "side": program.side, "batch_size": program.batch_size, "mesh": dict(mesh.shape),
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
    and end it: it counts where it is started. What crosses from one TPU slice to others has entries of its own."""
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
        for shapes, kind in re.findall(_ACROSS_SLICES, text):
            entry = found.setdefault(f"{kind} across slices", {"count": 0, "bytes": 0})
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
