"""Where parameters lie: every network's are known, and what does not fit is named."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from realcustom_jax.devices import sharding
from realcustom_jax.devices.sharding import AxisRules, logical_axes, make_mesh, shardings
from realcustom_jax.model_files import single_file, weights
from realcustom_jax.model_files.locate import ARCHITECTURES
from realcustom_jax.models.clip_text import ClipText, ClipTextConfig
from realcustom_jax.models.conv import Conv
from realcustom_jax.models.unet import UNet, UNetConfig
from realcustom_jax.models.vae import Autoencoder, VAEConfig
from realcustom_jax.models.vit import VisionTransformer, VitConfig
from realcustom_jax.training.published.config import MeshConfig
from realcustom_jax.training.settings import TrainSettings
from realcustom_jax.training.step import init_state


def mesh(data=1, fsdp=1, tensor=1):
    return AbstractMesh((data, fsdp, tensor), sharding.MESH_AXES)


def unet_shapes(kind):
    settings = {"image_prompt_settings": {"vision_projection_type": "custom"}}
    unet = UNet(UNetConfig.from_config(single_file.CONFIGS[kind]["unet"] | settings))
    args, kwargs = weights.unet_inputs(unet.config)
    return weights.parameter_shapes(unet, *args, **kwargs)


def bytes_of(tree, mesh):
    return sharding.bytes_per_device(tree, shardings(tree, mesh))


@pytest.mark.parametrize("kind", ["sdxl", pytest.param("sd15", marks=pytest.mark.slow)])
def test_a_published_unets_memory_falls_with_the_mesh(kind):
    shapes = unet_shapes(kind)
    whole, divided = bytes_of(shapes, mesh()), bytes_of(shapes, mesh(fsdp=16))
    assert whole == sum(x.size * 4 for x in jax.tree.leaves(shapes))
    assert divided < whole / 15
    assert bytes_of(shapes, mesh(data=16)) == whole
    assert bytes_of(shapes, mesh(fsdp=4, tensor=2)) < whole / 7


def test_every_network_is_known():
    for name, config in ARCHITECTURES.items():
        encoder = VisionTransformer(VitConfig.from_config(config))
        images = jnp.zeros((1, *np.broadcast_to(encoder.config.img_size, 2), 3))
        assert shardings(weights.parameter_shapes(encoder, images, layers=(0,)), mesh(fsdp=16)), name
    for kind in ("sdxl", "sd15"):
        vae = Autoencoder(VAEConfig.from_config(single_file.CONFIGS[kind]["vae"]))
        assert shardings(weights.parameter_shapes(vae, jnp.zeros((1, 8, 8, 3))), mesh(fsdp=16))
        text = ClipText(ClipTextConfig.from_config(single_file.CONFIGS[kind]["text_encoder"]))
        assert shardings(weights.parameter_shapes(text, jnp.zeros((1, 77), jnp.int32)), mesh(fsdp=16))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_train_state_lies_as_its_parameters(optimizer):
    params = {"transformer_blocks": {"attn2": {"to_k_vision": {"kernel": jnp.zeros((2, 8, 4))}}},
              "projector_0": {"kernel": jnp.zeros((8, 4)), "bias": jnp.zeros(4)}}
    state = jax.eval_shape(lambda: init_state(params, TrainSettings(steps=1, optimizer=optimizer)))
    specs = {s.spec for s in jax.tree.leaves(shardings(state, mesh(fsdp=2, tensor=2)))}
    assert specs == {PartitionSpec(), PartitionSpec(None), PartitionSpec(("fsdp",), ("tensor",)),
                     PartitionSpec(None, ("fsdp",), ("tensor",))}


def test_a_convolution_gathers_its_kernel_along_fsdp():
    def convolved(kernel):
        return Conv(16, (3, 3)).apply({"params": {"kernel": kernel, "bias": jnp.zeros(16)}}, jnp.zeros((2, 8, 8, 4)))

    kernel = jnp.zeros((3, 3, 4, 16))
    with jax.sharding.use_abstract_mesh(mesh(data=2, fsdp=4, tensor=2)):
        equations = jax.make_jaxpr(convolved)(kernel).eqns
    [found] = [e.params["sharding"].spec for e in equations if e.primitive.name == "sharding_constraint"]
    assert found == PartitionSpec(None, None, ("tensor",), None)
    assert not any(e.primitive.name == "sharding_constraint" for e in jax.make_jaxpr(convolved)(kernel).eqns)


def test_a_mesh_of_slices_says_what_does_not_fit():
    """Eight chips of two slices; hosts of GPUs count as slices, and need not be told apart."""
    chips = [SimpleNamespace(platform="tpu", slice_index=i // 4, id=i) for i in range(8)]
    with pytest.raises(ValueError, match="The devices are of 2 slices, and dcn_data is 1: it must be the number of sl"):
        make_mesh(data=-1, devices=chips)
    with pytest.raises(ValueError, match="of 1 slice, and dcn_data is 2"):
        make_mesh(data=-1, dcn_data=2, devices=chips[:4])
    with pytest.raises(ValueError, match="of 1 slice, and dcn_data is 2"):
        make_mesh(data=1, dcn_data=2, devices=[SimpleNamespace(platform="gpu", id=i) for i in range(2)])
    with pytest.raises(ValueError, match="data=1, fsdp=4, tensor=1, dcn_data=3 does not fit 8 devices"):
        make_mesh(data=1, fsdp=4, dcn_data=3, devices=chips)


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a mesh asks of a chip of a v5e."""

    id: int
    slice_index: int
    process_index: int
    coords: tuple[int, int, int]
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"


def test_a_mesh_of_slices_lies_slice_by_slice():
    chips = [Chip(i, i // 4, i // 4, (i % 2, i // 2 % 2, 0)) for i in range(8)]
    placed = make_mesh(data=2, fsdp=2, dcn_data=2, devices=chips)
    assert dict(placed.shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert [{chip.slice_index for chip in row.flat} for row in placed.devices] == [{0}, {0}, {1}, {1}]


@pytest.mark.parametrize("dcn_data", [0, -1])
def test_the_number_of_slices_is_checked(dcn_data):
    with pytest.raises(ValueError, match=f"dcn_data is {dcn_data}; expected the number of TPU slices"):
        MeshConfig(dcn_data=dcn_data)


def test_vmapped_examples_lie_along_the_axes_of_a_batch():
    for devices, count, rows, axes in (
        (dict(data=2, fsdp=2), 4, 3, ("data", "fsdp")), (dict(data=2, fsdp=2), 6, 3, None), (dict(data=2), 4, 3, None),
        (dict(tensor=4), 4, 3, None),
    ):
        with jax.sharding.use_abstract_mesh(mesh(**devices)):
            assert sharding.vmapped_axes(count, rows) == axes
    assert sharding.vmapped_axes(4, 3) is None


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="'to_x/kernel' is unknown"):
        logical_axes(("to_x", "kernel"), 2)
    with pytest.raises(ValueError, match="'to_q/kernel' has 3 axes; its logical axes are \\('embed', 'heads'\\)"):
        logical_axes(("to_q", "kernel"), 3)
    with pytest.raises(ValueError, match="no logical axis 'head'"):
        AxisRules().spec(("embed", "head"))
    with pytest.raises(ValueError, match="'embed' and 'heads' of one array both lie along the mesh axis 'fsdp'"):
        AxisRules(heads=("fsdp",)).spec(("embed", "heads"))
    with pytest.raises(ValueError, match="batch lies along 'model', which is no axis"):
        AxisRules(batch=("model",))
    with pytest.raises(ValueError, match="to_q/kernel of shape \\(6, 4\\): axis 0 cannot be divided over fsdp = 4"):
        shardings({"to_q": {"kernel": jnp.zeros((6, 4))}}, mesh(fsdp=4))
    with pytest.raises(ValueError, match="batch_size=6 cannot be divided over 4 devices"):
        sharding.batch_sharding(mesh(data=2, fsdp=2), 6)


def test_mesh_sizes():
    devices = jax.devices()[:1]
    assert dict(make_mesh(devices=devices).shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    for sizes in (dict(fsdp=2), dict(data=-1, fsdp=-1), dict(data=1, fsdp=1, tensor=0), dict(data=2, fsdp=-1)):
        with pytest.raises(ValueError, match="does not fit 1 devices"):
            make_mesh(**sizes, devices=devices)


def test_description_adds_up():
    tree = {"to_q": {"kernel": jnp.zeros((8, 4))}, "norm": {"bias": jnp.zeros(4)}}
    text = sharding.describe_tree(tree, shardings(tree, mesh(fsdp=4)), "adapter")
    assert text.startswith("adapter: 48 bytes on each device")
    assert "(8, 4)" in text and "(fsdp, tensor)" in text
