"""What devices do differently: one value, which decides what is traced wherever it is traced."""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realcustom_jax.devices.ahead_of_time import Sampler
from realcustom_jax.devices.jaxprs import inner_jaxprs
from realcustom_jax.devices.platform import Platform
from realcustom_jax.model_files import weights
from realcustom_jax.models import context, norm
from realcustom_jax.models.unet import UNet, UNetConfig
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.sampling.lanes import Conditioning
from realcustom_jax.sampling.sampler import sample_latents
from realcustom_jax.sampling.solvers import make_solver

from goldens import FIXTURES

TOKENS, VISION_TOKENS = 5, 6


def device(platform, kind, **more):
    return types.SimpleNamespace(platform=platform, device_kind=kind, **more)


def test_a_platform_is_found_by_name_and_by_device():
    assert Platform.of("cpu") == Platform() and len({Platform.of(name) for name in ("cpu", "gpu", "tpu")}) == 3
    assert Platform.of() == Platform.of(jax.devices()[0]) and Platform.of(Platform.of("tpu")) is Platform.of("tpu")
    tpu = Platform.of(device("tpu", "TPU v5 lite"))
    assert (tpu.name, tpu.attention, tpu.peak) == ("tpu", "pallas", 197e12) and Platform.of("tpu").peak is None
    assert Platform.of(device("tpu", "TPU v6 lite")).peak == 918e12


@pytest.mark.parametrize("capability, attention", [("9.0", "cudnn"), ("7.5", "plain"), ("gfx942", "plain")])
def test_cudnn_is_taken_where_it_is(capability, attention):
    gpu = Platform.of(device("gpu", "NVIDIA H100 80GB HBM3", compute_capability=capability))
    assert (gpu.name, gpu.attention, gpu.peak) == ("gpu", attention, 989e12)


@pytest.mark.parametrize("wrong, words", [
    ("gpus", "Unknown platform 'gpus': known are cpu, gpu, tpu; did you mean 'gpu'"), (3, "There is no platform of 3"),
    (device("metal", "M5"), "expected a JAX device of a kind that is known here"),
])
def test_anything_else_is_named(wrong, words):
    with pytest.raises(ValueError, match=words):
        Platform.of(wrong)


def test_it_travels_with_every_network():
    loaded = weights.load_unet(FIXTURES / "unet_sdxl.json", FIXTURES / "unet_sdxl.safetensors", platform="gpu")[0]
    assert loaded.platform == Platform.of("gpu") and hash(loaded) != hash(loaded.clone(platform="tpu"))
    assert UNet(loaded.config).platform == Platform.of() and "Platform" not in repr(loaded)


# -------------------- what is traced


def unet_of(platform, dtype=jnp.float32):
    config = UNetConfig(
        block_out_channels=(16,), layers_per_block=1, cross_attention=(True,), transformer_layers=(2,), heads=(2,),
        cross_attention_dim=12, norm_num_groups=4, use_linear_projection=True, vision=True)
    return UNet(config, dtype, platform)


def params_of(unet):
    args, kwargs = weights.unet_inputs(unet.config)
    return weights.parameter_shapes(unet, *args, **kwargs)


def sampler(platform):
    """The sampler's jaxpr on pictures whose self-attention is long enough for a TPU's kernel."""
    unet = unet_of(platform)
    condition = Conditioning(jnp.zeros((1, TOKENS, 12)), vision=jnp.zeros((1, 1, VISION_TOKENS, 12)))
    run = functools.partial(sample_latents, unet, solver=make_solver(steps=4), freeze_mask_step=2)
    return jax.make_jaxpr(run)(params_of(unet), jnp.zeros((1, 32, 32, 4)), condition, condition,
                               jnp.ones((1, 1, TOKENS)))


def primitives(jaxpr) -> list[str]:
    """The names of all operations, those within loops and functions too."""
    names = []
    for eqn in jaxpr.eqns:
        names += [eqn.primitive.name, *(name for sub in inner_jaxprs(eqn) for name in primitives(sub))]
    return names


def text(jaxpr) -> str:
    """A jaxpr's text, without what differs from one trace to the next."""
    return re.sub(r"0x[0-9a-f]+", "", str(jaxpr))


@pytest.mark.slow
def test_each_platform_samples_in_its_own_way():
    found = {name: primitives(sampler(name).jaxpr) for name in ("cpu", "gpu", "tpu")}
    assert {name: "pallas_call" in ops for name, ops in found.items()} == {"cpu": False, "gpu": False, "tpu": True}
    barriers = {name: ops.count("optimization_barrier") for name, ops in found.items()}
    assert 0 < barriers["cpu"] < barriers["tpu"] < barriers["gpu"]
    loops = {name: ops.count("scan") for name, ops in found.items()}
    assert loops["cpu"] > loops["gpu"], "a GPU's layers are apart"
    assert "platform_index" not in {name for ops in found.values() for name in ops}


@pytest.mark.slow
def test_a_tpus_program_has_nothing_of_a_cpus(monkeypatch):
    """Neither its norms nor its layout of kept tokens, though it is traced on a CPU."""
    expected = text(sampler("tpu"))

    def fail(*_):
        raise AssertionError("a CPU's norm")

    monkeypatch.setattr(norm, "_by_channels", fail)
    assert text(sampler("tpu")) == expected
    with pytest.raises(AssertionError, match="a CPU's norm"):
        sampler("cpu")
    for platform, shape in (("tpu", (TOKENS, 16)), ("gpu", (TOKENS, 16)), ("cpu", (16, TOKENS))):
        unet = unet_of(platform)
        known = jax.eval_shape(functools.partial(context.project_tokens, unet), params_of(unet_of("tpu")),
                               jnp.zeros((1, TOKENS, 12)), jnp.zeros((1, 1, VISION_TOKENS, 12)))
        stacks = jax.tree_util.tree_leaves_with_path(known)
        assert {x.shape[-2:] for path, x in stacks if not path[-1].key.endswith("vision")} == {shape}


@pytest.mark.slow
def test_the_sampler_compiled_ahead_for_a_tpu_is_the_one_that_runs_there(mini_folder):
    """To the jaxpr: that of a model that was loaded for a TPU."""
    pipeline = Pipeline.load(mini_folder, dtype="bfloat16", platform="tpu")
    unet, loaded = pipeline.unet.module, pipeline.unet.params
    config = weights.read_config(mini_folder / "unet" / "config.json")
    ahead = Sampler(config, 128, batch_size=2, vision_tokens=VISION_TOKENS, platform="tpu")
    params, inputs = ahead.arguments()
    assert jax.tree.map(lambda x: (x.shape, x.dtype), loaded) == jax.tree.map(lambda x: (x.shape, x.dtype), params)

    def live(params, inputs):
        mask = pipeline.preset.mask_config(16, 16)
        return sample_latents(unet, params, *inputs, solver=make_solver(), mask=mask).latents

    compiled = text(ahead.function(None).trace(params, inputs).jaxpr)
    assert compiled == text(jax.make_jaxpr(live)(loaded, inputs))
    unet = unet.clone(platform="cpu")
    assert compiled != text(jax.make_jaxpr(lambda *inputs: live(*inputs))(loaded, inputs))


def test_all_platforms_predict_the_same():
    rng, shapes = np.random.default_rng(0), params_of(unet_of("cpu"))
    params = jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), shapes)
    x, text, vision = (rng.normal(size=shape).astype(np.float32) for shape in (
        (2, 8, 8, 4), (2, TOKENS, 12), (2, 1, VISION_TOKENS, 12)))

    def predict(platform):
        return jax.jit(lambda: unet_of(platform).apply({"params": params}, x, 10, text, vision=vision).noise)()

    cpu, gpu, tpu = map(predict, ("cpu", "gpu", "tpu"))
    for other in (gpu, tpu):
        np.testing.assert_allclose(other, cpu, atol=1e-5 * np.abs(cpu).max())
