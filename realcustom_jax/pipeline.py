"""The one object that a user holds: load a model, show it a subject, get pictures of that subject.

    pipeline = Pipeline.load("mini")
    result = pipeline("dog.png", "a dog on the beach", "dog")
    result.images[0].save("beach.png")
    pipeline(result.images[0], "a dog in the snow", "dog")          # an output can be the next reference

Dimensions: B images, R references, T text tokens, L vision tokens, D their width, h w the masks' size.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from transformers import CLIPTokenizer

from realcustom_jax import bundle
from realcustom_jax.compilation import enable_compilation_cache
from realcustom_jax.diffusion import make_solver
from realcustom_jax.images import VisionSettings, load_image, reference_features, to_uint8
from realcustom_jax.models.resize import resize_bilinear
from realcustom_jax.sampling import Conditioning, MaskConfig, Samples, sample_latents
from realcustom_jax.text import encode_prompt, target_tokens
from realcustom_jax.vocabulary import Vocabulary
from realcustom_jax.weights import read_config

ImageSource = str | Path | Image.Image
ASSETS = Path(__file__).parent / "assets"


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
class Pipeline:
    """All parts of a model; `load` makes one from a folder."""

    tokenizer: CLIPTokenizer
    text_encoder: Network
    vae: Network
    unet: Network
    siglip: Network
    dino: Network
    projector: Network
    vision_settings: VisionSettings
    betas: np.ndarray
    prediction: str
    sample_size: int
    """Side of the latents, in latent pixels."""
    vocabulary: Vocabulary | None = None
    """The words that the model learnt; None for a model of open vocabulary."""

    @classmethod
    def load(cls, path: str | Path = "mini", adapter: str | Path | None = None, *, dtype=jnp.float32) -> "Pipeline":
        """Loads a model folder (layout: module `bundle`).

        Args:
            path: the folder, or "mini" for the miniature that comes with the package.
            adapter: another adapter folder (`config.json`, `realcustom.safetensors`) than the model's own.
            dtype: of parameters and computation.
        Raises:
            FileNotFoundError, ValueError: names the file that is missing, unreadable or does not fit.
        """
        enable_compilation_cache()
        folder = ASSETS / "mini" if path == "mini" else Path(path)
        if not (folder / "model_index.json").is_file():
            raise FileNotFoundError(f"{folder} is not a model folder: it holds no model_index.json.")
        adapter = folder / "adapter" if adapter is None else Path(adapter)
        projector, projector_params, vision_settings = bundle.load_projector(adapter, dtype=dtype)
        betas, prediction = bundle.read_schedule(folder)
        pipeline = cls(
            tokenizer=bundle.load_tokenizer(folder),
            text_encoder=Network(*bundle.load_text_encoder(folder, dtype=dtype)),
            vae=Network(*bundle.load_autoencoder(folder, dtype=dtype)),
            unet=Network(*bundle.load_unet(folder, adapter, dtype=dtype)),
            siglip=Network(*bundle.load_vision_encoder(folder, "image_encoder_siglip", dtype=dtype)),
            dino=Network(*bundle.load_vision_encoder(folder, "image_encoder_dinov2", dtype=dtype)),
            projector=Network(projector, projector_params),
            vision_settings=vision_settings, betas=betas, prediction=prediction,
            sample_size=read_config(folder / "unet" / "config.json").get("sample_size", 64),
            vocabulary=bundle.load_vocabulary(folder),
        )
        pipeline._check_parts_fit(folder)
        return pipeline

    def __call__(
        self,
        image: ImageSource | Sequence[ImageSource],
        prompt: str,
        target: str | Sequence[str],
        *,
        seed: int = 0,
        num_images: int = 1,
        steps: int = 25,
        guidance_scale: float = 3.5,
        scope: float = 0.25,
        freeze_mask_step: int = 12,
        branches: str = "fused",
        negative_prompt: str = "",
        normalize: str = "max_norm",
        overlap: str | None = None,
        solver: str = "dpm_single",
        latents: np.ndarray | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> Result:
        """Pictures of the prompt in which each target is the subject of its reference.

        Args:
            image: a reference, or R of them (paths or PIL images).
            prompt: the text.
            target: the words of the prompt that stand for the subject; one phrase for each reference, or several
                for a single one.
            seed: of the noise; image i of a call is the same whatever `num_images` is.
            num_images: B.
            steps: of the solver `solver` (dpm_single | dpm_multi | ddim).
            guidance_scale: of classifier-free guidance.
            scope: share of the picture that a mask covers, in (0, 1].
            freeze_mask_step: the mask stays as it is from this step on; at least 1.
            branches: "fused" | "sequential", see module `sampling`.
            negative_prompt: what the picture should not be.
            normalize, overlap: see `guidance.subject_mask`; by default several references do not overlap.
            latents: the initial noise [B, H, W, C] instead of the seed's.
            on_step: called with the number of each finished step.
        Raises:
            FileNotFoundError, ValueError: an input that cannot be used.
        """
        references, targets = _paired(image, target)
        _check_numbers(seed, num_images, guidance_scale, scope)
        pictures = [load_image(reference) for reference in references]
        schedule = make_solver(solver, steps, betas=self.betas, prediction=self.prediction)
        overlap = overlap or ("sum" if len(targets) == 1 else "argmax")
        mask = MaskConfig(scope=scope, normalize=normalize, overlap=overlap)
        noise = self._noise(seed, num_images) if latents is None else self._given_noise(latents, num_images)
        positive, negative, marks = self._conditionings(pictures, prompt, targets, negative_prompt)
        inputs = jax.tree.map(lambda x: jnp.repeat(x, num_images, axis=0), (positive, negative, marks))

        options = {"solver": schedule, "guidance_scale": jnp.float32(guidance_scale), "mask": mask,
                   "freeze_mask_step": freeze_mask_step, "branches": branches}
        run = _sample if on_step is None else functools.partial(sample_latents, on_step=on_step)
        samples = run(self.unet.module, self.unet.params, noise, *inputs, **options)
        images = [Image.fromarray(x) for x in self.decode(samples.latents)]
        shown = [Image.fromarray(np.uint8(np.round(x * 255))) for x in pictures]
        return Result(images, np.asarray(samples.masks), np.asarray(samples.latents), shown, targets, prompt, seed)

    def encode_prompts(self, prompts: str | Sequence[str], *, allow_empty: bool = False) -> Conditioning:
        """Text conditioning of B prompts (no vision tokens yet)."""
        ids = encode_prompt(self.tokenizer, prompts, allow_empty=allow_empty)
        tokens, pooled = _encode_text(self.text_encoder.module, self.text_encoder.params, ids)
        if not self.unet.module.config.addition_embed:
            return Conditioning(tokens)
        side = self.sample_size * 2 ** (len(self.vae.module.config.block_out_channels) - 1)
        time_ids = jnp.tile(jnp.array([side, side, 0, 0, side, side], jnp.float32), (len(ids), 1))
        return Conditioning(tokens, pooled, time_ids)

    def encode_references(self, images: Sequence[np.ndarray]) -> jax.Array:
        """Vision tokens [N, L, D] of N references, each [H, W, 3] in [0, 1]; all zero for the negative branch."""
        # Pictures of any size come to one shape here, so that the encoders are compiled once.
        size = self.vision_settings.size
        squares = jnp.concatenate([resize_bilinear(jnp.asarray(image)[None], (size, size)) for image in images])
        params = (self.siglip.params, self.dino.params, self.projector.params)
        return _encode_references(
            self.siglip.module, self.dino.module, self.projector.module, self.vision_settings, params, squares)

    def decode(self, latents: jax.Array) -> np.ndarray:
        """Latents [B, h, w, C] as the UNet sees them to pictures, uint8 [B, H, W, 3]."""
        return to_uint8(_decode(self.vae.module, self.vae.params, latents))

    def _conditionings(self, pictures, prompt, targets, negative_prompt):
        """(positive, negative, marked target tokens [1, R, T]) for one image."""
        positive = self.encode_prompts(prompt)
        marks = jnp.asarray(np.stack([target_tokens(self.tokenizer, prompt, target) for target in targets]))[None]
        if self.vocabulary:
            self.vocabulary.check(prompt, targets)
        negative = self.encode_prompts(negative_prompt, allow_empty=True)
        *tokens, nothing = self.encode_references([*pictures, np.zeros_like(pictures[0])])
        # A single reference may stand for several phrases.
        vision = jnp.stack(tokens * (len(targets) // len(tokens)))[None]
        nothing = jnp.broadcast_to(nothing, vision.shape)
        return positive.replace(vision=vision), negative.replace(vision=nothing), marks

    def _noise(self, seed: int, count: int) -> jax.Array:
        keys = [jax.random.fold_in(jax.random.key(seed), i) for i in range(count)]
        return jnp.stack([jax.random.normal(key, self._latent_shape) for key in keys])

    def _given_noise(self, latents, count: int) -> jax.Array:
        if latents.shape != (count, *self._latent_shape):
            raise ValueError(f"latents have shape {latents.shape}; expected {(count, *self._latent_shape)}.")
        return jnp.asarray(latents, jnp.float32)

    @property
    def _latent_shape(self) -> tuple[int, int, int]:
        return self.sample_size, self.sample_size, self.unet.module.config.in_channels

    def _check_parts_fit(self, folder: Path) -> None:
        unet, text, projector, siglip, dino, vae = (part.module.config for part in (
            self.unet, self.text_encoder, self.projector, self.siglip, self.dino, self.vae))
        layers, width, length = self.vision_settings, unet.cross_attention_dim, self.tokenizer.model_max_length
        checks = {
            f"the UNet takes {unet.in_channels} channels, the autoencoder makes {vae.latent_channels}":
                unet.in_channels == vae.latent_channels,
            f"the UNet takes text of width {width}, the text encoder makes {text.hidden_size}":
                width == text.hidden_size and unet.pooled_dim in (None, text.hidden_size),
            f"the UNet takes vision tokens of width {width}, the adapter makes {projector.out_dim}":
                width == projector.out_dim,
            f"the adapter takes {projector.vision_dim} channels, the image encoders make {siglip.embed_dim} and "
            f"{dino.embed_dim}": projector.vision_dim == siglip.embed_dim + dino.embed_dim,
            f"the adapter reads layers that the image encoders of {siglip.depth} and {dino.depth} layers do not have":
                max(layers.siglip_layers) < siglip.depth and max(layers.dino_layers) < dino.depth,
            f"the tokenizer has {len(self.tokenizer)} tokens, the text encoder {text.vocab_size}":
                len(self.tokenizer) <= text.vocab_size,
            f"the tokenizer makes {length} tokens of a prompt, the text encoder takes {text.max_position_embeddings}":
                length <= text.max_position_embeddings,
        }
        if problems := [problem for problem, fits in checks.items() if not fits]:
            raise ValueError(f"The parts in {folder} do not fit each other: {'; '.join(problems)}.")


def _paired(image, target) -> tuple[list[ImageSource], tuple[str, ...]]:
    """References and targets as sequences that fit each other."""
    references = [image] if isinstance(image, ImageSource) else list(image)
    targets = (target,) if isinstance(target, str) else tuple(target)
    if not targets or len(references) not in (1, len(targets)):
        raise ValueError(f"{len(references)} reference(s) and {len(targets)} target(s) were given; expected one target "
                         "for each reference, or one reference for all targets.")
    return references, targets


def _check_numbers(seed: int, num_images: int, guidance_scale: float, scope: float) -> None:
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}; expected a whole number from 0 to {2**32 - 1}.")
    if num_images < 1:
        raise ValueError(f"num_images is {num_images}; expected at least 1.")
    if not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale is {guidance_scale}; expected a finite number.")
    if not 0 < scope <= 1:
        raise ValueError(f"scope is {scope}; expected the share of the picture that a mask covers, in (0, 1].")


@functools.partial(jax.jit, static_argnums=0)
def _encode_text(module, params, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    output = module.apply({"params": params}, ids)
    return output.penultimate, output.pooled


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _encode_references(siglip, dino, projector, settings: VisionSettings, params, images: jax.Array) -> jax.Array:
    siglip_params, dino_params, projector_params = params
    features = reference_features(siglip, siglip_params, dino, dino_params, images, settings)
    return projector.apply({"params": projector_params}, features)


@functools.partial(jax.jit, static_argnums=0)
def _decode(module, params, latents: jax.Array) -> jax.Array:
    return module.apply({"params": params}, latents / module.config.scaling_factor, method="decode")


@functools.partial(jax.jit, static_argnums=0, static_argnames=("mask", "freeze_mask_step", "branches"))
def _sample(unet, params, noise, positive, negative, target, **options) -> Samples:
    return sample_latents(unet, params, noise, positive, negative, target, **options)
