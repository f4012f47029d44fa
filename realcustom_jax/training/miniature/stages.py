"""Runs the stages of a miniature in order; each reads the parts that the earlier ones wrote to `workdir/bundle`."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import trange

from realcustom_jax.choices import check_choice
from realcustom_jax.conditioning.prompts import build_tokenizer, encode_prompt
from realcustom_jax.conditioning.references import VisionSettings, from_uint8
from realcustom_jax.data import loader
from realcustom_jax.data.sprites import builder, world
from realcustom_jax.devices.compilation import enable_compilation_cache
from realcustom_jax.devices.processes import by_the_first
from realcustom_jax.evaluation.judge import JudgeConfig, save_judge
from realcustom_jax.files import write_file, write_json
from realcustom_jax.model_files import bundle, weights
from realcustom_jax.model_files.adapter import find_adapter, scaled_tokens, split_unet, vision_from_text
from realcustom_jax.model_files.adapter import to_torch as adapter_tensors
from realcustom_jax.model_files.source import FolderSource
from realcustom_jax.models.clip_text import ClipText, ClipTextConfig
from realcustom_jax.presets import find_preset
from realcustom_jax.training.curriculum import Curriculum
from realcustom_jax.training.loop import TrainSettings, fit
from realcustom_jax.training.miniature import adapter, autoencoder, base, encoders, judge

# Places of a description's words after the start token: "a slim red and blue striped dog".
_DESCRIBED = {"build": 2, "primary": 3, "secondary": 5, "pattern": 6, "noun": 7}

# Painted subjects fill more of their pictures than a quarter, and what they wear sticks out: the mask is the target's
# refined map as it is, weak where the subject is not, and nothing is cut off.
_PRESET = {"scope": 1.0, "refine": 2}


def run(config: ConfigDict, workdir: Path) -> None:
    """Trains `config.stage`, or all stages; a stage that has written its part of the bundle is not trained again."""
    enable_compilation_cache()
    check_choice("stage", config.stage, ("all", *STAGES))
    by_the_first(lambda: builder.write(workdir / "data", **config.data))
    data = builder.write(workdir / "data", **config.data)
    for name in STAGES if config.stage == "all" else (config.stage,):
        STAGES[name](config, workdir, data)


def _save_part(workdir: Path, part: str, config: Mapping, tensors: Mapping[str, np.ndarray]) -> None:
    by_the_first(lambda: bundle.save_part(workdir / "bundle", part, config, bundle.to_half(tensors)))


_THE_RUN = {"adapter": ("curriculum", "masked", "taught", "spelled")}
"""What of a configuration, beside seed and data, may not change while a stage goes on."""


def _fit(name: str, task, config: ConfigDict, workdir: Path):
    settings = TrainSettings(seed=config.seed, on_existing=config.on_existing, **config.optimization[name])
    plain = config.to_dict()
    run = {key: plain[key] for key in ("seed", "data", *_THE_RUN.get(name, ()))}
    return fit(name, task, settings, workdir / name, run=run)


def _batches(arrays, name: str, config: ConfigDict, rows=None):
    return loader.batches(arrays, batch_size=config.optimization[name].batch_size, seed=config.seed, rows=rows)


def _autoencoder(config: ConfigDict, workdir: Path, data: Path) -> None:
    arrays = loader.load_arrays(data, "train", fields=("target",))
    model = config.models.vae.to_dict()
    task = autoencoder.AutoencoderTask(model, _batches(arrays, "autoencoder", config))
    params = _fit("autoencoder", task, config, workdir)
    means = task.encode(params, from_uint8(arrays["target"][:512]))
    # The diffusion model sees latents of unit variance.
    model["scaling_factor"] = float(1 / means.std())
    _save_part(workdir, "vae", model, weights.to_torch(params))


def _tokenizer(config: ConfigDict):
    return build_tokenizer(world.VOCABULARY, max_length=config.models.text_encoder.max_position_embeddings)


def _text_config(config: ConfigDict, tokenizer) -> dict:
    return config.models.text_encoder.to_dict() | {
        "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}


def _encoded(tokenizer, data: Path, field: str) -> np.ndarray:
    texts = loader.load_arrays(data, "train", fields=(field,))[field]
    return encode_prompt(tokenizer, texts.tolist())


def _encoders(config: ConfigDict, workdir: Path, data: Path) -> None:
    tokenizer = _tokenizer(config)
    arrays = loader.load_arrays(data, "train", fields=("target", "references"))
    arrays["description_ids"] = _encoded(tokenizer, data, "description")
    models = config.models.to_dict()
    task = encoders.EncodersTask(
        siglip_config=models["image_encoder_siglip"], dinov2_config=models["image_encoder_dinov2"],
        text_tower=ClipText(ClipTextConfig.from_config(_text_config(config, tokenizer))),
        batches=_batches(arrays, "encoders", config), start=_trained_encoders(Path(config.warm_start))
        if config.warm_start else {}, words=_DESCRIBED)
    params = _fit("encoders", task, config, workdir)
    for name in ("siglip", "dinov2"):
        part = f"image_encoder_{name}"
        _save_part(workdir, part, models[part], weights.to_torch(params[name]))


def _trained_encoders(folder: Path) -> dict:
    return {name: FolderSource(folder).load(f"image_encoder_{name}")[1] for name in ("siglip", "dinov2")}


def _base(config: ConfigDict, workdir: Path, data: Path) -> None:
    tokenizer = _tokenizer(config)
    text_config = _text_config(config, tokenizer)
    arrays = _latents(workdir, data) | {
        "input_ids": _encoded(tokenizer, data, "caption"),
        "description_ids": _encoded(tokenizer, data, "description")}
    start = _warm_start(config, tokenizer) if config.warm_start else None
    task = base.BaseTask(
        unet_config=config.models.unet.to_dict(), text_encoder=ClipText(ClipTextConfig.from_config(text_config)),
        batches=_batches(arrays, "base", config), empty_ids=encode_prompt(tokenizer, "", allow_empty=True)[0],
        decode=_decoder(workdir), image_size=config.models.vae.sample_size, prediction=config.prediction,
        start=start)
    params = _fit("base", task, config, workdir)
    by_the_first(lambda: tokenizer.save_pretrained(workdir / "bundle" / "tokenizer"))
    _save_part(workdir, "text_encoder", text_config, weights.to_torch(params["text_encoder"]))
    _save_part(workdir, "unet", task.unet_config, weights.to_torch(params["unet"]))


def _warm_start(config: ConfigDict, tokenizer) -> dict:
    """The base model of the bundle `config.warm_start`; words that its tokenizer lacks get random embeddings."""
    trained = FolderSource(Path(config.warm_start))
    _, unet_params = weights.load_unet(config.models.unet.to_dict(), trained.tensors("unet"))
    _, text_params = trained.load("text_encoder")
    known = trained.tokenizer().get_vocab()
    table = text_params["text_model"]["embeddings"]["token_embedding"]
    embedding = np.asarray(table["embedding"])
    rows = np.random.default_rng(config.seed).normal(0, embedding.std(), (len(tokenizer), embedding.shape[1]))
    for token, row in tokenizer.get_vocab().items():
        if token in known:
            rows[row] = embedding[known[token]]
    table["embedding"] = jnp.asarray(rows, embedding.dtype)
    return {"unet": unet_params, "text_encoder": text_params}


def _adapter(config: ConfigDict, workdir: Path, data: Path) -> None:
    folder, tokenizer = workdir / "bundle", _tokenizer(config)
    adapter_config = config.models.adapter.to_dict()
    source = FolderSource(folder)
    key = jax.random.key(config.seed)
    with_vision = source.config("unet") | {"image_prompt_settings": adapter_config["image_prompt_settings"]}
    trained = (find_adapter(Path(config.warm_start) / "adapter").tensors,) if config.warm_start else ()
    unet, unet_params = weights.load_unet(
        with_vision, source.tensors("unet"), *trained, init_missing=("vision",), rng=key)
    projector, projector_params = weights.load_projector(adapter_config, *trained, init_missing=("vision",), rng=key)
    text_encoder, text_params = source.load("text_encoder")
    siglip, siglip_params = source.load("image_encoder_siglip")
    dinov2, dinov2_params = source.load("image_encoder_dinov2")
    vision, base_params = split_unet(unet_params)
    arrays = loader.load_arrays(data, "train", fields=("references", "difficulty", "nouns"))
    rows = loader.rows_without(arrays.pop("nouns"), [world.NOUNS.index(noun) for noun in world.HELD_OUT_NOUNS])
    arrays |= _latents(workdir, data) | {
        "input_ids": _encoded(tokenizer, data, "caption"),
        "description_ids": _encoded(tokenizer, data, "description")}
    if not trained:
        vision = vision_from_text(base_params)
        text = text_encoder.apply({"params": text_params}, arrays["description_ids"][:256])
        projector_params = scaled_tokens(projector_params, float(text.penultimate.std()))
    task = adapter.AdapterTask(
        unet=unet, projector=projector, text_encoder=text_encoder, siglip=siglip, dinov2=dinov2,
        settings=VisionSettings.from_config(adapter_config["vision_settings"]),
        frozen={"unet": base_params, "text_encoder": text_params, "siglip": siglip_params, "dinov2": dinov2_params},
        fresh={"projector": projector_params, "vision": vision},
        batches=_batches(arrays, "adapter", config, rows), curriculum=Curriculum(**config.curriculum),
        steps=config.optimization.adapter.steps, empty_ids=encode_prompt(tokenizer, "", allow_empty=True)[0],
        decode=_decoder(workdir), image_size=config.models.vae.sample_size, prediction=config.prediction,
        masked=config.masked, preset=find_preset(_PRESET), taught=config.taught, spelled=config.spelled)
    params = _fit("adapter", task, config, workdir)
    _save_part(workdir, "adapter", adapter_config, adapter_tensors(params["projector"], params["vision"]))
    by_the_first(lambda: _describe(folder, config.prediction))


def _judge(config: ConfigDict, workdir: Path, data: Path) -> None:
    arrays = loader.load_arrays(data, "train", fields=judge.FIELDS)
    model = config.models.judge.to_dict()
    task = judge.JudgeTask(model, _batches(arrays, "judge", config, judge.single_subject_rows(arrays["nouns"])))
    params = _fit("judge", task, config, workdir)
    by_the_first(lambda: save_judge(workdir / "bundle", JudgeConfig.from_config(model), params))


def _describe(folder: Path, prediction: str) -> None:
    """What makes the parts a diffusers folder: the index, the scheduler, and the words that the model knows."""
    write_json(folder / "model_index.json", {
        "_class_name": "StableDiffusionXLPipeline", "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"], "scheduler": ["diffusers", "DPMSolverSinglestepScheduler"]})
    write_json(folder / "scheduler" / "scheduler_config.json", {
        "_class_name": "DPMSolverSinglestepScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085,
        "beta_end": 0.012, "num_train_timesteps": 1000, "prediction_type": prediction, "timestep_spacing": "trailing"})
    write_json(folder / "preset.json", _PRESET)
    write_json(folder / "vocabulary.json", {
        "nouns": world.NOUNS, "held_out_nouns": world.HELD_OUT_NOUNS, "scenes": world.SCENES,
        "words": world.VOCABULARY})


def _latents(workdir: Path, data: Path) -> dict[str, np.ndarray]:
    """latents: of all training pictures, float16 [N,h,w,C] of unit variance, encoded once per run folder;
    coverage: how much of each latent pixel the subjects fill, float16 [N,h,w]."""
    file = workdir / "cache" / "latents.npy"

    def write():
        module, params = FolderSource(workdir / "bundle").load("vae")
        images = loader.load_arrays(data, "train", fields=("target",))["target"]
        encode = jax.jit(lambda x: module.apply({"params": params}, from_uint8(x), method="encode").mean)
        parts = [np.asarray(encode(images[i : i + 100]) * module.config.scaling_factor, np.float16)
                 for i in trange(0, len(images), 100, desc="encoding latents")]
        buffer = io.BytesIO()
        np.save(buffer, np.concatenate(parts))
        write_file(file, buffer.getvalue())

    by_the_first(lambda: file.is_file() or write())
    latents = np.load(file)
    subjects = loader.load_arrays(data, "train", fields=("masks",))["masks"].any(axis=1)
    count, height, width = latents.shape[:3]
    blocks = subjects.reshape(count, height, subjects.shape[1] // height, width, subjects.shape[2] // width)
    return {"latents": latents, "coverage": blocks.mean(axis=(2, 4), dtype=np.float32).astype(np.float16)}


def _decoder(workdir: Path) -> Callable[[jax.Array], jax.Array]:
    module, params = FolderSource(workdir / "bundle").load("vae")
    scale = module.config.scaling_factor
    return jax.jit(lambda latents: module.apply({"params": params}, latents / scale, method="decode"))


STAGES: dict[str, Callable[[ConfigDict, Path, Path], None]] = {
    "autoencoder": _autoencoder, "encoders": _encoders, "base": _base, "adapter": _adapter, "judge": _judge,
}
