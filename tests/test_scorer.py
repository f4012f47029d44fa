"""Scores of real photographs by every protocol, against torch, transformers and Pillow with the same random weights."""

import functools
import importlib.machinery
import json
import shutil
import sys
import types
import warnings
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageDraw

from realcustom_jax.evaluation.encoders import known_name
from realcustom_jax.evaluation.protocols import PROTOCOLS
from realcustom_jax.evaluation.rows import ComparedSubject, PictureRow
from realcustom_jax.evaluation.scorer import open_scorer
from tests import metric_networks as networks
from tests.photographs import photographs

PROMPTS = ("a photo of a dog on the beach", "The CAT, in snow; with a red hat!", "a blue car at night " * 40)
ALL_WHITE = (255, 255, 255)


class Case(NamedTuple):
    """Files by slot, and the same networks in torch."""

    files: dict
    torch: dict


def processors(side):
    clip = pytest.importorskip("transformers.models.clip.image_processing_pil_clip").CLIPImageProcessorPil
    bit = pytest.importorskip("transformers.models.bit.image_processing_pil_bit").BitImageProcessorPil
    return (clip(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
            bit(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, image_mean=networks.MEAN,
                image_std=networks.STD))


class Networks:
    """Makes each network once; protocols share them."""

    def __init__(self, folder):
        self.folder = folder

    @functools.cache  # noqa: B019
    def clip(self, slot, side=224):
        model, tokenizer = networks.clip_folder(
            self.folder / f"{slot}-{side}", side=side, seed=len(slot), patch=28 if side == 336 else 32)
        return self.folder / f"{slot}-{side}", model, tokenizer

    @functools.cache  # noqa: B019
    def dino(self, layout):
        if layout == "hub":
            model = networks.vit(patch=32)
            return networks.hub_file(model, self.folder / "dino" / "dino.pth"), model
        if layout == "transformers":
            model = networks.vit(patch=32, seed=3)
            model.save_pretrained(self.folder / "vit")
            return self.folder / "vit", model
        model = networks.vit(dinov2=True, side=518, patch=14)
        if layout == "dinov2 of transformers":
            model.save_pretrained(self.folder / "dinov2")
            return self.folder / "dinov2", model
        file = networks.hub_file(model, self.folder / "dinov2hub" / "dinov2.pth")
        return file, networks.with_hub_positions(model)

    def case(self, protocol) -> Case:
        """Files for a protocol, and what its script makes of them: which processor it loads is written out here."""
        own = protocol in ("mip_adapter", "uno")
        files, torch = {}, {}
        for slot, side in {"xverse": {}, "dsh_bench": {"clip": 224, "clip_l14": 224, "clip_l14_336": 336},
                           "realcustom": {"clip": 224, "clip_l14": 224}}.get(protocol, {"clip": 224}).items():
            files[slot], *model = self.clip(slot, side)
            torch[slot] = networks.TorchClip(*model, None if own else processors(side)[0])
        files["dino"], model = self.dino("transformers" if protocol == "xverse" else "hub")
        torch["dino"] = networks.TorchDino(model)
        if protocol == "dreambench_plus":
            files["dinov2"], model = self.dino("dinov2 of transformers")
            torch["dinov2"] = networks.TorchDino(model, processors(224)[1])
        if protocol == "dsh_bench":
            files["dinov2"], model = self.dino("dinov2 of the hub")
            torch["dinov2"] = networks.TorchDino(model)
        return Case(files, torch)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    pytest.importorskip("torch")
    return Networks(tmp_path_factory.mktemp("networks"))


def opened(protocol, files):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The scores are not comparable")
        return open_scorer(protocol, files)


def painted_mask(file, size, i):
    """An ellipse."""
    mask = Image.new("L", size)
    width, height = size
    ImageDraw.Draw(mask).ellipse((width * (i % 3) / 8, height / 5, width * 0.7, height * (0.6 + i % 4 / 10)), fill=255)
    mask.save(file)
    return file


def rows_of(files, folder):
    """A row for each photograph, compared with the three that follow: two of one subject, one of another."""
    masks = []
    for i, file in enumerate(files):
        with Image.open(file) as image:
            masks.append(painted_mask(folder / f"mask{i}.png", image.size, i))
    rows = []
    for i, file in enumerate(files):
        a, b, c = ((i + k) % len(files) for k in (1, 2, 3))
        boxes = [(3, 4, 150, 90.5), (10, 20, 11, 21), (40, 30, 140, 170), (0, 0, 120, 120), (5, 5, 200, 200)]
        subjects = (ComparedSubject((files[a], files[b]), (masks[a], masks[b]), masks[i], tuple(boxes[i % 3:])),
                    ComparedSubject((files[c],), (masks[c],), masks[i], ()))[:2 - i % 2]
        rows.append(PictureRow(f"rows.jsonl, line {i + 1}", f"row{i}", file, PROMPTS[i % 3], subjects, f"s{i}"))
    return rows


def cut(file, mask):
    image = Image.open(file).convert("RGB")
    white = Image.new("RGB", image.size, ALL_WHITE)
    white.paste(image, mask=Image.open(mask).point(lambda value: 255 * (value > 127)))
    return white


def best_crop(dino, row, subject, reference):
    """XVerse's: crops of what the mask leaves, of enough pixels, three at most, each in a white square."""
    image, crops = cut(row.picture, subject.mask), []
    least = image.width // 20
    for box in subject.boxes:
        x0, y0, x1, y1 = np.clip(np.round(box).astype(int), 0, [*image.size] * 2)
        width, height = x1 - x0, y1 - y0
        if width * height >= least * least and min(width, height) >= least // 4:
            crop = np.full((max(width, height),) * 2 + (3,), 255, np.uint8)
            top, left = (len(crop) - height) // 2, (len(crop) - width) // 2
            crop[top:top + height, left:left + width] = np.asarray(image)[y0:y1, x0:x1]
            crops.append(Image.fromarray(crop))
    reference = dino.picture(Image.open(reference).convert("RGB"))
    return max([float(dino.picture(crop) @ reference) for crop in crops[:3]], default=0.0)


def expected(protocol, torch, row):
    """A row's scores by the protocol, from its script."""
    read = Image.open if protocol in ("mip_adapter", "uno") else lambda file: Image.open(file).convert("RGB")
    image, scores = read(row.picture), {}

    def alike(slot, see=read):
        """The mean over subjects of the mean over references."""
        return np.mean([np.mean([float(torch[slot].picture(image if see is read else cut(row.picture, subject.mask)) @
                                       torch[slot].picture(see(*pair[:1 if see is read else 2])))
                                 for pair in zip(subject.references, subject.reference_masks, strict=True)])
                        for subject in row.subjects])

    def fits(slot):
        return float(torch[slot].picture(image) @ torch[slot].text(row.prompt))

    if protocol == "xverse":
        return {"dino_i": 100 * np.mean([np.mean([best_crop(torch["dino"], row, subject, reference)
                                                  for reference in subject.references]) for subject in row.subjects])}
    if protocol == "dsh_bench":
        scores = {"clip_t": fits("clip"), "clip_l_t": fits("clip_l14"), "clip_i": alike("clip"),
                  "clip_l_i": alike("clip_l14_336"), "dino_i": alike("dino"), "dinov2_i": alike("dinov2")}
    elif protocol == "realcustom":
        scores = {"clip_t": fits("clip"), "clip_l_t": fits("clip_l14"), "clip_i": alike("clip", cut),
                  "clip_l_i": alike("clip_l14", cut), "dino_i": alike("dino", cut)}
    else:
        scores = {"clip_t": fits("clip"), "clip_i": alike("clip"), "dino_i": alike("dino")}
    if protocol == "dreambench_plus":
        scores = {name: 100 * value for name, value in (scores | {"dinov2_i": alike("dinov2")}).items()}
    if protocol == "mip_adapter":
        scores["clip_t"] = 2.5 * max(scores["clip_t"], 0)
    if protocol == "uno":
        scores["clip_t"] = max(scores["clip_t"], 0)
    return scores


def check(protocol, case, rows):
    scorer = opened(protocol, case.files)
    unit = 100 if protocol in ("dreambench_plus", "xverse") else 1
    theirs = [expected(protocol, case.torch, row) for row in rows]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The prompt exceeds 77 tokens")
        ours = [scorer.scores(row) for row in rows]
    for mine, other in zip(ours, theirs, strict=True):
        assert tuple(mine) == scorer.metrics == tuple(other)
        for name in other:
            assert mine[name] == pytest.approx(other[name], abs=1e-4 * unit), name
    for name in scorer.metrics:
        mean = np.mean([other[name] for other in theirs])
        mean = max(mean, 0) if protocol == "kosmos_g" else mean
        assert scorer.protocol.mean([mine[name] for mine in ours]) == pytest.approx(mean, abs=1e-4 * unit)
        assert np.std([other[name] for other in theirs]) > 1e-3 * unit or name.endswith("_t")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A CLIP of 64 pixels, and a DINO, beside which a JSON says that it takes 64."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("small")
    clip = networks.TorchClip(*networks.clip_folder(folder / "clip", side=64))
    dino = networks.vit(side=64)
    files = {"clip": folder / "clip", "dino": networks.hub_file(dino, folder / "dino" / "dino.pth")}
    return Case(files, {"clip": clip, "dino": networks.TorchDino(dino)})


@pytest.fixture(scope="module")
def small_scorer(small):
    return opened("mip_adapter", small.files)


def test_two_photographs_by_small_networks(small, tmp_path):
    """They are shown as many pixels as they take, cut out in the scripts' proportion."""
    check("mip_adapter", small, rows_of([photographs()[i] for i in (2, 10, 4, 6)], tmp_path)[:2])


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_twenty_photographs(made, tmp_path, protocol):
    check(protocol, made.case(protocol), rows_of(photographs(), tmp_path))


def test_a_reference_and_a_prompt_are_seen_once(small_scorer, tmp_path, monkeypatch):
    clip = small_scorer._encoders["clip"]
    seen = []
    monkeypatch.setattr(type(clip), "picture", lambda self, image: seen.append("picture") or np.ones(3) / 3 ** 0.5)
    monkeypatch.setattr(type(clip), "text", lambda self, prompt: seen.append("text") or np.ones(3) / 3 ** 0.5)
    monkeypatch.setattr(type(small_scorer._encoders["dino"]), "picture", lambda self, image: np.ones(2) / 2 ** 0.5)
    file = tmp_path / "x.png"
    Image.new("RGB", (8, 8)).save(file)
    references = tuple(tmp_path / f"{i}.png" for i in range(2))
    for reference in references:
        Image.new("RGB", (8, 8)).save(reference)
    for i in range(3):
        row = PictureRow("x", f"{i}", file, "seen once", (ComparedSubject(references),), "g")
        assert small_scorer.scores(row) == pytest.approx({"clip_t": 2.5, "clip_i": 1.0, "dino_i": 1.0})
    assert seen.count("text") == 1 and seen.count("picture") == 3 + 2


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_the_processor_in_the_folder_counts_where_the_script_loads_it(small, tmp_path, name):
    folder = tmp_path / "clip"
    shutil.copytree(small.files["clip"], folder)
    said = {"size": {"shortest_edge": 90}, "crop_size": {"height": 64, "width": 64}, "image_mean": [0.5] * 3,
            "do_resize": None}
    (folder / name).write_text(json.dumps(said if name.startswith("pre") else {"image_processor": said}))
    files = small.files | {"clip": folder}
    kosmos, uno = (opened(protocol, files)._encoders["clip"]._preparation for protocol in ("kosmos_g", "uno"))
    assert (kosmos.resize, kosmos.crop, kosmos.mean, kosmos.centre) == (90, (64, 64), (0.5,) * 3, "transformers")
    assert (uno.resize, uno.crop, uno.mean, uno.centre) == (64, (64, 64), tuple(networks.CLIP_MEAN), "torchvision")
    said["crop_size"] = 60
    (folder / name).write_text(json.dumps(said if name.startswith("pre") else {"image_processor": said}))
    refused(lambda: open_scorer("kosmos_g", files), ValueError, "crops pictures to 60 × 60 pixels, and")


def test_a_json_of_another_network_does_not_hide_what_the_files_name_says(small, tmp_path):
    """A CLIP's config.json in the same folder; dino_vits16 is wider than these weights."""
    shutil.copytree(small.files["clip"], tmp_path / "all")
    shutil.copy(small.files["dino"], tmp_path / "all" / "dino_vits16.pth")
    refused(lambda: open_scorer("uno", {"dino": tmp_path / "all" / "dino_vits16.pth"}), ValueError, "shape.*384")


@pytest.mark.parametrize(("config", "side", "crop"), [
    ({"img_size": 32}, 32, (37, (32, 32))), ({}, 224, (256, (224, 224))), ({"img_size": 518}, 224, (256, (224, 224))),
    ({"img_size": [64, 64]}, 64, (73, (64, 64)))])
def test_how_many_pixels_a_dino_is_shown(tmp_path, config, side, crop):
    """Its img_size, cut from what is larger as 256 is than 224; DINOv2's 518 is 224."""
    networks.hub_file(networks.vit(side=64), tmp_path / "dino.pth")
    said = json.loads((tmp_path / "config.json").read_text())
    del said["img_size"]
    (tmp_path / "config.json").write_text(json.dumps(said | config))
    encoder = opened("uno", {"dino": tmp_path / "dino.pth"})._encoders["dino"]
    assert (encoder._preparation.resize, encoder._preparation.crop) == crop
    assert encoder.record["architecture"]["img_size"] == [side, side]


@pytest.mark.parametrize("side", [0, "224", [224, 196]])
def test_a_side_that_is_none_is_one_sentence(tmp_path, side):
    networks.hub_file(networks.vit(side=64), tmp_path / "dino.pth")
    (tmp_path / "config.json").write_text(json.dumps({"img_size": side}))
    refused(lambda: open_scorer("uno", {"dino": tmp_path / "dino.pth"}), ValueError, "img_size is .* square's side")


@pytest.mark.parametrize(("text", "name"), [
    ("dino_deitsmall16_pretrain.pth", "dino_vits16"), ("dino_vitbase8_pretrain.pth", "dino_vitb8"),
    ("dino_vits16.safetensors", "dino_vits16"), ("dino-vitb8", "dino_vitb8"), ("dinov2-small", "dinov2_vits14"),
    ("dinov2_vits14_reg4_pretrain.pth", "dinov2_vits14_reg"), ("dinov2-with-registers-base", "dinov2_vitb14_reg"),
    ("vit_small_patch16_224.dino", "dino_vits16"), ("vit_large_patch14_reg4_dinov2.lvd142m", "dinov2_vitl14_reg"),
    ("model.safetensors", None), ("vit_base_patch16_224.augreg", None), ("dinov3_vits16", None), ("dino_vits32", None)])
def test_published_names(text, name):
    assert known_name(text) == name


def refused(make, kind, message):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The scores are not comparable")
        with pytest.raises(kind, match=message) as caught:
            make()
    assert "\n" not in str(caught.value)


def test_networks_that_are_not_the_protocols_are_told(small):
    with pytest.warns(UserWarning, match="not comparable with published ones of the protocol kosmos_g: clip is not "
                                         "openai/clip-vit-large-patch14, dino is not dino_vits16"):
        scorer = open_scorer("kosmos_g", small.files)
    record = scorer.networks["dino"]
    assert record["as_published"] is False and record["published"] == "dino_vits16"
    assert record["architecture"]["embed_dim"] == 32 and len(record["sha256"]["dino.pth"]) == 64
    json.dumps(scorer.networks)


def test_metrics_without_weights_are_skipped_with_a_sentence(small, monkeypatch):
    scorer = opened("dsh_bench", {"clip": small.files["clip"], "image_reward": "ImageReward.pt"})
    assert scorer.metrics == ("clip_t", "clip_i") and list(scorer.networks) == ["clip"]
    assert set(scorer.skipped) == {metric.name for metric in PROTOCOLS["dsh_bench"].metrics} - {"clip_t", "clip_i"}
    assert scorer.skipped["clip_l_i"] == "clip_l_i is skipped: no weights were given for the network clip_l14_336."
    assert "the package image-reward is not installed" in scorer.skipped["image_reward"]
    refused(lambda: open_scorer("uno", {}), ValueError, "The protocol uno scores nothing without its networks")
    refused(lambda: open_scorer("xverse", {"clip": small.files["clip"]}), ValueError, "scores nothing without")


def test_unknown_names_are_told_with_the_nearest(small):
    refused(lambda: open_scorer("kosmosg", small.files), ValueError, "Unknown protocol 'kosmosg'.*mean 'kosmos_g'")
    refused(lambda: open_scorer("uno", {"dinov1": "x"}), ValueError, "Unknown network 'dinov1'.*mean 'dinov2'")


def test_files_that_do_not_fit_are_one_sentence(small, tmp_path):
    files = small.files
    refused(lambda: open_scorer("uno", {"clip": tmp_path / "none"}), FileNotFoundError, "is no folder; --clip takes")
    refused(lambda: open_scorer("uno", {"dino": tmp_path / "none.pth"}), FileNotFoundError, "--dino takes the weights")
    refused(lambda: open_scorer("uno", {"clip": files["dino"].parent}), ValueError, "not that of a whole CLIP")
    other = tmp_path / "dino_vits16.pth"
    other.write_bytes(files["dino"].read_bytes())
    refused(lambda: open_scorer("uno", {"dino": other}), ValueError, "dino_vits16.pth.*shape")
    nameless = tmp_path / "weights.pth"
    nameless.write_bytes(files["dino"].read_bytes())
    refused(lambda: open_scorer("uno", {"dino": nameless}), ValueError,
            "nothing says which network this is.*dino_vits16.pth")


def test_rows_that_cannot_be_scored_name_themselves(small, small_scorer, tmp_path):
    picture = tmp_path / "x.png"
    Image.new("RGB", (40, 30)).save(picture)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"none")

    def row(file, *references, **given):
        return PictureRow("rows.jsonl, line 3", "x", file, "a cat", (ComparedSubject(references, **given),), "g")

    refused(lambda: small_scorer.scores(row(tmp_path / "none.png", picture)), FileNotFoundError,
            "^rows.jsonl, line 3: the picture .*none.png does not exist")
    refused(lambda: small_scorer.scores(row(picture, broken)), ValueError, "^rows.jsonl, line 3: the picture .*broken")
    xverse = opened("xverse", {"dino": small.files["dino"]})
    refused(lambda: xverse.scores(row(picture, picture)), ValueError, "^rows.jsonl, line 3: .*has no boxes")
    assert xverse.scores(row(picture, picture, boxes=())) == {"dino_i": 0.0}
    realcustom = opened("realcustom", {"dino": small.files["dino"]})
    refused(lambda: realcustom.scores(row(picture, picture)), ValueError, "line 3: .*no mask of its own picture")
    refused(lambda: realcustom.scores(row(picture, picture, picture, mask=picture, reference_masks=(picture,))),
            ValueError, "line 3: .*no mask for each of its 2 references .1 are given.")


def test_image_rewards_own_package_scores(small, tmp_path, monkeypatch):
    """A stand-in for the package, which needs weights of 1.8 GB: what it is asked for, and the raw score as it is."""
    asked = []

    class Model:
        def score(self, prompt, image):
            asked.append((prompt, image.size))
            return 0.5

    stand_in = types.ModuleType("ImageReward")
    stand_in.__spec__ = importlib.machinery.ModuleSpec("ImageReward", None)
    stand_in.load = lambda name, med_config: asked.append((name, med_config)) or Model()
    monkeypatch.setitem(sys.modules, "ImageReward", stand_in)
    weights, config = tmp_path / "ImageReward.pt", tmp_path / "med_config.json"
    weights.write_bytes(b"weights")
    refused(lambda: open_scorer("realcustom", {"image_reward": weights}), FileNotFoundError, "med_config.json does not")
    config.write_text("{}")
    scorer = open_scorer("dsh_bench", {"image_reward": weights})
    picture = tmp_path / "x.png"
    Image.new("RGB", (40, 30)).save(picture)
    scores = scorer.scores(PictureRow("x", "x", picture, "a cat", (ComparedSubject((picture,)),), "g"))
    # The normal distribution's share below 0.5.
    assert scores == {"image_reward": 0.5, "image_reward_normalised": pytest.approx(0.691462)}
    assert asked == [(str(weights), str(config)), ("a cat", (40, 30))]
