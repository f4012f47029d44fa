"""Runs the stages of a miniature in order; each reads the parts that the earlier ones wrote to `workdir/bundle`.

    autoencoder    pictures ↔ latents                                       needs nothing
    encoders       the two image encoders                                   needs nothing
    judge          what scores pictures                                     needs nothing
    base           UNet and text encoder                                    needs the autoencoder
    adapter        projector and visual keys and values, all else frozen    needs all but the judge
    distill        a change of the UNet with which a few steps suffice      needs the adapter
"""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from realcustom_jax.conditioning.prompts import build_tokenizer, encode_prompt
from realcustom_jax.conditioning.references import VisionSettings
from realcustom_jax.data.sprites.bank import paint_bank
from realcustom_jax.data.sprites.captions import VOCABULARY, Spelling
from realcustom_jax.data.sprites.world import HELD_OUT_NOUNS, NOUNS, SCENES
from realcustom_jax.devices.compilation import enable_compilation_cache
from realcustom_jax.devices.shared_disk import on_first_process
from realcustom_jax.errors import check_choice
from realcustom_jax.evaluation.miniature.judge import JudgeConfig, save_judge
from realcustom_jax.files import write_file, write_json
from realcustom_jax.model_files import bundle, fingerprint, weights
from realcustom_jax.model_files.adapter import (
    adapter_tensors,
    find_adapter,
    merge_unet,
    scaled_tokens,
    split_unet,
    vision_from_text,
)
from realcustom_jax.model_files.network import Network, TextEncoder
from realcustom_jax.model_files.schedule import read_solver
from realcustom_jax.model_files.source import FolderSource
from realcustom_jax.model_files.tensors import LazyTensors
from realcustom_jax.models.clip_text import ClipText, ClipTextConfig
from realcustom_jax.paths import as_path, host_folder
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.training.identity import RunIdentity
from realcustom_jax.training.loop import fit
from realcustom_jax.training.low_rank import low_rank_tensors
from realcustom_jax.training.miniature import adapter, autoencoder, base, distill, encoders, judge
from realcustom_jax.training.miniature.config import MiniatureConfig
from realcustom_jax.training.miniature.pictures import PictureBatches
from realcustom_jax.training.reports import Report
from realcustom_jax.training.scored import find_judge, scored_pictures

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath


def run(config: ConfigDict, workdir: "AnyPath") -> None:
    """Trains `config.stage`, several of them with commas between, or all; a finished stage's checkpoint is only read
    again."""
    enable_compilation_cache()
    read = MiniatureConfig.from_config(config.to_dict())
    names = tuple(STAGES) if read.stage == "all" else tuple(read.stage.split(","))
    for name in names:
        check_choice("stage", name, ("all", *STAGES))
    for name in names:  # before the bank takes its time
        settings = getattr(read.optimization, name)
        RunIdentity.of(_about(name, read), settings).check(workdir / name / "checkpoints", settings.on_existing)
    on_first_process(lambda: _bank(read, workdir))
    for name in names:
        STAGES[name](read, workdir)


def _bank(config: MiniatureConfig, workdir: "AnyPath"):
    return paint_bank(config.data, host_folder(workdir / "bank"))


def _save_part(workdir: "AnyPath", part: str, config: Mapping, tensors: Mapping[str, np.ndarray]) -> None:
    on_first_process(lambda: bundle.save_part(workdir / "bundle", part, config, bundle.to_half(tensors)))


_THE_RUN = {
    "autoencoder": ("models.vae",),
    "encoders": ("models.text_encoder", "models.image_encoder_siglip", "models.image_encoder_dinov2"),
    "judge": ("models.judge",),
    "base": ("models.text_encoder", "models.unet", "prediction", "base"),
    "adapter": ("models.adapter", "prediction", "curriculum", "adapter"),
    "distill": ("prediction", "distill", "preset"),
}
"""What of a configuration, beside seed and data, may not change while a stage goes on."""


def _about(name: str, config: MiniatureConfig) -> dict[str, Any]:
    """What a stage is about, as far as the configuration says it. `accumulate` is, because a loss that compares
    examples sees a part's only."""
    said = config.said | {f"models.{part}": model for part, model in config.said["models"].items()}
    keys = ("seed", "data", *_THE_RUN[name])
    return {key: said[key] for key in keys if key in said} | {
        "accumulate": getattr(config.optimization, name).accumulate}


def _fit(name: str, task, config: MiniatureConfig, workdir: "AnyPath", reports: Sequence[Report] = ()):
    # What an earlier stage made may have been trained anew since; the paintings follow from `data`.
    frozen = {part: params for part, params in task.frozen.items() if part != "paintings"}
    return fit(name, task, getattr(config.optimization, name), workdir / name,
               run=_about(name, config) | {"frozen": fingerprint.of_parameters(frozen)}, reports=reports)


def _batches(name: str, config: MiniatureConfig, workdir: "AnyPath", **options) -> PictureBatches:
    return PictureBatches(_bank(config, workdir), Spelling(_tokenizer(config)),
                          getattr(config.optimization, name).batch_size, config.seed, **options)


def _autoencoder(config: MiniatureConfig, workdir: "AnyPath") -> None:
    model = dict(config.models.vae)
    task = autoencoder.AutoencoderTask(model, _batches("autoencoder", config, workdir))
    params = _fit("autoencoder", task, config, workdir)
    means = [task.encode(params, task.images(step)) for step in range(8)]
    # The diffusion model sees latents of unit variance.
    model["scaling_factor"] = float(1 / np.std(means))
    _save_part(workdir, "vae", model, weights.to_torch(params))


def _tokenizer(config: MiniatureConfig):
    return build_tokenizer(VOCABULARY, max_length=config.models.text_encoder["max_position_embeddings"])


def _text_encoder(config: MiniatureConfig, tokenizer) -> tuple[ClipText, dict]:
    """The module and its configuration."""
    mapping = {
        **config.models.text_encoder, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return ClipText(ClipTextConfig.from_config(mapping)), mapping


def _encoders(config: MiniatureConfig, workdir: "AnyPath") -> None:
    models = config.models
    task = encoders.EncodersTask(
        siglip_config=models.image_encoder_siglip, dinov2_config=models.image_encoder_dinov2,
        text_tower=_text_encoder(config, _tokenizer(config))[0], batches=_batches("encoders", config, workdir))
    params = _fit("encoders", task, config, workdir)
    for name in ("siglip", "dinov2"):
        part = f"image_encoder_{name}"
        _save_part(workdir, part, getattr(models, part), weights.to_torch(params[name]))


def _judge(config: MiniatureConfig, workdir: "AnyPath") -> None:
    model = config.models.judge
    params = _fit("judge", judge.JudgeTask(model, _batches("judge", config, workdir)), config, workdir)
    on_first_process(lambda: save_judge(workdir / "bundle", JudgeConfig.from_config(model), params))


def _base(config: MiniatureConfig, workdir: "AnyPath") -> None:
    tokenizer = _tokenizer(config)
    text_encoder, text_config = _text_encoder(config, tokenizer)
    unet_config = config.models.unet
    task = base.BaseTask(
        unet_config=unet_config, text_encoder=text_encoder, batches=_batches("base", config, workdir),
        empty_ids=_empty(tokenizer), **_latents(workdir), prediction=config.prediction,
        start=_trained_base(config) if config.warm_start else None, **dataclasses.asdict(config.base))
    params = _fit("base", task, config, workdir)
    on_first_process(lambda: _save_tokenizer(workdir / "bundle" / "tokenizer", tokenizer))
    _save_part(workdir, "text_encoder", text_config, weights.to_torch(params["text_encoder"]))
    _save_part(workdir, "unet", unet_config, weights.to_torch(params["unet"]))


def _save_tokenizer(folder: "AnyPath", tokenizer) -> None:
    with tempfile.TemporaryDirectory() as written:
        tokenizer.save_pretrained(written)
        for file in Path(written).iterdir():
            write_file(folder / file.name, file.read_bytes())


def _trained_base(config: MiniatureConfig) -> dict:
    """The base model of the bundle `config.warm_start`."""
    trained = FolderSource(as_path(config.warm_start))
    _, unet_params = weights.load_unet(config.models.unet, trained.tensors("unet"))
    return {"unet": unet_params, "text_encoder": trained.load("text_encoder")[1]}


def _adapter(config: MiniatureConfig, workdir: "AnyPath") -> None:
    trained = (find_adapter(as_path(config.warm_start) / "adapter").tensors,) if config.warm_start else ()
    task = _adapter_task("adapter", config, workdir, *trained, bystanders=config.adapter.bystanders)
    every = config.optimization.adapter.evaluate_pictures_every
    scored = scored_pictures(every, find_judge(every, workdir / "bundle"),
                             lambda params: _pipeline(task, params, config, workdir))
    params = _fit("adapter", task, config, workdir, scored)
    _save_part(workdir, "adapter", config.models.adapter, adapter_tensors(params["projector"], params["vision"]))
    on_first_process(lambda: _describe(workdir / "bundle", config))


def _pipeline(task: adapter.AdapterTask, params, config: MiniatureConfig, workdir: "AnyPath") -> Pipeline:
    """The pipeline that the bundle will be, with these parameters of its adapter."""
    frozen = task.frozen
    text_encoder = TextEncoder(_tokenizer(config), Network(task.text_encoder, frozen["text_encoder"]))
    return Pipeline(
        text_encoders=(text_encoder,), vae=Network(*FolderSource(workdir / "bundle").load("vae")),
        unet=Network(task.unet, merge_unet(params["vision"], frozen["unet"])),
        siglip=Network(task.siglip, frozen["siglip"]), dino=Network(task.dinov2, frozen["dinov2"]),
        projector=Network(task.projector, params["projector"]), vision_settings=task.settings, betas=task.betas,
        prediction=task.prediction, sample_size=task.latent_size, preset=task.preset,
        solver=read_solver(_scheduler(config)))


def _adapter_task(stage: str, config: MiniatureConfig, workdir: "AnyPath", *trained: LazyTensors,
                  bystanders: float) -> adapter.AdapterTask:
    """The task with the bundle's base model, whose adapter begins as `trained`, or anew; with the batches of `stage`,
    of which the share `bystanders` has a second thing."""
    tokenizer, adapter_config = _tokenizer(config), config.models.adapter
    source = FolderSource(workdir / "bundle")
    key = jax.random.key(config.seed)
    with_vision = source.config("unet") | {"image_prompt_settings": adapter_config["image_prompt_settings"]}
    unet, unet_params = weights.load_unet(
        with_vision, source.tensors("unet"), *trained, init_missing=("vision",), rng=key)
    projector, projector_params = weights.load_projector(adapter_config, *trained, init_missing=("vision",), rng=key)
    text_encoder, text_params = source.load("text_encoder")
    siglip, siglip_params = source.load("image_encoder_siglip")
    dinov2, dinov2_params = source.load("image_encoder_dinov2")
    vision, base_params = split_unet(unet_params)
    options = {name: x for name, x in dataclasses.asdict(config.adapter).items() if name != "bystanders"}
    batches = _batches(stage, config, workdir, two=bystanders,
                       nouns=[noun for noun in NOUNS if noun not in HELD_OUT_NOUNS])
    if not trained:
        vision = vision_from_text(base_params)
        text = text_encoder.apply({"params": text_params}, batches.captioned(0)["caption_ids"])
        projector_params = scaled_tokens(projector_params, float(text.penultimate.std()))
    latents = _latents(workdir)
    return adapter.AdapterTask(
        unet=unet, projector=projector, text_encoder=text_encoder, siglip=siglip, dinov2=dinov2,
        settings=VisionSettings.from_config(adapter_config["vision_settings"]),
        frozen={"unet": base_params, "text_encoder": text_params, "siglip": siglip_params, "dinov2": dinov2_params,
                "autoencoder": latents.pop("autoencoder"), "paintings": batches.paintings},
        fresh={"projector": projector_params, "vision": vision},
        batches=batches, curriculum=config.curriculum, steps=config.optimization.adapter.steps,
        empty_ids=_empty(tokenizer), **latents, prediction=config.prediction,
        latent_size=config.models.unet["sample_size"], preset=config.preset, **options)


def _distill(config: MiniatureConfig, workdir: "AnyPath") -> None:
    trained = find_adapter(workdir / "bundle" / "adapter").tensors
    options = dataclasses.asdict(config.distill)
    teacher = _adapter_task("distill", config, workdir, trained, bystanders=options.pop("bystanders"))
    params = _fit("distill", distill.DistillTask(teacher, **options), config, workdir)
    choices = {"steps": options["steps"], "solver": distill.SOLVER, "branches": distill.BRANCHES,
               "freeze_mask_step": options["freeze"], "guidance_scale": 1.0}
    on_first_process(lambda: bundle.save_few_steps(
        workdir / "bundle", choices, bundle.to_half(low_rank_tensors(params))))


def _empty(tokenizer) -> np.ndarray:
    return encode_prompt(tokenizer, "", allow_empty=True)[0]


def _latents(workdir: "AnyPath") -> dict[str, Any]:
    """The trained autoencoder's parameters, and encode and decode, between images in [-1, 1] and latents of unit
    variance."""
    module, params = FolderSource(workdir / "bundle").load("vae")
    scale = module.config.scaling_factor

    def encode(params, images: jax.Array) -> jax.Array:
        return module.apply({"params": params}, images, method="encode").mean * scale

    def decode(params, latents: jax.Array) -> jax.Array:
        return module.apply({"params": params}, jnp.asarray(latents) / scale, method="decode")

    return {"autoencoder": params, "encode": encode, "decode": decode}


def _describe(folder: "AnyPath", config: MiniatureConfig) -> None:
    """What makes the parts a diffusers folder: the index, the scheduler, and the words that the model knows."""
    write_json(folder / "model_index.json", {
        "_class_name": "StableDiffusionXLPipeline", "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"], "scheduler": ["diffusers", "DPMSolverSinglestepScheduler"]})
    write_json(folder / "scheduler" / "scheduler_config.json", _scheduler(config))
    write_json(folder / "preset.json", config.said.get("preset", {}))
    write_json(folder / "vocabulary.json", {
        "nouns": NOUNS, "held_out_nouns": HELD_OUT_NOUNS, "scenes": SCENES, "words": VOCABULARY})


def _scheduler(config: MiniatureConfig) -> dict[str, Any]:
    """The scheduler of diffusers that the model is sampled with."""
    return {
        "_class_name": "DPMSolverSinglestepScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085,
        "beta_end": 0.012, "num_train_timesteps": 1000, "prediction_type": config.prediction,
        "timestep_spacing": "trailing"}


STAGES: "dict[str, Callable[[MiniatureConfig, AnyPath], None]]" = {
    "autoencoder": _autoencoder, "encoders": _encoders, "judge": _judge, "base": _base, "adapter": _adapter,
    "distill": _distill,
}
