"""Configurations as dataclasses: what is wrong is told with the key's name and the nearest known one."""

import importlib.util
import math
from pathlib import Path

import ml_collections
import pytest

from realcustom_jax.training.miniature.config import MiniatureConfig
from realcustom_jax.training.published.config import PublishedConfig

CONFIGS = Path(__file__).parents[1] / "configs"


def load(name: str) -> dict:
    """A configuration file's plain values."""
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config().to_dict()


def changed(values: dict, key: str, value) -> dict:
    """The values with another one at a key with dots."""
    name, _, rest = key.partition(".")
    return {**values, name: changed(values.get(name, {}), rest, value) if rest else value}


@pytest.mark.parametrize("name, side, steps", [("sdxl", 1024, 100_000), ("sd15", 512, 100_000)])
def test_the_files_of_the_published_models_are_read(name, side, steps):
    train = load(name)["train"]
    config = PublishedConfig.from_config(changed(train, "on_existing", "refuse"))
    assert (config.kind, config.side, config.optimization.steps) == (name, side, steps)
    assert config.optimization.on_existing == "refuse"
    assert config.fresh.vision_settings.siglip_layers == (7, 13, 19, 25)
    assert config.preset.size_order == ("height_first" if name == "sdxl" else "width_first")


def test_the_file_of_the_miniature_is_read():
    values = load("mini")
    config = MiniatureConfig.from_config(changed(values, "seed", 3))
    assert config.optimization.adapter.seed == 3 and config.optimization.adapter.optimizer == "muon"
    assert config.preset.refine == 2 and config.data.identities == 12_000 and config.said["data"] == values["data"]


@pytest.mark.parametrize("key, value, message", [
    ("predicton", "epsilon", "key in config: 'predicton'.*did you mean 'prediction'"),
    ("adapter.secnd", 0.1, "key in config.adapter: 'secnd'.*did you mean 'second'"),
    ("data.identitys", 3, "key in config.data: 'identitys'.*did you mean 'identities'"),
    ("optimization.base.stps", 3, "key in config.optimization.base: 'stps'.*did you mean 'steps'"),
    ("adapter.masked", 1.5, "config.adapter: masked is 1.5; expected a share, from 0 to 1"),
    ("base.placed", -1.0, "config.base: placed is -1.0; expected the weight of a loss, 0 or more"),
    ("data.poses", 0, "data.poses is 0; expected a whole number, at least 1"),
    ("data.side", "128", "config.data.side is '128'; expected a whole number"),
    ("optimization.adapter.save_every", 0, "config.optimization.adapter: save_every is 0"),
    ("optimization", {}, "config.optimization.autoencoder is missing"),
    ("prediction", "v", "Unknown prediction 'v'"),
    ("preset.refine", True, "config.preset.refine is True; expected a whole number"),
])
def test_what_is_wrong_with_a_miniatures_configuration_is_named(key, value, message):
    with pytest.raises(ValueError, match=message):
        MiniatureConfig.from_config(changed(load("mini"), key, value))


@pytest.mark.parametrize("key, value, message", [
    ("precomputd", True, "key in config.train: 'precomputd'.*did you mean 'precomputed'"),
    ("mesh.tensr", 2, "key in config.train.mesh: 'tensr'.*did you mean 'tensor'"),
    ("precomputed", "yes", "config.train.precomputed is 'yes'; expected true or false"),
    ("data", "toys", "config.train.data is 'toys'; expected a mapping of folder, sources, columns, word"),
    ("kind", "sdlx", "Unknown kind 'sdlx'.*did you mean 'sdxl'"),
    ("fresh.dim_head", 0, "config.train.fresh: dim_head is 0"),
    ("fresh.vision_settings.size", 7, "config.train.fresh.vision_settings: .*size=7"),
])
def test_what_is_wrong_with_a_published_models_training_is_named(key, value, message):
    with pytest.raises(ValueError, match=message):
        PublishedConfig.from_config(changed(load("sdxl")["train"], key, value))


def test_the_data_of_a_configuration_are_sources_and_filters():
    train = load("sdxl")["train"]
    config = PublishedConfig.from_config(changed(changed(train, "data.folder", "a"), "data.columns.caption", "text"))
    (source,) = config.data.mixture()
    assert (source.path, source.columns, source.weight) == ("a", (("caption", "text"),), 1.0)
    assert config.data.filters == {"min_side": 0, "max_aspect": math.inf, "min_score": -math.inf, "held_out": 0.0}
    sources = ml_collections.ConfigDict(train)
    sources.data.sources = ({"path": "a", "weight": 2}, {"path": "b", "word": "dog"})
    config = PublishedConfig.from_config(sources.to_dict())
    assert [(x.path, x.weight, x.word) for x in config.data.mixture()] == [("a", 2.0, ""), ("b", 1.0, "dog")]
    with pytest.raises(ValueError, match="config.train.data.folder is empty"):
        PublishedConfig.from_config(train).data.mixture()


@pytest.mark.parametrize("values, message", [
    ({"data.held_out": 1.0}, "config.train.data: held_out is 1.0"),
    ({"data.max_aspect": 0.5}, "config.train.data: max_aspect is 0.5"),
    ({"data.min_side": 0.5}, "config.train.data.min_side is 0.5; expected a whole number"),
    ({"data.colums": {}}, "did you mean 'columns'"),
    ({"data.columns.captain": "x"}, "did you mean 'caption'"),
    ({"data.folder": "a", "data.sources": ({"path": "b"},)}, "folder is 'a', and sources are given too"),
])
def test_data_of_a_configuration_that_cannot_be_used_are_named(values, message):
    train = load("sdxl")["train"]
    for key, value in values.items():
        train = changed(train, key, value)
    with pytest.raises(ValueError, match=message):
        PublishedConfig.from_config(train)
