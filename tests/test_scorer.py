"""Scores of real photographs by every protocol, against torch, transformers and Pillow with the same random weights."""

import functools
import warnings
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageDraw
from tests import metric_networks as networks
from tests.photographs import photographs

from realcustom_jax.evaluation.protocols import PROTOCOLS
from realcustom_jax.evaluation.rows import ComparedSubject, PictureRow
from realcustom_jax.evaluation.scorer import open_scorer

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


@pytest.mark.parametrize("protocol", ["mip_adapter", "realcustom"])
def test_three_photographs(made, tmp_path, protocol):
    rows = rows_of([photographs()[i] for i in (2, 10, 6, 4)], tmp_path)
    check(protocol, made.case(protocol), rows[:3])


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_twenty_photographs(made, tmp_path, protocol):
    check(protocol, made.case(protocol), rows_of(photographs(), tmp_path))
