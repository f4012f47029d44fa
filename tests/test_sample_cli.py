"""The command line: what it writes, and how it meets input that cannot be used."""

import io
import json
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from realcustom_jax.commands import sample
from realcustom_jax.contact_sheet import CELL, contact_sheet, in_square, mask_overlay, save_pictures
from realcustom_jax.files import write_json
from realcustom_jax.memory import Memory
from realcustom_jax.model_files import bundle, weights
from realcustom_jax.model_files.locate import ASSETS
from realcustom_jax.model_files.source import FolderSource
from realcustom_jax.pipeline import Pipeline, Result
from realcustom_jax.presets import Preset
from realcustom_jax.sampling.solvers import make_solver

from mini_bundle import SIDE

ROOT = Path(__file__).parents[1]
DOG, CAR = (str(ASSETS / "references" / f"{noun}.png") for noun in ("dog", "car"))


@pytest.fixture
def command(mini_pipeline, monkeypatch, tmp_path, capsys):
    """Runs sample.py on the loaded tiny model -> (exit code, lines on stderr, files written)."""
    monkeypatch.setattr(Pipeline, "load", lambda *arguments, **options: mini_pipeline)
    return _runner(tmp_path, capsys)


def _runner(tmp_path, capsys):
    def run(*arguments):
        out = tmp_path / "out"
        try:
            code = sample.main([*arguments, "--out", str(out)])
        except SystemExit as stopped:  # argparse
            code = stopped.code
        lines = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "Sampling" not in line]
        return code, lines, sorted(file.name for file in out.rglob("*")) if out.exists() else []

    return run


def test_one_run_writes_pictures_masks_and_the_sheet(command, tmp_path):
    code, lines, files = command("--steps", "2", "--freeze-mask-step", "1", "--prompt", "a dog in the jungle")
    assert code == 0
    assert files == ["contact_sheet.png", "image_0.png", "mask_0.png"]
    assert any("never learnt 'jungle'" in line and "beach, snow" in line for line in lines)
    sizes = {name: Image.open(tmp_path / "out" / name).size for name in files}
    assert sizes["image_0.png"] == (SIDE, SIDE) and sizes["mask_0.png"] == (CELL, CELL)
    assert sizes["contact_sheet.png"][0] > 3 * CELL


@pytest.mark.parametrize("arguments, message", [
    (["--image", "nowhere.png"], "nowhere.png does not exist"),
    (["--image", __file__], "test_sample_cli.py cannot be read"),
    (["--prompt", "a cat on the beach"], "'dog'.*'a cat on the beach'.*a, cat, on, the, beach"),
    (["--prompt", ""], "prompt is empty"),
    (["--prompt", "a zebra in the snow", "--target", "zebra"], "'zebra'.*dog, cat, car, teapot.*beach, snow"),
    (["--prompt", "a cat " * 8 + "and a dog"], "'dog' is cut off"),
    (["--steps", "0"], "steps.*0"),
    (["--steps", "many"], "--steps.*'many'"),
    (["--guidance", "nan"], "guidance_scale is nan"),
    (["--scope", "0"], "scope is 0"),
    (["--scope", "1.01"], "scope is 1.01"),
    (["--num-images", "0"], "num_images is 0"),
    (["--freeze-mask-step", "0"], "freeze_mask_step is 0"),
    (["--branches", "both"], "'both'.*fused"),
    (["--image", DOG, "--image", CAR], r"2 reference\(s\) and 1 target\(s\)"),
    (["--colour", "red"], "--colour"),
    (["--vision-scale", "much"], "'much' is no strength; expected a number, one for each subject"),
    (["--vision-scale", "up"], "is no strength"),
    (["--mask", "1,2,3"], "expected the four numbers of a box"),
    (["--mask", "nowhere.png"], "nowhere.png does not exist"),
    (["--mask", "4,4,4,8"], "mask of target 1 is .*a box without inside"),
    (["--mask", "1,2,3,4", "--mask", "auto"], r"2 mask\(s\) and 1 target\(s\)"),
    (["--mask-image", "1,2,3,4"], "mask_image is given without init_image"),
    (["--strength", "0.5"], "strength is given without init_image"),
    (["--init-image", DOG, "--strength", "2"], "strength is 2.0"),
    (["--init-image", "nowhere.png"], "nowhere.png does not exist"),
    (["--lora", "nowhere.safetensors:0.5"], "the LoRA nowhere.safetensors does not exist"),
    (["--lora", f"{DOG}:nan"], "the scale of the LoRA"),
    (["--guidance-mode", "naiv"], "did you mean 'naive'"),
    (["--text-guidance", "2"], "text_guidance is 2.0; the guidance mode"),
    (["--solver", "heun"], "Unknown solver 'heun'"),
])
def test_bad_input_is_one_sentence_and_exit_code_2(command, arguments, message):
    code, lines, files = command(*arguments)
    assert (code, files) == (2, [])
    assert "error: " in lines[-1]
    assert re.search(message, lines[-1]), lines


def test_what_no_model_takes_is_told_before_one_is_loaded(monkeypatch, tmp_path, capsys):
    def load(*_, **__):
        raise AssertionError("loaded")

    monkeypatch.setattr(Pipeline, "load", load)
    rows, black = tmp_path / "rows.jsonl", tmp_path / "black.png"
    rows.write_text(json.dumps({"prompt": "a dog", "image": DOG, "target": "dog"}))
    Image.new("L", (128, 128)).save(black)
    config = tmp_path / "mine.py"
    config.write_text("import ml_collections\n\n\ndef get_config():\n"
                      "    return ml_collections.ConfigDict({'sample': {'preset': {'refine': -3}}})\n")
    for arguments, message in (
            (["--steps", "0"], "steps is 0"), (["--scope", "2"], "scope is 2"),
            (["--image", "nowhere.png", "--target", "dog"], "nowhere.png"),
            (["--preset", "papper"], "did you mean 'paper'"), (["--config", str(config)], "refine is -3"),
            (["--lora", "style.safetensors:0.8"], "the LoRA style.safetensors does not exist"),
            (["--lora", "C:\\style.safetensors"], r"the LoRA C:\\style.safetensors does not exist"),
            (["--lora", f"{rows}:nan"], "scale of the LoRA .*rows.jsonl is nan"),
            (["--lora", str(rows)], "rows.jsonl: unknown kind '.jsonl'"),
            (["--lora", "style:strong"], "the LoRA style:strong does not exist"),
            (["--batch", str(rows), "--prompt", "a dog"], "--batch brings .* so --prompt would not be used"),
            (["--batch", str(rows), "--image", DOG, "--target", "dog"], "so --image, --target would not be used"),
            (["--batch", str(rows), "--strength", "0.5"], "so --strength would not be used"),
            (["--lora", "nowhere.safetensors"], "nowhere.safetensors does not exist"),
            (["--mask", str(black)], "mask of target 1 is black everywhere"),
            (["--init-image", DOG, "--mask-image", str(black)], "mask_image is black everywhere")):
        code, lines, _ = _runner(tmp_path, capsys)(*arguments)
        assert code == 2 and re.search(message, lines[-1]), lines


@pytest.mark.slow
def test_parts_of_other_files_and_the_prediction_are_handed_on(mini_pipeline, monkeypatch, tmp_path, capsys):
    given = {}
    monkeypatch.setattr(Pipeline, "load", lambda *_, **options: given.update(options) or mini_pipeline)
    arguments = ["--vae", "a.safetensors", "--unet", "b", "--prediction", "v_prediction", "--steps", "1"]
    assert _runner(tmp_path, capsys)(*arguments)[0] == 0
    assert (given["vae"], given["unet"], given["prediction"]) == ("a.safetensors", "b", "v_prediction")
    code, lines, _ = _runner(tmp_path, capsys)("--prediction", "flow")
    assert code == 2 and "'flow'" in lines[-1]


def test_loras_are_handed_on_with_their_scales(monkeypatch, tmp_path, capsys):
    files = [str(tmp_path / name) for name in ("style.safetensors", "at 8:30.safetensors")]
    for file in files:
        safetensors.numpy.save_file({f"lora_unet_x.lora_{role}.weight": np.zeros((2, 2), np.float32)
                                     for role in ("down", "up")}, file)
    given = {}

    def load(*_, **options):
        given.update(options)
        raise ValueError("enough")

    monkeypatch.setattr(Pipeline, "load", load)
    loras = [f"--lora={x}" for x in (f"{files[0]}:-0.5", files[1], f"{files[1]}:1e-1", files[0])]
    assert _runner(tmp_path, capsys)(*loras)[1][-1] == "error: enough"
    assert given["loras"] == [(files[0], -0.5), (files[1], 1), (files[1], 0.1), (files[0], 1)]


def test_a_bug_of_ours_is_admitted_and_debug_shows_where(command, monkeypatch, capsys):
    """The user's input is not blamed; nor for a bug while a model is loaded."""
    def broken(*_, **__):
        raise TypeError("unsupported operand type(s)")

    for name in ("__call__", "load"):
        monkeypatch.setattr(Pipeline, name, broken)
        code, lines, files = command()
        assert (code, files) == (1, []) and not any("Traceback" in line for line in lines)
        assert lines[-1] == ("error: this is a bug in realcustom_jax, not a mistake in your input (TypeError: "
                             "unsupported operand type(s)); run again with --debug to see where.")
        code, lines, _ = command("--debug")
        assert code == 1 and any("in broken" in line for line in lines), lines
        assert lines[-1].endswith("please report it with the traceback above.")


def test_the_callers_way_of_showing_warnings_comes_back(command):
    shown, filters = warnings.showwarning, list(warnings.filters)
    command("--steps", "0")
    assert warnings.showwarning is shown and warnings.filters == filters


def test_a_long_prompt_is_told_what_was_cut(command):
    _, lines, _ = command("--prompt", "a dog " * 7 + "on the beach", "--steps", "0")
    assert not any("warning" in line for line in lines)  # the first thing that is wrong is told, and nothing else
    _, lines, _ = command("--prompt", "a dog " * 7 + "on the beach", "--target", "car")
    assert any("warning: " in line and "'on the beach'" in line for line in lines)


def test_out_must_not_be_a_file(command, tmp_path):
    (tmp_path / "out").write_text("mine")
    code, lines, _ = command()
    assert code == 2 and "out" in lines[-1]
    assert (tmp_path / "out").read_text() == "mine"


def truncate(folder, name):
    file = folder / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def edit(folder, name, **changes):
    write_json(folder / name, weights.read_config(folder / name) | changes)


def reshape(folder, part):
    source = FolderSource(folder)
    tensors = source.tensors(part)
    name = next(name for name, value in tensors.items() if value.ndim == 2)
    bundle.save_part(folder, part, source.config(part), dict(tensors) | {name: tensors[name][:-1]})


@pytest.mark.parametrize("damage, message", [
    (lambda folder: shutil.rmtree(folder), "is not a model folder"),
    (lambda folder: (folder / "unet" / "config.json").unlink(), "unet/config.json is missing"),
    (lambda folder: (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink(), "vae/.* is missing"),
    (lambda folder: (folder / "adapter" / "realcustom.safetensors").unlink(), "realcustom.safetensors is missing"),
    (lambda folder: (folder / "tokenizer" / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    (lambda folder: (folder / "scheduler" / "scheduler_config.json").unlink(), "scheduler_config.json is missing"),
    (lambda folder: edit(folder, "model_index.json", text_encoder_2=["transformers", "CLIPTextModelWithProjection"]),
     "text_encoder_2 is missing"),
    (lambda folder: truncate(folder, "unet/diffusion_pytorch_model.safetensors"), "unet.* is truncated"),
    (lambda folder: truncate(folder, "text_encoder/model.safetensors"), "text_encoder.* is truncated"),
    (lambda folder: truncate(folder, "image_encoder_dinov2/config.json"), "dinov2/config.json is not valid JSON"),
    (lambda folder: truncate(folder, "tokenizer/tokenizer.json"), "the tokenizer cannot be read"),
    (lambda folder: truncate(folder, "vocabulary.json"), "vocabulary.json is not valid JSON"),
    (lambda folder: (folder / "vae" / "config.json").write_text('{"block_out_channels": "wide"}'),
     "vae: the configuration cannot be used"),
    # Without a key it is diffusers' own UNet.
    (lambda folder: (folder / "unet" / "config.json").write_text("{}"), "width 16, this UNet takes 1280"),
    (lambda folder: edit(folder, "unet/config.json", projection_class_embeddings_input_dim=None),
     "unet.*projection_class_embeddings_input_dim is missing, which addition_embed_type='text_time' needs"),
    (lambda folder: edit(folder, "adapter/config.json", image_prompt_settings={"vision_projection_type": "custom"}),
     "adapter.*the configuration lacks 'vision_projection_config'"),
    (lambda folder: (folder / "adapter/config.json").unlink(), "adapter/config.json is missing"),
    (lambda folder: (folder / "unet" / "config.json").write_text("[]"), "unet/config.json holds a JSON list"),
    (lambda folder: edit(folder, "unet/config.json", sample_size="wide"), "sample_size is 'wide'"),
    (lambda folder: edit(folder, "unet/config.json", norm_num_groups=[]), "unet.*cannot be used"),
    (lambda folder: edit(folder, "image_encoder_siglip/config.json", patch_size=[]), "siglip.*cannot be used"),
    (lambda folder: (folder / "adapter/config.json").write_text("null"), "adapter/config.json holds a JSON NoneType"),
    (lambda folder: edit(folder, "adapter/config.json", vision_settings=3), "adapter/config.json.* cannot be used"),
    (lambda folder: edit(folder, "adapter/config.json", vision_settings={"size": "wide"}), "adapter/.*size='wide'"),
    (lambda folder: edit(folder, "adapter/config.json", image_prompt_settings={}), "adapter/.*no visual attention"),
    (lambda folder: edit(folder, "scheduler/scheduler_config.json", prediction_type="sample"),
     "scheduler_config.json: Unknown prediction_type 'sample'"),
    (lambda folder: edit(folder, "scheduler/scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler"),
     "made for FlowMatchEulerDiscreteScheduler .*not supported"),
    (lambda folder: reshape(folder, "text_encoder"), "text_encoder: .*wrong shapes: "),
    (lambda folder: reshape(folder, "adapter"), "adapter: .*wrong shapes: "),
])
def test_a_damaged_model_is_one_sentence_and_exit_code_2(mini_folder, tmp_path, capsys, damage, message):
    folder = shutil.copytree(mini_folder, tmp_path / "model")
    damage(folder)
    code, lines, files = _runner(tmp_path, capsys)("--model", str(folder))
    assert (code, files) == (2, [])
    assert lines[-1].startswith("error: ") and re.search(message, lines[-1]), lines
    assert len(lines) == 2  # after "Loading …"


def test_nothing_is_written_if_a_picture_cannot_be_made(command, monkeypatch):
    monkeypatch.setattr("realcustom_jax.contact_sheet.contact_sheet", _fail)
    monkeypatch.setattr(Pipeline, "__call__", lambda *_, **__: made())
    assert command() == (2, ["Loading mini …", "error: no room"], [])


def _fail(*_):
    raise ValueError("no room")


# -------------------- the pictures


def made(images=1, references=1, steps=6, freeze=3) -> Result:
    rng = np.random.default_rng(0)
    masks = rng.random((steps, images, references, 4, 4)) * (rng.random((steps, images, references, 4, 4)) > 0.5)
    masks[freeze:] = masks[freeze - 1]
    picture = Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8))
    return Result([picture] * images, masks.astype(np.float32), np.zeros((images, 8, 8, 4), np.float32),
                  [picture] * references, ("dog", "car")[:references], "a dog on the beach", 0)


def test_the_sheet_holds_a_row_for_each_reference_of_each_picture():
    heights = [contact_sheet(made(images, references)).height for images, references in ((1, 1), (2, 1), (2, 2))]
    row = heights[1] - heights[0]
    assert row > CELL and heights[2] - heights[1] == 2 * row
    # Three masks are new, the rest repeat the last one: 1 reference + 3 masks + 1 result.
    assert contact_sheet(made(freeze=3)).width == contact_sheet(made(steps=3, freeze=3)).width
    assert contact_sheet(made(freeze=1)).width < contact_sheet(made(freeze=3)).width


def test_the_overlay_tints_where_the_mask_is():
    grey = Image.new("RGB", (SIDE, SIDE), (100, 100, 100))
    mask = np.zeros((1, 4, 4), np.float32)
    mask[0, 0, 0] = 0.5  # the strongest place counts as full
    overlay = np.asarray(mask_overlay(grey, mask))
    quarter = SIDE // 4
    assert (overlay[quarter:] == 100).all() and (overlay[:, quarter:] == 100).all()
    assert (overlay[:quarter, :quarter] != 100).all()
    np.testing.assert_array_equal(mask_overlay(grey, 0.5 + mask), overlay)  # the weakest place as none
    assert (np.asarray(mask_overlay(grey, 0 * mask)) == 100).all()
    assert (np.asarray(mask_overlay(grey, 0 * mask + 1)) != 100).all()


@pytest.mark.parametrize("size", [(16, 16), (100, 60), (300, 200), (2000, 1)])
def test_pictures_of_any_size_fit_a_cell(size):
    assert in_square(Image.new("RGB", size)).size == (CELL, CELL)


def test_small_pictures_are_enlarged_without_blur():
    pixels = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    factor = CELL // SIDE
    np.testing.assert_array_equal(np.asarray(in_square(Image.fromarray(pixels)))[::factor, ::factor], pixels)


def test_written_pictures_are_whole(tmp_path):
    files = save_pictures(made(images=2, references=2), tmp_path / "new" / "folder")
    assert [file.name for file in files] == [
        "image_0.png", "image_1.png", "mask_0.png", "mask_1.png", "contact_sheet.png"]
    for file in files:
        Image.open(io.BytesIO(file.read_bytes())).load()


def test_a_batch_is_made_once(command, tmp_path):
    rows = [{"prompt": f"a dog {where}", "image": DOG, "target": "dog"} for where in ("on the beach", "in the snow")]
    rows.append({"name": "lost", "prompt": "a cat in the snow", "image": DOG, "target": "dog"})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ("--batch", str(tmp_path / "rows.jsonl"), "--steps", "2", "--freeze-mask-step", "1")
    for made in ("2 made, 0 there already, 1 failed", "0 made, 2 there already, 1 failed"):
        code, lines, files = command(*arguments)
        assert code == 2 and lines[-1].startswith(made)
        assert any("line 3 (lost) failed" in line and "'dog'" in line for line in lines)
        assert files == ["0001.json", "0001.png", "0002.json", "0002.png"]
    code, lines, _ = command("--batch", "nowhere.jsonl")
    assert code == 2 and "nowhere.jsonl" in lines[-1]


@pytest.mark.slow
def test_the_memory_report_writes_nothing_and_says_whether_it_fits(command, capsys, monkeypatch):
    code, _, files = command("--memory")
    assert (code, files) == (0, [])
    monkeypatch.setattr("realcustom_jax.memory.device_memory", lambda: 1000)
    assert sample.main(["--memory", "--out", "nowhere"]) == 2
    assert "the device has" in capsys.readouterr().out


def test_halved_characters_are_told_before_anything_is_loaded(command):
    for arguments, message in ((("--prompt", "a dog \ud83d"), "the prompt holds half"),
                               (("--target", "\udce9"), "the target holds half"),
                               (("--negative-prompt", "\ud83d"), "the negative prompt holds half")):
        code, lines, _ = command(*arguments)
        assert code == 2 and len(lines) == 1 and message in lines[0].lower()


def test_the_memory_of_a_batch_is_that_of_its_largest_row(command, capsys, monkeypatch, tmp_path):
    asked = []

    def needed(pipeline, *, width, num_images, references, **options):
        asked.append((width, num_images, references, options["freeze_mask_step"]))
        return Memory({}, 0, 2**30 * (width or 1) * num_images * references, available=9 * 2**30)

    monkeypatch.setattr("realcustom_jax.memory.sampler_memory", needed)
    rows = [{}, {"width": 2}, {"num_images": 3, "width": 2}, {"width": 2}]
    (tmp_path / "rows.jsonl").write_text("\n".join(
        json.dumps({"prompt": "a dog", "image": DOG, "target": "dog", **row}) for row in rows))
    code = sample.main(["--memory", "--batch", str(tmp_path / "rows.jsonl"), "--freeze-mask-step", "3"])
    assert code == 0 and sorted(asked[1:]) == [(2, 1, 1, 3), (2, 3, 1, 3)] and asked[0] == (None, 1, 1, 3)
    assert "6.000 GiB" in capsys.readouterr().out


def test_a_config_sets_options_and_the_command_line_wins(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("import ml_collections\n\n\ndef get_config():\n"
                    "    sample = {'steps': 7, 'seed': 3, 'preset': {'scope': 0.5}}\n"
                    "    return ml_collections.ConfigDict({'sample': sample})\n")
    options = sample.parse(["--config", str(file), "--seed", "4"])
    assert (options.steps, options.seed, options.preset) == (7, 4, {"scope": 0.5})
    for text, message in (("return ml_collections.ConfigDict()", "says nothing about sampling"),
                          ("return ml_collections.", "cannot be used: SyntaxError"),
                          ("return ml_collections.ConfigDict({'sample': {'stpes': 7}})", "stpes is no option")):
        file.write_text(f"import ml_collections\n\n\ndef get_config():\n    {text}\n")
        with pytest.raises(SystemExit) as stopped:
            sample.parse(["--config", str(file)])
        assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sdxl", "sd15"])
def test_the_configs_of_published_models_are_options_and_a_preset(name):
    options = sample.parse(["--config", str(ROOT / "configs" / f"{name}.py")])
    assert Preset(**options.preset).guidance_scale == 3.5 and options.dtype == "bfloat16"


@pytest.mark.parametrize("name, solver, lora, unet", [
    ("sdxl_lightning", "euler", "ckpts/sdxl_lightning_4step_lora.safetensors", None),
    ("sdxl_turbo", "euler_ancestral", None, "stabilityai/sdxl-turbo"),
    ("sdxl_lcm", "lcm", "ckpts/lcm-lora-sdxl", None)])
def test_the_configs_of_few_steps(name, solver, lora, unet):
    options = sample.parse(["--config", str(ROOT / "configs" / f"{name}.py")])
    preset = Preset(**options.preset)
    assert (preset.solver, preset.guidance_scale, preset.freeze_mask_step, options.steps) == (solver, 1.0, 2, 4)
    assert (options.lora, options.unet) == (lora and [(lora, 1.0)], unet)
    assert len(make_solver(preset.solver, options.steps).timesteps) == 4


@pytest.mark.parametrize("text, expected", [
    ("style.safetensors:0.8", ("style.safetensors", 0.8)), ("style.safetensors", ("style.safetensors", 1.0)),
    ("C:\\loras\\style.safetensors", ("C:\\loras\\style.safetensors", 1.0)), ("a:-0.5", ("a", -0.5)),
    (":1", (":1", 1.0)),
])
def test_loras_with_their_scales(text, expected):
    assert sample.parse(["--lora", text]).lora == [expected]


@pytest.mark.parametrize("arguments, name, expected", [
    (["--vision-scale", "0.5"], "vision_scale", 0.5), (["--vision-scale", "1,0.5"], "vision_scale", [1.0, 0.5]),
    (["--vision-scale", "up=0.5, down_blocks.1=0"], "vision_scale", {"up": 0.5, "down_blocks.1": 0.0}),
    (["--mask", "1,2,3,4.5"], "mask", [[1, 2, 3, 4.5]]),
    (["--mask", "auto", "--mask", "m.png"], "mask", [None, "m.png"]),
    (["--mask-image", "0,0,9,9"], "mask_image", [0, 0, 9, 9]),
])
def test_strengths_and_regions_of_the_command_line(arguments, name, expected):
    assert getattr(sample.parse(arguments), name) == expected
