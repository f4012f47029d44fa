"""Every stage of the miniature's training, a few steps each, on a tiny bank and networks of a few channels."""

import dataclasses
import functools
import importlib.util
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from realcustom_jax.data.sprites.bank import BankConfig
from realcustom_jax.data.sprites.captions import Spelling
from realcustom_jax.data.sprites.composition import compose_few
from realcustom_jax.evaluation.miniature.cases import make_cases
from realcustom_jax.evaluation.miniature.generate import Generator
from realcustom_jax.evaluation.miniature.judge import ATTRIBUTES, Verdict, load_judge
from realcustom_jax.evaluation.miniature.scores import score_pictures
from realcustom_jax.model_files import bundle, weights
from realcustom_jax.model_files.adapter import merge_unet, scaled_tokens
from realcustom_jax.model_files.tensors import read_tensors
from realcustom_jax.models.unet import UNetOutput
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.sampling import solvers
from realcustom_jax.sampling.sampler import sample_latents
from realcustom_jax.training import loop
from realcustom_jax.training.miniature import base, encoders, stages
from realcustom_jax.training.miniature.autoencoder import AutoencoderTask
from realcustom_jax.training.miniature.config import MiniatureConfig
from realcustom_jax.training.miniature.judge import JudgeTask, disturb, places
from realcustom_jax.training.miniature.pictures import PictureBatches
from realcustom_jax.training.scored import find_judge, scored_pictures

pytestmark = pytest.mark.usefixtures("quickly_compiled")
CONFIG = Path(__file__).parents[1] / "configs" / "mini.py"
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def config():
    spec = importlib.util.spec_from_file_location("mini", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.data.update(identities=36, poses=2, scenes=2, side=32, cut_out=36)
    config.models.vae.update(block_out_channels=[8, 8, 8, 8], norm_num_groups=4, sample_size=32)
    config.models.text_encoder.num_hidden_layers = 2
    config.models.unet.update(
        sample_size=4, block_out_channels=[8, 16], norm_num_groups=4, attention_head_dim=[2, 2],
        down_block_types=["CrossAttnDownBlock2D"] * 2, up_block_types=["CrossAttnUpBlock2D"] * 2)
    for encoder in ("image_encoder_siglip", "image_encoder_dinov2"):
        config.models[encoder].update(depth=2, img_size=16)
    config.models.adapter.vision_settings.update(
        size=32, encoder_size=16, siglip_layers=[0, 1, 1], dino_layers=[0, 1, 1])
    config.models.judge.update(widths=[8, 8, 16], hidden=16, groups=4)
    for settings in config.optimization.values():
        settings.update(steps=4, batch_size=4, warmup=1, save_every=2, keep=2, log_every=1, sample_every=0)
    return config


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    """A folder in which all stages ran to their end, with their pictures."""
    workdir, drawn = tmp_path_factory.mktemp("run"), config.copy_and_resolve_references()
    for settings in drawn.optimization.values():
        settings.sample_every = 4
    stages.run(drawn, workdir)
    return workdir


def train(config, workdir, stage):
    """What `fit` returns of one stage."""
    found, fit = [], stages.fit
    one = config.copy_and_resolve_references()
    one.stage = stage
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stages, "fit", lambda *args, **options: found.append(fit(*args, **options)) or found[0])
        stages.run(one, workdir)
    return found[0]


def task_of(config, workdir, **changes):
    """The task of one stage, before its first step."""
    found = []

    def stop(name, task, *_, **__):
        found.append(task)
        raise KeyboardInterrupt

    again = config.copy_and_resolve_references()
    again.update(changes)
    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(stages, "fit", stop)
        stages.run(again, workdir)
    return found[0]


# -------------------- all stages


@pytest.fixture
def compiled_once(monkeypatch):
    """All trainings of a test share their compiled step, which depends on nothing but its arguments."""
    steps, make = [], loop.make_train_step
    monkeypatch.setattr(loop, "make_train_step", lambda *args: (steps or steps.append(make(*args)) or steps)[0])


def assert_resumed_to_the_bit(config, workdir, stage):
    """Trains a stage, and again from its checkpoint after step 2 of 4, where nothing later is left."""
    first, resumed = train(config, workdir, stage), workdir.with_name("resumed")
    shutil.copytree(workdir, resumed)
    shutil.rmtree(resumed / stage / "checkpoints" / "4")
    again = train(config, resumed, stage)
    jax.tree.map(np.testing.assert_array_equal, again, first)
    losses, of_resumed = (logged(folder / stage) for folder in (workdir, resumed))
    assert losses == of_resumed and losses.keys() == {0, 1, 2, 3} and len(set(losses.values())) == 4


def logged(folder):
    """The losses by step."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows}


@pytest.mark.slow
def test_a_stage_that_was_stopped_ends_with_the_same_bits(config, tmp_path, compiled_once, monkeypatch):
    """The autoencoder with one level, begun with numbers that need no compiling."""
    small = config.copy_and_resolve_references()
    small.models.vae.update(block_out_channels=[8], down_block_types=["DownEncoderBlock2D"],
                            up_block_types=["UpDecoderBlock2D"])
    monkeypatch.setattr(AutoencoderTask, "init", lambda task, key: drawn(jax.eval_shape(
        lambda: task.module.init(key, jnp.zeros((1, 32, 32, 3)))["params"])))
    assert_resumed_to_the_bit(small, tmp_path / "whole", "autoencoder")


def drawn(shapes):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(
        rng.standard_normal(x.shape) * np.prod(x.shape[:-1]) ** -0.5 if len(x.shape) > 1 else np.full(x.shape, 0.5),
        jnp.float32), shapes)


@pytest.mark.parametrize("stage", [name for name in stages.STAGES if name != "autoencoder"])
@pytest.mark.slow
def test_every_stage_that_was_stopped_ends_with_the_same_bits(trained, config, tmp_path, compiled_once, stage):
    shutil.copytree(trained / "bundle", tmp_path / "whole" / "bundle")
    assert_resumed_to_the_bit(config, tmp_path / "whole", stage)


@pytest.mark.parametrize("stage", stages.STAGES)
@pytest.mark.slow
def test_every_stage_leaves_a_picture_and_a_checkpoint(trained, stage):
    assert (trained / stage / "samples" / "000004.png").is_file()
    assert (trained / stage / "checkpoints" / "4").is_dir()


@pytest.mark.slow
def test_the_bundle_is_read_back(trained):
    folder = trained / "bundle"
    adapter = read_tensors(folder / "adapter" / bundle.WEIGHT_FILES["adapter"])
    assert any(name.startswith(weights.PROJECTOR_PREFIX) for name in adapter)
    assert any(".to_v_vision." in name for name in adapter)
    assert not any(".attn2.to_k.weight" in name for name in adapter), "the base model is frozen"
    pipeline, picture = Pipeline.load(folder), np.zeros((1, 32, 32, 3), np.uint8)
    assert pipeline.sizes.native == 32 and pipeline.preset.refine == 2
    assert load_judge(folder)(picture, np.array([[0, -1]])).places.shape == (1, 2, 16, 16)


def test_an_unknown_stage_is_named(config, tmp_path):
    wrong = config.copy_and_resolve_references()
    wrong.stage = "base,adaptor"
    with pytest.raises(ValueError, match="did you mean 'adapter'"):
        stages.run(wrong, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_warm_start_begins_with_the_weights_of_a_bundle(trained, config):
    started = {stage: task_of(config, trained, stage=stage, warm_start=str(trained / "bundle")).init(KEY)
               for stage in ("base", "adapter")}
    unet = read_tensors(trained / "bundle/unet" / bundle.WEIGHT_FILES["unet"])
    adapter = read_tensors(trained / "bundle/adapter" / bundle.WEIGHT_FILES["adapter"])
    for tensors, params in ((unet, started["base"]["unet"]), (adapter, started["adapter"]["vision"])):
        for name, value in weights.to_torch(params).items():
            np.testing.assert_array_equal(value, tensors[name].astype(np.float32), err_msg=name)


# -------------------- the encoders


@pytest.mark.slow
def test_the_captioner_reads_what_the_tokens_say():
    """Rows of tokens that are codes of words: a few steps teach it to say them, each in its place."""
    words = np.random.default_rng(0).integers(0, 5, (32, 3))
    tokens = np.eye(5)[words].reshape(32, 1, 15).repeat(2, axis=1)
    captioner = encoders.Captioner(length=3, vocab_size=5)
    params, optimizer = captioner.init(KEY, tokens), optax.adam(1e-2)

    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(captioner.apply(params, tokens), words).mean()

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(60):
        params, state = step(params, state)
    assert (captioner.apply(params, tokens).argmax(-1) == words).mean() > 0.95


# -------------------- the judge


class Knowing:
    """In the judge's place: its verdict is what it is told."""

    def __init__(self, verdict):
        self.verdict = verdict

    def apply(self, variables, images, *, regions):
        assert images.shape[0] == regions.shape[0] and regions.shape[2:] == images.shape[1:3]
        return self.verdict


def test_the_judge_is_asked_for_each_things_own_truth(config, tiny_bank, sprite_tokenizer):
    task = JudgeTask(config.models.judge.to_dict(), PictureBatches(tiny_bank, Spelling(sprite_tokenizer), 8, 0))
    batch = task.batch(0)
    assert (batch["nouns"][:, 1] < 0).any() and (batch["nouns"][:, 1] >= 0).any()
    _, coverage = compose_few(tiny_bank.cut_outs, tiny_bank.scenes, batch["layout"])
    truth = places(coverage, batch["nouns"], (16, 16))

    def verdict(sharpness, shift=0):
        things = {name: sharpness * jax.nn.one_hot((batch["attributes"][..., i] + shift) % len(classes), len(classes))
                  for i, (name, classes) in enumerate(ATTRIBUTES.items())}
        return Verdict(sharpness * jax.nn.one_hot(truth, 19), sharpness * jax.nn.one_hot(batch["scene"], 10), things)

    @jax.jit
    def judged(told, frozen, batch):
        task.module = Knowing(told)
        return task.loss({}, frozen, batch, KEY)

    (right, perfect), (blind, _), (_, wrong) = (
        judged(told, task.frozen, batch) for told in (verdict(50.0), verdict(0.0), verdict(50.0, 1)))
    assert right == pytest.approx(0, abs=1e-3) and all(value == pytest.approx(1) for value in perfect.values())
    chance = np.log(10) + sum(np.log(len(classes)) for classes in ATTRIBUTES.values())
    assert blind == pytest.approx(chance + task.places_weight * np.log(19), rel=1e-3)
    assert all(wrong[name] == 0 for name in ATTRIBUTES) and wrong["scene"] == wrong["places"] == 1


def test_a_place_is_of_the_thing_that_fills_more_than_half_of_it():
    coverage = np.zeros((1, 2, 4, 4), np.float32)
    coverage[0, 0, :2, :2], coverage[0, 1, 2:, 2:], coverage[0, 1, :2, 2:] = 1, 0.6, 0.5
    assert places(coverage, np.array([[4, 0]]), (2, 2)).tolist() == [[[5, 0], [0, 1]]]
    assert places(coverage, np.array([[4, -1]]), (2, 2)).tolist() == [[[5, 0], [0, 0]]]


def test_disturbance_leaves_things_where_they_are():
    images = np.full((16, 32, 32, 3), -1.0, np.float32)
    images[:, 10:20, 8:15] = 1
    disturbed = np.asarray(jax.jit(disturb)(jax.random.key(3), jnp.asarray(images)))
    assert ((disturbed.mean(-1) > 0) == (images.mean(-1) > 0)).mean() > 0.98
    assert np.abs(disturbed).max() <= 1
    assert len({picture.tobytes() for picture in disturbed}) == 16


# -------------------- the base model


@pytest.fixture
def base_task(config, tiny_bank, sprite_tokenizer):
    """Made without an autoencoder: a latent place is the mean of its pixels."""
    def encode(params, images):
        return jax.image.resize(images, (len(images), 4, 4, 3), "linear")

    text_encoder, _ = stages._text_encoder(config, sprite_tokenizer)

    def make(**options):
        return base.BaseTask(
            config.models.unet.to_dict(), text_encoder, PictureBatches(tiny_bank, Spelling(sprite_tokenizer), 8, 0),
            stages._empty(sprite_tokenizer), None, encode, None, "v_prediction",
            **{"pooled_told": 0.0, "text_dropout": 0.0} | options)

    return make


class Recorder:
    """In the UNet's place: notes its inputs, predicts the noisy latents and looks everywhere."""

    def apply(self, variables, noisy, t, text, **inputs):
        self.seen = {"text": text, **inputs}
        return UNetOutput(noisy, (jnp.ones((len(noisy), 2, 4, 4)), jnp.ones((len(noisy), 2, 2, 2))), ())


@pytest.fixture(scope="module")
def text_params(config, sprite_tokenizer):
    module, _ = stages._text_encoder(config, sprite_tokenizer)
    return drawn(jax.eval_shape(lambda: module.init(KEY, jnp.zeros((1, 2), jnp.int32))["params"]))


def recorded(task, text_params):
    """(loss, metrics, what the UNet saw) of the first batch, and its two conditionings: told and plain."""
    task.unet, batch = Recorder(), task.batch(0)

    @jax.jit
    def run(params, frozen, batch):
        value, metrics = task.loss(params, frozen, batch, jax.random.key(1))
        texts = [task.conditioning(params, batch[name]) for name in ("caption_ids", "plain_ids")]
        return value, metrics, task.unet.seen, *texts

    return run({"unet": {}, "text_encoder": text_params}, task.frozen, batch)


def test_the_base_model_is_told_in_its_tokens_and_drawn_to_its_things(base_task, text_params):
    """With the pooled text never told: tokens of the whole caption, pooled text of the caption that tells nothing."""
    task = base_task(placed=0.5)
    value, metrics, seen, told, plain = recorded(task, text_params)
    np.testing.assert_allclose(seen["text"], told.text, atol=1e-5)
    np.testing.assert_allclose(seen["pooled"], plain.pooled, atol=1e-5)
    assert not np.allclose(told.pooled, plain.pooled)
    np.testing.assert_array_equal(seen["target"], task.batch(0)["marks"])
    np.testing.assert_array_equal(seen["time_ids"][0], [32, 32, 0, 0, 32, 32])
    assert value == pytest.approx(float(metrics["denoising"] + 0.5 * metrics["placement"]), rel=1e-5)
    assert metrics["placement"] > 1, "attention that is everywhere lies mostly beside the things"
    bands = [float(metrics[f"right_place_{name}"]) for name in ("low", "middle", "high", "noise")]
    assert set(np.round(bands, 4)) <= {0.0, 0.5}, "such attention tells nothing of whose place is whose"


@pytest.mark.slow
def test_captions_that_are_dropped_draw_nothing(base_task, text_params):
    _, metrics, seen, told, _ = recorded(base_task(text_dropout=1.0, pooled_told=1.0), text_params)
    assert metrics["placement"] == 0 and metrics["right_place_noise"] == 0
    assert not np.allclose(seen["text"], told.text) and np.ptp(seen["text"], axis=0).max() < 1e-5


# -------------------- the adapter


@pytest.fixture(scope="module")
def fresh_task(trained, config):
    """The adapter's task before its first step, without a warm start."""
    task = task_of(config, trained, stage="adapter")
    task.frozen = jax.tree.map(jnp.asarray, task.frozen)
    return task


@pytest.mark.slow
def test_a_fresh_adapter_starts_with_the_keys_and_values_of_the_text(fresh_task):
    visual = weights.to_torch(fresh_task.init(KEY)["vision"])
    text = weights.to_torch(fresh_task.frozen["unet"])
    assert visual and all(name.endswith(("to_k_vision.weight", "to_v_vision.weight")) for name in visual)
    for name, value in visual.items():
        np.testing.assert_array_equal(value, text[name.replace("_vision", "")], err_msg=name)


@pytest.mark.slow
def test_the_tokens_of_a_fresh_adapter_are_scaled_to_the_text(fresh_task):
    params = fresh_task.init(KEY)["projector"]
    width = fresh_task.projector.config.vision_dim
    features = [jax.random.normal(jax.random.key(i), (2, 5, width)) for i in range(4)]
    tokens, scaled = (fresh_task.projector.apply({"params": p}, features) for p in (params, scaled_tokens(params, 0.1)))
    np.testing.assert_allclose(scaled, 0.1 * tokens, rtol=1e-4, atol=1e-6)
    text = fresh_task.text_encoder.apply(
        {"params": fresh_task.frozen["text_encoder"]}, fresh_task.batch(0)["told_ids"]).penultimate
    assert 0.3 < tokens.std() / text.std() < 3


@pytest.mark.parametrize("masked, learns", [(1.0, False), (0.0, True)])
@pytest.mark.slow
def test_a_masked_pair_teaches_inside_its_mask_only(fresh_task, monkeypatch, masked, learns):
    """Nothing is learnt under an empty mask, unless the pair is trained without one."""
    task = dataclasses.replace(fresh_task, masked=masked, image_dropout=0.0)
    monkeypatch.setattr(task, "guidance_mask", lambda *_: jnp.zeros((4, 1, 1, 1)))
    batch = task.batch(0)
    gradients = jax.jit(jax.grad(lambda params: task.loss(params, task.frozen, batch, KEY)[0]))(task.init(KEY))
    assert any(np.abs(x).max() > 0 for x in jax.tree.leaves(gradients["vision"])) == learns


@pytest.mark.slow
def test_pairs_are_trained_with_the_mask_of_sampling(fresh_task):
    """The first step's; at a timestep that sampling reaches with a frozen mask, the mask is of noisier latents."""
    batch, params = fresh_task.batch(0), fresh_task.init(KEY)
    unet_params = merge_unet(params["vision"], fresh_task.frozen["unet"])
    noise = jax.random.normal(jax.random.key(1), (4, 4, 4, 12))
    ids, references = batch["caption_ids"], fresh_task.batches.references(batch)
    condition = fresh_task.conditioning(params, fresh_task.frozen, ids, references)
    solver = solvers.make_solver(steps=2, betas=fresh_task.betas, prediction=fresh_task.prediction)
    sampled = jax.jit(functools.partial(
        sample_latents, fresh_task.unet, solver=solver, branches="sequential",
        mask=fresh_task.preset.mask_config(*noise.shape[1:3])))(
            unet_params, noise, condition, condition, batch["marks"])

    @jax.jit
    def trained(t, key):
        times = jnp.full(len(ids), t)
        return fresh_task.guidance_mask(unet_params, fresh_task.frozen, batch, noise, times, jax.random.key(key))

    np.testing.assert_allclose(trained(solver.timesteps[0], 0), sampled.masks[0], atol=1e-5)
    early, late = ([trained(t, key) for key in (0, 1)] for t in (700, 100))
    np.testing.assert_array_equal(*early)
    assert np.abs(late[0] - late[1]).max() > 1e-5


@pytest.mark.slow
def test_a_taught_adapter_learns_the_words_of_its_reference(fresh_task):
    """Taught by the base model alone, other words make another loss; by the data alone they do not."""
    batch = fresh_task.batch(0)
    other = batch | {"told_ids": np.roll(batch["told_ids"], 1, axis=0)}
    params = fresh_task.init(KEY)
    for taught, differs in ((1.0, True), (0.0, False)):
        task = dataclasses.replace(fresh_task, taught=taught, image_dropout=0.0)
        loss = jax.jit(lambda batch, task=task: task.loss(params, task.frozen, batch, KEY)[0])
        assert (float(loss(batch)) != float(loss(other))) == differs


@pytest.mark.slow
def test_a_reference_without_its_image_teaches_nothing_of_it(fresh_task):
    batch = fresh_task.batch(0)
    others = fresh_task.batches.pairs(7, fresh_task.steps, fresh_task.curriculum, second=0.5)
    changed = batch | {"reference": others["reference"], "boxes": others["boxes"]}
    params = fresh_task.init(KEY)
    for dropout, differs in ((1.0, False), (0.0, True)):
        task = dataclasses.replace(fresh_task, image_dropout=dropout)
        loss = jax.jit(lambda batch, task=task: task.loss(params, task.frozen, batch, KEY)[0])
        assert (float(loss(batch)) != float(loss(changed))) == differs


@pytest.mark.slow
def test_words_among_the_vision_tokens_are_found(fresh_task):
    """Tokens that are the words' states leave nothing to learn, once the queries tell them apart; others do."""
    rng = np.random.default_rng(0)
    count, width = len(fresh_task.empty_ids), fresh_task.projector.config.out_dim
    words = rng.normal(size=(2, count, width)).astype(np.float32)
    words[1] = words[0]
    params = fresh_task.init(KEY)["gather"]
    keys = jax.nn.standardize(words[0]) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    params["queries"] = 1e3 * jnp.linalg.pinv(keys).T
    every = np.ones((2, count), bool)
    assert fresh_task._spelling(params, words, words, every) < 1e-3
    assert fresh_task._spelling(params, rng.normal(size=words.shape).astype(np.float32), words, every) > 1
    assert fresh_task._spelling(params, words, words, ~every) == 0


@pytest.mark.slow
def test_what_a_stage_logs_has_every_metric_of_its_loss(trained):
    for stage, names in (("base", {"denoising", "placement", "right_place_middle"}), ("judge", {"places", *ATTRIBUTES}),
                         ("encoders", {"siglip", "dinov2", "caption", "said"}), ("autoencoder", {"pixels", "edges"})):
        rows = [json.loads(line) for line in (trained / stage / "metrics.jsonl").read_text().splitlines()]
        assert any(names <= row.keys() for row in rows), stage


# -------------------- what is watched


@pytest.mark.slow
def test_what_the_adapters_task_says_of_itself(trained, config):
    task = task_of(config, trained, stage="adapter")
    first, again, second = task.held_out(0), task.held_out(0), task.held_out(1)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    batches = [task.batch(step) for step in range(4)]
    assert all((first["layout"].thing != other["layout"].thing).any() for other in (second, *batches))
    assert task.held_out(2) is None
    assert task.scalars(0) == {"curriculum/progress": 0, "curriculum/0.00": 1, "curriculum/0.33": 0,
                               "curriculum/0.67": 0, "curriculum/1.00": 0}
    last = task.scalars(4)
    assert last["curriculum/progress"] == 1 and last["curriculum/0.00"] == pytest.approx(0.1)
    captions = task.captions()
    assert len(captions) == 4 and all(text.startswith("a ") for text in captions)


@pytest.mark.slow
def test_pictures_are_scored_while_the_adapter_trains_by_the_pipeline_that_the_bundle_will_be(trained, config):
    read = MiniatureConfig.from_config(config.to_dict())
    task, params = task_of(config, trained, stage="adapter"), train(config, trained, "adapter")
    pipeline, loaded = stages._pipeline(task, params, read, trained), Pipeline.load(trained / "bundle")
    for name in ("vision_settings", "prediction", "sample_size", "preset", "solver"):
        assert getattr(pipeline, name) == getattr(loaded, name), name
    judge = find_judge(5, trained / "bundle")
    report, = scored_pictures(5, judge, lambda params: loaded)
    scores = report.make(None).scalars
    assert report.every == 5 and scores.keys() >= {
        "evaluation/subject_similarity", "evaluation/text_controllability", "evaluation/mask_auc"}
    cases = make_cases("one", 4, 0, BankConfig(side=32, cut_out=36))
    made = Generator(loaded, judge)(cases, "fused")
    expected = score_pictures(judge, cases, made.images)
    assert scores["evaluation/text_controllability"] == pytest.approx(expected["text_controllability"].mean())
    assert report.make(None).scalars == scores
