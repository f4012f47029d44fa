"""The projector against the released classes, and what the released classes do not have."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import realcustom_jax as rc
from realcustom_jax.model_files.adapter import find_adapter
from realcustom_jax.model_files.locate import ASSETS
from realcustom_jax.models.projector import Projector, ProjectorConfig

from goldens import FIXTURES, assert_close, golden


def load(name, **options):
    return rc.load_projector(FIXTURES / f"{name}.json", FIXTURES / f"{name}.safetensors", **options)


def features_of(name):
    arrays = golden(name)
    return [arrays[key] for key in sorted(arrays) if key.startswith("vision_") and key != "vision_tokens"]


def projector_of(variant, **params):
    params = {"vision_dim": 32, "out_dim": 16, "dim_head": 16} | params
    return Projector(ProjectorConfig.from_config(
        {"vision_projection_config": {"variant": variant, "params": params}}))


@pytest.mark.parametrize("name", ["unet_sdxl", "unet_sd15", "unet_sdxl_shallow"])
def test_tokens_match_the_released_projectors(name):
    projector, params = load(name)
    assert_close(projector.apply({"params": params}, features_of(name)), golden(name)["vision_tokens"])


def test_paper_adds_detail_and_concatenates_structure():
    name = "unet_sdxl_shallow"
    (_, params), features = load(name), features_of(name)
    tokens = projector_of("paper").apply({"params": params}, features)
    with_detail = projector_of("highres").apply({"params": params}, features[-2:])
    assert_close(tokens[:, :9], with_detail, 1e-6)
    assert_close(tokens[:, 9:], golden(name)["vision_tokens"][:, 9:])


def test_adaptive_scale_weighs_the_detail_stream():
    (_, params), features = load("unet_sdxl"), features_of("unet_sdxl")
    base = features[0] @ params["projector_base"]["kernel"] + params["projector_base"]["bias"]
    projector = projector_of("highres", adaptive_scale=True, scale_value=0.5)
    made = jax.eval_shape(lambda: projector.init(jax.random.key(0), features))["params"]
    assert made["scale_value"]["value"].shape == ()
    tokens = projector.apply({"params": params | {"scale_value": {"value": np.float32(0.25)}}}, features)
    assert_close(tokens, base + 0.25 * (golden("unet_sdxl")["vision_tokens"] - base))


def test_compute_dtype_is_the_modules():
    projector, params = load("unet_sdxl_shallow", dtype=jnp.bfloat16)
    tokens = projector.apply({"params": params}, features_of("unet_sdxl_shallow"))
    assert tokens.dtype == jnp.bfloat16
    assert_close(tokens.astype(jnp.float32), golden("unet_sdxl_shallow")["vision_tokens"], 0.05)


@pytest.mark.parametrize("variant, shapes", [
    ("highres", [(1, 9, 32)]),
    ("highres", [(1, 9, 32)] * 3),
    ("highres", [(1, 9, 32), (1, 36, 31)]),
    ("shallow", [(1, 9, 32)] * 2),
    ("paper", [(1, 9, 16), (1, 9, 32), (1, 36, 32)]),
])
def test_features_that_do_not_fit_are_refused(variant, shapes):
    with pytest.raises(ValueError, match=rf"'{variant}'.*each \[B, L, 32\]"):
        projector_of(variant).init(jax.random.key(0), [jnp.zeros(shape) for shape in shapes])


@pytest.mark.parametrize("variant, layers, said", [
    ("highres", [1, 2, 3], "reads one layer of each encoder, not 3"),
    ("paper", [3], "reads shallow layers before the deep one"),
    ("shallow", [3], "reads shallow layers before the deep one"),
])
def test_an_adapter_whose_layers_do_not_fit_its_projector_is_refused_by_its_file(tmp_path, variant, layers, said):
    shutil.copytree(ASSETS / "mini" / "adapter", tmp_path, dirs_exist_ok=True)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["image_prompt_settings"]["vision_projection_config"]["variant"] = variant
    config["vision_settings"] |= {"siglip_layers": layers, "dino_layers": layers}
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{re.escape(str(file))}.*'{variant}' projector {said}"):
        find_adapter(tmp_path)


@pytest.mark.parametrize("projection, message", [
    ({"target": "models.projectors.ProjectorHighResMinAtt", "params": {}}, "did you mean"),
    ({"variant": "deep", "params": {"vision_dim": 32, "out_dim": 16}}, "variant 'deep'"),
    ({"variant": "paper", "params": {"vision_dim": 32, "out_dim": 16, "heads": 2}}, "heads"),
    ({"variant": "paper", "params": {"vision_dim": 32, "out_dim": 16, "dim_head": 24}}, "dim_head=24"),
])
def test_configs_of_other_projectors_are_refused(projection, message):
    with pytest.raises(ValueError, match=message):
        ProjectorConfig.from_config({"vision_projection_config": projection})
