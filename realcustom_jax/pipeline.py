"""The one object that a user holds: load a model, show it a subject, get pictures of that subject.

    pipeline = rc.Pipeline.load("mini")       # import realcustom_jax as rc
    result = pipeline("dog.png", "a dog on the beach", "dog")
    result.images[0].save("beach.png")
    pipeline(result.images[0], "a dog in the snow", "dog")          # an output can be the next reference

Dimensions: B images, R references, T text tokens, L vision tokens, D their width, h w the masks' size.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from transformers import CLIPTokenizer

from realcustom_jax.conditioning.images import ImageSource, listed, load_image, to_uint8
from realcustom_jax.conditioning.prompts import encode_prompt
from realcustom_jax.conditioning.references import VisionSettings, square_reference, vision_tokens
from realcustom_jax.conditioning.size import time_ids
from realcustom_jax.conditioning.targets import mark_targets, target_phrase
from realcustom_jax.conditioning.text_states import text_states
from realcustom_jax.conditioning.vocabulary import Vocabulary
from realcustom_jax.devices.compilation import enable_compilation_cache, jit_sampler
from realcustom_jax.devices.platform import Platform
from realcustom_jax.errors import check_choice
from realcustom_jax.model_files import fingerprint
from realcustom_jax.model_files.adapter import find_adapter, load_adapter_projector, split_unet
from realcustom_jax.model_files.lora_files import read_loras
from realcustom_jax.model_files.parts import with_parts
from realcustom_jax.model_files.source import ModelSource
from realcustom_jax.models.clip_text import TextOutput
from realcustom_jax.presets import PRESETS, Preset, find_preset
from realcustom_jax.sampling.decoding import decode_latents, decoder_moments
from realcustom_jax.sampling.options import check_options, given_noise, noise_of_steps, seeded_noise
from realcustom_jax.sampling.sampler import Conditioning, Samples, sample_latents
from realcustom_jax.sampling.solvers import make_solver
from realcustom_jax.sampling.tiling import decode_tiles, tile_shape

DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Network:
    """A module and its parameters."""

    module: nn.Module
    params: Any


@dataclasses.dataclass(frozen=True)
class Result:
    """What one call made.

    Attributes:
        images: B pictures.
        masks: the guidance mask used in each step, float32 [steps, B, R, h, w].
        latents: of the pictures, scaled as the UNet sees them, float32 [B, H, W, C].
        references, targets: the R references and the phrase that each of them stands for.
        prompt, seed: as given.
    """

    images: list[Image.Image]
    masks: np.ndarray
    latents: np.ndarray
    references: list[Image.Image]
    targets: tuple[str, ...]
    prompt: str
    seed: int


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """A tokenizer and the network that reads its tokens."""

    tokenizer: CLIPTokenizer
    network: Network


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """All parts of a model; `load` makes one from a folder."""

    text_encoders: tuple[TextEncoder, ...]
    """One, or SDXL's two, whose texts the UNet reads side by side."""
    vae: Network
    unet: Network
    siglip: Network
    dino: Network
    projector: Network
    vision_settings: VisionSettings
    betas: np.ndarray
    prediction: str
    sample_size: int
    """Side of the latents that the model was made for, in latent pixels."""
    preset: Preset = PRESETS["default"]
    no_negative: str = "encoded"
    """What the model's files say of `Preset.no_negative`, where the preset does not."""
    vocabulary: Vocabulary | None = None
    """The words that the model learnt; None for a model of open vocabulary."""
    offload: bool = False
    """Whether the text and image encoders are kept in the host's memory."""

    @classmethod
    def load(
        cls,
        path: str | Path = "mini",
        adapter: str | Path | None = None,
        *,
        vision: str | Path | None = None,
        tokenizer: str | Path | None = None,
        vae: str | Path | None = None,
        unet: str | Path | None = None,
        loras: Sequence[str | Path | tuple[str | Path, float]] = (),
        prediction: str | None = None,
        preset: str | Preset | Mapping[str, Any] | None = None,
        dtype=jnp.float32,
        offload: bool = False,
        scan_layers: bool | None = None,
        platform: Any = None,
    ) -> "Pipeline":
        """Loads a model.

        Args:
            path: a folder or a single file (see `source.ModelSource`), a name on the Hugging Face hub, or "mini" for
                the miniature that comes with the package.
            adapter: an adapter's folder or file, see `adapter.find_adapter`; by default the model's own `adapter/`.
            vision: the folder that holds the image encoders, by default the model's.
            tokenizer: the folder that holds `tokenizer/` (and SDXL's `tokenizer_2/`), by default the model's.
            vae, unet: another autoencoder or base UNet than the model's: a file in diffusers' or the original names, a
                folder, or a name on the hub (module `parts`).
            loras: files, or pairs (file, scale), whose changes are added to the UNet and the text encoders (module
                `lora_files`).
            prediction: what the UNet predicts, "epsilon" or "v_prediction"; None: as its file or the model's scheduler
                says (module `prediction`).
            preset: how the model is used, see module `presets`; None: as its `preset.json` says, or the default. What
                an adapter says of the conditioning it was trained with (`adapter.CONDITIONING`) goes first.
            dtype: of parameters and computation: float32, bfloat16 or float16. Softmax, norms and the solver's state
                are float32 always, and the autoencoder is where `dtype` is float16, which SDXL's overflows. The CPU
                has no float16.
            offload: keeps the text and image encoders in the host's memory, and on the device only while they run.
            scan_layers: see `weights.load_unet`; None: as the platform samples fastest.
            platform: what all networks are made for, see `Platform.of`; None: this machine's default device.

        Under `tensors.headers_only` nothing but the files' headers is read: enough for `memory.sampler_memory`.

        Raises:
            FileNotFoundError, ValueError: names the file that is missing, unreadable or does not fit.
        """
        enable_compilation_cache()
        platform = Platform.of(platform)
        dtype = _dtype(dtype, platform)
        loras = read_loras(loras)
        model = with_parts(ModelSource.open(path), unet=unet, vae=vae)
        model.check("unet", "vae")
        model.check_loras(loras)
        given = find_adapter(adapter) if adapter else model.adapter()
        words, encoders = (ModelSource.open(other) if other else model for other in (tokenizer, vision))
        tokenizers = [words.tokenizer(i, positions=model.text_positions(i)) for i in range(len(model.text_encoders))]
        encoders.check("image_encoder_siglip", "image_encoder_dinov2")
        preset = model.preset() if preset is None else find_preset(preset)
        preset = dataclasses.replace(preset, **given.conditioning)
        betas, prediction = model.schedule(prediction)

        def encoder(source: ModelSource, part: str, **options) -> Network:
            module, params = source.load(part, dtype=dtype, platform=platform, **options)
            return Network(module, jax.device_get(params) if offload else params)

        pipeline = cls(
            text_encoders=tuple(TextEncoder(tokenizer, encoder(model, part, loras=loras))
                                for tokenizer, part in zip(tokenizers, model.text_encoders, strict=True)),
            vae=Network(*model.load("vae", dtype=jnp.float32 if dtype == jnp.float16 else dtype, platform=platform)),
            unet=Network(*model.load_unet(
                given, base_last=preset.weight_order == "base_last", dtype=dtype, platform=platform, loras=loras,
                scan_layers=platform.scan_layers if scan_layers is None else scan_layers)),
            siglip=encoder(encoders, "image_encoder_siglip"),
            dino=encoder(encoders, "image_encoder_dinov2"),
            projector=Network(*load_adapter_projector(given, dtype=dtype, platform=platform)),
            vision_settings=given.vision if preset.local is None else dataclasses.replace(
                given.vision, local=preset.local),
            betas=betas, prediction=prediction, sample_size=model.config("unet").get("sample_size") or 64,
            preset=preset, no_negative=model.no_negative, vocabulary=model.vocabulary(), offload=offload,
        )
        pipeline._check_parts_fit(model.root)
        return pipeline

    def __call__(
        self,
        image: ImageSource | Sequence[ImageSource],
        prompt: str,
        target: str | Sequence[str],
        *,
        seed: int = 0,
        num_images: int = 1,
        width: int | None = None,
        height: int | None = None,
        steps: int = 25,
        guidance_scale: float | None = None,
        scope: float | None = None,
        freeze_mask_step: int | None = None,
        branches: str = "fused",
        negative_prompt: str | None = None,
        normalize: str | None = None,
        overlap: str | None = None,
        solver: str = "dpm_single",
        vision_scale: float | Sequence[float] = 1.0,
        latents: np.ndarray | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> Result:
        """Pictures of the prompt in which each target is the subject of its reference.

        What is None is as the preset says.

        Args:
            image: a reference, or R of them; see `images.load_image` for what can be read.
            prompt: the text.
            target: the words of the prompt that stand for the subject; one phrase for each reference, or several
                for a single one. A phrase that is given as often as it occurs stands for one occurrence each, in their
                order; "dog#2" is the second dog.
            seed: of the noise; image i of a call is the same whatever `num_images` is.
            num_images: B.
            width, height: of the pictures, in pixels; None: the side that the model was made for.
            steps: of the solver `solver`, one of `solvers.SOLVERS`.
            guidance_scale: of classifier-free guidance; 1 is none, and saves its lane.
            scope: share of the picture that a mask covers, in (0, 1].
            freeze_mask_step: the mask stays as it is from this step on; at least 1.
            branches: "fused" | "sequential", see module `sampler`.
            negative_prompt: what the picture should not be; "" is encoded like any other text. Where the preset has no
                text either, None is as `Preset.no_negative` says.
            normalize, overlap: see `masks.subject_mask`; by the preset, several references do not overlap.
            vision_scale: the strength of the visual term, one number or one for each target; 0 is the text alone.
            latents: the initial noise [B, H, W, C] instead of the seed's, e.g. torch's.
            on_step: called with the number of each finished step.
        Raises:
            FileNotFoundError, ValueError: an input that cannot be used.
        """
        given = {"guidance_scale": guidance_scale, "scope": scope, "freeze_mask_step": freeze_mask_step,
                 "normalize": normalize}
        choices = dataclasses.replace(self.preset, **{k: v for k, v in given.items() if v is not None})
        references, targets = _paired(image, target)
        check_options(seed=seed, num_images=num_images, steps=steps, guidance_scale=choices.guidance_scale,
                      scope=choices.scope, freeze_mask_step=choices.freeze_mask_step, branches=branches, solver=solver,
                      vision_scale=vision_scale)
        width, height = self.picture_size(width, height)
        pictures = [load_image(reference) for reference in references]
        schedule = make_solver(solver, steps, betas=self.betas, prediction=self.prediction)
        shape = self.latent_shape(width, height)
        mask = choices.mask_config(*shape[:2], len(targets), overlap)
        noise = seeded_noise(seed, num_images, shape) if latents is None else given_noise(latents, (num_images, *shape))
        positive, negative, marks = self._conditionings(
            pictures, prompt, targets, negative_prompt, (width, height), overlapping=mask.overlap == "sum")
        inputs = jax.tree.map(lambda x: jnp.repeat(x, num_images, axis=0), (positive, negative, marks))

        guidance = None if choices.guidance_scale == 1 else jnp.float32(choices.guidance_scale)
        options = {"solver": schedule, "guidance_scale": guidance, "mask": mask, "branches": branches,
                   "freeze_mask_step": choices.freeze_mask_step, "vision_scale": jnp.float32(vision_scale),
                   "noise_per_step": noise_of_steps(schedule, seed, num_images, shape)}
        run = _sample if on_step is None else functools.partial(sample_latents, on_step=on_step)
        samples = run(self.unet.module, self.unet.params, noise, *inputs, **options)
        images = [Image.fromarray(x) for x in self.decode(samples.latents)]
        shown = [Image.fromarray(np.uint8(np.round(x * 255))) for x in pictures]
        return Result(images, np.asarray(samples.masks), np.asarray(samples.latents), shown, targets, prompt, seed)

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The first text encoder's."""
        return self.text_encoders[0].tokenizer

    def mark_targets(self, prompt: str, targets: Sequence[str], *, overlapping: bool = False) -> np.ndarray:
        """int32 [R, T]: the tokens of R targets, see `targets.mark_targets`."""
        return mark_targets([encoder.tokenizer for encoder in self.text_encoders], prompt, targets,
                            match=self.preset.match, overlapping=overlapping)

    def encode_prompts(
        self, prompts: str | Sequence[str], *, size: tuple[int, int] | None = None, allow_empty: bool = False,
        what: str = "prompt",
    ) -> Conditioning:
        """Text conditioning of B prompts for pictures of `size` (width, height); no vision tokens yet. Messages name
        them `what`."""
        outputs, told = [], False
        for encoder in self.text_encoders:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                ids = encode_prompt(encoder.tokenizer, prompts, allow_empty=allow_empty, what=what)
            for warning in () if told else said:  # of several tokenizers one is enough to say what is cut
                warnings.warn(warning.message, stacklevel=2)
            told = told or bool(said)
            outputs.append(_encode_text(encoder.network.module, encoder.network.params, ids))
        tokens, pooled = text_states(outputs, self.unet.module.config, self.preset.pooled)
        if pooled is None:
            return Conditioning(tokens)
        width, height = self.picture_size(*(size or (None, None)))
        sizes = time_ids((height, width), order=self.preset.size_order)
        return Conditioning(tokens, pooled, jnp.tile(jnp.asarray(sizes), (len(tokens), 1)))

    def encode_negative(
        self, prompt: str | None, positive: Conditioning, *, size: tuple[int, int] | None = None
    ) -> Conditioning:
        """Text conditioning of the negative lanes of the B `positive` ones, for pictures of `size` (width, height).

        `prompt` is encoded, an empty one too. None: the preset's is, or where that is empty, `Preset.no_negative` says
        what stands for none.
        """
        text = (self.preset.negative_prompt or None) if prompt is None else prompt
        if text is None and (self.preset.no_negative or self.no_negative) == "zeros":
            return jax.tree.map(jnp.zeros_like, positive).replace(time_ids=positive.time_ids)
        return self.encode_prompts(
            [text or ""] * len(positive.text), size=size, allow_empty=True, what="negative prompt")

    def encode_references(self, images: Sequence[np.ndarray]) -> jax.Array:
        """Vision tokens [N, L, D] of N references, each [H, W, 3] in [0, 1]; all zero for the negative lane."""
        # Pictures of any size come to one shape here, so that the encoders are compiled once.
        size = self.vision_settings.size
        squares = jnp.stack([square_reference(image, size) for image in images])
        params = (self.siglip.params, self.dino.params, self.projector.params)
        return _encode_references(
            self.siglip.module, self.dino.module, self.projector.module, self.vision_settings, params, squares)

    def decode(self, latents: jax.Array) -> np.ndarray:
        """Latents [B, h, w, C] as the UNet sees them to pictures, uint8 [B, H, W, 3]; tile by tile where they have
        more pixels than the model's own."""
        decode = functools.partial(decode_latents, self.vae.module, self.vae.params)
        measure = functools.partial(decoder_moments, self.vae.module, self.vae.params)
        pictures = decode_tiles(decode, latents, tile=self.sample_size, factor=self._factor, measure=measure)
        if not np.isfinite(pictures).all():
            raise ValueError("The pictures are not made of finite numbers: the weights hold some that are not, or "
                             "float16 overflowed; check the files, or choose another dtype.")
        return to_uint8(pictures)

    def decoded_at_once(self, shape: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        """The shape of what `decode` decodes at once of latents [B, h, w, C] of `shape`."""
        batch, height, width, channels = shape
        return batch, *tile_shape(height, width, self.sample_size), channels

    def fingerprints(self) -> dict[str, str]:
        """What each part is made of (module `fingerprint`), by the part's name. Two pipelines with equal ones and equal
        presets make equal pictures; where their files lie does not matter. Takes a second for each GB of parameters."""
        visual, base = split_unet(self.unet.params)
        texts = (x for encoder in self.text_encoders for x in (
            fingerprint.of_tokenizer(encoder.tokenizer), _network_fingerprint(encoder.network)))
        schedule = fingerprint.of_tensors({"betas": self.betas}), self.prediction, self.sample_size
        return {
            "text encoders": fingerprint.of_values(*texts, self.no_negative),
            "autoencoder": _network_fingerprint(self.vae),
            "UNet": fingerprint.of_values(fingerprint.of_network(self.unet.module, base), *schedule),
            "image encoders": fingerprint.of_values(*map(_network_fingerprint, (self.siglip, self.dino))),
            "adapter": fingerprint.of_values(
                _network_fingerprint(self.projector), fingerprint.of_parameters(visual), self.vision_settings),
        }

    def _conditionings(self, pictures, prompt, targets, negative_prompt, size, *, overlapping):
        """(positive, negative, marked target tokens [1, R, T]) for one image."""
        positive = self.encode_prompts(prompt, size=size)
        marks = jnp.asarray(self.mark_targets(prompt, targets, overlapping=overlapping))[None]
        if self.vocabulary:
            self.vocabulary.check(prompt, [target_phrase(prompt, x, match=self.preset.match) for x in targets])
        negative = self.encode_negative(negative_prompt, positive, size=size)
        *tokens, nothing = self.encode_references([*pictures, np.zeros_like(pictures[0])])
        # A single reference may stand for several phrases.
        vision = jnp.stack(tokens * (len(targets) // len(tokens)))[None]
        nothing = jnp.broadcast_to(nothing, vision.shape)
        return positive.replace(vision=vision), negative.replace(vision=nothing), marks

    @property
    def _factor(self) -> int:
        """Pixels of a picture's side for one of the latents'."""
        return 2 ** (len(self.vae.module.config.block_out_channels) - 1)

    def latent_shape(self, width: int | None = None, height: int | None = None) -> tuple[int, int, int]:
        """[H, W, C] of the latents of a picture of this size; see `picture_size`."""
        width, height = self.picture_size(width, height)
        return height // self._factor, width // self._factor, self.unet.module.config.in_channels

    def picture_size(self, width: int | None, height: int | None) -> tuple[int, int]:
        """(width, height) in pixels; None is the model's own side. Raises ValueError that names the nearest sizes."""
        native = self.sample_size * self._factor
        # Stable Diffusion's sizes; a model made for smaller pictures takes from half to twice its own.
        low, high, step = (512, 2048, 32) if native >= 512 else (native // 2, 2 * native, 4 * self._factor)
        sides = {"width": native if width is None else width, "height": native if height is None else height}
        for name, side in sides.items():
            if not isinstance(side, Integral):
                raise ValueError(f"{name} is {side!r}; expected a whole number of pixels.")
            if not low <= side <= high or side % step:
                around = {min(max(value, low), high) for value in (side // step * step, -(-side // step) * step)}
                nearest = " or ".join(map(str, sorted(around)))
                raise ValueError(f"{name} is {side}; this model makes pictures of {low} to {high} pixels in steps of "
                                 f"{step}; the nearest {'are' if len(around) > 1 else 'is'} {nearest}.")
        return sides["width"], sides["height"]

    def _check_parts_fit(self, folder: Path) -> None:
        unet, projector, siglip, dino, vae = (part.module.config for part in (
            self.unet, self.projector, self.siglip, self.dino, self.vae))
        texts = [encoder.network.module.config for encoder in self.text_encoders]
        layers, width = self.vision_settings, unet.cross_attention_dim
        made = sum(text.hidden_size for text in texts)
        pooled = texts[-1].projection_dim if self.preset.pooled == "projected" else texts[-1].hidden_size
        checks = {
            f"the UNet's sample_size is {self.sample_size!r}, expected a whole number above 0":
                type(self.sample_size) is int and self.sample_size > 0,
            f"the UNet takes {unet.in_channels} channels, the autoencoder makes {vae.latent_channels}":
                unet.in_channels == vae.latent_channels,
            f"the UNet takes text of width {width}, the text encoder makes {made}"
            + (" (a second one, text_encoder_2/, would be read too)" if len(texts) == 1 else ""): width == made,
            f"the UNet takes pooled text of width {unet.pooled_dim}, the text encoder makes {pooled}":
                unet.pooled_dim in (None, pooled),
            f"the UNet takes vision tokens of width {width}, the adapter makes {projector.out_dim}":
                width == projector.out_dim,
            f"the adapter takes {projector.vision_dim} channels, the image encoders make {siglip.embed_dim} and "
            f"{dino.embed_dim}": projector.vision_dim == siglip.embed_dim + dino.embed_dim,
            f"the adapter reads layers that the image encoders of {siglip.depth} and {dino.depth} layers do not have":
                max(layers.siglip_layers) < siglip.depth and max(layers.dino_layers) < dino.depth,
        }
        for encoder, text in zip(self.text_encoders, texts, strict=True):
            size, length = len(encoder.tokenizer), encoder.tokenizer.model_max_length
            checks |= {
                f"the tokenizers make {self.tokenizer.model_max_length} and {length} tokens of a prompt":
                    length == self.tokenizer.model_max_length,
                f"the tokenizer has {size} tokens, the text encoder {text.vocab_size}": size <= text.vocab_size,
                f"the tokenizer makes {length} tokens of a prompt, the text encoder takes "
                f"{text.max_position_embeddings}": length <= text.max_position_embeddings,
            }
        if problems := [problem for problem, fits in checks.items() if not fits]:
            raise ValueError(f"The parts in {folder} do not fit each other: {'; '.join(problems)}.")


def _dtype(dtype, platform: Platform) -> jnp.dtype:
    """The type of numbers of this name. Raises ValueError for one that the networks or the platform do not compute."""
    name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    check_choice("dtype", name, DTYPES)
    if name == "float16" and not platform.float16:
        raise ValueError("XLA has no float16 attention on the CPU; choose bfloat16 or float32 there.")
    return jnp.dtype(name)


def _network_fingerprint(network: Network) -> str:
    return fingerprint.of_network(network.module, network.params)


def _paired(image, target) -> tuple[list[ImageSource], tuple[str, ...]]:
    """References and targets as sequences that fit each other."""
    references = listed(image)
    targets = tuple(target) if isinstance(target, Iterable) and not isinstance(target, str) else (target,)
    if not targets or len(references) not in (1, len(targets)):
        raise ValueError(f"{len(references)} reference(s) and {len(targets)} target(s) were given; expected one target "
                         "for each reference, or one reference for all targets.")
    return references, targets


@functools.partial(jax.jit, static_argnums=0)
def _encode_text(module, params, ids: jax.Array) -> TextOutput:
    return module.apply({"params": params}, ids)


_encode_references = jax.jit(vision_tokens, static_argnums=(0, 1, 2, 3))


@functools.partial(jit_sampler, static_argnums=0, static_argnames=("mask", "freeze_mask_step", "branches"))
def _sample(unet, params, noise, positive, negative, target, **options) -> Samples:
    return sample_latents(unet, params, noise, positive, negative, target, **options)
