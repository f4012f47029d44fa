"""Our networks and the reference's preparation against the original torch implementations, run side by side.

The goldens fix a few cases; here both sides compute, at several shapes. Every parameter is disturbed first: freshly
made norms, biases and layer scales are constants, which a wrong mapping would not change. Needs torch, and for each
network the library that it comes from; what is not installed is skipped.
"""

import jax
import numpy as np
import pytest
import safetensors.numpy
from torch_models import disturbed

from realcustom_jax.conditioning.references import prepare_reference
from realcustom_jax.model_files import weights

from goldens import assert_close, nchw, nhwc

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optimised")]
torch = pytest.importorskip("torch")
functional = pytest.importorskip("torch.nn.functional")


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def written(model, folder, prefix=""):
    """The path of the model's state dict as a file, `prefix` in front of its names."""
    tensors = {prefix + name: np.ascontiguousarray(value.numpy()) for name, value in model.state_dict().items()}
    safetensors.numpy.save_file(tensors, folder / "weights.safetensors")
    return folder / "weights.safetensors"


UNETS = {
    "sd15": {
        "block_out_channels": (8, 16, 16, 16), "layers_per_block": 1, "cross_attention_dim": 12,
        "attention_head_dim": 2, "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    },
    "sdxl": {
        "block_out_channels": (8, 16, 24), "cross_attention_dim": 12, "attention_head_dim": (1, 2, 3),
        "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 2),
        "up_block_types": (*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"),
        "use_linear_projection": True, "transformer_layers_per_block": (1, 2, 3), "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + 10,
    },
    "levels": {
        "block_out_channels": (8, 16, 16), "layers_per_block": (1, 3, 2), "cross_attention_dim": 12,
        "attention_head_dim": 2, "down_block_types": (*["CrossAttnDownBlock2D"] * 2, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 2),
    },
}


@pytest.fixture(scope="module", params=UNETS)
def unets(request, tmp_path_factory):
    """(diffusers' UNet, our module, our parameters)"""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = disturbed(diffusers.UNet2DConditionModel(**UNETS[request.param], norm_num_groups=4))
    return theirs, *weights.load_unet(dict(theirs.config), written(theirs, tmp_path_factory.mktemp("unet")))


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (9, 13)])
def test_the_unet_is_diffusers(unets, size):
    """At 12×20 and 9×13 a level does not halve evenly: the upsampler must follow the skip's size."""
    theirs, module, params = unets
    sample, text = random(2, 4, *size), random(2, 7, 12, seed=1)
    timestep = np.array([981, 3])
    added = {}
    if module.config.addition_embed:
        time_ids = np.float32([[64, 48, 0, 8, 64, 48], [32, 96, 4, 0, 32, 96]])
        added = {"pooled": random(2, 10, seed=2), "time_ids": time_ids}
    names = {"pooled": "text_embeds", "time_ids": "time_ids"}
    with torch.no_grad():
        expected = theirs(torch.from_numpy(sample), torch.from_numpy(timestep), torch.from_numpy(text),
                          added_cond_kwargs={names[k]: torch.from_numpy(v) for k, v in added.items()}).sample
    ours = jax.jit(lambda params: module.apply({"params": params}, nhwc(sample), timestep, text, **added).noise)(params)
    assert_close(nchw(ours), expected)


@pytest.mark.parametrize("quant_conv", [True, False])
@pytest.mark.parametrize("size", [(16, 16), (24, 40)])
def test_the_autoencoder_is_diffusers(quant_conv, size, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = disturbed(diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 12, 16), layers_per_block=2, norm_num_groups=4, use_quant_conv=quant_conv,
        use_post_quant_conv=quant_conv))
    module, params = weights.load_autoencoder(dict(theirs.config), written(theirs, tmp_path))
    assert ("quant_conv" in params) == quant_conv
    images, latents = random(2, 3, *size), random(2, 4, size[0] // 4, size[1] // 4, seed=1)
    with torch.no_grad():
        distribution = theirs.encode(torch.from_numpy(images)).latent_dist
        expected = theirs.decode(torch.from_numpy(latents)).sample
    ours, decoded = jax.jit(lambda params: (
        module.apply({"params": params}, nhwc(images), method="encode"),
        module.apply({"params": params}, nhwc(latents), method="decode")))(params)
    assert_close(nchw(ours.mean), distribution.mean)
    assert_close(nchw(ours.logvar), distribution.logvar)
    assert_close(nchw(decoded), expected)


@pytest.mark.parametrize("name, act, eos, prefix", [
    # SD-1.5's and SDXL's first encoder: with id 2, the end of text is the largest id.
    ("CLIPTextModel", "quick_gelu", 2, "text_model."),
    ("CLIPTextModel", "quick_gelu", 2, ""),
    ("CLIPTextModelWithProjection", "gelu", 98, ""),
])
def test_the_text_encoder_is_transformers(name, act, eos, prefix, tmp_path):
    """`prefix` is what the released files have in front of the names of transformers 5."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = disturbed(getattr(transformers, name)(transformers.CLIPTextConfig(
        vocab_size=100, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3,
        projection_dim=10, hidden_act=act, bos_token_id=97, eos_token_id=eos, pad_token_id=98)))
    module, params = weights.load_text_encoder(theirs.config.to_dict(), written(theirs, tmp_path, prefix))
    for length in (77, 8):
        ids = np.random.default_rng(0).integers(3, 97, (3, length))
        for row, end in enumerate((2, 5, length - 1)):
            ids[row, end:] = 98  # padded with the end of text, the largest id here: the first one counts
        with torch.no_grad():
            expected = theirs(torch.from_numpy(ids), output_hidden_states=True)
        ours = module.apply({"params": params}, ids)
        assert_close(ours.last, expected.last_hidden_state)
        assert len(expected.hidden_states) == 4
        assert_close(ours.penultimate, expected.hidden_states[-2])
        ends = torch.tensor([2, 5, length - 1])
        assert_close(ours.pooled, expected.last_hidden_state[torch.arange(3), ends])
        if name == "CLIPTextModel":
            assert_close(ours.pooled, expected.pooler_output)
            assert ours.projected is None
        else:
            assert_close(ours.projected, expected.text_embeds)


SIGLIP = {"class_token": False, "global_pool": "map", "mlp_ratio": 3.736111111111111}
DINO = {"reg_tokens": 4, "no_embed_class": True, "init_values": 1e-5}


@pytest.mark.parametrize("arguments, trained_at, size", [
    (SIGLIP, 70, 70),
    (SIGLIP, 70, (56, 84)),
    (DINO, 70, 70),
    (DINO, 103, 76),  # 7×7 to 5×5 patches with pixels left over, as 518 to 384 is 37×37 to 27×27
    (DINO, 56, (98, 84)),
    ({"class_token": True}, 84, 56),  # the class token has a position of its own, which is kept
])
def test_the_vision_encoder_is_timms(vision_transformer, arguments, trained_at, size, tmp_path):
    """Also where the positions were trained on another grid and are resampled."""
    arguments = {"patch_size": 14, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 0, **arguments}
    torch.manual_seed(0)
    make = vision_transformer.VisionTransformer
    trained = disturbed(make(img_size=trained_at, **arguments))
    theirs = make(img_size=size, **arguments).eval()
    theirs.load_state_dict(vision_transformer.checkpoint_filter_fn(trained.state_dict(), theirs))
    module, params = weights.load_vision_encoder({"img_size": size, **arguments}, written(trained, tmp_path))
    images = random(2, 3, *module.config.img_size)
    with torch.no_grad():
        expected = theirs.get_intermediate_layers(torch.from_numpy(images), n=[0, 1, 2], norm=False)
    ours = jax.jit(lambda params: module.apply({"params": params}, nhwc(images), layers=(0, 1, 2)))(params)
    for mine, other in zip(ours, expected, strict=True):
        assert_close(mine, other)


def reference_in_torch(images, size, encoder_size, split, local):
    """The released preparation of images [B,3,H,W], step by step → (whole, parts) as uint8."""
    square = functional.interpolate(torch.from_numpy(images), (size, size), mode="bilinear", align_corners=False)
    whole = functional.interpolate(square, (encoder_size, encoder_size), mode="bilinear", align_corners=True)
    g, places = encoder_size, [(i, j) for i in range(split) for j in range(split)]
    if local == "phases":
        parts = [square[:, :, i::split, j::split] for i, j in places]
    else:
        parts = [square[:, :, i * g:(i + 1) * g, j * g:(j + 1) * g] for i, j in places]
    parts = torch.stack(parts, dim=1).flatten(0, 1)
    return whole.mul(255).byte().numpy(), parts.mul(255).byte().numpy()


def assert_same_levels(images, *, share, **sizes):
    """Our 8-bit pictures, compiled as in the pipeline, are torch's, but for `share` of the values, one level off."""
    ours = jax.jit(lambda images: prepare_reference(images, **sizes))(nhwc(images))
    for mine, other in zip(ours, reference_in_torch(images, **sizes), strict=True):
        levels = np.round(nchw(mine) * 255)
        np.testing.assert_allclose(nchw(mine), levels / 255, atol=1e-6)
        difference = np.abs(levels - other)
        assert difference.max() <= 1 and (difference > 0).mean() <= share, (difference.max(), (difference > 0).mean())


@pytest.mark.parametrize("local", ["phases", "tiles"])
@pytest.mark.parametrize("split", [2, 3])
@pytest.mark.parametrize("source", [(31, 37), (101, 67), (23, 130)])
def test_the_reference_is_prepared_as_in_torch(source, split, local):
    """Both ways from odd sizes. Values between the 8-bit levels hardly ever lie at an edge: up to 0.02 % differed."""
    images = np.random.default_rng(0).random((2, 3, *source), np.float32)
    assert_same_levels(images, share=5e-4, size=24 * split, encoder_size=24, split=split, local=local)


RELEASED = {"size": 768, "encoder_size": 384, "split": 2, "local": "phases"}


@pytest.mark.parametrize("source", [(333, 517), (801, 1030)])
def test_a_picture_on_white_is_prepared_as_in_torch(source):
    """A flat area lies exactly at a level, so that the last bit of a float decides: under 0.001 % differed."""
    y, x = np.mgrid[:source[0], :source[1]]
    inside = (y - source[0] / 2) ** 2 + (x - source[1] / 2) ** 2 < (0.36 * source[0]) ** 2
    levels = np.stack([np.where(inside, (step * (y // 20) + x) % 256, 255) for step in (1, 5, 9)])
    assert_same_levels((levels[None] / 255).astype(np.float32), share=1e-4, **RELEASED)


def test_a_grey_picture_is_prepared_as_in_torch():
    assert_same_levels(np.full((1, 3, 333, 517), 127 / 255, np.float32), share=0, **RELEASED)
