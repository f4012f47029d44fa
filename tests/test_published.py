"""Training the adapter of a model in the published layouts, on a folder of pictures."""

import dataclasses
import importlib.util
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from realcustom_jax.conditioning.images import grid
from realcustom_jax.data.batches import BucketBatches
from realcustom_jax.data.build import build
from realcustom_jax.data.dataset import Dataset
from realcustom_jax.data.sources import open_source
from realcustom_jax.devices.ahead_of_time import AdapterStep
from realcustom_jax.devices.shapes import batch_shapes
from realcustom_jax.model_files import bundle
from realcustom_jax.model_files.adapter import find_adapter, scaled_tokens
from realcustom_jax.model_files.source import FolderSource
from realcustom_jax.model_files.tensors import read_tensors
from realcustom_jax.model_files.weights import read_config
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.presets import PRESETS
from realcustom_jax.training.curriculum import Curriculum
from realcustom_jax.training.optimizer import step_inputs
from realcustom_jax.training.published import precompute, tasks
from realcustom_jax.training.published import run as published
from realcustom_jax.training.published.config import PublishedConfig
from realcustom_jax.training.published.encoders import Encoders
from realcustom_jax.training.published.initial_adapter import with_tokens_like_text, write_fresh_adapter
from realcustom_jax.training.settings import TrainSettings
from realcustom_jax.training.step import init_state, make_train_step

import fresh_process
from mini_bundle import ENCODER_SIDE, SIDE, train_anew, write_mini_bundle

ROWS = 7


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    path, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    lines = []
    for i in range(ROWS):
        size = ((96, 96), (200, 100))[i % 3 == 0]
        for name in (f"{i}.png", f"{i}-other.png"):
            Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(path / name)
        lines.append({"target": f"{i}.png", "caption": f"a {'dog cat'.split()[i % 2]} on the beach",
                      "word": "dog cat".split()[i % 2], "reference": f"{i}-other.png"})
        if i not in (2, 3):
            lines[-1]["box"] = [10, 10, 80, 80]
    (path / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return path


def get_config(kind: str, model: Path, pictures: Path):
    spec = importlib.util.spec_from_file_location("sdxl", Path(__file__).parents[1] / "configs" / "sdxl.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    train = config.train
    train.model, train.vision, train.adapter, train.side, train.dtype = str(model), "", "", 64, "float32"
    train.data.folder = str(pictures)
    train.preset.pooled = "projected" if kind == "sdxl" else "unprojected"
    train.preset.update(scope=0.6, guidance_scale=2.0, normalize="min_max_norm", solver="ddim", steps=6)
    train.fresh.update(dim_head=8)
    train.fresh.vision_settings.update(size=SIDE, encoder_size=ENCODER_SIDE, siglip_layers=[0, 1], dino_layers=[0, 1])
    train.mesh.update(data=-1, fsdp=1)
    train.optimization.update(steps=3, batch_size=2, warmup=1, learning_rate=1e-3, save_every=2, sample_every=3,
                                     log_every=1)
    return config


def batches_of(dataset, reference_side=SIDE, **options):
    """Of rows as `get_config` trains on them, two at a time."""
    options = {"side": 64, "batch_size": 2, "seed": 0, "curriculum": Curriculum(), "steps": 8} | options
    return BucketBatches(dataset, reference_side=reference_side, **options)


def dataset_of(workdir):
    return Dataset(next(path.parent for path in (workdir / "data").rglob("dataset_info.json")))


@pytest.fixture(scope="module", params=[pytest.param(kind, marks=pytest.mark.slow) for kind in ("sdxl", "sd15")])
def run(request, tmp_path_factory, pictures):
    """(kind, model folder, configuration, run folder after 3 steps)."""
    workdir = tmp_path_factory.mktemp(request.param)
    model = write_mini_bundle(workdir / "model", request.param)
    config = get_config(request.param, model, pictures)
    published.train_adapter(config, workdir / "run")
    return request.param, model, config, workdir / "run"


def test_the_adapter_is_written_where_a_pipeline_reads_it(run, pictures):
    _, model, _, workdir = run
    pipeline = Pipeline.load(model, workdir / "adapter")
    assert pipeline(pictures / "0.png", "a dog on the beach", "dog", steps=2).images[0].size == (SIDE, SIDE)
    assert Image.open(workdir / "samples" / "000003.png").size[0] > SIDE
    fresh, trained = (read_tensors(next((workdir / name).glob("*.safetensors")))
                      for name in ("fresh/adapter", "adapter"))
    assert sorted(fresh) == sorted(trained)
    assert any(np.abs(np.float32(fresh[name]) - np.float32(trained[name])).max() > 1e-3 for name in fresh)


def test_an_adapter_is_used_with_the_conditioning_that_it_was_trained_with(run):
    """Whatever the preset says of it; of the rest, the preset."""
    _, model, config, workdir = run
    preset = Pipeline.load(model, workdir / "adapter", preset=PRESETS["released_pipeline"]).preset
    trained = {"local": None, "pooled": config.train.preset.pooled, "size_order": "height_first"}
    assert preset == dataclasses.replace(PRESETS["released_pipeline"], **trained)


def test_a_reloaded_adapter_makes_the_pictures_that_its_training_showed(run):
    """To the byte, with nothing said of a preset; a preset that is given goes first."""
    _, model, config, workdir = run
    batch = batches_of(dataset_of(workdir), steps=3)[0]
    pipeline = dataclasses.replace(Pipeline.load(model, workdir / "adapter"), vocabulary=None)
    references = [Image.fromarray(x) for x in batch["reference"]]

    def pictures(pipeline):
        made = [pipeline(*row).images[0] for row in zip(references, batch["caption"], batch["word"], strict=True)]
        shown = [x.resize((SIDE, SIDE)) for x in references] + made
        return np.asarray(grid(np.stack([np.asarray(x) for x in shown]) / 127.5 - 1.0, columns=2))

    sheet = np.asarray(Image.open(workdir / "samples" / "000003.png"))
    shown = sheet[:len(sheet) * 2 // 3]  # below are the masks
    np.testing.assert_array_equal(pictures(pipeline), shown)
    assert (pipeline.preset.scope, pipeline.preset.steps, pipeline.preset.solver) == (0.6, 6, "ddim")
    other = Pipeline.load(model, workdir / "adapter", preset="default")
    assert (other.preset.scope, other.preset.steps, other.preset.solver) == (0.25, 25, None)
    assert not np.array_equal(pictures(dataclasses.replace(other, vocabulary=None)), shown)
    some = Pipeline.load(model, workdir / "adapter", preset={"scope": 0.1}).preset
    assert some == dataclasses.replace(pipeline.preset, scope=0.1)


@pytest.mark.parametrize("sampling, words", [
    ({"scop": 0.5}, "Unknown choice of sampling 'scop'"), ({"pooled": "projected"}, "Unknown choice of sampling"),
    ({"scope": 3}, "scope is 3"), ([1], "sampling is \\[1\\]; expected choices of a preset")])
def test_choices_that_an_adapter_cannot_bring_are_named(mini_folder, tmp_path, sampling, words):
    adapter = shutil.copytree(mini_folder / "adapter", tmp_path / "adapter")
    config = read_config(adapter / "config.json")
    (adapter / "config.json").write_text(json.dumps({**config, "sampling": sampling}))
    with pytest.raises(ValueError, match=words) as caught:
        find_adapter(adapter)
    assert str(adapter / "config.json") in str(caught.value)


@pytest.mark.parametrize("run", ["sdxl"], indirect=True)
@pytest.mark.slow
def test_a_caption_that_cannot_be_sampled_stays_grey(run, monkeypatch, capsys):
    _, model, _, workdir = run
    task = tasks.PublishedTask(Pipeline.load(model, workdir / "adapter"), batches_of(dataset_of(workdir), steps=3))

    def fail(*_, **__):
        raise ValueError("the word is cut off")

    monkeypatch.setattr(Pipeline, "__call__", fail)
    made = np.asarray(task.preview(task.init(None)))
    assert (made[-SIDE // 2:, :SIDE] == made[-1, 0]).all() and "the word is cut off" in capsys.readouterr().out


def test_a_fresh_adapter_starts_with_the_keys_and_values_of_the_text(run):
    _, model, _, workdir = run
    fresh = read_tensors(next((workdir / "fresh/adapter").glob("*.safetensors")))
    unet = read_tensors(next((model / "unet").glob("*.safetensors")))
    visual = [name for name in fresh if "_vision." in name]
    assert visual
    for name in visual:
        np.testing.assert_array_equal(fresh[name], unet[name.replace("_vision", "")], err_msg=name)


@pytest.mark.parametrize("larger", [0.01, 30.0])
def test_the_first_tokens_are_made_as_large_as_the_text(run, larger):
    _, model, _, workdir = run
    pipeline = Pipeline.load(model, workdir / "fresh/adapter")
    projector = dataclasses.replace(pipeline.projector, params=scaled_tokens(pipeline.projector.params, larger))
    pipeline = dataclasses.replace(pipeline, projector=projector)
    pictures = [np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)]
    captions = ["a dog", "a cat on the beach"]
    pipeline = with_tokens_like_text(pipeline, pictures, captions)
    text, tokens = pipeline.encode_prompts(captions).text, pipeline.encode_references([pictures[0] / 255.0])
    text, tokens = (np.median(np.std(states, axis=(0, 1))) for states in (text, tokens))
    np.testing.assert_allclose(tokens, text, rtol=1e-3)


@pytest.mark.parametrize("run", ["sdxl"], indirect=True)
@pytest.mark.slow
def test_training_that_stopped_goes_on_to_the_same_bytes(run, tmp_path, monkeypatch):
    _, _, config, workdir = run
    config = config.copy_and_resolve_references()
    config.train.optimization.sample_every = 0
    asked = []

    def batch(self, step, whole=tasks.PublishedTask.batch):
        asked.append(step)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return whole(self, step)

    monkeypatch.setattr(tasks.PublishedTask, "batch", batch)
    with pytest.raises(KeyboardInterrupt):
        published.train_adapter(config, tmp_path)
    published.train_adapter(config, tmp_path)
    assert asked == [0, 1, 2, 2], "the checkpoint after two steps was taken"
    first, second = (next((at / "adapter").glob("*.safetensors")).read_bytes() for at in (workdir, tmp_path))
    assert first == second


SHARDED = """
import sys
from pathlib import Path
from realcustom_jax.training.published import run as published
from test_published import get_config

model, pictures, workdir = map(Path, sys.argv[1:4])
config = get_config("sdxl", model, pictures)
config.train.precomputed = sys.argv[4] == "precomputed"
config.train.mesh.update(data=1, fsdp=-1)
config.train.optimization.sample_every = 0
published.train_adapter(config, workdir)
"""


@pytest.mark.parametrize("run", ["sdxl"], indirect=True)
@pytest.mark.parametrize(("computed", "tolerance"), [("within the step", 1e-5), ("precomputed", 2e-3)])
@pytest.mark.slow
def test_every_frozen_part_may_be_divided_over_the_devices(run, computed, tolerance, tmp_path, pictures):
    """On two devices, as the configurations ask (fsdp=-1), the losses are those of one, within what features that are
    stored as float16 round away."""
    _, model, _, workdir = run
    fresh_process.run(SHARDED, model, pictures, tmp_path, computed, devices=2)
    divided, whole = ([json.loads(line)["loss"] for line in (at / "metrics.jsonl").read_text().splitlines()]
                      for at in (tmp_path, workdir))
    assert len(whole) == 3
    np.testing.assert_allclose(divided, whole, rtol=tolerance)


def test_stored_features_are_those_of_the_step(run, tmp_path, monkeypatch):
    """Of every example, row by row and reference by reference, within float16."""
    kind, model, config, workdir = run
    monkeypatch.setattr(precompute, "_AT_ONCE", 2)
    pipeline = Pipeline.load(model, workdir / "fresh/adapter", preset=config.train.preset.to_dict())
    batches = batches_of(dataset_of(workdir))
    encoders = Encoders(pipeline)
    stored = precompute.compute_features(encoders, "rows", batches, tmp_path)
    assert ("pooled" in stored.dropped()["empty"]) == (kind == "sdxl")
    for step in range(8):
        whole, read = batches[step], stored.batch(batches.chosen(step))
        expected = {**encoders.text(encoders.params, encoders.ids(whole["caption"])),
                    "features": encoders.references(encoders.params, whole["reference"] / 255.0),
                    "targets": encoders.targets(encoders.params, whole["target"])}
        if kind == "sdxl":
            expected["time_ids"] = encoders.time_ids(
                whole["original_size"], whole["crop_top_left"], whole["target"].shape[1:3])
        assert read.keys() == expected.keys()
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=4e-3, rtol=4e-3), read, expected)
    time = stored.folder.stat().st_mtime_ns
    again = precompute.compute_features(encoders, "rows", batches, tmp_path)
    assert again.folder.stat().st_mtime_ns == time, "it was found"


@pytest.mark.parametrize("part", ["vae", "unet"])
def test_features_of_encoders_that_were_trained_anew_are_other_features(mini_folder, mini_pipeline, tmp_path, part):
    """Whatever number of them changed; the UNet does not matter to features, nor does where the model lies."""
    moved = shutil.copytree(mini_folder, tmp_path / "moved")
    before = Encoders(mini_pipeline).fingerprint()
    assert Encoders(Pipeline.load(moved)).fingerprint() == before
    train_anew(moved, part)
    assert (Encoders(Pipeline.load(moved)).fingerprint() == before) == (part == "unet")


@pytest.mark.slow
@pytest.mark.parametrize("run", ["sd15"], indirect=True)
def test_a_run_goes_on_when_its_files_were_moved_and_not_on_another_base(run, tmp_path):
    _, model, config, workdir = run
    workdir = shutil.copytree(workdir, tmp_path / "run")
    pictures = shutil.copytree(config.train.data.folder, tmp_path / "pictures")
    moved, config = shutil.copytree(model, tmp_path / "model"), config.copy_and_resolve_references()
    config.train.update(model=str(moved), data={"folder": str(pictures)})
    fresh = next((workdir / "fresh/adapter").glob("*.safetensors"))
    times = [path.stat().st_mtime_ns for path in (fresh, next((workdir / "data").rglob("dataset_info.json")))]
    published.train_adapter(config, workdir)
    assert len(list((workdir / "data").rglob("dataset_info.json"))) == 1
    assert times == [path.stat().st_mtime_ns for path in (fresh, next((workdir / "data").rglob("dataset_info.json")))]
    lines = (pictures / "manifest.jsonl").read_text()
    (pictures / "manifest.jsonl").write_text(lines.partition("\n")[2])
    with pytest.raises(ValueError, match="belongs to another run: data is "):
        published.train_adapter(config, workdir)
    assert len(list((workdir / "data").rglob("identity.json"))) == 1, "before another dataset is begun"
    (pictures / "manifest.jsonl").write_text(lines)
    train_anew(moved, "vae")
    with pytest.raises(ValueError, match="belongs to another run: the content of the autoencoder in float32 is '"):
        published.train_adapter(config, workdir)
    assert fresh.stat().st_mtime_ns == times[0]
    train_anew(moved, "unet")
    config.train.on_existing = "overwrite"
    published.train_adapter(config, workdir)


@pytest.mark.slow
def test_a_fresh_adapter_is_made_anew_for_keys_that_were_trained_anew(mini_folder, pictures, tmp_path):
    moved = shutil.copytree(mini_folder, tmp_path / "model")
    settings = PublishedConfig.from_config(get_config("mini", mini_folder, pictures).train.to_dict()).fresh
    write_fresh_adapter(tmp_path / "adapter", str(mini_folder), "", settings)
    file = next((tmp_path / "adapter").glob("*.safetensors"))
    time = file.stat().st_mtime_ns
    write_fresh_adapter(tmp_path / "adapter", str(moved), "", settings)
    assert file.stat().st_mtime_ns == time, "the same model at another place"
    source = FolderSource(moved)
    tensors = {name: np.asarray(value) + 1e-3 * (".attn2.to_k." in name)
               for name, value in source.tensors("unet").items()}
    bundle.save_part(moved, "unet", source.config("unet"), tensors)
    write_fresh_adapter(tmp_path / "adapter", str(moved), "", settings)
    fresh = read_tensors(file)
    for name in fresh:
        if "to_k_vision" in name:
            np.testing.assert_array_equal(fresh[name], tensors[name.replace("_vision", "")], err_msg=name)


@pytest.mark.parametrize("run", ["sdxl"], indirect=True)
@pytest.mark.slow
def test_features_computed_ahead_train_the_same(run, tmp_path):
    """Within what float16 rounds away."""
    _, _, config, workdir = run
    config = config.copy_and_resolve_references()
    config.train.precomputed = True
    published.train_adapter(config, tmp_path)
    ahead, within = ([json.loads(line)["loss"] for line in (at / "metrics.jsonl").read_text().splitlines()]
                     for at in (tmp_path, workdir))
    np.testing.assert_allclose(ahead, within, rtol=2e-3)
    assert ahead != within


@pytest.mark.parametrize("precomputed", [False, True])
def test_the_step_compiled_ahead_for_a_tpu_is_the_one_that_runs_there(run, tmp_path, precomputed):
    """To the jaxpr: from the configuration alone, that of the task on a model that was loaded for a TPU."""
    _, model, config, workdir = run
    train = config.train.to_dict() | {"precomputed": precomputed, "dtype": "bfloat16"}
    pipeline = Pipeline.load(model, workdir / "fresh/adapter", preset=train["preset"], dtype=train["dtype"],
                             scan_layers=True, platform="tpu")
    batches = batches_of(dataset_of(workdir))
    square = next(i for i in range(8) if batches[i]["target"].shape[1:3] == (64, 64))
    task = tasks.PublishedTask(pipeline, batches)
    if precomputed:
        encoders = Encoders(pipeline)
        stored = precompute.compute_features(encoders, "rows", batches, tmp_path)
        task = tasks.PrecomputedTask(pipeline, batches, stored)
    # What is compiled before training begins are the batches that come, of every shape.
    kinds = [{shape_of(task.batch(step)) for step in range(8)},
             {shape_of(batch_shapes(example, 2)) for example in task.example_shapes()}]
    assert kinds[0] == kinds[1]
    said = task.scalars(8)
    assert said["epoch"] == batches.epoch(8) == 8 * 2 / 7 and said["curriculum/progress"] == 1
    assert len(task.captions()) == 2
    assert sum(said[f"curriculum/{level:.2f}"] for level in (0, 1)) == pytest.approx(1)
    settings = TrainSettings(**train["optimization"])
    state, batch = init_state(task.init(None), settings), task.batch(square)
    live = make_train_step(task.loss, settings).trace(state, task.frozen, batch, step_inputs(settings, 0)).jaxpr

    parts = [path.parent for path in model.glob("*/config.json") if path.parent.name not in ("adapter", "judge")]
    train = PublishedConfig.from_config(train)
    ahead = AdapterStep(train, "tpu", {path.name: read_config(path / "config.json") for path in parts})
    assert text(ahead.function([None]).trace(*ahead.arguments(), *ahead.numbers()).jaxpr) == text(live)
    assert ahead.about()["platform"] == "tpu"


def shape_of(batch):
    return str(jax.tree.map(lambda x: (tuple(x.shape), str(x.dtype)), batch))


def text(jaxpr) -> str:
    """A jaxpr's text, without the addresses of functions."""
    return re.sub(r"0x[0-9a-f]+", "", str(jaxpr))


@pytest.mark.parametrize("run", ["sdxl"], indirect=True)
@pytest.mark.slow
def test_features_that_the_disk_cannot_hold_are_refused_before_they_are_computed(run, tmp_path, monkeypatch):
    _, _, config, _ = run
    config = config.copy_and_resolve_references()
    config.train.precomputed = True
    full = SimpleNamespace(rmtree=shutil.rmtree, disk_usage=lambda path: SimpleNamespace(free=10))
    monkeypatch.setattr(precompute, "shutil", full)
    with pytest.raises(OSError, match="features of 7 rows and 12 references take .* 0.0 GB free"):
        published.train_adapter(config, tmp_path)


def test_a_part_of_the_examples_is_read_and_drawn_like_the_whole(pictures, tmp_path):
    dataset = build(open_source(str(pictures)), tmp_path / "data")
    whole = batches_of(dataset, 16, batch_size=4)
    part = batches_of(dataset, 16, batch_size=4, examples=np.array([1, 3]))
    for step in range(6):
        for name, value in whole[step].items():
            np.testing.assert_array_equal(part[step][name], np.asarray(value)[[1, 3]], err_msg=name)


def test_an_epoch_shows_every_row_in_batches_of_one_size(pictures, tmp_path):
    dataset = build(open_source(str(pictures)), tmp_path / "data")
    batches = batches_of(dataset, 16, side=256)
    assert len(batches) == 4  # 3 wide rows and 4 square ones
    seen = [batches[step] for step in range(len(batches))]
    assert len({batch["target"].shape for batch in seen}) == 2
    targets = {row.tobytes() for batch in seen for row in batch["target"]}
    assert len(targets) == ROWS
    again = batches_of(dataset, 16, side=256)
    for step in (5, 2, 9):
        jax.tree.map(np.testing.assert_array_equal, again[step], batches[step])


@pytest.mark.parametrize("run", ["sdxl"], indirect=True)
@pytest.mark.slow
def test_size_conditioning_is_ordered_as_the_preset_says(run):
    _, model, _, workdir = run
    batches = batches_of(dataset_of(workdir), steps=3)
    ids = {}
    for order in ("width_first", "height_first"):
        pipeline = Pipeline.load(model, workdir / "fresh/adapter", preset={"size_order": order})
        ids[order] = tasks.PublishedTask(pipeline, batches).batch(0)["time_ids"]
    np.testing.assert_array_equal(ids["width_first"][:, [1, 0, 3, 2, 5, 4]], ids["height_first"])
    np.testing.assert_array_equal(ids["height_first"][:, 4:], [batches[0]["target"].shape[1:3]] * 2)


@pytest.mark.parametrize("change, words", [
    ({"data.folder": ""}, "config.train.data.folder is empty"),
    ({"data.folder": "/nowhere"}, "/nowhere does not exist; expected a manifest.jsonl"),
    ({"model": "/nowhere/model"}, "config.train.model: /nowhere/model"),
    ({"adapter": "/nowhere/adapter.pth"}, "/nowhere/adapter.pth"),
    ({"dtype": "float16"}, "float16"),
    ({"preset.pooled": "projekted"}, "did you mean 'projected'"),
    ({"curriculum.start": 0.9}, "curriculum: start=0.9"),
    ({"optimization.save_every": 0}, "config.train.optimization: save_every is 0"),
    ({"optimization": {"stps": 3}}, "key in config.train.optimization: 'stps': .*did you mean 'steps'"),
    ({"side": 0}, "config.train: side is 0"),
    ({"fresh.variant": "papr"}, "did you mean 'paper'"),
    ({"mesh.tensor": 0}, "config.train.mesh: tensor is 0"),
    ({"snr_limit": -1.0}, "snr_limit is -1.0"),
])
def test_what_cannot_be_used_is_named(change, words, pictures, tmp_path):
    model = write_mini_bundle(tmp_path / "model")
    config = get_config("mini", model, pictures)
    for key, value in change.items():
        config.update_from_flattened_dict({f"train.{key}": value})
    with pytest.raises((ValueError, OSError), match=words):
        published.train_adapter(config, tmp_path / "run")
    assert not (tmp_path / "run" / "adapter").exists()
    assert not (tmp_path / "run" / "data").exists(), "before the pictures"
