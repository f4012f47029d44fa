"""The layouts in which people have their models, each made of the tiny model: all give the same pipeline."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from huggingface_hub.utils import filter_repo_objects

import realcustom_jax as rc
from realcustom_jax.files import write_json
from realcustom_jax.model_files import locate, weights
from realcustom_jax.model_files.adapter import find_adapter
from realcustom_jax.model_files.kinds import identify
from realcustom_jax.model_files.locate import ASSETS
from realcustom_jax.model_files.source import FolderSource, ModelSource
from realcustom_jax.model_files.tensors import read_tensors

from mini_bundle import SIDE, WIDTH

DOG = ASSETS / "references" / "dog.png"
UNET, TEXT = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"


@pytest.fixture
def folder(mini_folder, tmp_path):
    return shutil.copytree(mini_folder, tmp_path / "model")


def shard(file, precision=""):
    """Splits a weight file in two shards with an index, in the hub's naming."""
    tensors = dict(read_tensors(file))
    names = sorted(tensors)
    stem, index = file.name.removesuffix(".safetensors"), {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        shard_name = f"{stem}{precision}-0000{i}-of-00002.safetensors"
        safetensors.numpy.save_file({name: tensors[name] for name in part}, file.parent / shard_name)
        index |= dict.fromkeys(part, shard_name)
    file.unlink()
    index_file = file.parent / f"{stem}.safetensors.index{precision}.json"
    index_file.write_text(json.dumps({"weight_map": index}))
    return index_file


def same(ours, theirs):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, ours, theirs)))


@pytest.mark.parametrize("precision", ["", ".fp16"])
def test_sharded_weights(folder, mini_pipeline, precision):
    shard(folder / UNET, precision)
    assert same(rc.Pipeline.load(folder).unet.params, mini_pipeline.unet.params)


def test_a_missing_shard_is_named(folder):
    shard(folder / UNET)
    (folder / "unet/diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="index.json names .*-00002-of-00002.safetensors, missing beside it"):
        rc.Pipeline.load(folder)


def test_an_index_that_is_none_is_named(folder):
    shard(folder / UNET).write_text("[]")
    with pytest.raises(ValueError, match="index.json is not an index"):
        rc.Pipeline.load(folder)


def test_half_precision_is_read_only_where_there_is_nothing_else(folder):
    unet, text = folder / UNET, folder / TEXT
    unet.rename(unet.with_name("diffusion_pytorch_model.fp16.safetensors"))
    (folder / "text_encoder/model.fp16.safetensors").write_bytes(b"not read")
    (half,), (whole,) = (locate.weight_files(file.parent) for file in (unet, text))
    assert "fp16" in half.name and whole == text


def test_torch_files_and_the_released_layout(folder, mini_pipeline, tmp_path):
    torch = pytest.importorskip("torch")
    shape = {"unet": "unet/sdxl-unet.bin", "vae": "vae/sdxl-vae.pth", "text_encoder": "clip-sdxl-1/pytorch_model.bin",
             "image_encoder_siglip": "vit_so400m_patch14_siglip_384/open_clip_pytorch_model.bin",
             "image_encoder_dinov2": "vit_large_patch14_reg4_dinov2.lvd142m/pytorch_model.bin"}
    released = tmp_path / "ckpts"
    for part, name in shape.items():
        source, target = folder / part, released / name
        target.parent.mkdir(parents=True)
        tensors = {key: torch.from_numpy(value) for key, value in read_tensors(*locate.weight_files(source)).items()}
        if part == "image_encoder_siglip":
            tensors = {f"visual.trunk.{key}": value for key, value in tensors.items()} | {"logit_scale": torch.ones(1)}
        torch.save(tensors, target)
        shutil.copy(source / "config.json", target.parent / ("sdxl.json" if part == "vae" else "config.json"))
    for file in (folder / "tokenizer").iterdir():
        if file.name != "config.json":
            shutil.copy(file, released / "clip-sdxl-1")
    pipeline = rc.Pipeline.load(released, folder / "adapter")
    for part in ("unet", "vae", "siglip", "dino", "projector"):
        assert same(getattr(pipeline, part).params, getattr(mini_pipeline, part).params), part
    encoder, = pipeline.text_encoders
    assert same(encoder.network.params, mini_pipeline.text_encoders[0].network.params)
    assert pipeline.prediction == "epsilon"


def test_an_adapter_of_another_backbone_is_refused(folder):
    config = json.loads((folder / "unet/config.json").read_text()) | {"cross_attention_dim": 2 * WIDTH}
    (folder / "unet/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="made for another backbone.*width 16, this UNet takes 32"):
        rc.Pipeline.load(folder)


def test_an_adapter_is_found_by_folder_by_file_and_by_its_names(folder, tmp_path):
    file = folder / "adapter/realcustom.safetensors"
    by_folder, by_file = find_adapter(folder / "adapter"), find_adapter(file)
    assert by_folder.settings == by_file.settings and by_folder.vision == by_file.vision
    bare = shutil.copy(file, tmp_path / "RealCustom.safetensors")
    recognised = find_adapter(bare)
    params = recognised.settings["vision_projection_config"]
    assert params["variant"] == "shallow" and params["params"] == {"vision_dim": 16, "out_dim": WIDTH}
    assert recognised.vision.siglip_layers == (7, 13, 19, 25) and recognised.vision.local == "phases"


@pytest.mark.parametrize("change, message", [
    (lambda tensors, name: tensors.pop(name), "is not a whole RealCustom adapter: it lacks .*projector_base.weight"),
    (lambda tensors, name: tensors.update({name: np.ones(3, np.float32)}),
     r"is not a whole .* it has, of shape \[3\], .*base.weight"),
])
def test_an_adapter_without_its_first_layer_is_named(folder, tmp_path, change, message):
    """The layer's two sizes are all that a file without a JSON says of the model that it is for."""
    tensors = dict(read_tensors(folder / "adapter/realcustom.safetensors"))
    change(tensors, f"{weights.PROJECTOR_PREFIX}projector_base.weight")
    safetensors.numpy.save_file(tensors, tmp_path / "RealCustom.safetensors")
    with pytest.raises(ValueError, match=f"RealCustom.safetensors {message}"):
        rc.Pipeline.load(folder, tmp_path / "RealCustom.safetensors")
    (tmp_path / "RealCustom.safetensors").rename(folder / "adapter/realcustom.safetensors")
    with pytest.raises(ValueError, match="adapter: .*(missing keys|wrong shapes): projector_base.weight"):
        rc.Pipeline.load(folder)


def test_the_released_adapter_also_holds_unet_weights_and_the_preset_says_whose_win(folder):
    file, base = folder / "adapter/realcustom.safetensors", dict(read_tensors(folder / UNET))
    safetensors.numpy.save_file(dict(read_tensors(file)) | {"conv_in.bias": base["conv_in.bias"] + 1}, file)
    adapters, scripts = (np.asarray(rc.Pipeline.load(folder, preset=name).unet.params["conv_in"]["bias"])
                         for name in ("released_pipeline", "released_script"))
    np.testing.assert_array_equal(adapters, scripts + 1)


@pytest.mark.parametrize("change, message", [
    (lambda f: (f / "adapter/realcustom.safetensors").write_bytes((f / "vae/diffusion_pytorch_model.safetensors")
                                                                  .read_bytes()),
     "is no RealCustom adapter but a diffusers autoencoder"),
    (lambda f: (f / UNET).write_bytes((f / TEXT).read_bytes()), "of a CLIP text encoder.*do not fit this UNet"),
    (lambda f: shutil.rmtree(f / "adapter"), "base model needs an adapter"),
    (lambda f: [shutil.copy(f / UNET, f / "unet" / name) for name in ("a.safetensors", "b.safetensors")]
     and (f / UNET).unlink(), "several weight files .a.safetensors, b.safetensors."),
    (lambda f: shutil.rmtree(f / "unet"), "holds no unet/ folder"),
])
def test_what_does_not_belong_there_is_named(folder, change, message):
    change(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        rc.Pipeline.load(folder)


def test_an_inpainting_unet_is_refused(folder):
    config = json.loads((folder / "unet/config.json").read_text()) | {"in_channels": 9}
    (folder / "unet/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="takes 9 channels and returns 4: an inpainting"):
        rc.Pipeline.load(folder)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_of_a_model_on_the_hub_only_what_is_needed_is_fetched(folder, tmp_path, monkeypatch, suffix):
    pytest.importorskip("torch") if suffix == ".bin" else None
    fetched = []

    def snapshot_download(name, *, allow_patterns, ignore_patterns):
        files = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
        files += ["whole.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors", "safety_checker/model.bin"]
        files = [file.removesuffix(".safetensors") + suffix if "unet/" in file else file for file in files]
        fetched.extend(filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        for file in fetched:
            (tmp_path / "cache" / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "cache" / file).touch()
        return str(tmp_path / "cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert ModelSource.open("someone/model").root == tmp_path / "cache"
    assert f"unet/diffusion_pytorch_model{suffix}" in fetched and "tokenizer/tokenizer.json" in fetched
    assert "model_index.json" in fetched and "vocabulary.json" in fetched
    assert not any("fp16" in file or "whole" in file or "safety" in file for file in fetched)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A repository on the hub, asked by the client's own filter: (its folder, what is in the cache)."""
    repository, cache = tmp_path / "repository", tmp_path / "cache"

    def snapshot_download(name, *, allow_patterns, ignore_patterns):
        files = [str(file.relative_to(repository)) for file in repository.rglob("*") if file.is_file()]
        for file in filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (cache / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / file, cache / file)
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return repository, cache


def converted(file, suffix):
    """The weight file in another form, in its place."""
    other = file.with_name(file.name.removesuffix(".safetensors") + suffix)
    if suffix.endswith(".safetensors"):
        return file.rename(other)
    import torch

    torch.save({name: torch.from_numpy(value) for name, value in read_tensors(file).items()}, other)
    file.unlink()
    return other


@pytest.mark.parametrize("forms", [
    {UNET: ".fp16.safetensors", TEXT: ".fp16.safetensors", "vae/diffusion_pytorch_model.safetensors": ".fp16.bin"},
    {TEXT: ".bin"}, {UNET: ".bin", TEXT: ".fp16.safetensors"},
    {UNET: ".fp16.safetensors", "adapter/realcustom.safetensors": ".bin"},
])
def test_a_model_on_the_hub_of_parts_in_several_forms(mini_folder, mini_pipeline, hub, forms):
    pytest.importorskip("torch")
    repository, cache = hub
    shutil.copytree(mini_folder, repository)
    for name, suffix in forms.items():
        converted(repository / name, suffix)
    # What is there in full precision is not fetched in half, nor fp16 in two forms.
    (repository / "image_encoder_dinov2/model.fp16.safetensors").touch()
    (repository / "unet/diffusion_pytorch_model.fp16.bin").touch()
    pipeline = rc.Pipeline.load("someone/model")
    for part in ("unet", "vae", "siglip", "dino", "projector"):
        assert same(getattr(pipeline, part).params, getattr(mini_pipeline, part).params), part
    for part in ("unet", "vae", "text_encoder", "image_encoder_dinov2", "adapter"):
        fetched = [file.name for file in (cache / part).iterdir() if file.suffix in (".safetensors", ".bin")]
        assert len(fetched) == 1, fetched


@pytest.mark.parametrize("suffix", [".safetensors", ".fp16.safetensors"])
def test_an_autoencoder_that_is_alone_on_the_hub(mini_folder, hub, suffix):
    repository, cache = hub
    shutil.copytree(mini_folder / "vae", repository)
    converted(repository / "diffusion_pytorch_model.safetensors", suffix)
    (repository / "whole.safetensors").touch()
    pipeline = rc.Pipeline.load(mini_folder, vae="someone/an-autoencoder")
    assert same(pipeline.vae.params, rc.Pipeline.load(mini_folder).vae.params)
    assert not (cache / "whole.safetensors").exists()


@pytest.mark.parametrize("name, local", [
    ("ckpts/sdxl", True), ("runs/mini", True), ("models/sdxl", True), ("Checkpoints/x", True), ("./x/y", True),
    ("../x", True), ("/x/y", True), ("here/x", True), ("someone/model.safetensors", True), ("someone/model.ckpt", True),
    ("a/b/c", True), ("someone/model", False), ("someone/model-1.0", False), ("nobody.x/y_z", False),
])
def test_what_looks_like_a_path_is_not_asked_for_on_the_hub(tmp_path, monkeypatch, name, local):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    asked = []

    def download(name, **_):
        asked.append(name)
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    kind = "file" if name.endswith((".safetensors", ".ckpt")) else "folder"
    message = "is no folder here, and cannot be downloaded"
    if local:
        message = f"is not a model folder: there is no such {kind}"
    with pytest.raises(FileNotFoundError, match=message):
        ModelSource.open(name)
    assert asked == [] if local else asked == [name]


def test_a_name_that_is_neither_a_folder_nor_on_the_hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="nobody/nothing is no folder here.*give the folder"):
        ModelSource.open("nobody/nothing")
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        ModelSource.open("somewhere")


def test_an_open_clip_file_without_a_timm_tower_is_named(folder):
    names = {"visual.conv1.weight": np.zeros(1, np.float32), "text_projection": np.zeros(1, np.float32)}
    safetensors.numpy.save_file(names, folder / "image_encoder_siglip/model.safetensors")
    with pytest.raises(ValueError, match="no visual.trunk. keys"):
        rc.Pipeline.load(folder)
    assert identify(names) != identify(["blocks.0.attn.qkv.weight"])
    names = {"text.transformer.resblocks.0.ln_1.weight": np.zeros(1, np.float32)}
    safetensors.numpy.save_file(names, folder / "image_encoder_siglip/model.safetensors")
    with pytest.raises(ValueError, match="text tower of an open_clip .* hold no vision encoder; .*visual.trunk."):
        rc.Pipeline.load(folder)


@pytest.mark.parametrize("description", [
    {"config.json": {"architecture": "vit_large_patch14_reg4_dinov2", "num_features": 1024, "pretrained_cfg": {}}},
    {"open_clip_config.json": {"model_cfg": {"vision_cfg": {"timm_model_name": "vit_large_patch14_reg4_dinov2"}}}},
    {"open_clip_config.json": {}, "tokenizer.json": {}, "tokenizer_config.json": {}},
    {},
])
def test_image_encoders_are_known_by_what_their_hub_says_of_them(folder, description):
    (folder / "image_encoder_dinov2/config.json").unlink()
    for name, value in description.items():
        write_json(folder / "image_encoder_dinov2" / name, value)
    config = FolderSource(folder).config("image_encoder_dinov2")
    assert config == locate.ARCHITECTURES["vit_large_patch14_reg4_dinov2"]


def test_the_released_unet_is_taken_where_another_lies_beside_it(folder):
    (folder / UNET).unlink()
    for name in ("general_v1-3_sdxl_03.pth", "sdxl-unet.bin"):
        (folder / "unet" / name).touch()
    assert [file.name for file in locate.weight_files(folder / "unet")] == ["sdxl-unet.bin"]


@pytest.mark.slow
def test_pictures_of_another_shape(mini_pipeline):
    result = mini_pipeline(DOG, "a dog on the beach", "dog", width=SIDE + 8, height=SIDE, steps=1)
    assert result.images[0].size == (SIDE + 8, SIDE)
    assert result.masks.shape[-2:] == (SIDE // 4, (SIDE + 8) // 4)
    with pytest.raises(ValueError, match="width is 21; .* 8 to 32 pixels in steps of 8; the nearest are 16 or 24"):
        mini_pipeline(DOG, "a dog on the beach", "dog", width=21)


def test_lazy_tensors_are_read_when_they_are_asked_for(folder):
    tensors = read_tensors(folder / UNET)
    read = []
    spied = type(tensors)({name: lambda name=name: read.append(name) or tensors[name] for name in tensors})
    renamed = spied.rename(lambda name: f"x.{name}")
    assert not read and len(renamed) == len(tensors) and "x.conv_in.bias" in renamed
    np.testing.assert_array_equal(renamed["x.conv_in.bias"], tensors["conv_in.bias"])
    assert read == ["conv_in.bias"]
    assert set(weights.to_torch(rc.Pipeline.load(folder).unet.params)) > set(tensors)
