"""What the published scripts score by; the numbers are read from the scripts themselves."""

import dataclasses

import pytest

from realcustom_jax.evaluation.protocols import PROTOCOLS, SLOTS, find_protocol
from realcustom_jax.model_files.known_vision import KNOWN

B32, L14 = "openai/clip-vit-base-patch32", "openai/clip-vit-large-patch14"
# protocol: its networks, its metrics
PUBLISHED = {
    "dreambench_plus": ({"clip": B32, "dino": "dino_vits8", "dinov2": "dinov2_vits14"},
                        "clip_t clip_i dino_i dinov2_i"),
    "kosmos_g": ({"clip": L14, "dino": "dino_vits16"}, "clip_t clip_i dino_i"),
    "mip_adapter": ({"clip": B32, "dino": "dino_vits16"}, "clip_t clip_i dino_i"),
    "uno": ({"clip": B32, "dino": "dino_vits16"}, "clip_t clip_i dino_i"),
    "dsh_bench": ({"clip": B32, "clip_l14": L14, "clip_l14_336": f"{L14}-336", "dino": "dino_vits8",
                   "dinov2": "dinov2_vitl14", "image_reward": "ImageReward-v1.0"},
                  "clip_t clip_l_t clip_i clip_l_i dino_i dinov2_i image_reward image_reward_normalised"),
    "xverse": ({"dino": "dino_vits16"}, "dino_i"),
    "realcustom": ({"clip": B32, "clip_l14": L14, "dino": "dino_vits16", "image_reward": "ImageReward-v1.0"},
                   "clip_t clip_l_t clip_i clip_l_i dino_i image_reward"),
}


def test_the_networks_and_metrics_of_each_script():
    assert list(PROTOCOLS) == list(PUBLISHED)
    for name, (networks, metrics) in PUBLISHED.items():
        protocol = find_protocol(name)
        assert protocol.name == name
        assert {network.slot: network.published for network in protocol.networks} == networks
        assert [metric.name for metric in protocol.metrics] == metrics.split()


def test_every_protocol_is_whole():
    for protocol in PROTOCOLS.values():
        slots = [network.slot for network in protocol.networks]
        assert set(slots) <= set(SLOTS) and len(set(slots)) == len(slots)
        assert {metric.network for metric in protocol.metrics} == set(slots)
        assert ("/" in protocol.source and ":" in protocol.source) or "arXiv" in protocol.source
        for network in protocol.networks:
            assert network.slot not in ("dino", "dinov2") or network.published in KNOWN
            assert protocol.network(network.slot) is network
        with pytest.raises(dataclasses.FrozenInstanceError):
            protocol.name = "x"


def test_the_scales_and_floors_of_each_script():
    scales = {(name, metric.name): (metric.scale, metric.floor)
              for name, protocol in PROTOCOLS.items() for metric in protocol.metrics}
    assert scales["mip_adapter", "clip_t"] == (2.5, 0.0) and scales["mip_adapter", "clip_i"] == (1.0, None)
    assert scales["uno", "clip_t"] == (1.0, 0.0)
    assert all(scale == (100.0, None) for (name, _), scale in scales.items() if name in ("dreambench_plus", "xverse"))
    assert all(scale == (1.0, None) for (name, _), scale in scales.items()
               if name in ("kosmos_g", "dsh_bench", "realcustom"))


def test_the_mean_of_many():
    assert PROTOCOLS["uno"].mean([-0.5, 0.25]) == PROTOCOLS["dsh_bench"].mean(iter([-0.5, 0.25])) == -0.125
    assert PROTOCOLS["kosmos_g"].mean([-0.5, 0.25]) == 0  # torchmetrics' compute
    assert PROTOCOLS["kosmos_g"].mean([0.5, 0.25]) == 0.375


def test_an_unknown_protocol_is_told_with_the_nearest():
    with pytest.raises(ValueError, match="Unknown protocol 'dreambench': known are .*; did you mean 'dreambench_plus'"):
        find_protocol("dreambench")
