"""The page's logic, without a browser; what a person does in one is in test_demo_browser.py."""

import dataclasses
import io
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from realcustom_jax.commands import sample_options
from realcustom_jax.conditioning.targets import phrase_spans
from realcustom_jax.demo import command, pictures, uploads
from realcustom_jax.demo.settings import Settings, first_settings, notes, problems
from realcustom_jax.demo.studio import Studio, step_by_step
from realcustom_jax.demo.words import kept_words, side_by_side, target_of, words_of_target, words_to_click
from realcustom_jax.model_files.source import ModelSource
from realcustom_jax.pipeline import Result

import fresh_process

DOG, CAR = (str(uploads.EXAMPLES / f"{noun}.png") for noun in ("dog", "car"))
TWO_DOGS = "a red dog and a Dog on the beach"


@pytest.fixture
def settings() -> Settings:
    """Settings that the random miniature of the tests can use."""
    return Settings("a dog on the beach", (DOG, None), (("1 dog",), ()), 16, 16, 5, 3.5, 0.25, 1.0, 0, 1)


# Words


@pytest.mark.parametrize("prompt, labels", [
    ("a dog on the beach", ["a", "dog", "on", "the", "beach"]),
    (TWO_DOGS, ["a", "red", "dog#1", "and", "a", "Dog#2", "on", "the", "beach"]),
    ("the dog's hat, red-and-white!", ["the", "dog's", "hat", "red-and-white"]),
    ("红色的狗 and", ["红", "色", "的", "狗", "and"]),  # without spaces between words
    ("", []), ("…", []),
])
def test_a_prompt_is_its_words_and_the_ones_that_occur_again_have_a_number(prompt, labels):
    words = words_to_click(prompt)
    assert [word.label for word in words] == labels
    assert all(prompt[word.start : word.end] == word.text for word in words)
    assert len({word.key for word in words}) == len(words)


@pytest.mark.parametrize("prompt, clicked, target", [
    ("a dog on the beach", [1], "dog"),
    (TWO_DOGS, [1, 2], "red dog"),  # which occurs once
    (TWO_DOGS, [2], "dog#1"),
    (TWO_DOGS, [5], "Dog#2"),
    ("红色的狗", [2, 3], "的狗"),
    ("a  dog,\na cat", [1, 2], "dog,\na"),
    ("a dog", [], ""),
])
def test_the_clicked_words_are_a_target_that_stands_where_they_do(prompt, clicked, target):
    words = words_to_click(prompt)
    assert target_of(prompt, [words[i].key for i in clicked]) == target
    if target:
        phrase, _, number = target.partition("#")
        span = phrase_spans(prompt, phrase)[int(number or 1) - 1]
        assert span == (words[clicked[0]].start, words[clicked[-1]].end)


def test_words_that_no_target_can_name_are_told():
    with pytest.raises(ValueError, match="do not stand side by side"):
        target_of(TWO_DOGS, ["2 dog", "5 Dog"])
    with pytest.raises(ValueError, match="cannot be told from the others"):
        target_of("a dog#2 and a dog", ["5 dog"])  # dog#2 would be the prompt's own text


def test_the_occurrence_is_counted_as_the_preset_finds_phrases():
    assert target_of("catcat cat", ["1 cat"]) == "cat"
    assert target_of("catcat cat", ["1 cat"], match="released") == "cat#3"


@pytest.mark.parametrize("clicks, kept", [
    ([1, 2], [1, 2]), ([2, 1], [1, 2]), ([1, 2, 5], [5]), ([5, 2], [2]), ([1, 3, 2], [1, 2, 3]), ([], []),
])
def test_of_the_clicked_words_the_neighbours_of_the_last_one_stay(clicks, kept):
    words = words_to_click(TWO_DOGS)
    assert side_by_side([words[i].key for i in clicks], words) == [words[i].key for i in kept]
    assert side_by_side(["7 of another prompt"], words) == []


@pytest.mark.parametrize("before, clicked, after, kept", [
    ("a dog on the beach", ["1 dog"], "a big dog on the beach", ["2 dog"]),
    ("a dog on the beach", ["1 dog"], "a DOG", ["1 DOG"]),
    ("a red dog", ["1 red", "2 dog"], "my own red dog", ["2 red", "3 dog"]),
    ("a red dog", ["1 red", "2 dog"], "a red cat", []),
    (TWO_DOGS, ["5 Dog"], TWO_DOGS + " dog", ["5 Dog"]),  # the nearest of several
    ("a dog", [], "a cat", []),
])
def test_a_changed_prompt_keeps_the_phrase_that_was_clicked(before, clicked, after, kept):
    assert {word.key for word in words_to_click(before)} >= set(clicked)
    assert kept_words(clicked, after) == kept


def test_an_example_finds_its_word():
    assert words_of_target("a dog and a car", "car") == ["4 car"]
    assert words_of_target("a red dog", "red dog") == ["1 red", "2 dog"]
    assert words_of_target("a carpet", "car") == []


# Uploads


def _saved(tmp_path: Path, name: str, content: bytes) -> Path:
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


def _encoded(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_the_usual_formats_are_taken(tmp_path, kind):
    uploads.check_upload(_saved(tmp_path, "a picture", _encoded(Image.new("RGB", (20, 10), "red"), kind)))


@pytest.mark.parametrize("name, content, said", [
    ("a.png", b"", "a.png is no picture"),
    ("b.png", b"no picture at all", "b.png is no picture"),
    ("c.png", _encoded(Image.effect_noise((64, 64), 50), "PNG")[:900], "c.png cannot be read"),
    ("d.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "d.eps is no picture"),
    ("e.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "e.svg is no picture"),
])
def test_what_is_no_picture_or_a_broken_one_is_refused(tmp_path, name, content, said):
    with pytest.raises(ValueError, match=said) as error:
        uploads.check_upload(_saved(tmp_path, name, content))
    assert str(tmp_path) not in str(error.value)


def test_too_many_bytes_and_too_many_pixels_are_refused_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "load_image", lambda file: pytest.fail("it was read"))
    monkeypatch.setattr(uploads, "MOST_PIXELS", 199)
    with pytest.raises(ValueError, match="a.png has 20 × 10 pixels; at most 199"):
        uploads.check_upload(_saved(tmp_path, "a.png", _encoded(Image.new("1", (20, 10)), "PNG")))
    monkeypatch.setattr(uploads, "MOST_BYTES", 2**20)
    with pytest.raises(ValueError, match="a.png has 1.5 MB; at most 1 MB"):
        uploads.check_upload(_saved(tmp_path, "a.png", bytes(3 * 2**19)))


def test_a_decompression_bomb_and_a_file_that_is_gone_are_refused(tmp_path):
    bomb = _saved(tmp_path, "bomb.png", _encoded(Image.new("1", (20000, 20000)), "PNG"))
    with pytest.raises(ValueError, match="bomb.png has too many pixels"):
        uploads.check_upload(bomb)
    with pytest.raises(ValueError, match="gone.png is not on the server any more"):
        uploads.check_upload(tmp_path / "gone.png")
    with pytest.raises(ValueError, match="A reference picture is missing"):
        uploads.check_upload(None)


def test_a_bundled_picture_is_known_by_its_bytes(tmp_path):
    assert uploads.bundled_name(_saved(tmp_path, "x.png", Path(CAR).read_bytes())) == "car.png"
    assert uploads.bundled_name(_saved(tmp_path, "car.png", b"another")) is None


# Settings


def test_the_page_begins_with_settings_that_can_be_used(mini_pipeline):
    options = sample_options.parse([])
    first = first_settings(mini_pipeline, options)
    assert first.prompt == "a dog on the beach" and first.subjects() == ([DOG], ["dog"])
    assert (first.width, first.steps, first.scope) == (16, 25, mini_pipeline.preset.scope)
    assert problems(mini_pipeline, first) == {}
    given = first_settings(mini_pipeline, sample_options.parse(["--steps", "7", "--seed", "3", "--prompt", "a cat"]))
    assert (given.steps, given.seed, given.words) == (7, 3, ((), ()))
    for strange in (["--vision-scale", "1,0.5"], ["--num-images", "9"], ["--scope", "2"], ["--width", "17"]):
        with pytest.raises(ValueError, match=r"strength|number of pictures|scope|width"):
            first_settings(mini_pipeline, sample_options.parse(strange))


@pytest.mark.parametrize("change, field, said", [
    ({"prompt": " "}, "prompt", "The prompt is empty"),
    ({"prompt": "dog " * 300}, "prompt", "1200 characters; at most 1000"),
    ({"prompt": "a dog \ud83d"}, "prompt", "half of a character"),
    ({"references": (None, None)}, "reference_1", "is missing"),
    ({"references": (DOG, __file__), "words": (("1 dog",), ("4 beach",))}, "reference_2", "test_demo.py is no picture"),
    ({"words": ((), ())}, "words_1", "Click on the word"),
    ({"words": (("0 a", "4 beach"), ())}, "words_1", "side by side"),
    ({"prompt": "a zebra", "words": (("1 zebra",), ())}, "words_1", "never learnt 'zebra'"),
    ({"references": (DOG, CAR), "words": (("1 dog",), ("1 dog",))}, "words_2", "is given 2 times"),
    ({"references": (None, CAR), "words": ((), ())}, "words_2", "Click on the word"),
    ({"steps": 0}, "steps", "steps is 0"), ({"steps": 61}, "steps", "at most 60"), ({"steps": 2.5}, "steps", "whole"),
    ({"count": 5}, "count", "at most 4"), ({"count": 0}, "count", "num_images is 0"),
    ({"seed": -1}, "seed", "seed is -1"), ({"seed": None}, "seed", "seed is empty"),
    ({"seed": 2**32}, "seed", "from 0 to 4294967295"),
    ({"width": 17}, "width", "the nearest are"), ({"height": 999}, "height", "height is 999"),
    ({"scope": 0}, "scope", "in (0, 1]"), ({"strength": float("nan")}, "strength", "finite"),
    ({"guidance": float("inf")}, "guidance", "finite"), ({"guidance": "much"}, "guidance", "guidance is 'much'"),
])
def test_each_mistake_is_told_beside_its_field(mini_pipeline, settings, change, field, said):
    found = problems(mini_pipeline, dataclasses.replace(settings, **change))
    assert list(found) == [field] and said in found[field]
    assert "\n" not in found[field] and found[field].endswith(".")


def test_several_mistakes_are_told_at_once(mini_pipeline, settings):
    assert set(problems(mini_pipeline, dataclasses.replace(settings, words=((), ()), seed=-1, count=9))) == {
        "words_1", "seed", "count"}


def test_unknown_words_and_an_end_that_is_not_read_are_noted(mini_pipeline):
    assert notes(mini_pipeline, "a dog on the beach") == notes(mini_pipeline, "") == []
    (unknown,) = notes(mini_pipeline, "a purple dog")
    assert "'purple'" in unknown
    (cut,) = notes(mini_pipeline, "a dog and " * 9)
    assert "its end is ignored" in cut


# The studio


def test_steps_come_one_by_one_and_the_result_at_last():
    def call(on_step):
        for i in range(3):
            on_step(i)
        return "made"

    assert list(step_by_step(call)) == [1, 2, 3, "made"]


def test_what_a_call_raises_is_raised_where_its_steps_are_read():
    def call(on_step):
        on_step(0)
        raise ValueError("no such picture")

    steps = step_by_step(call)
    assert next(steps) == 1
    with pytest.raises(ValueError, match="no such picture"):
        next(steps)


class _SlowModel:
    """Makes a step in ten milliseconds, and counts them, and how many calls run at once."""

    preset = dataclasses.make_dataclass("Preset", [("match", str, "word")])()

    def __init__(self):
        self.steps, self.running, self.most = [], 0, 0

    def __call__(self, references, *, prompt, target, seed, on_step, **options):
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for i in range(options["steps"]):
                time.sleep(0.01)
                self.steps.append(seed)
                on_step(i)
        finally:
            self.running -= 1
        return Result([], np.zeros((1,)), np.ones((9,)), [], tuple(target), prompt, seed)


def test_a_call_that_nobody_waits_for_stops_at_its_next_step_and_the_next_one_runs(settings):
    model = _SlowModel()
    studio = Studio(model)
    left = studio.make(dataclasses.replace(settings, steps=1000, seed=1))
    assert [next(left), next(left)] == [1, 2]
    left.close()  # as when a browser is closed
    *steps, result = studio.make(dataclasses.replace(settings, steps=3, seed=2))
    assert steps == [1, 2, 3] and (result.seed, result.targets) == (2, ("dog",))
    assert model.most == 1 and model.steps.count(1) < 20
    assert not result.latents.size  # which a server need not keep


def test_two_at_once_wait_for_each_other_and_get_their_own(settings):
    model, made = _SlowModel(), {}
    studio = Studio(model)

    def person(seed):
        *_, made[seed] = studio.make(dataclasses.replace(settings, seed=seed))

    threads = [threading.Thread(target=person, args=(seed,)) for seed in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert {seed: result.seed for seed, result in made.items()} == {0: 0, 1: 1, 2: 2} and model.most == 1


# The command line


def test_the_command_says_what_was_set(tmp_path, settings):
    own = _saved(tmp_path, "my own car.png", b"x")
    line = command.command_line(dataclasses.replace(
        settings, prompt="a dog's hat and a car; rm -rf *", references=(DOG, str(own)),
        words=(("1 dog's",), ("5 car",)), steps=4, guidance=2.5, strength=0.7, seed=9, count=2),
        [("preset", "paper")], few_steps=4)
    program, *words = shlex.split(line)
    options = sample_options.parse(words)
    assert program == "realcustom" and str(tmp_path) not in line
    assert options.image == ["realcustom_jax/assets/references/dog.png", "my own car.png"]
    assert options.target == ["dog's", "car"] and options.prompt == "a dog's hat and a car; rm -rf *"
    assert (options.width, options.height, options.steps, options.guidance, options.scope, options.vision_scale,
            options.seed, options.num_images) == (16, 16, 4, 2.5, 0.25, 0.7, 9, 2)
    assert options.preset == "paper" and options.few_steps is False
    assert Path(__file__).parents[1].joinpath(options.image[0]).is_file()


def test_a_value_that_looks_like_an_option_stays_a_value(settings):
    line = command.command_line(dataclasses.replace(settings, prompt="-v dog", words=(("1 dog",), ()), guidance=-1.0))
    options = sample_options.parse(shlex.split(line)[1:])
    assert (options.prompt, options.guidance) == ("-v dog", -1.0)


def test_the_miniature_makes_few_steps_only_if_the_command_is_not_told_otherwise(settings):
    count = ModelSource.open("mini").few_steps_limit
    assert count == 4
    assert "--no-few-steps" not in command.command_line(dataclasses.replace(settings, steps=5), few_steps=count)


def test_the_options_that_load_the_model_are_in_the_command():
    from realcustom_jax.demo.__main__ import _parser

    parser = _parser()
    options = parser.parse_args("--model m --lora a.safetensors:0.5 --dtype bfloat16 --offload --port 1".split())
    assert command.loading_options(options, parser) == [
        ("model", "m"), ("dtype", "bfloat16"), ("lora", "a.safetensors:0.5"), ("offload", None)]
    assert command.loading_options(parser.parse_args([]), parser) == []


# Masks


def test_the_mask_of_a_step_is_shown_on_its_picture():
    masks = np.zeros((3, 2, 1, 4, 4), np.float32)
    masks[1, 1, 0, 0, 0] = 1
    result = Result([Image.new("RGB", (8, 8), "white")] * 2, masks, np.zeros(0), [], ("<dog>",), "a <dog>", 0)

    def corner(picture, step):
        return pictures.mask_of_step(result, picture, step).getpixel((10, 10))

    assert corner(1, 2) != (255, 255, 255) == corner(1, 1) == corner(0, 2)
    assert corner(1, 99) == corner(1, 3) and corner(-5, 0) == corner(0, 1)
    assert "Step 2 of 3" in pictures.legend(result, 2) and "&lt;dog&gt;" in pictures.legend(result, 2)


# The server


@pytest.fixture(scope="module")
def server(mini_pipeline, tmp_path_factory):
    """(address, the folder of uploads) of a page of the random miniature."""
    pytest.importorskip("gradio")
    folder = tmp_path_factory.mktemp("uploads")
    before = dict(os.environ)
    os.environ |= {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False"}
    from realcustom_jax.demo.page import build_page, serve

    page = build_page(Studio(mini_pipeline), first_settings(mini_pipeline, sample_options.parse([])))
    yield serve(page, folder, host="127.0.0.1", port=fresh_process.free_port(), wait=False).rstrip("/"), folder
    page.close()
    os.environ.clear()
    os.environ.update(before)


def _status(address: str, **options) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, **options), timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.mark.parametrize("path", [
    "/etc/passwd", "../../../../etc/passwd", __file__, str(Path(__file__).parents[1] / "README.md"),
    str(uploads.ASSETS / "mini" / "preset.json"), f"{uploads.EXAMPLES}/../mini/preset.json",
    "http://127.0.0.1:9/", "https://example.org/a.png", "HTTP://127.0.0.1:9/",
])
def test_no_file_but_the_page_s_own_is_served(server, path):
    status, content = _status(f"{server[0]}/gradio_api/file={path}")
    assert status in (403, 404) and b"root:" not in content


def test_the_bundled_references_are_served_from_where_they_are(server):
    """Copies in the folder of uploads would be deleted when they are old, and the page would lose them."""
    config = json.loads(_status(f"{server[0]}/config")[1])
    files = re.findall(r'"path": "(/[^"]*\.png)"', json.dumps(config))
    assert len(files) >= 5 and {str(Path(file).parent) for file in files} == {str(uploads.EXAMPLES)}
    assert _status(f"{server[0]}/gradio_api/file={DOG}") == (200, Path(DOG).read_bytes())


def _posted(address: str, name: str, content: bytes) -> tuple[int, bytes]:
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    return _status(f"{address}/gradio_api/upload", data=head + content + b"\r\n--x--\r\n",
                   headers={"Content-Type": "multipart/form-data; boundary=x"})


def test_an_upload_lies_in_the_own_folder_under_its_own_name_and_may_not_be_too_large(server):
    address, folder = server
    status, answer = _posted(address, "../../dog.png", Path(DOG).read_bytes())
    assert status == 200 and Path(json.loads(answer)[0]).resolve().is_relative_to(folder.resolve())
    status, answer = _posted(address, "large.png", bytes(uploads.MOST_BYTES + 1))
    assert status == 413


def _checked_as_reference(address: str, path: str) -> tuple[int, bytes]:
    """Asks as the page does when a picture was uploaded, but with any path."""
    config = json.loads(_status(f"{address}/config")[1])
    number = next(fn["id"] for fn in config["dependencies"] if fn["targets"][0][1] == "upload")
    body = {"fn_index": number, "session_hash": "x", "data": [{"path": path, "meta": {"_type": "gradio.FileData"}}]}
    return _status(f"{address}/gradio_api/run/predict", data=json.dumps(body).encode(),
                   headers={"Content-Type": "application/json"})


def test_only_uploaded_files_are_read_as_references(server):
    address, _ = server
    uploaded = json.loads(_posted(address, "mine.png", b"no picture")[1])[0]
    status, answer = _checked_as_reference(address, uploaded)
    assert status == 200 and b"mine.png is no picture" in answer
    for path in ("/etc/passwd", __file__, "http://127.0.0.1:9/a.png", "HTTPS://example.org/a.png",
                 "file:///etc/passwd", f"{uploads.EXAMPLES}/../mini/preset.json",
                 f"{uploaded}/../../../../../../etc/passwd"):
        status, answer = _checked_as_reference(address, path)
        assert status >= 400 and b"no picture" not in answer and b"root:" not in answer, path


def test_the_page_names_no_other_server_and_no_analytics(server):
    config = json.loads(_status(f"{server[0]}/config")[1])
    assert config["analytics_enabled"] is False and not config.get("run_history") and not config["footer_links"]
    assert b"fonts.googleapis" not in _status(f"{server[0]}/theme.css")[1]


@pytest.mark.parametrize("host, port, said", [
    ("127.0.0.1", None, "in use"), ("127.0.0.1", 99999, "from 1 to 65535"), ("127.0.0.1", -1, "from 1 to 65535"),
    ("no host", 7860, "no host"),
])
def test_an_address_that_cannot_be_used_is_told_before_the_model_loads(host, port, said):
    from realcustom_jax.demo.__main__ import _check_address

    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(ValueError, match=f"{said}.*give another --port or --host"):
            _check_address(host, port or taken.getsockname()[1])
    _check_address("127.0.0.1", fresh_process.free_port())


@pytest.mark.slow
def test_without_gradio_the_command_names_the_extra(tmp_path):
    (tmp_path / "gradio.py").write_text("raise ModuleNotFoundError(\"No module named 'gradio'\", name='gradio')")
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-m", "realcustom_jax.demo"], capture_output=True, text=True, cwd=root,
                          env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"})
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert 'pip install "realcustom-jax[demo]"' in done.stderr
