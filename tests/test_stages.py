"""Every stage of the miniature's training, two steps each, on a few painted rows and networks of a few channels."""

import dataclasses
import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from realcustom_jax.data.sprites import world
from realcustom_jax.model_files import bundle, weights
from realcustom_jax.model_files.adapter import merge_unet, scaled_tokens
from realcustom_jax.model_files.source import FolderSource
from realcustom_jax.model_files.tensors import read_tensors
from realcustom_jax.models.clip_text import ClipText, ClipTextConfig
from realcustom_jax.models.unet import UNetOutput
from realcustom_jax.sampling import solvers
from realcustom_jax.sampling.sampler import sample_latents
from realcustom_jax.training.miniature import base, encoders, stages

CONFIG = Path(__file__).parents[1] / "configs" / "mini.py"


@pytest.fixture(scope="module")
def config():
    spec = importlib.util.spec_from_file_location("mini", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.data.num_train, config.data.num_test = 24, 4
    config.models.vae.update(block_out_channels=[8, 8, 8], norm_num_groups=4)
    config.models.unet.update(
        block_out_channels=[8, 16], norm_num_groups=4, attention_head_dim=[2, 2],
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"])
    for encoder in ("image_encoder_siglip", "image_encoder_dinov2"):
        config.models[encoder].depth = 2
    config.models.adapter.vision_settings.update(siglip_layers=[0, 1, 1], dino_layers=[0, 1, 1])
    for settings in config.optimization.values():
        settings.update(steps=2, batch_size=4, warmup=1)
    return config


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    stages.run(config, workdir)
    return workdir


@pytest.mark.parametrize("stage", stages.STAGES)
@pytest.mark.slow
def test_every_stage_leaves_a_picture_and_a_checkpoint(trained, stage):
    assert (trained / stage / "samples" / "000002.png").is_file()
    assert (trained / stage / "checkpoints" / "2").is_dir()


@pytest.mark.slow
def test_the_bundle_is_read_back(trained, config):
    folder = trained / "bundle"
    FolderSource(folder).load("vae")
    FolderSource(folder).load("text_encoder")
    adapter = read_tensors(folder / "adapter" / bundle.WEIGHT_FILES["adapter"])
    assert any(name.startswith(weights.PROJECTOR_PREFIX) for name in adapter)
    assert any(".to_v_vision." in name for name in adapter)
    assert not any(".attn2.to_k.weight" in name for name in adapter), "the base model is frozen"


def test_an_unknown_stage_is_named(config, tmp_path):
    wrong = config.copy_and_resolve_references()
    wrong.stage = "adaptor"
    with pytest.raises(ValueError, match="did you mean 'adapter'"):
        stages.run(wrong, tmp_path)


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


@pytest.mark.slow
def test_a_warm_start_begins_with_the_weights_of_a_bundle(trained, config):
    started = {stage: task_of(config, trained, stage=stage, warm_start=str(trained / "bundle")).init(jax.random.key(0))
               for stage in ("base", "adapter")}
    unet = read_tensors(trained / "bundle/unet" / bundle.WEIGHT_FILES["unet"])
    adapter = read_tensors(trained / "bundle/adapter" / bundle.WEIGHT_FILES["adapter"])
    for tensors, params in ((unet, started["base"]["unet"]), (adapter, started["adapter"]["vision"])):
        for name, value in weights.to_torch(params).items():
            np.testing.assert_array_equal(value, tensors[name].astype(np.float32), err_msg=name)


@pytest.mark.slow
def test_a_warm_start_keeps_the_words_it_knows_and_draws_the_others(trained, config, monkeypatch):
    monkeypatch.setattr(world, "VOCABULARY", ("axolotl", *world.VOCABULARY[1:]))
    again = config.copy_and_resolve_references()
    again.warm_start = str(trained / "bundle")
    tokenizer = stages._tokenizer(again)
    new, old = (params["text_model"]["embeddings"]["token_embedding"]["embedding"] for params in (
        stages._warm_start(again, tokenizer)["text_encoder"], FolderSource(trained / "bundle").load("text_encoder")[1]))
    known = FolderSource(trained / "bundle").tokenizer().get_vocab()
    assert new.shape == (len(tokenizer), old.shape[1])
    np.testing.assert_array_equal(new[tokenizer.get_vocab()["dog</w>"]], old[known["dog</w>"]])
    added = new[tokenizer.get_vocab()["axolotl</w>"]]
    assert np.isfinite(added).all() and 0 < np.abs(added).max() < 10 * old.std()


@pytest.fixture(scope="module")
def fresh_task(trained, config):
    """The adapter's task before its first step, without a warm start."""
    return task_of(config, trained, stage="adapter")


@pytest.mark.slow
def test_a_fresh_adapter_starts_with_the_keys_and_values_of_the_text(fresh_task):
    visual = weights.to_torch(fresh_task.init(jax.random.key(0))["vision"])
    text = weights.to_torch(fresh_task.frozen["unet"])
    assert visual and all(name.endswith(("to_k_vision.weight", "to_v_vision.weight")) for name in visual)
    for name, value in visual.items():
        np.testing.assert_array_equal(value, text[name.replace("_vision", "")], err_msg=name)


@pytest.mark.slow
def test_the_tokens_of_a_fresh_adapter_are_scaled_to_the_text(fresh_task):
    params = fresh_task.init(jax.random.key(0))["projector"]
    width = fresh_task.projector.config.vision_dim
    features = [jax.random.normal(jax.random.key(i), (2, 5, width)) for i in range(4)]
    tokens, scaled = (fresh_task.projector.apply({"params": p}, features) for p in (params, scaled_tokens(params, 0.1)))
    np.testing.assert_allclose(scaled, 0.1 * tokens, rtol=1e-4, atol=1e-6)
    text = fresh_task.text_encoder.apply(
        {"params": fresh_task.frozen["text_encoder"]}, fresh_task.batch(0)["description_ids"]).penultimate
    assert 0.3 < tokens.std() / text.std() < 3


@pytest.mark.parametrize("masked, learns", [(1.0, False), (0.0, True)])
@pytest.mark.slow
def test_a_masked_pair_teaches_inside_its_mask_only(fresh_task, monkeypatch, masked, learns):
    """Nothing is learnt under an empty mask, unless the pair is trained without one."""
    task = dataclasses.replace(fresh_task, masked=masked, image_dropout=0.0)
    monkeypatch.setattr(task, "guidance_mask", lambda *_: jnp.zeros((len(batch["latents"]), 1, 1, 1)))
    batch = task.batch(0)
    gradients = jax.jit(jax.grad(lambda params: task.loss(params, task.frozen, batch, jax.random.key(0))[0]))(
        task.init(jax.random.key(0)))
    assert any(np.abs(x).max() > 0 for x in jax.tree.leaves(gradients["vision"])) == learns


@pytest.mark.slow
def test_pairs_are_trained_with_the_mask_of_sampling(fresh_task):
    """The first step's; at a timestep that sampling reaches with a frozen mask, the mask is of noisier latents."""
    batch, params = fresh_task.batch(0), fresh_task.init(jax.random.key(0))
    unet_params = merge_unet(params["vision"], fresh_task.frozen["unet"])
    ids, noise = batch["input_ids"], jax.random.normal(jax.random.key(1), batch["latents"].shape)
    condition = fresh_task.conditioning(params, fresh_task.frozen, ids, batch["reference"] / 255)
    target = jnp.zeros((len(ids), 1, ids.shape[1])).at[:, :, 2].set(1)
    solver = solvers.make_solver(steps=2, betas=fresh_task.betas, prediction=fresh_task.prediction)
    sampled = jax.jit(functools.partial(
        sample_latents, fresh_task.unet, solver=solver, branches="sequential",
        mask=fresh_task.preset.mask_config(*noise.shape[1:3])))(
            unet_params, noise, condition, condition, target)

    @jax.jit
    def trained(t, key):
        times = jnp.full(len(ids), t)
        return fresh_task.guidance_mask(unet_params, fresh_task.frozen, ids, noise, times, jax.random.key(key))

    np.testing.assert_allclose(trained(solver.timesteps[0], 0), sampled.masks[0], atol=1e-5)
    early, late = ([trained(t, key) for key in (0, 1)] for t in (700, 100))
    np.testing.assert_array_equal(*early)
    assert np.abs(late[0] - late[1]).max() > 1e-4


@pytest.mark.slow
def test_a_taught_adapter_learns_the_words_of_its_reference(fresh_task):
    """Taught by the base model alone, other descriptions make another loss; by the data alone they do not."""
    batch = fresh_task.batch(0)
    other = batch | {"description_ids": np.roll(batch["description_ids"], 1, axis=0)}
    for taught, differs in ((1.0, True), (0.0, False)):
        task = dataclasses.replace(fresh_task, taught=taught, image_dropout=0.0, spelled=0.0)
        first, second = (float(task.loss(task.init(jax.random.key(0)), task.frozen, each, jax.random.key(0))[0])
                         for each in (batch, other))
        assert (first != second) == differs


@pytest.mark.slow
def test_words_among_the_vision_tokens_are_found(fresh_task):
    """Tokens that are the words' states leave nothing to learn, once the queries tell them apart; others do."""
    rng = np.random.default_rng(0)
    count, width = len(fresh_task.empty_ids), fresh_task.projector.config.out_dim
    words = rng.normal(size=(2, count, width)).astype(np.float32)
    words[1] = words[0]
    params = fresh_task.init(jax.random.key(0))["gather"]
    keys = jax.nn.standardize(words[0]) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    params["queries"] = 1e3 * jnp.linalg.pinv(keys).T
    every = np.ones((2, count), bool)
    assert fresh_task._spelling(params, words, words, every) < 1e-3
    assert fresh_task._spelling(params, rng.normal(size=words.shape).astype(np.float32), words, every) > 1
    assert fresh_task._spelling(params, words, words, ~every) == 0


@pytest.mark.slow
def test_image_encoders_continue_from_a_bundle(trained, config):
    task = task_of(config, trained, stage="encoders", warm_start=str(trained / "bundle"))
    started = task.init(jax.random.key(1))
    for name in ("siglip", "dinov2"):
        _, kept = FolderSource(trained / "bundle").load(f"image_encoder_{name}")
        jax.tree.map(np.testing.assert_array_equal, started[name], kept)


def test_the_captioner_reads_what_the_tokens_say():
    """Rows of tokens that are codes of words: a few steps teach it to say them, each in its place."""
    words = np.random.default_rng(0).integers(0, 5, (32, 3))
    tokens = np.eye(5)[words].reshape(32, 1, 15).repeat(2, axis=1)
    captioner = encoders.Captioner(length=3, vocab_size=5)
    params, optimizer = captioner.init(jax.random.key(0), tokens), optax.adam(1e-2)

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


def test_attributes_reach_the_base_model_through_its_tokens(config):
    """With descriptions always, and never in the pooled text: tokens of the description, pooled text of the caption."""
    ids = np.array([[1, 2, 3, 0], [1, 4, 3, 0]]), np.array([[1, 5, 2, 3], [1, 6, 4, 3]])
    mapping = config.models.text_encoder.to_dict() | {"vocab_size": 8, "eos_token_id": 0}
    text_config, seen = ClipTextConfig.from_config(mapping), {}

    class Recorder:
        def apply(self, variables, noisy, t, text, *, pooled, time_ids):
            seen.update(text=text, pooled=pooled)
            return UNetOutput(noisy, (), ())

    batch = {"latents": np.zeros((2, 4, 4, 8), np.float32), "coverage": np.zeros((2, 4, 4)), "input_ids": ids[0],
             "description_ids": ids[1]}
    task = base.BaseTask(
        config.models.unet.to_dict(), ClipText(text_config), [batch], np.zeros(4, int), None, 16, "v_prediction",
        described=1.0, pooled_described=0.0, text_dropout=0.0)
    task.unet = Recorder()
    params = {"unet": {}, "text_encoder": task.text_encoder.init(jax.random.key(0), ids[0])["params"]}
    task.loss(params, None, batch, jax.random.key(1))
    caption, description = (task.conditioning(params, x) for x in ids)
    np.testing.assert_allclose(seen["text"], description.text, atol=1e-6)
    np.testing.assert_allclose(seen["pooled"], caption.pooled, atol=1e-6)
    assert not np.allclose(caption.pooled, description.pooled)
