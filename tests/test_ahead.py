"""The training step of a published model's shape, compiled for devices and divided over them, without a weight."""

import functools
import importlib.util
import json
from pathlib import Path

import jax
import pytest

from realcustom_jax.devices import ahead_of_time, topology
from realcustom_jax.devices.sharding import make_mesh
from realcustom_jax.training.published.config import PublishedConfig

from fresh_process import run

UNET = {
    "in_channels": 4, "out_channels": 4, "block_out_channels": [16, 32], "layers_per_block": 1, "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 2, "cross_attention_dim": 64, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 64}
TEXT = {"vocab_size": 16, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 8, "projection_dim": 16}
VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2, "class_token": False}
PARTS = {"unet": UNET, "text_encoder": TEXT, "text_encoder_2": TEXT, "image_encoder_siglip": VIT,
         "image_encoder_dinov2": VIT, "vae": {"block_out_channels": [8] * 4, "norm_num_groups": 4}}
TRAIN = {
    "dtype": "bfloat16", "side": 64, "precomputed": True, "adapter": "", "snr_limit": 0.0,
    "preset": {"pooled": "projected"}, "optimization": {"steps": 10, "batch_size": 4},
    "fresh": {"variant": "paper", "dim_head": 8, "vision_settings": {
        "size": 32, "encoder_size": 16, "split": 2, "siglip_layers": [0, 1], "dino_layers": [0, 1]}}}
SAMPLER = ahead_of_time.Sampler(UNET, 64, batch_size=4)


@functools.cache
def step():
    return ahead_of_time.AdapterStep(PublishedConfig.from_config(TRAIN), configs=PARTS)


def compile_on_four(program, *meshes):
    """What is said of it on meshes of these sizes, in a process of four simulated devices."""
    script = ("import json; from test_ahead import *; "
              f"print(json.dumps([ahead_of_time.compile_ahead({program}, make_mesh(**sizes)) for sizes in {meshes}]))")
    return json.loads(run(script, devices=4).splitlines()[-1])


@pytest.mark.slow
def test_a_mesh_divides_the_memory_and_the_work():
    one = ahead_of_time.compile_ahead(step(), make_mesh(devices=jax.devices()[:1]))
    four, copies = compile_on_four("step()", {"fsdp": 4}, {})
    assert one["collectives"] == {} and one["flop"] == one["flop_per_device"] == four["flop"]
    assert four["flop_per_device"] == one["flop"] // 4
    assert four["state"] < one["state"] / 2 and four["frozen"] < one["frozen"]
    assert four["temporaries"] < one["temporaries"]
    assert four["collectives"]["all-gather"]["bytes"] > 0
    assert copies["state"] == one["state"] and set(copies["collectives"]) == {"all-reduce"}


@pytest.mark.slow
def test_a_mesh_divides_the_sampler():
    one = ahead_of_time.compile_ahead(SAMPLER, make_mesh(devices=jax.devices()[:1]))
    (four,) = compile_on_four("SAMPLER", {"fsdp": 4})
    assert one["collectives"] == {} and one["flop"] == four["flop"] == 4 * four["flop_per_device"]
    assert four["frozen"] < one["frozen"] / 2 and four["temporaries"] < one["temporaries"]
    assert four["collectives"]["all-gather"]["bytes"] > 0


# With all of XLA's optimisations, as users compile it.
SLICES = """
import json
from test_ahead import *
jax.config.update("jax_disable_most_optimizations", False)
devices = topology.tpu_devices("2 v5e:2x2")
mesh = make_mesh(data=1, fsdp=-1, dcn_data=2, devices=devices)
slices = [[device.slice_index for device in row] for row in mesh.devices[..., 0]]
train = {**TRAIN, "optimization": {"steps": 10, "batch_size": 8}}
step = ahead_of_time.AdapterStep(PublishedConfig.from_config(train), devices[0], configs=PARTS)
trained = sum(x.size for x in jax.tree.leaves(step.task.trained))
print(json.dumps([slices, trained, ahead_of_time.compile_ahead(step, mesh)["collectives"]]))
"""


@pytest.mark.slow
def test_gradients_alone_cross_from_slice_to_slice():
    """Summed within a slice first, so that each of its chips sends its own quarter, once, in at most float32.
    Parameters are gathered within a slice."""
    pytest.importorskip("libtpu")
    slices, trained, found = json.loads(run(SLICES).splitlines()[-1])
    assert slices == [[0] * 4, [1] * 4]
    across = {name: entry for name, entry in found.items() if name.endswith("across slices")}
    assert list(across) == ["all-reduce across slices"] and found["all-gather"]["count"] > 0
    sent = across["all-reduce across slices"]
    # Biases and scales are not divided, so that every chip has all of them.
    assert 0 < sent["count"] < 100 and 2 * trained / 4 < sent["bytes"] < 4 * trained / 2


def test_the_parameters_of_the_sampler_are_described():
    text = ahead_of_time.describe_program(SAMPLER, make_mesh(devices=jax.devices()[:1]))
    assert "frozen" in text and "to_k_vision" in text


@pytest.mark.parametrize("variant, layers, tokens", [
    pytest.param(*case, marks=pytest.mark.slow) for case in (("paper", 4, 2 * 729), ("highres", 1, 729))])
def test_a_configuration_says_what_is_compiled(variant, layers, tokens):
    config = load_config("sdxl").train
    config.fresh.update(variant=variant, dim_head=32)
    config.precomputed = True
    if variant == "highres":
        config.fresh.vision_settings.update(siglip_layers=[25], dino_layers=[22])
    config.preset.size_order = "width_first"
    whole, mesh = ahead_of_time.from_config(config, None)
    _, frozen, batch = whole.arguments()
    assert [x.shape for x in batch["features"]] == [(16, 729, 2176)] * layers + [(16, 4 * 729, 2176)]
    assert frozen.keys() == {"unet", "empty", "no_image"} and batch["targets"].shape == (16, 2, 128, 128, 4)
    assert whole.pipeline.projector.module.config.dim_head == 32
    assert whole.about() == {"program": "training step, from features on disk", "platform": "cpu", "dtype": "bfloat16",
                             "projector": variant}
    sampler, _ = ahead_of_time.from_config(config, None, "sampler")
    assert sampler.arguments()[1][1].vision.shape == (16, 1, tokens, 2048) and mesh.size == jax.device_count()
    with pytest.raises(ValueError, match="did you mean 'sampler'"):
        ahead_of_time.from_config(config, None, "samplr")


@pytest.mark.slow
def test_the_encoders_are_within_the_step_unless_their_features_are_on_disk():
    config = load_config("sd15").train
    config.dtype = "float32"
    whole, _ = ahead_of_time.from_config(config, None)
    _, frozen, batch = whole.arguments()
    assert frozen.keys() == {"unet", "vae", "siglip", "dinov2", "text_encoders"}
    assert {name: (x.shape[1:], x.dtype.name) for name, x in batch.items()} == {
        "target": ((512, 512, 3), "uint8"), "reference": ((768, 768, 3), "uint8"), "ids": ((1, 77), "int32"),
        "empty_ids": ((1, 77), "int32"), "time_ids": ((6,), "float32")}
    assert {x.dtype.name for x in jax.tree.leaves(frozen)} == {"float32"}
    assert "encoded within it" in whole.about()["program"] and whole.about()["dtype"] == "float32"


def load_config(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def test_collectives_are_read_from_the_program():
    text = """HloModule step
%start.1 (p: f32[2]) -> f32[4] {
  %s = f32[4]{0} all-gather(%p), dimensions={0}
}

%async_collective_fusion.1 (p: f32[2]) -> f32[4] {
  %m = f32[4]{0} all-gather(%p), dimensions={0}
}

%end.1 (p: f32[2]) -> f32[4] {
  %e = f32[4]{0} all-gather(%p), dimensions={0}
}

%product.1 (p: (f32[2], u32[])) -> (f32[2], u32[]) {
  %work = f32[2]{0} fusion(%begun), kind=kCustom, calls=%async_collective_fusion.1
}

%body.1 (p: (s32[], f32[2])) -> (s32[], f32[2]) {
  %inner = f32[2]{0} fusion(%x), kind=kLoop, calls=%fused.2
  %async-collective-start.1 = f32[4]{0} fusion(%x), kind=kCustom, calls=%start.1
  %async-collective-done.1 = f32[4]{0} fusion(%x), kind=kCustom, calls=%end.1
  %p = (f32[2], u32[]) while(%t), condition=%by_twos, body=%product.1
  %g = bf16[2]{0} all-gather(%x), dimensions={0}
  %two = u32[]{:T(128)} constant(2)
  %next = u32[]{:T(128)} add(%i, %two)
  ROOT %r = (f32[2]{0}, u32[]{:T(128)}) tuple(%g, %next)
}

%condition.1 (p: (s32[], f32[2])) -> pred[] {
  %limit = s32[]{:T(128)} constant(10)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%by_twos (p: (f32[2], u32[])) -> pred[] {
  %limit = u32[]{:T(128)} constant(9)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=1
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%unknown (p: (s32[], f32[2])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main.3 (x: f32[2]) -> f32[2] {
  %a = bf16[4,8]{1,0} all-gather(%x), dimensions={0}
  %b = (f32[2]{0}, f32[3]{0}) all-reduce-start(%y), to_apply=%add
  %c = (f32[2]{0}, f32[3]{0}) all-reduce-done(%b)
  %d = f32[] all-reduce(%z), to_apply=%add
  %e = (bf16[4,4]{1,0}, bf16[8,4]{1,0}) all-gather-start(%w), dimensions={0}
  %f = bf16[8,4]{1,0} all-gather-done(%e)
  %s = (bf16[1,4,128]{2,1,0:T(4,128)}, u32[], token[]) send(%b), {_xla_host_transfer_rendezvous="all-reduce.3"}
  %u = (f32[8]{0}, u32[], token[]) send(%b, %t), frontend_attributes={_xla_host_transfer_rendezvous="host_callback"}
  LOOP
}
"""
    loop = "%w = (s32[], f32[2]) while(%t), condition=%condition.1, body=%body.1"

    def found(loop):
        return ahead_of_time.collectives(text.replace("LOOP", loop))

    assert found(loop) == {
        "all-gather": {"count": 22, "bytes": 128 + 10 * (4 + 16)}, "all-reduce": {"count": 2, "bytes": 24},
        "all-reduce across slices": {"count": 1, "bytes": 1024}}
    assert found(loop + ', backend_config={"known_trip_count":{"n":"3"}}')["all-gather"]["count"] == 8
    assert found(loop.replace("condition.1", "by_twos"))["all-gather"]["count"] == 2 + 2 * 5
    assert found(loop.replace("condition.1", "unknown"))["all-gather"]["count"] == 4
    assert found("")["all-gather"]["count"] == 2


def test_a_step_that_does_not_fit_is_one_sentence(monkeypatch):
    class Lowered:
        def compile(self):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 17.1G of 15.75G\nand a long table")

    class Traced:
        def trace(self, *_):
            return self

        def lower(self):
            return Lowered()

    monkeypatch.setattr(ahead_of_time.AdapterStep, "function", lambda *_: Traced())
    with pytest.raises(ValueError, match="17.1G of 15.75G\\): the program does not fit 1 devices of kind cpu; choose"):
        ahead_of_time.compile_ahead(step(), make_mesh(devices=jax.devices()[:1]))


def test_without_libtpu_one_sentence_says_what_to_do(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="Compiling for v5e:4x4 needs libtpu: run `pip install libtpu`"):
        topology.tpu_devices("v5e:4x4")
