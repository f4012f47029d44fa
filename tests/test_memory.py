"""The memory report: counts that can be checked by hand, and bounds that hold."""

import dataclasses
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks.compiling.full_size_memory import write_hollow_model
from realcustom_jax import memory
from realcustom_jax.devices.jaxprs import peak_bytes
from realcustom_jax.memory import Memory, sampler_memory
from realcustom_jax.model_files.tensors import headers_only, read_tensors
from realcustom_jax.pipeline import Pipeline

from mini_bundle import SIDE, write_mini_bundle


def test_the_peak_is_what_is_alive_at_once():
    def chain(x):
        for _ in range(10):
            x = jnp.sin(x)
        return x.sum()

    def fan(x):
        return sum(jnp.sin(x * i).sum() for i in jnp.ones(3)) + jnp.concatenate([x + 1, x + 2, x + 3]).sum()

    x = jnp.zeros(1000)
    assert 8000 <= peak_bytes(jax.make_jaxpr(chain)(x).jaxpr) <= 8100
    assert peak_bytes(jax.make_jaxpr(fan)(x).jaxpr) >= 6 * 4000


def test_a_loop_needs_what_one_round_needs():
    def loop(x):
        return jax.lax.scan(lambda c, _: (jnp.sin(jnp.cos(c)), None), x, None, length=50)[0]

    assert peak_bytes(jax.make_jaxpr(loop)(jnp.zeros(1000)).jaxpr) < 5 * 4000


@pytest.mark.slow
def test_a_larger_picture_needs_more_and_xla_needs_about_the_estimate(mini_pipeline):
    small, large = (sampler_memory(mini_pipeline, width=side, height=side) for side in (SIDE, 2 * SIDE))
    assert small.sampler < large.sampler and small.parameters == large.parameters
    assert 0.5 < sampler_memory(mini_pipeline, compiled=True).sampler / small.sampler < 2
    assert small.fits and "UNet" in str(small)
    assert small.parameters["UNet"] == 4 * sum(x.size for x in jax.tree.leaves(mini_pipeline.unet.params))


@pytest.mark.slow
def test_what_a_call_leaves_out_and_what_it_brings_is_counted(mini_pipeline):
    """Lanes that are not run need nothing; a solver that draws noise needs that of its steps."""
    def memory(**options):
        return sampler_memory(mini_pipeline, steps=4, **options)

    plain, noise = memory(), 4 * 8 * 8 * 4
    assert memory(guidance_scale=1.0).sampler < plain.sampler > memory(masks=True).sampler
    drawing = memory(solver="lcm")
    assert plain.sampler == pytest.approx(drawing.sampler, abs=4 * noise) and drawing.inputs == plain.inputs + 4 * noise


@pytest.mark.slow
def test_the_decoder_is_counted_for_what_it_decodes_at_once(mini_pipeline):
    """The whole of a wide picture of the model's own area; of a larger one, tiles of that area."""
    decoders = {size: sampler_memory(mini_pipeline, width=size[0], height=size[1]).decoder for size in (
        (16, 16), (32, 8), (8, 8), (32, 32))}
    assert decoders[32, 8] == decoders[16, 16] == decoders[32, 32] > 2 * decoders[8, 8]


@pytest.mark.slow
def test_the_presets_refinement_and_freeze_are_counted(mini_pipeline):
    """Self-attention maps of 8 × 8 latents are [1, 64, 64] in each layer; a mask that freezes at once needs no call of
    three lanes. What is asked for in the call goes before the preset."""
    def sampler(pipeline=mini_pipeline, **options):
        return sampler_memory(pipeline, **options).sampler

    def preset(**choices):
        return dataclasses.replace(mini_pipeline, preset=dataclasses.replace(mini_pipeline.preset, **choices))

    layers = 4  # the self-attention layers of the model, all of the latents' size
    assert sampler(preset(refine=1)) - sampler() >= layers * 4 * 64 * 64
    assert sampler(preset(freeze_mask_step=1)) == sampler(freeze_mask_step=1) < sampler()
    assert sampler(preset(freeze_mask_step=1), freeze_mask_step=12) == sampler()
    assert sampler(steps=250) > sampler(), "the masks of all steps are returned"


@pytest.mark.slow
def test_sdxls_refined_masks_take_what_their_self_maps_take(tmp_path):
    """At 1024², refined at half of the latents' size: ten layers of self-attention between 64 × 64 places."""
    write_hollow_model(tmp_path, "sdxl")
    with headers_only():
        pipeline = Pipeline.load(tmp_path)
    refined = dataclasses.replace(pipeline, preset=dataclasses.replace(pipeline.preset, refine=2))
    more = sampler_memory(refined).sampler - sampler_memory(pipeline).sampler
    assert 0.8 < more / (10 * 4 * (64 * 64) ** 2) < 1.2


@pytest.mark.skipif(not Path("/proc/meminfo").is_file(), reason="only Linux tells what it could give")
def test_what_the_machine_holds_as_a_cache_of_files_is_available(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal:       8000 kB\nMemFree:         100 kB\nMemAvailable:    6000 kB\n"
                                      "Cached:         5900 kB\n")
    assert memory._machine_memory(tmp_path / "meminfo") == 6000 * 1024
    assert memory._machine_memory(tmp_path / "gone") == pytest.approx(
        os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), rel=0.5)
    assert memory._machine_memory() > 0


@pytest.mark.slow
def test_the_cpu_needs_more_than_it_was_given_in_half_precision(mini_folder):
    pipeline = Pipeline.load(mini_folder, dtype="bfloat16")
    estimate, measured = (sampler_memory(pipeline, compiled=compiled).sampler for compiled in (False, True))
    assert 0.5 < measured / estimate < 2


@pytest.mark.parametrize("kind", ["sdxl", "sd15"])
@pytest.mark.slow
def test_headers_are_enough(tmp_path, kind):
    folder = write_mini_bundle(tmp_path, kind)
    for offload in (False, True):
        whole = sampler_memory(Pipeline.load(folder, dtype="bfloat16", offload=offload))
        with headers_only():
            hollow = Pipeline.load(folder, dtype="bfloat16", offload=offload)
        leaves = jax.tree.leaves([hollow.unet.params, hollow.vae.params, hollow.siglip.params, hollow.projector.params])
        assert {type(leaf) for leaf in leaves} == {jax.ShapeDtypeStruct}
        report = sampler_memory(hollow)
        assert dataclasses.replace(report, available=None) == dataclasses.replace(whole, available=None)
        assert ("DINOv2 encoder" in report.parameters) != offload


def test_a_header_gives_the_shape_without_the_numbers(mini_folder):
    file = mini_folder / "unet/diffusion_pytorch_model.safetensors"
    with headers_only():
        hollow = read_tensors(file)
    for name, value in read_tensors(file).items():
        assert hollow[name].shape == value.shape and not any(hollow[name].strides) and not hollow[name].any()


def test_a_report_from_headers_still_checks_the_model(mini_folder, tmp_path):
    folder = shutil.copytree(mini_folder, tmp_path / "model")
    shutil.copy(folder / "text_encoder/model.safetensors", folder / "image_encoder_dinov2/model.safetensors")
    with headers_only(), pytest.raises(ValueError, match="do not fit this vision encoder"):
        Pipeline.load(folder)


def test_the_larger_of_sampler_and_decoder_is_needed():
    assert Memory({"UNet": 10}, 1, 5, available=None, decoder=7).needed == 18
    assert Memory({"UNet": 10}, 1, 7, available=None, decoder=5).needed == 18


def test_what_does_not_fit_is_said():
    assert not Memory({"UNet": 10}, 1, 1, available=11).fits
    assert Memory({"UNet": 10}, 1, 1, available=None).fits
    assert Memory({"UNet": 10}, 1, 1, available=12).needed == pytest.approx(12)
