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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from transformers import CLIPTokenizer

from realcustom_jax.conditioning.images import ImageSource, from_uint8, load_image, paired, to_uint8
from realcustom_jax.conditioning.initial import InitialPicture
from realcustom_jax.conditioning.prompts import encode_prompt
from realcustom_jax.conditioning.references import VisionSettings, square_reference, vision_tokens
from realcustom_jax.conditioning.regions import Region, listed_regions, region_masks
from realcustom_jax.conditioning.size import PictureSizes, time_ids
from realcustom_jax.conditioning.targets import mark_targets, target_phrase
from realcustom_jax.conditioning.text_states import text_states
from realcustom_jax.conditioning.vocabulary import Vocabulary
from realcustom_jax.devices.compilation import enable_compilation_cache, jit_sampler
from realcustom_jax.devices.platform import Platform
from realcustom_jax.devices.programs import jit_kept
from realcustom_jax.model_files import fingerprint
from realcustom_jax.model_files.adapter import find_adapter, load_adapter_projector, split_unet
from realcustom_jax.model_files.fit import check_fit
from realcustom_jax.model_files.lora_files import read_loras
from realcustom_jax.model_files.network import Network, TextEncoder
from realcustom_jax.model_files.parts import with_parts
from realcustom_jax.model_files.source import ModelSource
from realcustom_jax.models.clip_text import TextOutput
from realcustom_jax.models.context import check_strengths
from realcustom_jax.presets import PRESETS, GuidanceScale, Preset, find_preset
from realcustom_jax.sampling.decoding import decode_latents, decoder_moments, encode_pictures
from realcustom_jax.sampling.guidance import Guidance
from realcustom_jax.sampling.lanes import Conditioning, VisionScale, conditionings_of_images, zero_conditioning
from realcustom_jax.sampling.locating import box_around, find_phrases
from realcustom_jax.sampling.options import (
    check_options,
    given_noise,
    noise_of_steps,
    seeded_noise,
    skipped_steps,
)
from realcustom_jax.sampling.sampler import Samples, sample_latents
from realcustom_jax.sampling.solvers import Solver, make_solver
from realcustom_jax.sampling.tiling import decode_tiles, tile_shape


@dataclasses.dataclass(frozen=True)
class Result:
    """What one call made.

    Attributes:
        images: B pictures.
        masks: the mask used in each step, float32 [steps, B, R, h, w]; h and w are half of the latents' sides, or the
            latents' sides themselves where a mask was given for every subject.
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
    """All parts of a model; `load` makes one from a folder.

    Attributes:
        unet, vae, siglip, dino, projector: the networks, each with `.module` (Flax Linen) and `.params`.
        text_encoders: one, or SDXL's two, whose texts the UNet reads side by side; each with `.tokenizer`, `.network`.
        vision_settings: how references are cut, and which layers of the image encoders are read.
        betas: of the noise schedule, float32 [1000], as `betas` makes them.
        prediction: what the UNet predicts, "epsilon" or "v_prediction".
        sample_size: side of the latents that the model was made for, in latent pixels.
        preset: a `Preset`, the defaults of a call.
        no_negative: what the model's files say of `Preset.no_negative`, where the preset does not.
        vocabulary: `.words`, those that the model learnt; None for a model of open vocabulary.
        solver: arguments of `make_solver`, as the model's scheduler says.
        offload: whether the text and image encoders are kept in the host's memory.
    """

    text_encoders: tuple[TextEncoder, ...]
    vae: Network
    unet: Network
    siglip: Network
    dino: Network
    projector: Network
    vision_settings: VisionSettings
    betas: np.ndarray
    prediction: str
    sample_size: int
    preset: Preset = PRESETS["default"]
    no_negative: str = "encoded"
    vocabulary: Vocabulary | None = None
    solver: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    offload: bool = False

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
        prediction: str | None = None,
        loras: Sequence[str | Path | tuple[str | Path, float]] = (),
        few_steps: bool = False,
        preset: str | Preset | Mapping[str, Any] | None = None,
        dtype=jnp.float32,
        offload: bool = False,
        scan_layers: bool | None = None,
        platform: Any = None,
    ) -> "Pipeline":
        """Loads a model.

        Args:
            path: a folder or a single file (docs/models.md), a name on the Hugging Face hub, or "mini" for the
                miniature that comes with the package.
            adapter: an adapter's weight file, its JSON beside it unless it is a released one, or the folder of both; by
                default the model's own `adapter/`.
            vision: the folder that holds the image encoders, by default the model's.
            tokenizer: the folder that holds `tokenizer/` (and SDXL's `tokenizer_2/`), by default the model's.
            vae, unet: another autoencoder or base UNet than the model's: a file in diffusers' or the original names, a
                folder, or a name on the hub.
            prediction: what the UNet predicts, "epsilon" or "v_prediction"; None: as its file or the model's scheduler
                says.
            loras: files, or pairs (file, scale), whose changes are added to the UNet and the text encoders
                (docs/guides/lora.md).
            few_steps: whether to load the form in which few steps suffice, where the model brings one (`few_steps/`);
                its steps, solver and guidance then go before the preset's.
            preset: a `Preset`, the name of one, or choices by their names; None: as the model's `preset.json` says, or
                the default. What an adapter that was trained here remembers of its training goes before the default
                and `preset.json`, and its local, pooled and size_order before everything.
            dtype: of parameters and computation: float32, bfloat16 or float16. Softmax, norms and the solver's state
                are float32 always, and the autoencoder is where `dtype` is float16, which SDXL's overflows. The CPU
                has no float16.
            offload: keeps the text and image encoders in the host's memory, and on the device only while they run.
            scan_layers: see `weights.load_unet`; None: as the platform samples fastest.
            platform: what all networks are made for: "cpu", "gpu", "tpu" or a JAX device; None: this machine's default.

        Within `realcustom_jax.model_files.tensors.headers_only()` only the files' headers are read. That is enough to
        say how much memory a picture needs, as `sample.py --memory` does.

        Raises:
            FileNotFoundError, ValueError: names the file that is missing, unreadable or does not fit.
        """
        enable_compilation_cache()
        platform = Platform.of(platform)
        dtype = platform.dtype_of(dtype)
        loras = read_loras(loras)
        model = with_parts(ModelSource.open(path), unet=unet, vae=vae)
        model.check("unet", "vae")
        few = model.few_steps() if few_steps else None
        loras += read_loras(few[0]) if few else ()
        model.check_loras(loras)
        given = find_adapter(adapter) if adapter else model.adapter()
        words, encoders = (ModelSource.open(other) if other else model for other in (tokenizer, vision))
        tokenizers = [words.tokenizer(i, positions=model.text_positions(i)) for i in range(len(model.text_encoders))]
        encoders.check("image_encoder_siglip", "image_encoder_dinov2")
        preset = (dataclasses.replace(model.preset(), **given.sampling) if preset is None else
                  find_preset(preset, base=dataclasses.replace(PRESETS["default"], **given.sampling)))
        preset = dataclasses.replace(preset, **(few[1] if few else {}) | given.conditioning)
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
            betas=betas, prediction=prediction,
            solver={} if preset.solver else model.solver(),
            sample_size=model.config("unet").get("sample_size") or 64,
            preset=preset, no_negative=model.no_negative, vocabulary=model.vocabulary(), offload=offload,
        )
        pipeline._check_fit(model.root)
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
        steps: int | None = None,
        guidance_scale: GuidanceScale = "preset",
        scope: float | None = None,
        freeze_mask_step: int | None = None,
        branches: str | None = None,
        negative_prompt: str | None = None,
        normalize: str | None = None,
        overlap: str | None = None,
        shared_reference: str | None = None,
        solver: str | None = None,
        vision_scale: VisionScale = 1.0,
        guidance_mode: str = "none_direct",
        text_guidance: float | None = None,
        rescale: float = 0.0,
        masks: Region | Sequence[Region | None] | None = None,
        init_image: ImageSource | None = None,
        strength: float | None = None,
        mask_image: Region | None = None,
        latents: np.ndarray | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> Result:
        """Pictures of the prompt in which each target is the subject of its reference.

        What is None is as the preset says, but for guidance_scale.

        Args:
            image: a reference, or R of them; see `images.load_image` for what can be read.
            prompt: the text.
            target: the words of the prompt that stand for the subject; one phrase for each reference, or several
                for a single one. A phrase that is given as often as it occurs stands for one occurrence each, in their
                order; "dog#2" is the second dog.
            seed: of the noise; image i of a call is the same whatever `num_images` is.
            num_images: B.
            width, height: of the pictures, in pixels; None: the side that the model was made for.
            steps: of the solver `solver`, one of `solvers.SOLVERS` (see `make_solver`).
            guidance_scale: of classifier-free guidance; None or 1 is none, and saves its lane; "preset": the preset's.
            scope: share of the picture that a mask covers, in (0, 1].
            freeze_mask_step: the mask stays as it is from this step on; at least 1.
            branches: "fused" | "sequential", the order of the lanes (docs/method.md).
            negative_prompt: what the picture should not be; "" is encoded like any other text. Where the preset has no
                text either, None is as `Preset.no_negative` says.
            normalize, overlap: see `masks.subject_mask`; by the preset, several references do not overlap.
            shared_reference: what several phrases of one reference are given, the "whole" or their part, "cropped".
            vision_scale: the strength of the visual term, one number or one for each target; 0 is the text alone. Or
                such by block, {"down": 0.5, "up_blocks.1": 0}, see `context.scale_vision`.
            guidance_mode: how text and image guide, one of `guidance.MODES`. text_guidance: the scale of the text alone
                in a cascade; None: as large as `guidance_scale`. rescale: the share in [0, 1] by which the deviation
                is pulled back.
            masks: where the subjects are to be, instead of where attention finds them: a mask (white is there) or a box
                (left, top, right, bottom, in pixels of the result) for each target; None among them: by attention.
            init_image: a picture to begin with, of which `strength` in (0, 1] is the share of the steps that change it:
                small keeps much, 1 nothing; None: 0.8, or with `mask_image` 1. Without width and height the pictures
                have its shape.
            mask_image: where `init_image` is painted anew (white, or a box); outside its bytes stay. Without width and
                height the pictures have its size.
            latents: the initial noise [B, H, W, C] instead of the seed's, e.g. torch's.
            on_step: called with the number of each finished step.
        Raises:
            FileNotFoundError, ValueError: an input that cannot be used.
        """
        choices = self.preset.with_call(
            guidance_scale=guidance_scale, scope=scope, freeze_mask_step=freeze_mask_step, normalize=normalize,
            steps=steps, solver=solver, branches=branches, shared_reference=shared_reference)
        references, targets = paired(image, target)
        check_options(seed=seed, num_images=num_images, guidance_scale=choices.guidance_scale,
                      vision_scale=vision_scale, guidance_mode=guidance_mode, text_guidance=text_guidance,
                      rescale=rescale, strength=strength, masks=masks, init_image=init_image, mask_image=mask_image)
        check_strengths(vision_scale, len(targets))
        regions = listed_regions(masks, len(targets))
        initial, width, height = self._initial(init_image, mask_image, width, height)
        result_size = initial.size if initial and initial.region is not None else (width, height)
        pictures = self.given_to_targets([load_image(reference) for reference in references], prompt, targets,
                                         choices.shared_reference)
        schedule = self.make_solver(choices.steps, choices.solver, start=skipped_steps(
            choices.steps, strength, begins=initial is not None, masked=mask_image is not None))
        shape = self.latent_shape(width, height)
        mask = choices.mask_config(*shape[:2], len(targets), overlap)
        given_masks = region_masks(regions, result_size, num_images, shape[:2], mask.size_of(shape[:2]))
        noise = seeded_noise(seed, num_images, shape) if latents is None else given_noise(latents, (num_images, *shape))
        inputs = self._conditionings(pictures, prompt, targets, negative_prompt, (width, height), num_images,
                                     overlapping=mask.overlap == "sum")

        guidance = Guidance(guidance_mode, text_guidance, rescale)
        scale = guidance.needed(choices.guidance_scale)
        strengths = ({block: np.float32(x) for block, x in vision_scale.items()}
                     if isinstance(vision_scale, Mapping) else np.float32(vision_scale))
        options = {"solver": schedule, "guidance_scale": None if scale is None else np.float32(scale),
                   "mask": mask, "branches": choices.branches,
                   "freeze_mask_step": choices.freeze_mask_step, "vision_scale": strengths,
                   "noise_per_step": noise_of_steps(schedule, seed, num_images, shape), "guidance": guidance,
                   "masks": given_masks}
        if initial:
            options |= self._started(initial, width, height, num_images, all_new=schedule.start == 0)
        run = _sample if on_step is None else functools.partial(sample_latents, on_step=on_step)
        samples = run(self.unet.module, self.unet.params, noise, *inputs, **options)
        made = self.decode(samples.latents)
        images = [Image.fromarray(x) for x in (initial.put_back(made) if initial else made)]
        shown = [Image.fromarray(np.uint8(np.round(x * 255))) for x in pictures]
        return Result(images, np.asarray(samples.masks), np.asarray(samples.latents), shown, targets, prompt, seed)

    def make_solver(self, steps: int, name: str | None = None, *, start: int = 0) -> Solver:
        """The solver of this name for the model's noise. None, or the one that the model's scheduler names, is as that
        has it; another one has trailing timesteps. `start` as of `solvers.make_solver`."""
        chosen = {"name": name} if name not in (None, self.solver.get("name")) else self.solver
        return make_solver(**chosen, steps=steps, betas=self.betas, prediction=self.prediction, start=start)

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The first text encoder's."""
        return self.text_encoders[0].tokenizer

    def mark_targets(self, prompt: str, targets: Sequence[str], *, overlapping: bool = False) -> np.ndarray:
        """int32 [R, T]: the tokens of R targets, 0 and 1; `overlapping` says whether masks may cover the same place."""
        return mark_targets([encoder.tokenizer for encoder in self.text_encoders], prompt, targets,
                            match=self.preset.match, overlapping=overlapping)

    def given_to_targets(
        self, pictures: list[np.ndarray], prompt: str, targets: Sequence[str], shared_reference: str | None = None
    ) -> list[np.ndarray]:
        """What R targets of the prompt are given of references, float [height, width, 3] in [0, 1]: the pictures, or of
        one that several targets share, where `shared_reference` (None: the preset's) is "cropped", the parts that show
        each of them by the base model's attention (module `locating`)."""
        if (shared_reference or self.preset.shared_reference) == "whole" or len(pictures) == len(targets):
            return pictures
        (picture,) = pictures
        square = square_reference(picture, self.sizes.native)
        latents = encode_pictures(self.vae.module, self.vae.params, 2 * jnp.asarray(square)[None] - 1)
        found = find_phrases(
            self.unet.module, self.unet.params, latents, self.encode_prompts(prompt),
            self.mark_targets(prompt, targets, overlapping=True),
            mask=self.preset.mask_config(*latents.shape[1:3]), betas=self.betas)
        boxes = [box_around(where, picture.shape[1], picture.shape[0]) for where in found]
        return [picture[top:bottom, left:right] for left, top, right, bottom in boxes]

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
        width, height = self.sizes.check(*(size or (None, None)))
        sizes = time_ids((height, width), order=self.preset.size_order)
        return Conditioning(tokens, pooled, jax.device_put(np.tile(sizes, (len(tokens), 1))))

    def encode_negative(
        self, prompt: str | None, positive: Conditioning, *, size: tuple[int, int] | None = None
    ) -> Conditioning:
        """Text conditioning of the negative lanes of the B `positive` ones, for pictures of `size` (width, height).

        `prompt` is encoded, an empty one too. None: the preset's is, or where that is empty, `Preset.no_negative` says
        what stands for none.
        """
        text = (self.preset.negative_prompt or None) if prompt is None else prompt
        if text is None and (self.preset.no_negative or self.no_negative) == "zeros":
            return zero_conditioning(positive).replace(time_ids=positive.time_ids)
        return self.encode_prompts(
            [text or ""] * len(positive.text), size=size, allow_empty=True, what="negative prompt")

    def encode_references(self, images: Sequence[np.ndarray]) -> jax.Array:
        """Vision tokens [N, L, D] of N references, pictures [height, width, 3] in [0, 1] of any size. Those
        of a black picture (all zero) are the negative lane's."""
        # Pictures of any size come to one shape here, so that the encoders are compiled once.
        size = self.vision_settings.size
        squares = np.float32([square_reference(image, size) for image in images])
        params = (self.siglip.params, self.dino.params, self.projector.params)
        return _encode_references(
            self.siglip.module, self.dino.module, self.projector.module, self.vision_settings, params, squares)

    def decode(self, latents: jax.Array) -> np.ndarray:
        """Latents [B, H, W, C] as the UNet sees them to pictures, uint8 [B, height, width, 3] (in pixels); tile by tile
        where they have more pixels than the model's own."""
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
        """A hash of what each part is made of, by the part's name. Two pipelines with equal ones and equal
        presets make equal pictures; where their files lie does not matter. Takes a second for each GB of parameters."""
        visual, base = split_unet(self.unet.params)
        texts = (x for encoder in self.text_encoders for x in (
            fingerprint.of_tokenizer(encoder.tokenizer), encoder.network.fingerprint()))
        schedule = fingerprint.of_tensors({"betas": self.betas}), self.prediction, self.sample_size
        return {
            "text encoders": fingerprint.of_values(*texts, self.no_negative),
            "autoencoder": self.vae.fingerprint(),
            "UNet": fingerprint.of_values(fingerprint.of_network(self.unet.module, base), *schedule),
            "image encoders": fingerprint.of_values(self.siglip.fingerprint(), self.dino.fingerprint()),
            "adapter": fingerprint.of_values(
                self.projector.fingerprint(), fingerprint.of_parameters(visual), self.vision_settings),
        }

    def _conditionings(self, pictures, prompt, targets, negative_prompt, size, count, *, overlapping):
        """(positive, negative, marked target tokens [B, R, T]) for B = count images."""
        positive = self.encode_prompts(prompt, size=size)
        marks = self.mark_targets(prompt, targets, overlapping=overlapping)
        if self.vocabulary:
            self.vocabulary.check(prompt, [target_phrase(prompt, x, match=self.preset.match) for x in targets])
        negative = self.encode_negative(negative_prompt, positive, size=size)
        vision = self.encode_references([*pictures, np.zeros_like(pictures[0])])
        return conditionings_of_images(count, positive, negative, vision, marks)

    @property
    def sizes(self) -> PictureSizes:
        """Those of the pictures that the model makes."""
        return PictureSizes.of(self.sample_size, self._factor)

    @property
    def _factor(self) -> int:
        """Pixels of a picture's side for one of the latents'."""
        return 2 ** (len(self.vae.module.config.block_out_channels) - 1)

    def latent_shape(self, width: int | None = None, height: int | None = None) -> tuple[int, int, int]:
        """[H, W, C] of the latents of a picture of this size in pixels; None: the model's own side. Raises ValueError
        for a size that the model does not make, with the nearest one that it does."""
        width, height = self.sizes.check(width, height)
        return height // self._factor, width // self._factor, self.unet.module.config.in_channels

    def _initial(self, init_image, mask_image, width, height) -> tuple[InitialPicture | None, int, int]:
        """(what the call begins with, width, height of the pictures to make)."""
        initial = None if init_image is None else InitialPicture.read(init_image, mask_image)
        if initial is not None and width is None and height is None:
            return initial, *self.sizes.like(*initial.size)
        width, height = self.sizes.check(width, height)
        return initial and initial.cropped(width, height), width, height

    def _started(self, initial: InitialPicture, width: int, height: int, count: int, *, all_new: bool
                 ) -> dict[str, Any]:
        """The sampler's options of `count` pictures of this size that begin with a picture; `all_new`: with noise."""
        if initial.region is None and all_new:
            return {}
        picture = from_uint8(initial.resized(width, height)[None])
        latents = jnp.repeat(encode_pictures(self.vae.module, self.vae.params, picture), count, axis=0)
        if initial.region is None:
            return {"init_latents": latents}
        region = jnp.asarray(initial.region_on(latents.shape[1:3]), jnp.float32)
        return {"init_latents": latents, "region": jnp.broadcast_to(region, latents.shape[:3])}

    def _check_fit(self, folder: Path) -> None:
        networks = {name: getattr(self, name).module.config for name in ("unet", "vae", "siglip", "dino", "projector")}
        check_fit(folder, networks, [encoder.network.module.config for encoder in self.text_encoders],
                  [encoder.tokenizer for encoder in self.text_encoders], layers=self.vision_settings,
                  pooled=self.preset.pooled, sample_size=self.sample_size)


@functools.partial(jit_kept, static_argnums=0, returns=(TextOutput,))
def _encode_text(module, params, ids: jax.Array) -> TextOutput:
    return module.apply({"params": params}, ids)


_encode_references = jit_kept(vision_tokens, static_argnums=(0, 1, 2, 3))


@functools.partial(
    jit_sampler, static_argnums=0, static_argnames=("mask", "freeze_mask_step", "branches"), returns=(Samples,))
def _sample(unet, params, noise, positive, negative, target, **options) -> Samples:
    return sample_latents(unet, params, noise, positive, negative, target, **options)
