"""What a user may get wrong of a run: each ends in one sentence and with exit code 2, before anything is built."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from PIL import Image

from realcustom_jax import disk
from realcustom_jax.commands import overrides, train
from realcustom_jax.training.miniature.config import MiniatureConfig
from realcustom_jax.training.published.config import PublishedConfig

import fresh_process

ROOT = Path(__file__).parents[1]


def parsed(*options, config="finetune_mini"):
    """The configuration that the command line gives, read as the command reads it."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    argv = ["train.py", f"--config={ROOT}/configs/{config}.py", *options]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(flags, "FLAGS", values)
        patched.setattr(sys, "argv", argv)  # where ml_collections looks for keys
        train._parse(argv)
        found = values.config.to_dict()
    return PublishedConfig.from_config(found["train"]) if "train" in found else MiniatureConfig.from_config(found)


def refused(capsys, *options, config="finetune_mini"):
    """The sentence with which these options are refused."""
    try:
        parsed(*options, config=config)
    except ValueError as error:  # which the command ends with 2 for
        return str(error)
    except SystemExit as end:
        assert end.code == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1
        return said
    raise AssertionError(f"{options} were taken")


OPTIMIZATION = "--config.train.optimization."


@pytest.mark.parametrize("option, words", [
    *[(f"{OPTIMIZATION}{name}={value}", f"{name} is {value}; expected a whole number, at least 1")
      for name in ("batch_size", "save_every", "log_every", "accumulate", "steps") for value in (0, -1)],
    (f"{OPTIMIZATION}batch_size=four", "--config.train.optimization.batch_size is 'four'; expected a whole number."),
    (f"{OPTIMIZATION}batch_size=1.5", "is '1.5'; expected a whole number."),
    (f"{OPTIMIZATION}batch_size=", "is ''; expected a whole number."),
    (f"{OPTIMIZATION}learning_rate=fast", "is 'fast'; expected a number."),
    (f"{OPTIMIZATION}learning_rate=nan", "learning_rate is nan; expected a number above 0"),
    (f"{OPTIMIZATION}learning_rate=1e400", "learning_rate is inf; expected a number above 0"),
    (f"{OPTIMIZATION}steps={10**30}", "optimization.steps is 1000000000000000000000000000000; expected a number below"),
    (f"{OPTIMIZATION}seed=-1", "seed is -1; expected a whole number, 0 or more"),
    *[(f"--config.train.side={side}", f"config.train: side is {side}; expected a multiple of 64, at most 16384.")
      for side in (0, -64, 100, 64 * 10**6)],
    *[(f"--config.train.curriculum.final_reconstruction={share}", "expected a share of the pairs, from 0 to 1")
      for share in (-1, 1.5, "nan", "inf")],
    (f"{OPTIMIZATION}optimizer=muno", "Unknown optimizer 'muno'.*did you mean 'muon'"),
    ("--config.train.fresh.variant=highres", "'highres' projector reads one layer of each encoder, not 4"),
    ("--config.train.data.seed=-1", "config.train.data: seed is -1; expected a whole number, 0 or more"),
    ("--config.train.data.max_broken=-1", "config.train.data: max_broken is -1"),
    ("--config.train.precomputed=maybe", "is 'maybe'; expected true or false."),
    ("--config.train=5", "--config.train (is '5'|has a value); expected a key within it"),
    ("--config.train.optimization=5", "--config.train.optimization (is '5'|has a value); expected a key within it"),
    ("--config.train.optimization=", "(is ''|has a value); expected a key within it"),
    ("--config.train.fresh.vision_settings.nosuch=5", "has no key 'nosuch'"),
    ("--config.train.fresh.vision_settings.sigliplayers=5", "no key 'sigliplayers'; did you mean 'siglip_layers'"),
    ("--config.train.fresh.vision_settings.siglip_layers=1", "is '1'; expected a list, such as"),
    ("--config.train.fresh.vision_settings.siglip_layers=[1,", "expected a list, such as"),
    ("--config.train.fresh.vision_settings.siglip_layers=" + "[" * 5000, "expected a list, such as"),
    ("--config.train.fresh.vision_settings.siglip_layers=[1,2,3,'x']",
     r"vision_settings.siglip_layers\[3\] is 'x'; expected a whole number"),
    ("--config.train.side", "Missing value"), ("--nosuch=1", "Unknown command line flag 'nosuch'"),
])
def test_a_value_that_cannot_be_used_is_one_sentence(capsys, option, words):
    assert re.search(words, refused(capsys, option))


@pytest.mark.parametrize("option, words", [
    ("--config.optimization.base.batch_size=0", "config.optimization.base: batch_size is 0"),
    ("--config.optimization.judge.save_every=0", "save_every is 0"),
    ("--config.data.poses=x", "expected a whole number"),
    ("--config.models.adapter.image_prompt_settings.vision_projection_config.variant=highres",
     "models.adapter: The 'highres' projector reads one layer of each encoder, not 3"),
    ("--config.seed=-1", "seed is -1")])
def test_likewise_of_the_miniature(capsys, option, words):
    assert words in refused(capsys, option, config="mini")


@pytest.mark.parametrize("text", ["[1,2,3,4]", "(1,2,3,4)", "1,2,3,4", "[1, 2, 3, 4]"])
def test_a_list_may_be_given(text):
    assert parsed(f"--config.train.fresh.vision_settings.siglip_layers={text}").fresh.vision_settings.siglip_layers == (
        1, 2, 3, 4)
    assert parsed(f"--config.models.unet.block_out_channels={text}", config="mini").models.unet[
        "block_out_channels"] == [1, 2, 3, 4]


def test_an_explanation_leaves_alone_what_it_does_not_know():
    assert overrides.explained(TypeError(
        "Type <class 'ml_collections.config_dict.config_dict.ConfigDict'> of field config.train is not supported")) == (
        "--config.train has a value; expected a key within it, such as --config.train.NAME=VALUE.")
    assert overrides.explained(ValueError("flag --config.x=3: a\nreason.")) == "--config.x is '3'; a reason."
    assert overrides.explained(ValueError("something else")) == "something else"


def documented():
    """The keys of the table in docs/training/own_pictures.md; `.steps` behind `optimization.x` is its neighbour."""
    text = (ROOT / "docs/training/own_pictures.md").read_text().partition("## The keys")[2].partition("\n## ")[0]
    for row in re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE):
        parent = ""
        for name in re.findall(r"`([\w.]+)`", row):
            yield parent + name if name.startswith(".") else name
            parent = name.rpartition(".")[0] if not name.startswith(".") else parent


OTHER = {"optimization.batch_size": 4, "optimization.accumulate": 2, "fresh.variant": "shallow", "mesh.data": 2,
         "curriculum.recipe": "reconstruction", "optimization.optimizer": "muon", "optimization.decay": 0.25,
         "dtype": "bfloat16", "side": 256, "precomputed": "True", "on_existing": "refuse", "optimization.ema": 0.5,
         "data.held_out": 0.25, "optimization.profile_steps": "1:3"}


def test_each_documented_key_can_be_set(tmp_path, monkeypatch):
    (tmp_path / "wandb.py").write_text("")  # a key that is for those who have this package
    monkeypatch.syspath_prepend(tmp_path)
    keys = list(documented())
    assert len(keys) > 20
    assert {"data.folder", "optimization.keep_every", "mesh.tensor", "optimization.optimizer"} <= set(keys)
    for key in keys:
        before = parsed()
        for name in key.split("."):
            before = getattr(before, name)
        value = OTHER.get(key, "some/path" if isinstance(before, str) else 3)
        found = parsed(f"--config.train.{key}={value}")
        for name in key.split("."):
            found = getattr(found, name)
        assert found == type(found)(value) and found != before, key


def test_each_key_that_a_page_gives_on_a_command_line_exists():
    """In the documentation and in what files of configurations say of themselves."""
    pages = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("docs/launch/*"), ROOT / "README.md", *ROOT.glob("configs/*.py")]
    given = {(key, page.name) for page in pages
             for key in re.findall(r"--config\.([a-z_]+(?:\.[a-z_]+)+|stage|seed)\b", page.read_text())}
    assert len(given) > 5
    for key, page in given:
        names, found = key.split("."), parsed(config="sdxl" if key.startswith("train") else "mini")
        for name in names[1:] if names[0] == "train" else names:
            assert hasattr(found, name), f"{page} gives --config.{key}"
            found = getattr(found, name)


@pytest.mark.parametrize("made, words", [
    (lambda path: path.write_text(""), "is a file; give a folder"),
    (lambda path: path.parent.joinpath("run").write_text(""), "is a file; give a folder")])
def test_a_workdir_that_is_a_file(tmp_path, made, words):
    made(tmp_path / "run")
    for workdir in (tmp_path / "run", tmp_path / "run" / "deeper"):
        assert train._unusable(str(workdir)) == f"{tmp_path / 'run'} is a file"


def test_a_workdir_is_not_made_to_see_whether_it_can_be(tmp_path):
    assert train._unusable(str(tmp_path / "a" / "b")) is None and not list(tmp_path.iterdir())
    assert train._unusable("gs://bucket/run") is None


def test_a_disk_that_is_only_for_reading(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        assert train._unusable(str(tmp_path / "run")) == f"{tmp_path} is not open for writing"
    finally:
        subprocess.run(["umount", tmp_path], check=True)


FULL = """
import sys
from realcustom_jax.errors import exit_code
from realcustom_jax.disk import enough_disk
def work():
    with enough_disk(sys.argv[1]):
        {}
print(exit_code(work, report=print))
"""


@pytest.mark.slow
@pytest.mark.parametrize("work", [
    "from realcustom_jax.data.sprites.bank import BankConfig, paint_bank\n        from pathlib import Path\n"
    "        paint_bank(BankConfig(identities=36, poses=2, scenes=2), Path(sys.argv[1]) / 'bank')",
    "from realcustom_jax.model_files import bundle\n        from pathlib import Path; import numpy as np\n"
    "        bundle.save_part(Path(sys.argv[1]), 'adapter', {}, {'x': np.ones(2_000_000, np.float32)})",
    "from realcustom_jax.data.build import build; from realcustom_jax.data.sources import open_source\n"
    "        import test_bad_settings; build(open_source(test_bad_settings.noise(sys.argv[1])), sys.argv[1])"])
def test_a_full_disk_is_one_sentence_wherever_it_is_met(tmp_path, work):
    """A real one, of 1 MB: the bank, a part of a bundle, a dataset. Nothing is left that would be believed."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        said = fresh_process.run(FULL.format(work), tmp_path).splitlines()
        left = [path for path in tmp_path.rglob("*") if path.name in ("bank.json", "config.json", "dataset_info.json")]
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert said[-1] == "2", said
    assert re.fullmatch(f"error: The disk of {tmp_path} is full .*Make room and run the same command again.", said[-2])
    assert not left


def noise(beside):
    """A folder of one picture that a disk of 1 MB cannot hold."""
    folder = Path(f"{beside}-pictures")
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    (folder / "manifest.jsonl").write_text(
        '{"target": "a.png", "caption": "a dog", "word": "dog", "box": [1, 1, 900, 900]}')
    return folder


@pytest.mark.parametrize("error, full", [
    (OSError(28, "No space left on device"), True), (OSError(27, "File too large"), True), (OSError(2, "x"), False),
    (RuntimeError("Failed to write 9 bytes to file 5: No space left on device [os_error_code='28']"), True),
    (ValueError("a box"), False)])
def test_which_exceptions_mean_a_full_disk(error, full):
    assert disk.is_full(error) == full
    with pytest.raises(OSError if full else type(error), match="The disk of here is full" if full else None):
        with disk.enough_disk("here"):
            raise error


@pytest.mark.slow
def test_folders_of_another_user():
    """Root may write everywhere, so that another user has to ask."""
    if os.getuid() != 0:
        pytest.skip("only root becomes another user")
    script = ("import os, sys; from realcustom_jax.commands import train; os.setuid(65534);"
              "print(train._unusable(sys.argv[1]))")
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to others
        Path(folder, "checkpoints").mkdir(mode=0o755)
        Path(folder).chmod(0o777)
        done = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == f"{folder}/checkpoints is not open for writing", done.stderr


@pytest.mark.slow
def test_the_command_says_it_and_ends_with_2(tmp_path):
    (tmp_path / "run").write_text("")
    done = subprocess.run([sys.executable, ROOT / "train.py", f"--config={ROOT}/configs/finetune_mini.py",
                           f"--workdir={tmp_path}/run"], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().endswith(
        f"--workdir={tmp_path}/run cannot be used: {tmp_path}/run is a file; give a folder that can be written to.")
    assert done.stderr.count("\n") == 1
