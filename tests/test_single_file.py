"""Single-file checkpoints against what is published of them: their tensors, and diffusers' reading of their names."""

import hashlib
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import realcustom_jax as rc
from realcustom_jax.model_files import single_file, tensors, weights
from realcustom_jax.model_files.source import ModelSource
from realcustom_jax.models.clip_text import ClipText, ClipTextConfig
from realcustom_jax.models.unet import UNet, UNetConfig
from realcustom_jax.models.vae import Autoencoder, VAEConfig

# Number of tensors, and SHA-256 of the sorted lines "name [shape]", of each network in the published files, as listed
# in components/{UNET-v1-SD,UNET-XL-SD,VAE-v1-SD,CLIP-v1-SD,CLIP-XL-SD}.txt of
# github.com/arenasys/stable-diffusion-webui-model-toolkit (commit e19dd46), less position_ids and logit_scale.
PUBLISHED = {
    ("sd15", "unet"): (686, "0a32647aed4bb212446e9e375fac2dd5772d5be1c772a0b06f58610a786aea6c"),
    ("sd15", "vae"): (248, "240432d78215782456548801f5ad9d65371e87418c0228981c16434327af7890"),
    ("sd15", "text_encoder"): (196, "17f60827d7cddc3df6086becb109a3190970af5eb5c9ce91fca0f58b5731bc8c"),
    ("sdxl", "unet"): (1680, "8d7b1da7059706a0781c9b3d6cfce4da6e64ef9e735e053604b9c7a6f600eabe"),
    ("sdxl", "vae"): (248, "240432d78215782456548801f5ad9d65371e87418c0228981c16434327af7890"),
    ("sdxl", "text_encoder"): (196, "17f60827d7cddc3df6086becb109a3190970af5eb5c9ce91fca0f58b5731bc8c"),
    ("sdxl", "text_encoder_2"): (389, "d909c2c593d275317c895634bfe9b16bfebe6322ee466d05b1e150ee3d4b2a07"),
}
# SHA-256 of the sorted lines "our-name original-name", with [0], [1], [2] for the thirds of a fused tensor and .T for
# a transposed one, as diffusers 0.42.1 reads the names of those listings (loaders/single_file_utils.py,
# convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint and convert_open_clip_checkpoint).
DIFFUSERS = {
    ("sd15", "unet"): "21c10c171ca3141695e08ea82871176830a4468dec9ac9a7440994076e8dbe32",
    ("sd15", "vae"): "53e32bb24c5f7e600c0a6075d0d94da45b3ec2073cac7cb65dc79c35e87bd1f7",
    ("sdxl", "unet"): "e590641044d01d4d03ff85cb1fa86d6d1e0afb2e8106f2f694e66f33cf230834",
    ("sdxl", "vae"): "53e32bb24c5f7e600c0a6075d0d94da45b3ec2073cac7cb65dc79c35e87bd1f7",
    ("sdxl", "text_encoder_2"): "4ad2ac2d8dd40b97a91c4703ae123b6dc3d0092897783109f8ce8518f34d1c46",
}
PARTS = [(kind, part) for kind, configs in single_file.CONFIGS.items() for part in configs]
TINY_VAE = {"block_out_channels": [4, 8, 16, 16], "norm_num_groups": 2}
TINY_TEXT = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
             "num_attention_heads": 2, "max_position_embeddings": 5, "projection_dim": 6}
TINY = {
    "sd15": {"unet": {"block_out_channels": [4, 8, 16, 16], "norm_num_groups": 2, "attention_head_dim": 2,
                      "cross_attention_dim": 8},
             "vae": TINY_VAE, "text_encoder": TINY_TEXT},
    "sdxl": {"unet": {"block_out_channels": [4, 8, 16], "norm_num_groups": 2, "attention_head_dim": [1, 2, 2],
                      "cross_attention_dim": 8, "transformer_layers_per_block": [1, 1, 2],
                      "addition_time_embed_dim": 2, "projection_class_embeddings_input_dim": 18},
             "vae": TINY_VAE, "text_encoder": TINY_TEXT, "text_encoder_2": TINY_TEXT},
}


def digest(lines):
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def parameters(*modules):
    return [f"{module}.{leaf}" for module in modules for leaf in ("weight", "bias")]


def original_unet(config):
    """The names in the order in which openaimodel.UNetModel of latent diffusion makes its modules."""
    def resnet(name, shortcut):
        inner = ["in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3"]
        return parameters(*(f"{name}.{i}" for i in inner + ["skip_connection"] * shortcut))

    def transformer(name, depth):
        names = parameters(f"{name}.norm", f"{name}.proj_in", f"{name}.proj_out")
        for block in (f"{name}.transformer_blocks.{i}" for i in range(depth)):
            names += parameters(*(f"{block}.{i}" for i in (
                "norm1", "norm2", "norm3", "attn1.to_out.0", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2")))
            names += [f"{block}.attn{i}.to_{x}.weight" for i in (1, 2) for x in "qkv"]
        return names

    widths = config["block_out_channels"]
    depths = config.get("transformer_layers_per_block", [1] * len(widths))
    attention = [kind.startswith("CrossAttn") for kind in config["down_block_types"]]
    names = parameters("time_embed.0", "time_embed.2", "input_blocks.0.0", "out.0", "out.2")
    names += parameters("label_emb.0.0", "label_emb.0.2") if "addition_embed_type" in config else []
    count, width = 1, widths[0]
    for level in range(len(widths)):
        for _ in range(2):
            names += resnet(f"input_blocks.{count}.0", shortcut=width != widths[level])
            names += transformer(f"input_blocks.{count}.1", depths[level]) if attention[level] else []
            count, width = count + 1, widths[level]
        if level + 1 < len(widths):
            names += parameters(f"input_blocks.{count}.0.op")
            count += 1
    names += resnet("middle_block.0", False) + resnet("middle_block.2", False)
    names += transformer("middle_block.1", depths[-1])
    count = 0
    for level in reversed(range(len(widths))):
        for i in range(3):
            names += resnet(f"output_blocks.{count}.0", shortcut=True)
            names += transformer(f"output_blocks.{count}.1", depths[level]) if attention[level] else []
            if i == 2 and level:
                names += parameters(f"output_blocks.{count}.{2 if attention[level] else 1}.conv")
            count += 1
    return names


def original_vae(config):
    """The names of latent diffusion's AutoencoderKL: both halves count their levels from the finest."""
    def resnet(name, shortcut):
        inner = ["norm1", "conv1", "norm2", "conv2"] + ["nin_shortcut"] * shortcut
        return parameters(*(f"{name}.{i}" for i in inner))

    widths = config["block_out_channels"]
    names = parameters("quant_conv", "post_quant_conv")
    for half in ("encoder", "decoder"):
        names += parameters(*(f"{half}.{i}" for i in ("conv_in", "norm_out", "conv_out")))
        names += parameters(*(f"{half}.mid.attn_1.{i}" for i in ("norm", "q", "k", "v", "proj_out")))
        names += resnet(f"{half}.mid.block_1", False) + resnet(f"{half}.mid.block_2", False)
    for level, width in enumerate(widths):
        finer, coarser = widths[max(level - 1, 0)], widths[min(level + 1, len(widths) - 1)]
        for i in range(2):
            names += resnet(f"encoder.down.{level}.block.{i}", shortcut=i == 0 and finer != width)
        for i in range(3):
            names += resnet(f"decoder.up.{level}.block.{i}", shortcut=i == 0 and coarser != width)
        names += parameters(f"encoder.down.{level}.downsample.conv") if level + 1 < len(widths) else []
        names += parameters(f"decoder.up.{level}.upsample.conv") if level else []
    return names


def original_clip(config):
    """transformers' own names."""
    layers = [f"text_model.encoder.layers.{i}" for i in range(config["num_hidden_layers"])]
    inner = ["layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"]
    inner += [f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")]
    return ["text_model.embeddings.token_embedding.weight", "text_model.embeddings.position_embedding.weight",
            *parameters("text_model.final_layer_norm", *(f"{layer}.{i}" for layer in layers for i in inner))]


def original_open_clip(config):
    """The names of open_clip's text tower."""
    layers = [f"transformer.resblocks.{i}" for i in range(config["num_hidden_layers"])]
    inner = ["ln_1", "ln_2", "attn.out_proj", "mlp.c_fc", "mlp.c_proj"]
    return ["token_embedding.weight", "positional_embedding", "text_projection",
            *parameters("ln_final", *(f"{layer}.{i}" for layer in layers for i in inner)),
            *(f"{layer}.attn.in_proj_{leaf}" for layer in layers for leaf in ("weight", "bias"))]


ORIGINAL = {
    "sd15": {"unet": ("model.diffusion_model.", original_unet), "vae": ("first_stage_model.", original_vae),
             "text_encoder": ("cond_stage_model.transformer.", original_clip)},
    "sdxl": {"unet": ("model.diffusion_model.", original_unet), "vae": ("first_stage_model.", original_vae),
             "text_encoder": ("conditioner.embedders.0.transformer.", original_clip),
             "text_encoder_2": ("conditioner.embedders.1.model.", original_open_clip)},
}
IGNORED = {
    "sd15": ["betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_recipm1_alphas_cumprod",
             "log_one_minus_alphas_cumprod", "posterior_mean_coef1", "model_ema.decay",
             "model_ema.diffusion_modelinput_blocks00weight", "cond_stage_model.logit_scale",
             "cond_stage_model.text_projection", "cond_stage_model.transformer.text_model.embeddings.position_ids"],
    "sdxl": ["denoiser.sigmas", "conditioner.embedders.1.model.logit_scale",
             "conditioner.embedders.0.transformer.text_model.embeddings.position_ids"],
}


def configs(kind, tiny=False):
    return {part: config | (TINY[kind][part] if tiny else {}) for part, config in single_file.CONFIGS[kind].items()}


def original_names(kind, tiny=False):
    parts = configs(kind, tiny)
    return [prefix + name for part, (prefix, make) in ORIGINAL[kind].items() for name in make(parts[part])]


def parameter_shapes(part, config):
    """Our parameters' shapes, of any size for nothing."""
    kwargs = {}
    if part == "unet":
        module = UNet(UNetConfig.from_config(config))
        args, kwargs = weights.unet_inputs(module.config)
    elif part == "vae":
        module, args = Autoencoder(VAEConfig.from_config(config)), (jnp.zeros((1, 8, 8, 3)),)
    else:
        module = ClipText(ClipTextConfig.from_config(config), part == "text_encoder_2")
        args = (jnp.zeros((1, 2), jnp.int32),)
    return weights.parameter_shapes(module, *args, **kwargs)


@pytest.mark.parametrize(("kind", "part"), PARTS)
def test_the_standard_configurations_have_exactly_the_published_tensors(kind, part):
    ours = weights.torch_shapes(parameter_shapes(part, configs(kind)[part]))
    prefix, _ = ORIGINAL[kind][part]
    entries = single_file.rename(original_names(kind) + IGNORED[kind])[part]
    assert set(entries) == set(ours)
    listing = {}
    for name, entry in entries.items():
        source, shape = entry.source.removeprefix(prefix), ours[name]
        if entry.third is not None:
            shape = (3 * shape[0], *shape[1:])
        if entry.transposed:
            shape = shape[::-1]
        if ".attn_1." in source and len(shape) == 2:
            shape += (1, 1)  # 1×1 convolutions there, linear layers here
        assert listing.setdefault(source, shape) == shape
    lines = [f"{name} [{','.join(map(str, shape))}]" for name, shape in listing.items()]
    assert (len(lines), digest(lines)) == PUBLISHED[kind, part]


@pytest.mark.parametrize(("kind", "part"), [key for key in PARTS if key[1] != "text_encoder"])
def test_every_tensor_goes_where_diffusers_puts_it(kind, part):
    prefix, _ = ORIGINAL[kind][part]
    entries = single_file.rename(original_names(kind))[part]
    lines = [f"{name} {entry.source.removeprefix(prefix)}" + (f"[{entry.third}]" if entry.third is not None else "")
             + (".T" if entry.transposed else "") for name, entry in entries.items()]
    assert digest(lines) == DIFFUSERS[kind, part]


@pytest.mark.parametrize(("kind", "part", "theirs", "ours"), [
    ("sd15", "unet", "input_blocks.1.1.proj_in.weight", "down_blocks.0.attentions.0.proj_in.weight"),
    ("sd15", "unet", "input_blocks.9.0.op.bias", "down_blocks.2.downsamplers.0.conv.bias"),
    ("sd15", "unet", "input_blocks.11.0.emb_layers.1.weight", "down_blocks.3.resnets.1.time_emb_proj.weight"),
    ("sd15", "unet", "output_blocks.2.1.conv.weight", "up_blocks.0.upsamplers.0.conv.weight"),
    ("sd15", "unet", "output_blocks.5.2.conv.weight", "up_blocks.1.upsamplers.0.conv.weight"),
    ("sd15", "unet", "output_blocks.11.0.skip_connection.weight", "up_blocks.3.resnets.2.conv_shortcut.weight"),
    ("sdxl", "unet", "input_blocks.8.1.transformer_blocks.9.attn2.to_out.0.bias",
     "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_out.0.bias"),
    ("sdxl", "unet", "label_emb.0.2.weight", "add_embedding.linear_2.weight"),
    ("sdxl", "unet", "middle_block.2.out_layers.3.weight", "mid_block.resnets.1.conv2.weight"),
    ("sdxl", "vae", "encoder.down.1.block.0.nin_shortcut.bias", "encoder.down_blocks.1.resnets.0.conv_shortcut.bias"),
    ("sdxl", "vae", "decoder.up.3.block.2.conv1.weight", "decoder.up_blocks.0.resnets.2.conv1.weight"),
    ("sdxl", "vae", "decoder.mid.attn_1.proj_out.weight", "decoder.mid_block.attentions.0.to_out.0.weight"),
    ("sdxl", "text_encoder_2", "transformer.resblocks.31.mlp.c_fc.bias", "text_model.encoder.layers.31.mlp.fc1.bias"),
])
def test_names_are_translated(kind, part, theirs, ours):
    assert single_file.rename(original_names(kind))[part][ours] == single_file.Entry(ORIGINAL[kind][part][0] + theirs)


@pytest.mark.parametrize("kind", ["sdxl", pytest.param("sd15", marks=pytest.mark.slow)])
def test_a_file_gives_back_the_values_of_its_parts(kind, tmp_path):
    rng = np.random.default_rng(0)
    trees = {part: parameter_shapes(part, config) for part, config in configs(kind, tiny=True).items()}
    shapes = {part: weights.torch_shapes(tree) for part, tree in trees.items()}
    expected = {part: {name: rng.standard_normal(shape, np.float32) for name, shape in named.items()}
                for part, named in shapes.items()}
    file = {name: np.zeros(3, np.float32) for name in IGNORED[kind]}
    thirds = {}
    for part, entries in single_file.rename(original_names(kind, tiny=True)).items():
        for name, entry in entries.items():
            value = expected[part][name]
            if entry.third is None:
                file[entry.source] = np.ascontiguousarray(value.T if entry.transposed else value)
            else:
                thirds.setdefault(entry.source, {})[name.split(".")[-2]] = value
    file |= {name: np.concatenate([v["q_proj"], v["k_proj"], v["v_proj"]]) for name, v in thirds.items()}
    safetensors.numpy.save_file(file, tmp_path / "model.safetensors")

    parts = single_file.split(tensors.read_tensors(tmp_path / "model.safetensors"))
    assert set(parts) == set(trees)
    for part, tree in trees.items():
        params, unused = weights.from_torch(tree, parts[part], part, dtype=jnp.float32)
        assert not unused
        found = weights.to_torch(params)
        assert set(found) == set(expected[part])
        for name, value in expected[part].items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_fused_attention_is_split_and_the_projection_transposed():
    attention = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_"
    file = {"model.diffusion_model.input_blocks.0.0.weight": np.zeros((8, 4, 3, 3)),
            f"{attention}weight": np.arange(12).reshape(6, 2), f"{attention}bias": np.arange(6),
            "conditioner.embedders.1.model.text_projection": np.arange(6).reshape(2, 3)}
    text = single_file.split(file)["text_encoder_2"]
    layer = "text_model.encoder.layers.0.self_attn"
    np.testing.assert_array_equal(text[f"{layer}.q_proj.weight"], [[0, 1], [2, 3]])
    np.testing.assert_array_equal(text[f"{layer}.k_proj.weight"], [[4, 5], [6, 7]])
    np.testing.assert_array_equal(text[f"{layer}.v_proj.weight"], [[8, 9], [10, 11]])
    np.testing.assert_array_equal([text[f"{layer}.{x}_proj.bias"] for x in "qkv"], [[0, 1], [2, 3], [4, 5]])
    np.testing.assert_array_equal(text["text_projection.weight"], [[0, 3], [1, 4], [2, 5]])
    assert len(text) == 7


def test_values_are_read_when_they_are_looked_up():
    class Counting(Mapping):
        reads = []

        def __getitem__(self, name):
            self.reads.append(name)
            return np.zeros((4, 4, 3, 3))

        def __iter__(self):
            return iter(original_names("sd15", tiny=True))

        def __len__(self):
            return sum(1 for _ in self)

    parts = single_file.split(Counting())
    conv_in = "model.diffusion_model.input_blocks.0.0.weight"
    assert set(Counting.reads) <= {conv_in}  # whose shape tells inpainting models apart
    Counting.reads.clear()
    assert len(parts["vae"]) == 248 and "quant_conv.bias" in parts["vae"] and not Counting.reads
    parts["vae"]["quant_conv.bias"]
    assert Counting.reads == ["first_stage_model.quant_conv.bias"]


def test_the_kind_is_told_from_the_names():
    for kind in ORIGINAL:
        assert single_file.kind(original_names(kind, tiny=True)) == kind
        assert single_file.kind(dict.fromkeys(original_names(kind, tiny=True), (320, 4, 3, 3))) == kind
    others = ["down_blocks.0.resnets.0.conv1.weight", "text_model.final_layer_norm.weight"]
    assert single_file.kind(others) is None
    with pytest.raises(ValueError, match="not a single-file Stable Diffusion checkpoint"):
        single_file.rename(others)


@pytest.mark.parametrize(("key", "message"), [
    ("cond_stage_model.model.ln_final.weight", "Stable Diffusion 2"),
    ("conditioner.embedders.0.model.ln_final.weight", "SDXL refiner"),
    ("edm_mean", "Playground"),
    ("edm_vpred.sigma_max", "CosXL"),
    ("control_model.time_embed.0.weight", "a ControlNet"),
    ("model.diffusion_model.double_blocks.0.img_attn.proj.weight", "neither the text encoder"),
])
def test_other_kinds_are_refused_by_name(key, message):
    with pytest.raises(ValueError, match=message):
        single_file.kind(["model.diffusion_model.input_blocks.0.0.weight", key])


@pytest.mark.parametrize("as_shape", [True, False])
def test_inpainting_models_are_refused(as_shape):
    names = original_names("sd15", tiny=True)
    shape = (4, 9, 3, 3)
    with pytest.raises(ValueError, match="9 input channels instead of 4"):
        single_file.kind(dict.fromkeys(names, shape if as_shape else np.zeros(shape)))


def test_unknown_keys_are_listed_in_one_error():
    names = original_names("sd15", tiny=True)
    with pytest.raises(ValueError, match=r"\(sd15\) has keys that belong to no part that we know: "
                                         r"model\.diffusion_model\.input_blocks\.12\.0\.op\.weight, mystery\.$"):
        single_file.rename([*names, "mystery", "model.diffusion_model.input_blocks.12.0.op.weight"])
    with pytest.raises(ValueError, match=r"mystery_19 … \(30 in all\)\.$"):
        single_file.rename(names + [f"mystery_{i:02}" for i in range(30)])


def test_two_keys_for_one_tensor_are_refused():
    short = "cond_stage_model.transformer.final_layer_norm.bias"
    names = original_names("sd15", tiny=True)
    with pytest.raises(ValueError, match="for tensors that it has already: .*final_layer_norm.bias"):
        single_file.rename([*names, short])
    shortened = [name.replace("transformer.text_model.", "transformer.") for name in names]
    assert single_file.rename(shortened)["text_encoder"]["text_model.final_layer_norm.bias"].source == short


def test_a_part_that_the_file_lacks_is_empty():
    names = [name for name in original_names("sdxl", tiny=True) if not name.startswith("first_stage_model.")]
    parts = single_file.rename(names)
    assert parts["vae"] == {} and parts["unet"]


def test_a_projection_that_is_named_as_a_linear_layer_is_not_transposed():
    names = original_names("sdxl", tiny=True)
    plain = "conditioner.embedders.1.model.text_projection"
    linear = [name + ".weight" * (name == plain) for name in names]
    ours = {kind: single_file.rename(given)["text_encoder_2"] for kind, given in (("plain", names), ("linear", linear))}
    assert ours["linear"] == ours["plain"] | {"text_projection.weight": single_file.Entry(f"{plain}.weight")}
    with pytest.raises(ValueError, match="for tensors that it has already: .*text_projection"):
        single_file.rename([*names, f"{plain}.weight"])


@pytest.mark.parametrize(("kind", "stray"), [
    ("sdxl", "conditioner.embedders.0.transformer.text_projection.weight"), ("sdxl", "global_step"), ("sd15", "epoch"),
    ("sd15", "embedding_manager.initial_embeddings.toy"), ("sdxl", "first_stage.moved"), ("sd15", "optimizer.0"),
])
def test_a_few_stray_keys_are_told_of_and_ignored(kind, stray):
    names = original_names(kind, tiny=True)
    with pytest.warns(UserWarning, match=f"no part needs, which are ignored: {stray}") as told:
        parts = single_file.rename([*names, stray])
    assert parts == single_file.rename(names) and len(told) == 1


def write_single_file(path, kind, *markers, metadata=None):
    """Every name of the kind with a tensor of no size to speak of."""
    file = dict.fromkeys(original_names(kind), np.zeros(1, np.float32))
    file["model.diffusion_model.input_blocks.0.0.weight"] = np.zeros((1, 4, 1, 1), np.float32)
    file |= dict.fromkeys(markers, np.zeros(0, np.float32))
    safetensors.numpy.save_file(file, path, metadata=metadata)
    return path


@pytest.mark.parametrize(("markers", "said", "given", "expected"), [
    ((), None, None, "epsilon"), ((), "epsilon", None, "epsilon"), ((), "v", None, "v_prediction"),
    ((), "", None, "epsilon"), (("v_pred",), "epsilon", None, "v_prediction"),
    (("v_pred",), "v", "epsilon", "epsilon"),
    (("ztsnr",), "v", None, "v_prediction"), (("v_pred", "ztsnr"), None, None, "v_prediction"),
    ((), "flow", "v_prediction", "v_prediction"),
    ((), "flow", None, "modelspec.prediction_type is 'flow'.*--prediction"),
    ((), None, "velocity", "Unknown prediction 'velocity': known are epsilon, v_prediction"),
])
def test_what_is_predicted_is_as_it_is_said_nearest_to_the_weights(tmp_path, markers, said, given, expected):
    metadata = None if said is None else {"modelspec.prediction_type": said}
    source = ModelSource.open(write_single_file(tmp_path / "x.safetensors", "sd15", *markers, metadata=metadata))
    if expected not in ("epsilon", "v_prediction"):
        with pytest.raises(ValueError, match=f"x.safetensors: {expected}"):
            source.schedule(given)
        return
    betas, prediction = source.schedule(given)
    assert prediction == expected
    np.testing.assert_array_equal(betas, rc.betas(terminal_pure_noise="ztsnr" in markers))
    assert (np.prod(1 - betas) < 1e-12) == ("ztsnr" in markers)


def test_v_prediction_is_read_from_the_markers():
    names = original_names("sdxl", tiny=True)
    assert single_file.scheduler(names)["prediction_type"] == "epsilon"
    assert not single_file.scheduler(names)["rescale_betas_zero_snr"]
    marked = [*names, "v_pred", "ztsnr"]
    assert single_file.scheduler(marked)["prediction_type"] == "v_prediction"
    assert single_file.scheduler(marked)["rescale_betas_zero_snr"]
    assert single_file.rename(marked) == single_file.rename(names)
