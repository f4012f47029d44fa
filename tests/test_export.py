"""Export to the torch world: exact, and loadable there."""

import json

import numpy as np
import pytest

from realcustom_jax.model_files import export
from realcustom_jax.model_files.adapter import find_adapter
from realcustom_jax.model_files.tensors import read_tensors


@pytest.mark.parametrize("name", ["adapter.safetensors", "adapter.pth"])
def test_an_adapter_comes_back_bit_for_bit(mini_folder, tmp_path, name):
    if name.endswith(".pth"):
        pytest.importorskip("torch")
    assert export.main(["adapter", "--model", str(mini_folder), "--out", str(tmp_path / name)]) == 0
    ours, theirs = find_adapter(mini_folder / "adapter").tensors, read_tensors(tmp_path / name)
    assert set(ours) == set(theirs)
    for key in ours:
        assert ours[key].dtype == theirs[key].dtype
        np.testing.assert_array_equal(ours[key], theirs[key])


def test_a_unet_is_a_diffusers_folder(mini_folder, tmp_path):
    out = tmp_path / "out"
    assert export.main(["unet", "--model", str(mini_folder), "--out", str(out)]) == 0
    files = [folder / "unet/diffusion_pytorch_model.safetensors" for folder in (mini_folder, out)]
    ours, theirs = (read_tensors(file) for file in files)
    assert {k: v.tobytes() for k, v in ours.items()} == {k: v.tobytes() for k, v in theirs.items()}
    config = json.loads((out / "unet/config.json").read_text())
    assert "image_prompt_settings" not in config

    diffusers = pytest.importorskip("diffusers")
    torch = pytest.importorskip("torch")
    model = diffusers.UNet2DConditionModel.from_pretrained(out, subfolder="unet")
    for key, value in model.state_dict().items():
        assert torch.equal(value, torch.from_numpy(np.asarray(ours[key], np.float32)))


@pytest.mark.parametrize("arguments, message", [
    (["adapter", "--out", "adapter.onnx"], "unknown kind '.onnx'"),
    (["unet", "--model", "nowhere", "--out", "x"], "no such folder"),
    (["adapter", "--adapter", "nowhere.pth", "--out", "x.pth"], "nowhere.pth does not exist"),
])
def test_what_cannot_be_exported_is_one_sentence(mini_folder, arguments, message, capsys):
    if "--model" not in arguments:
        arguments = [*arguments, "--model", str(mini_folder)]
    assert export.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("debug", [False, True])
def test_a_bug_of_ours_is_admitted(mini_folder, tmp_path, capsys, monkeypatch, debug):
    def broken(*_):
        raise KeyError("down_blocks")

    monkeypatch.setattr(export, "load_adapter_projector", broken)
    arguments = ["adapter", "--model", str(mini_folder), "--out", str(tmp_path / "a.safetensors")]
    assert export.main(arguments + ["--debug"] * debug) == 1
    said = capsys.readouterr().err
    assert "error: this is a bug in realcustom_jax, not a mistake in your input (KeyError: 'down_blocks')" in said
    assert ("Traceback" in said) == ("in broken" in said) == debug


@pytest.mark.parametrize("kind", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_types_that_numpy_does_not_know_are_written_for_torch(tmp_path, kind):
    torch = pytest.importorskip("torch")
    import ml_dtypes

    values = np.array([[1.5, -2], [0.25, 0]], getattr(ml_dtypes, kind))
    export._write(tmp_path / "x.pth", {"x": values})
    read = torch.load(tmp_path / "x.pth", weights_only=True)["x"]
    assert str(read.dtype) == f"torch.{kind}" and read.float().tolist() == values.astype(np.float32).tolist()
