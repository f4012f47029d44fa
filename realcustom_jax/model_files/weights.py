"""Weights in the original torch naming ↔ our parameters, both ways, strictly.

Our modules carry the torch names (`.N` written `_N`), so one mechanical rule serves all networks and both directions:

    torch  down_blocks.1.attentions.0.transformer_blocks.2.attn2.to_q.weight   [out, in]
    ours   down_blocks_1/attentions_0/transformer_blocks/attn2/to_q/kernel[2]  [layers, in, out]

Linear kernels are transposed, convolution kernels go OIHW ↔ HWIO, norms' and embeddings' `weight` is renamed; the
layers of a scanned stack are one array with a leading layer axis.

Each loader takes its own part of the files it is given and reports, in one error, every key that is missing,
belongs to no part, or has another shape.
"""

import dataclasses
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from realcustom_jax.devices.platform import Platform
from realcustom_jax.devices.programs import keep_shapes
from realcustom_jax.errors import check_choice, naming
from realcustom_jax.model_files.kinds import identify
from realcustom_jax.model_files.known_vision import arguments_of
from realcustom_jax.model_files.locate import read_config
from realcustom_jax.model_files.lora import merge_loras
from realcustom_jax.model_files.names import MARKERS, listed
from realcustom_jax.model_files.tensors import LazyTensors, read_tensors, reads_headers_only
from realcustom_jax.model_files.vision_names import OPEN_CLIP_PREFIX, to_timm, with_positions
from realcustom_jax.models import clip_text, clip_vision, context, projector, unet, vae, vit, vit_config

Config = Mapping[str, Any] | str | os.PathLike[str]
File = str | os.PathLike[str]
Params = dict[str, Any]
Loras = Sequence[tuple[File, float]]

PROJECTOR_PREFIX = "encoder_hidden_states_vision_projection."
_SCANNED = "transformer_blocks"
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_VISION_LAYER = re.compile(r"\.to_[kv]_vision\.")


@dataclasses.dataclass(frozen=True)
class PartKeys:
    """Which keys of a file are this network's, and which are another part's or a known head that is not used."""

    own: re.Pattern
    other: re.Pattern
    ignored: re.Pattern = re.compile(r"$^")
    prefix: str = ""
    rename: Callable[[str], str] = lambda name: name


_UNET_KEYS = r"(conv_in|time_embedding|add_embedding|down_blocks|mid_block|up_blocks|conv_norm_out|conv_out)\."
_OLD_VAE = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_PARTS = {
    "UNet": PartKeys(re.compile(_UNET_KEYS), re.compile(re.escape(PROJECTOR_PREFIX))),
    "projector": PartKeys(re.compile(re.escape(PROJECTOR_PREFIX)), re.compile(_UNET_KEYS), prefix=PROJECTOR_PREFIX),
    "text encoder": PartKeys(
        re.compile(r"(text_model|text_projection|embeddings|encoder|final_layer_norm)\."),
        re.compile(r"(vision_model|visual_projection)\.|logit_scale$"),
        ignored=re.compile(r"(text_model\.)?embeddings\.position_ids$"),
        # transformers 5 saves a CLIPTextModel without the prefix that all published files have.
        rename=lambda name: re.sub(r"^(?!text_model\.|text_projection\.)", "text_model.", name)),
    "CLIP image encoder": PartKeys(
        re.compile(r"(vision_model|visual_projection|embeddings|pre_layrnorm|encoder|post_layernorm)\."),
        re.compile(r"(text_model|text_projection)\.|logit_scale$"),
        ignored=re.compile(r"(vision_model\.)?embeddings\.position_ids$"),
        # transformers 5 saves a CLIPVisionModel without the prefix that all published files have.
        rename=lambda name: re.sub(r"^(?!vision_model\.|visual_projection\.)", "vision_model.", name)),
    "autoencoder": PartKeys(
        re.compile(r"(encoder|decoder|quant_conv|post_quant_conv)\."), re.compile(r"$^"),
        rename=lambda name: re.sub(
            r"(attentions\.\d+\.)(query|key|value|proj_attn)\.", lambda m: m[1] + _OLD_VAE[m[2]] + ".", name)),
    "vision encoder": PartKeys(
        re.compile(r"(cls_token|pos_embed|reg_token)$|(patch_embed|blocks|norm)\."),
        re.compile(r"(text|token_embedding|transformer|ln_final)\.|(text_projection|positional_embedding|logit_\w+)$"),
        ignored=re.compile(r"(attn_pool|fc_norm|head)\.|mask_token$")),
}


def _architecture(kind, config: Mapping[str, Any] | str | Path, what: str):
    """The dataclass `kind` of a configuration; whatever is wrong with that is a ValueError that says where."""
    mapping = read_config(config)
    with naming(what if isinstance(config, Mapping) else config):
        return kind.from_config(mapping)


def torch_name(path: tuple[str, ...], layer: int | None = None) -> str:
    """The torch name of our parameter at `path` (`layer` of it where the parameter belongs to a scanned stack)."""
    # linear_1 and linear_2 are names in torch too, not list positions.
    parts = [re.sub(r"(?<!linear)_(\d+)(?:_|$)", r".\1.", part).rstrip(".") for part in path[:-1]]
    parts = [f"{part}.{layer}" if part == _SCANNED else part for part in parts]
    return ".".join([*parts, _LEAVES.get(path[-1], path[-1])])


def _to_torch_axes(value, kernel: bool):
    if kernel and value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    return value.T if kernel and value.ndim == 2 else value


def _torch_shape(shape: tuple[int, ...], kernel: bool) -> tuple[int, ...]:
    return _to_torch_axes(np.broadcast_to(np.float32(0), shape), kernel).shape


def _entries(tree):
    """Yields (path, layer or None, leaf, torch name) of every torch tensor that the tree stands for."""
    for path, leaf in flatten_dict(tree).items():
        for layer in range(leaf.shape[0]) if _SCANNED in path else (None,):
            yield path, layer, leaf, torch_name(path, layer)


def to_torch(params, prefix: str = "") -> dict[str, np.ndarray]:
    """Our parameters in torch names and layouts, as contiguous numpy arrays ready for `safetensors.numpy.save_file`."""
    tensors = {}
    for path, layer, leaf, name in _entries(params):
        value = np.asarray(leaf if layer is None else leaf[layer])
        tensors[prefix + name] = np.ascontiguousarray(_to_torch_axes(value, path[-1] == "kernel"))
    return tensors


def torch_shapes(tree, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Torch name → shape in torch's layout of every tensor that a tree of arrays or shapes stands for."""
    return {prefix + name: _torch_shape(leaf.shape if layer is None else leaf.shape[1:], path[-1] == "kernel")
            for path, layer, leaf, name in _entries(tree)}


def parameter_shapes(module: nn.Module, *args, **kwargs):
    """The shapes of a module's parameters for these inputs, without a single number in memory."""
    return keep_shapes(lambda: jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **kwargs)["params"]),
                       module, args, kwargs)


def from_torch(shapes, tensors: Mapping[str, np.ndarray], part: str, *, dtype,
               missing_ok: Callable[[str], bool] | None = None):
    """Fills a tree of shapes from torch-named tensors.

    Args:
        shapes: our parameters' shapes (`jax.eval_shape` of init).
        tensors: torch names (prefix removed) → arrays.
        missing_ok: names that may be absent; their leaves are left out of the result. A stack of layers may be absent
            as a whole only: a file that holds some of its layers is broken, not fresh.
    Returns:
        (the parameters as nested dict, the tensor names that were not used); under `tensors.headers_only` the
        parameters are `jax.ShapeDtypeStruct`s
    Raises:
        ValueError: lists the missing and the wrongly shaped tensors.
    """
    params, problems, used, small = {}, {"missing": [], "wrong": [], "numbers": []}, set(), set()
    for path, leaf in flatten_dict(shapes).items():
        stacked = _SCANNED in path
        names = [torch_name(path, layer) for layer in range(leaf.shape[0])] if stacked else [torch_name(path)]
        absent = [name for name in names if name not in tensors]
        used.update(names)
        if len(absent) == len(names) and missing_ok and all(map(missing_ok, names)):
            continue
        problems["missing"] += absent
        params[path], stored = _fill(leaf, stacked, path[-1] == "kernel", names, tensors, dtype, problems)
        small.update(kind for kind in stored if kind.startswith("float8"))
    # Whatever a leaf lacks is in one of the lists, so that no memory that nothing was written to is returned.
    _raise(part, tensors, **problems)
    if small:
        warnings.warn(f"the weights of this {part} are stored as {', '.join(sorted(small))}, computed in "
                      f"{jnp.dtype(dtype).name}: they take the memory of the latter.", stacklevel=2)
    return unflatten_dict(params), set(tensors) - used


def _fill(leaf, stacked: bool, kernel: bool, names: list[str], tensors: Mapping[str, np.ndarray], dtype,
          problems: dict[str, list[str]]):
    """(one leaf's array of the tensors of these names, or its shape under `tensors.headers_only`; the types that they
    are stored in). What is wrong with those that are there is added to `problems`; where one is absent or wrong, the
    array is not to be used."""
    expected, stored = leaf.shape[1:] if stacked else leaf.shape, set()
    # A stack is filled in place, so that a deep one is never there twice.
    filled = None if reads_headers_only() else np.empty((len(names), *expected), dtype)
    for layer, name in enumerate(names):
        if name not in tensors:
            continue
        value = given = tensors[name]
        stored.add(value.dtype.name)
        if value.ndim == 4 and len(expected) == 2 and value.shape[2:] == (1, 1):
            value = value[:, :, 0, 0]  # old autoencoders keep their linear layers as 1×1 convolutions
        if kernel and value.ndim in (2, 4):
            value = value.transpose((1, 0) if value.ndim == 2 else (2, 3, 1, 0))
        if value.shape != expected:
            problems["wrong"].append(f"{name} {tuple(given.shape)}, expected {_torch_shape(expected, kernel)}")
        elif not jnp.issubdtype(value.dtype, jnp.floating):
            problems["numbers"].append(f"{name} of {value.dtype.name}")
        elif filled is not None:
            filled[layer] = value
    if filled is None:
        return jax.ShapeDtypeStruct(leaf.shape, dtype), stored
    # Not `jnp.asarray`, which compiles a program for each shape.
    return jax.device_put(filled if stacked else filled[0]), stored


def _raise(part: str, tensors: Mapping[str, Any], **problems: list[str]):
    titles = {"missing": "missing keys", "wrong": "wrong shapes", "numbers": "not floating-point numbers",
              "unknown": "keys that belong to no part"}
    found = [f"{titles[kind]}: {listed(names)}" for kind, names in problems.items() if names]
    if found:
        what = identify(problems.get("unknown") or tensors)
        raise ValueError(f"the weights (of {what}) do not fit this {part}: " + "; ".join(found) + ".")


def _select(tensors: LazyTensors, part: str) -> LazyTensors:
    """The tensors of one part, prefix removed; raises for keys that belong to no part at all."""
    rule, tensors = _PARTS[part], tensors.rename(lambda name: None if name in MARKERS else name)
    _raise(part, tensors,
           unknown=[k for k in tensors if not any(p.match(k) for p in (rule.own, rule.other, rule.ignored))])
    return tensors.rename(lambda name: rule.rename(name.removeprefix(rule.prefix))
                          if rule.own.match(name) and not rule.ignored.match(name) else None)


def _own(tensors: LazyTensors, part: str, expected: str) -> LazyTensors:
    """`_select` of a part that the files must hold; else the error says what they hold, and what was expected."""
    what, tensors = identify(tensors), _select(tensors, part)
    if not tensors:
        raise ValueError(f"the weights (of {what}) hold no {part}; expected {expected}.")
    return tensors


def _as_they_are(params):
    return params


def _load(part: str, module: nn.Module, tensors, dtype, *init_args, optional=None, rng=None, arrange=_as_they_are,
          **init_kwargs):
    with naming():
        shapes = jax.eval_shape(arrange, parameter_shapes(module, *init_args, **init_kwargs))
    params, unused = from_torch(shapes, tensors, part, dtype=dtype, missing_ok=optional)
    _raise(part, tensors, unknown=sorted(unused))
    absent = set(flatten_dict(shapes)) - set(flatten_dict(params))
    if absent:
        # jit drops everything but the absent leaves, so a fresh adapter costs only its own memory.
        @jax.jit
        def fresh(key):
            init = flatten_dict(arrange(module.init(key, *init_args, **init_kwargs)["params"]))
            return {path: init[path].astype(dtype) for path in absent}
        params = unflatten_dict({**flatten_dict(params), **fresh(rng)})
    return module, params


def _check_init(init_missing, rng):
    if unknown := set(init_missing) - {"vision"}:
        raise ValueError(f"init_missing: {unknown.pop()!r} is unknown; the only group is 'vision'.")
    if init_missing and rng is None:
        raise ValueError("init_missing needs rng=jax.random.key(…) to draw the fresh weights.")


def load_unet(
    config: Config, *files: File, dtype: DTypeLike = jnp.float32, init_missing: Sequence[str] = (),
    rng: jax.Array | None = None, scan_layers: bool = True, platform: Platform | None = None, loras: Loras = (),
) -> tuple[unet.UNet, Params]:
    """The denoising UNet.

    Args:
        config: diffusers `UNet2DConditionModel` JSON (mapping or path), with `image_prompt_settings` for visual
            attention.
        files: weight files; later ones override earlier ones.
        dtype: of the parameters and the computation.
        init_missing: ("vision",) draws `to_*_vision` freshly from `rng` when the files have none.
        scan_layers: whether equal transformer layers are one stack, or apart (a GPU samples faster so).
        platform: what the module is made for: "cpu", "gpu", "tpu" or a JAX device; None: this machine's default.
        loras: ((file, scale), …), whose changes of the UNet are added to its weights (docs/guides/lora.md).
    Returns:
        (module, params)
    Raises:
        FileNotFoundError, ValueError: a file is missing or damaged; or, in one sentence, every key that is missing,
            belongs to no part, or has another shape.
    """
    _check_init(init_missing, rng)
    config = _architecture(unet.UNetConfig, config, "UNet config")
    module = unet.UNet(config, dtype, platform)
    tensors = _select(read_tensors(*files), "UNet")
    if not config.vision:
        tensors = tensors.rename(lambda k: None if _VISION_LAYER.search(k) else k)
    tensors = merge_loras(tensors, loras, "unet", dataclasses.asdict(config))
    # Files that hold some of the visual layers are broken: what they lack is named, not drawn.
    fresh = "vision" in init_missing and not any(map(_VISION_LAYER.search, tensors))
    optional = _VISION_LAYER.search if fresh else None
    args, kwargs = unet_inputs(config)
    return _load("UNet", module, tensors, dtype, *args, optional=optional, rng=rng,
                 arrange=_as_they_are if scan_layers else context.layers_apart, **kwargs)


def unet_inputs(config: unet.UNetConfig, *, batch: int = 1, size: tuple[int, int] = (16, 16), tokens: int = 2):
    """Zero inputs (args, kwargs) of a UNet, for `init` and shape evaluation."""
    kwargs = {}
    if config.addition_embed:
        kwargs = {"pooled": np.zeros((batch, config.pooled_dim)), "time_ids": np.zeros((batch, 6))}
    if config.vision:
        kwargs["vision"] = np.zeros((batch, 1, 1, config.cross_attention_dim))
    text = np.zeros((batch, tokens, config.cross_attention_dim))
    return (np.zeros((batch, *size, config.in_channels)), 0, text), kwargs


def load_autoencoder(
    config: Config, *files: File, dtype: DTypeLike = jnp.float32, platform: Platform | None = None,
) -> tuple[vae.Autoencoder, Params]:
    """The image autoencoder from a diffusers `AutoencoderKL` JSON and its weights (old attention names are converted).
    Returns (module, params); raises as `load_unet`."""
    config = _architecture(vae.VAEConfig, config, "autoencoder config")
    module = vae.Autoencoder(config, dtype, platform)
    size = 2 ** (len(config.block_out_channels) - 1)
    return _load("autoencoder", module, _select(read_tensors(*files), "autoencoder"), dtype,
                 np.zeros((1, size, size, config.in_channels)))


def load_text_encoder(
    config: Config, *files: File, dtype: DTypeLike = jnp.float32, platform: Platform | None = None, loras: Loras = (),
    prefix: str = "te1",
) -> tuple[clip_text.ClipText, Params]:
    """A CLIP text encoder from its transformers JSON and weights; `.projected` is there if the files have
    `text_projection.weight`. Of `loras`, ((file, scale), …), the changes of the encoder `prefix` are added to the
    weights: "te1" is the first or only one, "te2" SDXL's second. Returns (module, params); raises as `load_unet`."""
    check_choice("prefix", prefix, ("te1", "te2"))
    architecture = _architecture(clip_text.ClipTextConfig, config, "CLIP text config")
    tensors = _own(read_tensors(*files), "text encoder",
                   "the names of transformers' CLIPModel, CLIPTextModelWithProjection or CLIPTextModel")
    tensors = merge_loras(tensors, loras, prefix)
    config = _with_joint_width(architecture, config, tensors, "text_projection.weight")
    module = clip_text.ClipText(config, "text_projection.weight" in tensors, dtype, platform)
    return _load("text encoder", module, tensors, dtype, np.zeros((1, 2), np.int32))


def load_clip_vision(
    config: Config, *files: File, dtype: DTypeLike = jnp.float32, platform: Platform | None = None,
) -> tuple[clip_vision.ClipVision, Params]:
    """A CLIP image encoder from the JSON and weights of transformers' `CLIPModel`, `CLIPVisionModelWithProjection` or
    `CLIPVisionModel`; `.projected` is there if the files have `visual_projection.weight`. Positional embeddings of
    another grid are wrong shapes, as in transformers. Returns (module, params); raises as `load_unet`."""
    architecture = _architecture(clip_vision.ClipVisionConfig, config, "CLIP vision config")
    tensors = _own(read_tensors(*files), "CLIP image encoder",
                   "the names of transformers' CLIPModel, CLIPVisionModelWithProjection or CLIPVisionModel")
    config = _with_joint_width(architecture, config, tensors, "visual_projection.weight")
    module = clip_vision.ClipVision(config, "visual_projection.weight" in tensors, dtype, platform)
    return _load("CLIP image encoder", module, tensors, dtype, np.zeros((1, config.image_size, config.image_size, 3)))


def _with_joint_width(architecture, config: Config, tensors: Mapping[str, np.ndarray], projection: str):
    """A tower's architecture with the width of the joint space that its whole model's JSON says beside both towers, if
    the projection has that: transformers makes a whole CLIPModel's projections by it."""
    width = read_config(config).get("projection_dim")
    if projection in tensors and tensors[projection].shape == (width, architecture.hidden_size):
        return dataclasses.replace(architecture, projection_dim=width)
    return architecture


def load_vision_encoder(
    config: Config, *files: File, dtype: DTypeLike = jnp.float32, platform: Platform | None = None,
    positions: str = "timm",
) -> tuple[vit.VisionTransformer, Params]:
    """A vision transformer (SigLIP, DINO or DINOv2) in timm's, torch.hub's or transformers' names.

    Args:
        config: timm `VisionTransformer` keyword arguments; the JSON of transformers' `ViTConfig`, `Dinov2Config` or
            `Dinov2WithRegistersConfig`; or that of timm's files on the hub (mapping or path).
        files: weight files; later ones override earlier ones. `visual.trunk.` of open_clip may stand in front.
        dtype: of the parameters and the computation.
        platform: what the module is made for: "cpu", "gpu", "tpu" or a JAX device; None: this machine's default.
        positions: as whose code does, positional embeddings of another grid are resampled: "timm"; torch.hub's "dino",
            "dinov2" or "dinov2_reg"; "transformers" or "transformers_reg" (with registers).
    Returns:
        (module, params). The final norm, which `method="pooled"` needs, is there if the files have one and there is a
        class token, unless timm's `final_norm` in the config is false.
    Raises:
        FileNotFoundError, ValueError: as `load_unet`; or `positions` is unknown.
    """
    check_choice("positions", positions, vit.POSITIONS)
    with naming("ViT config" if isinstance(config, Mapping) else config):
        arguments = arguments_of(read_config(config))
        config = vit_config.VitConfig.from_config(arguments)
    tensors = _own(to_timm(read_tensors(*files)), "vision encoder", "timm's, torch.hub's or transformers' names, or "
                   f"open_clip's with {OPEN_CLIP_PREFIX} in front of them")
    if not (config.class_token and arguments.get("final_norm", True)):
        tensors = tensors.rename(lambda name: None if name.startswith("norm.") else name)
    module = vit.VisionTransformer(config, dtype, platform, any(name.startswith("norm.") for name in tensors))
    tensors = with_positions(tensors, config, lambda trained: vit.resample_pos_embed(
        trained, config.grid, config.num_embedded_prefix, positions))
    return _load("vision encoder", module, tensors, dtype, np.zeros((1, *config.img_size, 3)), layers=(0,))


def load_projector(
    config: Config, *files: File, dtype: DTypeLike = jnp.float32, init_missing: Sequence[str] = (),
    rng: jax.Array | None = None, platform: Platform | None = None,
) -> tuple[projector.Projector, Params]:
    """The CCP projector from the released RealCustom JSON (its `image_prompt_settings`) and an adapter file.

    `init_missing=("vision",)` draws a fresh projector from `rng` when the files have none of it.
    Returns (module, params); raises as `load_unet`."""
    _check_init(init_missing, rng)
    settings = _architecture(projector.ProjectorConfig, config, "Projector config")
    module = projector.Projector(settings, dtype, platform)
    tensors = _select(read_tensors(*files), "projector")
    feature = np.zeros((1, 1, settings.vision_dim))
    features = (feature,) * (2 if settings.variant == "highres" else 3)
    fresh = (lambda name: True) if "vision" in init_missing and not tensors else None
    return _load("projector", module, tensors, dtype, features, optional=fresh, rng=rng)
