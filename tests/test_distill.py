"""The distillation to a few steps, on a model folder of random weights and a bank of tiny paintings."""

import dataclasses
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from realcustom_jax.data.sprites.captions import VOCABULARY
from realcustom_jax.model_files import bundle
from realcustom_jax.model_files.adapter import merge_unet
from realcustom_jax.model_files.locate import read_config
from realcustom_jax.model_files.tensors import read_tensors
from realcustom_jax.sampling.sampler import sample_latents
from realcustom_jax.training.miniature import stages

from mini_bundle import SIDE, write_mini_bundle

pytestmark = pytest.mark.usefixtures("quickly_compiled")
CONFIG = Path(__file__).parents[1] / "configs" / "mini.py"
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def config(workdir):
    spec = importlib.util.spec_from_file_location("mini", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.stage = "distill"
    config.data.update(identities=36, poses=2, scenes=2, side=SIDE, cut_out=SIDE + 2)
    config.models.unet = read_config(workdir / "bundle" / "unet" / "config.json")
    config.models.adapter = read_config(workdir / "bundle" / "adapter" / "config.json")
    config.preset.refine = 1  # its UNet has one level
    config.distill.update(steps=2, substeps=2, rank=2)
    config.optimization.distill.update(steps=2, batch_size=2, warmup=1, save_every=2, log_every=1, sample_every=0)
    return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run whose other stages have been."""
    folder = tmp_path_factory.mktemp("run")
    write_mini_bundle(folder / "bundle", words=VOCABULARY, length=32)
    return folder


@pytest.fixture(scope="module")
def task(config, workdir):
    """The task before its first step."""
    found = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stages, "fit", lambda _, task, *args, **options: found.append(task) or task.init(KEY))
        stages.run(config, workdir)
    found[0].frozen = jax.tree.map(jnp.asarray, found[0].frozen)
    return found[0]


def inputs(task):
    """(noise, positive, negative, marks) of a batch."""
    batch = task.batch(0)
    positive, negative = task._conditionings(
        task.frozen, batch["caption_ids"], task.teacher.batches.references(batch))
    side = task.teacher.latent_size
    shape = len(batch["marks"]), side, side, task.teacher.unet.config.in_channels
    return jax.random.normal(KEY, shape), positive, negative, jnp.asarray(batch["marks"])


@pytest.mark.slow
def test_the_teacher_goes_where_sampling_goes(task):
    """With the mask of the first step, the way that is taught ends with the picture that the sampler makes."""
    task = dataclasses.replace(task, freeze=1)
    noise, positive, negative, marks = inputs(task)
    path, masks = jax.jit(task.taught)(task.frozen, noise, positive, negative, marks)
    params = merge_unet(task.frozen["vision"], task.frozen["unet"])
    preset = task.teacher.preset
    made = sample_latents(
        task.teacher.unet, params, noise, positive, negative, marks, solver=task.teaching_solver,
        guidance_scale=preset.guidance_scale, mask=preset.mask_config(*noise.shape[1:3]), freeze_mask_step=1)
    np.testing.assert_array_equal(path[0], noise)
    np.testing.assert_allclose(path[-1], made.latents, atol=1e-4)
    np.testing.assert_array_equal(masks, made.masks[::task.substeps])
    assert path.shape == (task.steps + 1, *noise.shape)


@pytest.mark.slow
def test_a_teacher_of_as_many_steps_without_guidance_has_nothing_to_teach(task):
    """Two steps of DPM-Solver++ of order 1 are the student's own."""
    teacher = dataclasses.replace(task.teacher, preset=dataclasses.replace(task.teacher.preset, guidance_scale=1.0))
    same = dataclasses.replace(task, teacher=teacher, substeps=1)
    fresh, batch = same.init(KEY), same.batch(0)
    nothing, something = (float(jax.jit(t.loss)(fresh, t.frozen, batch, KEY)[0]) for t in (same, task))
    assert nothing < 1e-9 < 1e-5 < something


@pytest.mark.slow
def test_the_student_learns_one_batch_and_leaves_what_masks_are_made_of(task):
    params, batch = task.init(KEY), task.batch(0)
    layers = {path[-3:-1] for path in flatten_dict(params["A"])}
    assert not layers & {("attn2", "to_q"), ("attn2", "to_k")} and ("attn2", "to_v") in layers
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state):
        (loss, errors), gradient = jax.value_and_grad(task.loss, has_aux=True)(params, task.frozen, batch, KEY)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss, errors

    state, losses = optimizer.init(params), []
    for _ in range(20):
        params, state, loss, errors = step(params, state)
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0], losses
    assert errors.keys() == {"step_0", "step_1"}


@pytest.mark.slow
def test_the_stage_leaves_a_lora_and_what_it_is_used_with(config, workdir):
    stages.run(config, workdir)
    folder = workdir / "bundle" / bundle.FEW_STEPS
    tensors = read_tensors(folder / "lora.safetensors")
    assert all(name.startswith("unet.") and name.endswith((".lora_A.weight", ".lora_B.weight")) for name in tensors)
    assert any(np.asarray(tensors[name]).any() for name in tensors if name.endswith("lora_B.weight"))
    assert read_config(folder / "preset.json") == {
        "steps": 2, "solver": "ddim", "branches": "sequential", "freeze_mask_step": 2, "guidance_scale": 1.0}
