"""A model with the autoencoder or the UNet of another file, in each of the forms in which these are shared."""

import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

import realcustom_jax as rc
from realcustom_jax.files import write_json
from realcustom_jax.model_files import single_file
from realcustom_jax.model_files.parts import with_parts
from realcustom_jax.model_files.source import ModelSource
from realcustom_jax.model_files.tensors import read_tensors

WEIGHTS = "diffusion_pytorch_model.safetensors"


def same(ours, theirs):
    return jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))


@pytest.fixture
def changed(mini_folder, tmp_path):
    """The tiny model whose autoencoder and UNet have other numbers."""
    folder = shutil.copytree(mini_folder, tmp_path / "changed")
    for part in ("unet", "vae"):
        tensors = {name: value + 1 for name, value in read_tensors(folder / part / WEIGHTS).items()}
        safetensors.numpy.save_file(tensors, folder / part / WEIGHTS)
    return folder


def original_names(folder, part, prefix=""):
    """The part's tensors in the names of Stable Diffusion's own code."""
    source = ModelSource.open(folder)
    config = single_file.CONFIGS["sd15"][part] | source.config(part)
    theirs = {ours: name for name, ours in single_file._MODULES[part](config).items()}
    renamed = {}
    for name, value in source.tensors(part).items():
        module = single_file._enclosing(theirs, name)
        renamed[prefix + theirs[module] + name[len(module):]] = value
    return renamed


FORMS = ["folder of the part", "folder of a model", "file", "original names", "within a single file", "wrapped",
         "torch"]


@pytest.mark.parametrize("part", ["vae", "unet"])
@pytest.mark.parametrize("form", [
    pytest.param(form, marks=[pytest.mark.slow] * (i > 0)) for i, form in enumerate(FORMS)])
def test_a_part_is_taken_from_another_file(mini_folder, mini_pipeline, changed, tmp_path, part, form):
    prefix = {"vae": "first_stage_model.", "unet": "model.diffusion_model."}[part]
    file = tmp_path / "other.safetensors"
    if form == "original names":
        extra = {"loss.logvar": np.ones(1, np.float32)} if part == "vae" else {}
        safetensors.numpy.save_file(original_names(changed, part) | extra, file)
    elif form == "within a single file":
        others = {"cond_stage_model.transformer.x": np.ones(1, np.float32), "betas": np.ones(1, np.float32)}
        safetensors.numpy.save_file(original_names(changed, part, prefix) | others, file)
    elif form == "wrapped":
        tensors = read_tensors(changed / part / WEIGHTS)
        safetensors.numpy.save_file({f"module.{name}": value for name, value in tensors.items()}, file)
    elif form == "torch":
        torch = pytest.importorskip("torch")
        file = file.with_suffix(".pth")
        torch.save({name: torch.from_numpy(x) for name, x in read_tensors(changed / part / WEIGHTS).items()}, file)
    given = {"folder of the part": changed / part, "folder of a model": changed, "file": changed / part / WEIGHTS}
    source = with_parts(ModelSource.open(mini_folder), **{part: given.get(form, file)})
    base = ModelSource.open(mini_folder)
    tensors = source.tensors(part)
    assert set(tensors) == set(base.tensors(part)) and source.config(part) == base.config(part)
    assert all(np.array_equal(tensors[name], value + 1) for name, value in base.tensors(part).items())
    if form == "file":
        pipeline = rc.Pipeline.load(mini_folder, **{part: given[form]})
        other = rc.Pipeline.load(changed)
        assert same(getattr(pipeline, part).params, getattr(other, part).params)
        kept = {"vae": "unet", "unet": "vae"}[part]
        assert same(getattr(pipeline, kept).params, getattr(mini_pipeline, kept).params)
        assert pipeline.fingerprints() != mini_pipeline.fingerprints()


@pytest.mark.slow
def test_a_part_brings_its_own_configuration(mini_folder, changed):
    write_json(changed / "vae/config.json", ModelSource.open(changed).config("vae") | {"scaling_factor": 0.75})
    for path in (changed, changed / "vae", changed / "vae" / WEIGHTS):
        assert rc.Pipeline.load(mini_folder, vae=path).vae.module.config.scaling_factor == 0.75
    write_json(changed / "vae/config.json", {"_class_name": "AutoencoderTiny"})
    with pytest.raises(ValueError, match="config.json describes a AutoencoderTiny; expected the autoencoder"):
        rc.Pipeline.load(mini_folder, vae=changed / "vae")
    assert rc.Pipeline.load(mini_folder, vae=changed / "vae" / WEIGHTS).vae.module.config.scaling_factor == 0.5


@pytest.mark.slow
def test_another_unet_says_what_it_predicts(mini_folder, changed):
    file = changed / "unet" / WEIGHTS
    tensors = dict(read_tensors(file))
    safetensors.numpy.save_file(tensors, file, metadata={"modelspec.prediction_type": "v"})
    assert rc.Pipeline.load(mini_folder, unet=file).prediction == "v_prediction"
    assert rc.Pipeline.load(mini_folder, unet=file, prediction="epsilon").prediction == "epsilon"
    assert rc.Pipeline.load(mini_folder).prediction == "epsilon"
    with pytest.raises(ValueError, match="Unknown prediction 'v'"):
        rc.Pipeline.load(mini_folder, prediction="v")


def test_a_model_without_an_autoencoder_asks_for_one(mini_folder, changed):
    shutil.rmtree(changed / "vae")
    with pytest.raises(FileNotFoundError, match=r"changed holds no autoencoder; give one with vae \(--vae\)"):
        rc.Pipeline.load(changed)
    assert rc.Pipeline.load(changed, vae=mini_folder / "vae").vae.module.config.latent_channels == 4


def test_a_model_without_a_unet_takes_one(mini_folder, changed):
    shutil.rmtree(changed / "unet")
    with pytest.raises(FileNotFoundError, match="holds no unet/ folder"):
        rc.Pipeline.load(changed)
    assert rc.Pipeline.load(changed, unet=mini_folder).unet.module.config.block_out_channels == (8,)


@pytest.mark.parametrize(("option", "given", "message"), [
    ("vae", "nowhere.safetensors", "nowhere.safetensors, given as the autoencoder, does not exist"),
    ("unet", "nowhere", "nowhere, given as the UNet, does not exist"),
    ("vae", "empty", "empty holds no weights of the autoencoder"),
    ("vae", "unet", "is no autoencoder but a diffusers UNet; give it as the unet"),
    ("unet", "adapter", "is no UNet but a RealCustom adapter; give it as the adapter"),
    ("unet", "vae", "is no UNet but a diffusers autoencoder; give it as the vae"),
    ("vae", "text_encoder", "is no autoencoder but a CLIP text encoder"),
])
def test_what_is_no_such_part_is_named(mini_folder, tmp_path, option, given, message):
    (tmp_path / "empty").mkdir()
    places = {"empty": tmp_path / "empty", **{
        part: next((mini_folder / part).glob("*.safetensors")) for part in ("unet", "vae", "text_encoder", "adapter")}}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        rc.Pipeline.load(mini_folder, **{option: places.get(given, given)})


def test_a_checkpoint_without_its_autoencoder(tmp_path):
    from test_single_file import write_single_file

    file = write_single_file(tmp_path / "whole.safetensors", "sd15")
    some = {name: value for name, value in read_tensors(file).items() if not name.startswith("first_stage_model.")}
    safetensors.numpy.save_file(some, tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match=r"none.safetensors holds no autoencoder; give one with vae \(--vae\)"):
        ModelSource.open(tmp_path / "none.safetensors").check("unet", "vae")
    source = with_parts(ModelSource.open(tmp_path / "none.safetensors"), vae=file)
    source.check("unet", "vae")
    assert len(source.tensors("vae")) == 248 and source.config("vae")["scaling_factor"] == 0.18215


def test_a_part_without_a_configuration_in_a_model_without_the_part(mini_folder, changed, tmp_path):
    for part in ("vae", "unet"):
        shutil.copy(changed / part / WEIGHTS, tmp_path / f"{part}.safetensors")
    shutil.rmtree(changed / "vae")
    published = with_parts(ModelSource.open(changed), vae=tmp_path / "vae.safetensors").config("vae")
    assert published["scaling_factor"] == 0.13025, "the UNet is of SDXL's kind"
    shutil.rmtree(changed / "unet")
    with pytest.raises(FileNotFoundError, match="unet.safetensors has no config.json beside it"):
        rc.Pipeline.load(changed, unet=tmp_path / "unet.safetensors")
