"""From a bank of paintings to batches: what is composed lies where it should, and what is drawn follows the seed."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import realcustom_jax as rc
from realcustom_jax.conditioning.prompts import encode_prompt
from realcustom_jax.data.sprites import bank as banks
from realcustom_jax.data.sprites.bank import BankConfig, bank_of, paint_bank
from realcustom_jax.data.sprites.captions import TELLABLE, Spelling, caption
from realcustom_jax.data.sprites.composition import Paintings, compose, compose_few, crop
from realcustom_jax.data.sprites.draws import DIFFICULTIES, draw_layout, draw_references, draw_things, place
from realcustom_jax.data.sprites.world import (
    FRAME,
    HELD_OUT_NOUNS,
    NOUNS,
    SCENES,
    Identity,
    Placement,
    paint,
    split_of,
)
from realcustom_jax.models.resize import average_pixels
from realcustom_jax.training.curriculum import Curriculum
from realcustom_jax.training.miniature.pictures import PictureBatches, compose_references, covered

pytestmark = pytest.mark.usefixtures("quickly_compiled")
DOG = Identity("dog", "red", "blue", "stripes", "hat", "slim")
ROCKET = Identity("rocket", "white", "pink", "halves", "flag", "stout")
TWO = Curriculum("recontextualisation")


@pytest.fixture(scope="module")
def pair():
    """A bank of a dog and a rocket, in full resolution, in a meadow."""
    return bank_of([(DOG, 0.4), (ROCKET, -0.2)], [("meadow", 3)], BankConfig())


def layout_of(bank, things, x, y, size, mirrored=False, scene=0):
    """One picture without chance in it."""
    made = place(np.random.default_rng(0), bank, np.array([things]), np.array([scene]), *(
        np.array([np.broadcast_to(value, 2)]) for value in (x, y, size, mirrored)))
    return made.replace(mirrored_scene=np.array([False]))


def composed(bank, layout):
    return (np.asarray(x) for x in compose_few(bank.cut_outs, bank.scenes, layout))


@pytest.fixture
def batches(tiny_bank, sprite_tokenizer):
    def make(**options):
        return PictureBatches(tiny_bank, Spelling(sprite_tokenizer), **{"batch_size": 16, "seed": 0} | options)

    return make


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


# -------------------- the bank


def test_a_bank_has_every_noun_in_turn_and_each_identity_in_several_poses(tiny_bank):
    assert tiny_bank.cut_outs.shape == (72, 36, 36, 4) and tiny_bank.scenes.shape == (20, 32, 32, 3)
    assert tiny_bank.identities[::2, 0].tolist() == [*range(len(NOUNS))] * 2
    assert np.array_equal(tiny_bank.identities[::2], tiny_bank.identities[1::2])
    poses = np.sort(tiny_bank.poses.reshape(-1, 2), axis=1)
    assert (poses[:, 0] <= 0).all() and (poses[:, 1] >= 0).all()
    assert np.bincount(tiny_bank.scene_names).tolist() == [2] * len(SCENES)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_bank_shows_identities_of_its_split_only(split):
    bank = paint_bank(BankConfig(identities=54, poses=1, scenes=1, side=32, cut_out=12, split=split))
    assert {split_of(bank.identity(i)) for i in range(len(bank.cut_outs))} == {split}


def test_bounds_are_the_edges_of_the_thing(pair):
    for picture, (left, top, right, bottom) in zip(pair.cut_outs, pair.bounds, strict=True):
        opaque, middle = picture[..., 3] > 0, len(picture) / 2
        edges = [np.round(middle + edge / FRAME * len(picture)).astype(int) for edge in (left, top, right, bottom)]
        assert opaque[edges[1] : edges[3], edges[0] : edges[2]].sum() == opaque.sum()
        assert opaque[edges[1]].any() and opaque[edges[3] - 1].any()
        assert opaque[:, edges[0]].any() and opaque[:, edges[2] - 1].any()


def test_a_painted_bank_is_read_again_and_a_half_painted_one_is_not_trusted(tmp_path, monkeypatch):
    config = BankConfig(identities=18, poses=2, scenes=1, side=32, cut_out=12)
    first, kept = paint_bank(config, tmp_path), paint_bank(config)
    with monkeypatch.context() as patch:
        patch.setattr(banks, "_paint", lambda *_: pytest.fail("painted again"))
        again = paint_bank(config, tmp_path)
    for name in ("cut_outs", "identities", "poses", "bounds", "scenes", "scene_names"):
        assert np.array_equal(getattr(first, name), getattr(kept, name)), name
        assert np.array_equal(getattr(again, name), getattr(kept, name)), name
    (tmp_path / "bank.json").unlink()
    np.save(tmp_path / "cut_outs.npy", np.zeros((3, 3)))
    assert np.array_equal(paint_bank(config, tmp_path).cut_outs, kept.cut_outs)
    other = paint_bank(dataclasses.replace(config, seed=1), tmp_path)
    assert not np.array_equal(other.identities, kept.identities)
    assert json.loads((tmp_path / "bank.json").read_text())["seed"] == 1


@pytest.mark.slow
def test_several_processes_paint_the_same_bank(monkeypatch):
    config = BankConfig(identities=36, poses=2, scenes=2, side=32, cut_out=12)
    alone = paint_bank(config)
    monkeypatch.setattr(banks, "_PAINTINGS_WORTH_A_PROCESS", 10)
    monkeypatch.setattr(banks.os, "cpu_count", lambda: 2)
    together = paint_bank(config)
    assert np.array_equal(alone.cut_outs, together.cut_outs) and np.array_equal(alone.scenes, together.scenes)


# -------------------- composition


@pytest.mark.parametrize("facing", ["right", "left"])
@pytest.mark.parametrize("thing", [0, 1])
def test_a_composed_picture_is_the_painted_one_and_coverage_is_its_mask(pair, thing, facing):
    identity, pose = (DOG, 0.4) if thing == 0 else (ROCKET, -0.2)
    picture, coverage = composed(pair, layout_of(pair, [thing, -1], 0.45, 0.55, 0.6, facing == "left"))
    painted, masks = paint([(identity, Placement(0.45, 0.55, 0.6, facing, pose))], "meadow", seed=3)
    covered_there = coverage[0, 0] > 0.5
    assert (covered_there & masks[0]).sum() / (covered_there | masks[0]).sum() > 0.95
    assert not coverage[0, 1].any()
    assert np.abs(picture[0] - painted / 255).mean() < 0.015
    changed = np.abs(picture[0] - pair.scenes[0] / 255).max(-1) > 0.02
    assert not (changed & (coverage[0, 0] == 0)).any() and changed[covered_there].mean() > 0.95


def test_resizing_keeps_means(pair):
    """A thing covers its cut-out's area times the square of its scale, and its colours are averaged, not sampled."""
    opacity = pair.cut_outs[0, ..., 3].sum() / 255
    for size in (0.25, 0.4, 0.6):
        picture, coverage = composed(pair, layout_of(pair, [0, -1], 0.5, 0.5, size, scene=-1).replace(
            plain=np.zeros((1, 3), np.float32)))
        scale = size * 128 * FRAME / 144
        assert coverage.sum() == pytest.approx(opacity * scale**2, rel=0.01)
        colours = pair.cut_outs[0, ..., :3].sum((0, 1)) / 255 * scale**2
        np.testing.assert_allclose(picture[0].sum((0, 1)), colours, rtol=0.01)


def test_mirroring_a_thing_mirrors_its_coverage(pair):
    plain, mirrored = (composed(pair, layout_of(pair, [0, -1], x, 0.5, 0.5, flip)) for x, flip in
                       ((0.45, False), (0.55, True)))
    np.testing.assert_allclose(list(plain)[1][..., ::-1], list(mirrored)[1], atol=1e-4)


def test_a_nearer_thing_hides_the_one_behind(pair):
    layout = layout_of(pair, [0, 1], [0.3, 0.7], 0.5, 0.45)
    layout = layout.replace(x=np.array([[0.5, 0.5]], np.float32))
    _, coverage = composed(pair, layout)
    _, behind = composed(pair, layout.replace(thing=np.array([[0, -1]])))
    assert coverage.sum(1).max() < 1 + 1e-5
    assert coverage[0, 0].sum() < 0.8 * behind[0, 0].sum()
    np.testing.assert_allclose(coverage[0, 0], behind[0, 0] * (1 - coverage[0, 1]), atol=1e-5)


@pytest.mark.parametrize("x, y", [(-1.0, -1.0), (2.0, 2.0), (0.5, 2.0)])
def test_what_would_leave_the_picture_is_moved_inside(pair, x, y):
    _, coverage = composed(pair, layout_of(pair, [0, -1], x, y, 0.6))
    _, middle = composed(pair, layout_of(pair, [0, -1], 0.5, 0.5, 0.6))
    assert coverage.sum() == pytest.approx(middle.sum(), rel=0.01)
    too_large = layout_of(pair, [0, -1], x, y, 5.0)
    _, shrunk = composed(pair, too_large)
    assert 0.75 < too_large.size[0, 0] < 0.9
    assert shrunk.sum() == pytest.approx(middle.sum() * (too_large.size[0, 0] / 0.6) ** 2, rel=0.01)


def test_composing_a_few_is_composing_all(tiny_bank):
    rng = np.random.default_rng(0)
    layout = draw_layout(rng, tiny_bank, draw_things(rng, tiny_bank, np.arange(72), 6, 0.5))
    layout = layout.replace(scene=np.where(np.arange(6) == 2, -1, layout.scene).astype(np.int32))
    every = jax.jit(compose)(Paintings(tiny_bank.cut_outs, tiny_bank.scenes), layout)
    for a, b in zip(composed(tiny_bank, layout), every, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_crop_is_the_square_enlarged():
    picture = np.random.default_rng(0).random((2, 32, 32, 3)).astype(np.float32)
    boxes = np.array([[0, 0, 1], [0.5, 0.25, 0.5]], np.float32)
    whole, part = np.asarray(jax.jit(crop)(picture, boxes))
    np.testing.assert_allclose(whole, picture[0], atol=1e-5)
    expected = jax.image.resize(picture[1, 8:24, 16:32], (32, 32, 3), "linear")
    np.testing.assert_allclose(part[2:-2, 2:-2], expected[2:-2, 2:-2], atol=1e-5)


def test_what_things_cover_of_the_latents_is_their_mean():
    coverage = np.zeros((1, 2, 8, 8), np.float32)
    coverage[0, 0, :2, :4], coverage[0, 1, 4:, 4:] = 1, 0.5
    np.testing.assert_allclose(average_pixels(coverage, (2, 2))[0, 0], [[0.5, 0], [0, 0]])
    np.testing.assert_allclose(covered(coverage, (2, 2))[0], [[0.5, 0], [0, 0.5]])


# -------------------- what is drawn


def test_two_things_are_of_two_nouns_and_each_stays_in_its_half(tiny_bank):
    rng = np.random.default_rng(1)
    things = draw_things(rng, tiny_bank, np.arange(72), 200, 0.5)
    two = things[:, 1] >= 0
    assert 0.35 < two.mean() < 0.65
    nouns = tiny_bank.identities[things, 0]
    assert (nouns[two, 0] != nouns[two, 1]).all()
    layout = draw_layout(rng, tiny_bank, things)
    _, coverage = composed(tiny_bank, layout)
    for picture, xs in zip(coverage[two], layout.x[two], strict=True):
        for own, x in zip(picture, xs, strict=True):
            # A resized edge bleeds into the next pixel.
            assert own[:, 17:].max() < 0.02 if x < 0.5 else own[:, :15].max() < 0.02
    areas = average_pixels(coverage, (1, 1))[..., 0, 0]
    assert areas[two].min() > 0.02 and areas[~two, 0].min() > 0.03


def test_references_are_of_the_kinds_that_their_difficulty_says(tiny_bank):
    rng, count = np.random.default_rng(2), 300
    target = draw_layout(rng, tiny_bank, draw_things(rng, tiny_bank, np.arange(72), count, 0.0))
    names, mirrored = tiny_bank.scene_names, target.mirrored[:, 0]
    subject = target.thing[:, 0]
    for difficulty in DIFFICULTIES:
        made = draw_references(rng, tiny_bank, target, np.full(count, difficulty), second=0.5, rows=np.arange(72))
        layout, second = made.layout, made.layout.thing[:, 1]
        assert np.array_equal(tiny_bank.identities[layout.thing[:, 0]], tiny_bank.identities[subject])
        assert (made.cropped == (difficulty == 0)).all()
        assert (layout.thing[:, 0] != subject).all(), "another pose of the same identity"
        far = difficulty > 0.5
        plain = layout.scene < 0
        if far:
            assert 0.15 < plain.mean() < 0.45
            assert (names[layout.scene[~plain]] != names[target.scene[~plain]]).all()
            assert 0.35 < (second >= 0).mean() < 0.65
            beside = second >= 0
            assert (tiny_bank.identities[second[beside], 0] != tiny_bank.identities[subject[beside], 0]).all()
        else:
            assert np.array_equal(layout.scene, target.scene) and (second < 0).all()
        assert np.array_equal(layout.mirrored[:, 0] != mirrored, np.full(count, difficulty == 1.0))


def test_the_further_a_reference_is_the_less_its_pose_is_the_targets():
    bank = paint_bank(BankConfig(identities=18, poses=4, scenes=1, side=32, cut_out=12))
    rng = np.random.default_rng(0)
    target = draw_layout(rng, bank, draw_things(rng, bank, np.arange(72), 100, 0.0))
    near, far = (draw_references(rng, bank, target, np.full(100, d), second=0.0, rows=np.arange(72)).layout.thing[:, 0]
                 for d in (1 / 3, 1.0))
    distance = [np.abs(bank.poses[rows] - bank.poses[target.thing[:, 0]]) for rows in (near, far)]
    assert (distance[0] <= distance[1]).all() and (distance[0] > 0).all()


def test_a_box_holds_the_subject_and_lies_inside_the_picture(tiny_bank):
    rng = np.random.default_rng(3)
    target = draw_layout(rng, tiny_bank, draw_things(rng, tiny_bank, np.arange(72), 60, 0.5))
    made = draw_references(rng, tiny_bank, target, np.zeros(60), second=0.0, rows=np.arange(72))
    left, top, side = made.boxes.T
    assert (made.boxes >= 0).all() and (left + side < 1 + 1e-5).all() and (top + side < 1 + 1e-5).all()
    coverage = list(composed(tiny_bank, target))[1][:, :1]
    cropped = np.asarray(jax.jit(crop)(np.moveaxis(coverage, 1, -1), made.boxes))[..., 0]
    np.testing.assert_allclose(cropped.sum((1, 2)) * side**2, coverage.sum((1, 2, 3)), rtol=0.06)
    # The longer side of a thing nearly fills its square.
    assert np.maximum((cropped.max(1) > 0.3).mean(1), (cropped.max(2) > 0.3).mean(1)).mean() > 0.75


# -------------------- batches


KINDS = {
    "pictures": lambda batches, step: batches.pictures(step),
    "captioned": lambda batches, step: batches.captioned(step),
    "pairs": lambda batches, step: batches.pairs(step, 10, TWO, second=0.5),
    "views": lambda batches, step: batches.views(step),
}


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_pure_functions_of_seed_and_step(batches, kind):
    draw = KINDS[kind]
    first, other = draw(batches(), 3), draw(batches(seed=1), 3)
    assert equal(first, draw(batches(), 3))
    for another in (other, draw(batches(), 4)):
        for name in first:
            # Which references are cropped is the curriculum's to say.
            assert name in ("cropped", "marks") or not equal(first[name], another[name]), name


def test_held_out_nouns_are_never_drawn_in_training(batches, tiny_bank):
    held_out = [NOUNS.index(noun) for noun in HELD_OUT_NOUNS]
    training = batches(nouns=[noun for noun in NOUNS if noun not in HELD_OUT_NOUNS], two=0.5)
    assert {split_of(tiny_bank.identity(i)) for i in range(72)} == {"train"}
    seen = set()
    for step in range(20):
        batch = training.pairs(step, 20, TWO, second=0.5)
        for layout in (batch["layout"], batch["reference"]):
            seen |= set(tiny_bank.identities[layout.thing[layout.thing >= 0], 0].tolist())
    assert seen == set(range(len(NOUNS))) - set(held_out)


def told_words(batch, tokenizer, name):
    texts = tokenizer.batch_decode(batch[name], skip_special_tokens=True)
    return [text.strip().split() for text in texts]


def test_captions_are_of_their_pictures_and_marks_are_the_target_tokens(batches, sprite_tokenizer):
    batch = batches().captioned(0)
    for i, (words, plain) in enumerate(zip(*(
            told_words(batch, sprite_tokenizer, name) for name in ("caption_ids", "plain_ids")), strict=True)):
        nouns = [NOUNS[noun] for noun in batch["nouns"][i] if noun >= 0]
        assert [word for word in words if word in NOUNS] == nouns
        assert SCENES[batch["scene"][i]] in words
        things = [(Identity(noun, "red", "blue", "plain", "none", "slim"), ()) for noun in nouns]
        assert plain == list(caption(things, SCENES[batch["scene"][i]]).words)
        for k, noun in enumerate(nouns):
            expected = rc.target_tokens(sprite_tokenizer, " ".join(words), noun)
            assert np.array_equal(batch["marks"][i, k], expected)
        assert not batch["marks"][i, len(nouns) :].any()


def test_a_pairs_caption_tells_nothing_of_its_subject_and_all_of_a_bystander(batches, sprite_tokenizer, tiny_bank):
    batch = batches(two=0.5).pairs(0, 10, TWO, second=0.0)
    captions, told = (told_words(batch, sprite_tokenizer, name) for name in ("caption_ids", "told_ids"))
    for i in range(16):
        things = [tiny_bank.identity(thing) for thing in batch["layout"].thing[i] if thing >= 0]
        scene = SCENES[batch["scene"][i]]
        for words, of_subject in ((captions[i], ()), (told[i], TELLABLE)):
            attributes = [of_subject, TELLABLE][: len(things)]
            assert words == list(caption(list(zip(things, attributes, strict=True)), scene).words)
        marked = rc.target_tokens(sprite_tokenizer, " ".join(captions[i]), things[0].noun)
        assert np.array_equal(batch["marks"][i], [marked])


def test_a_view_is_described_from_left_to_right(batches, sprite_tokenizer, tiny_bank):
    batch = batches().views(0)
    first, second = batch["first"], batch["second"]
    assert np.array_equal(*(tiny_bank.identities[layout.thing[:, 0]] for layout in (first, second)))
    assert (second.thing[:, 1] < 0).all() and (first.thing[:, 1] >= 0).any()
    for words, things, xs in zip(batch["description_ids"], first.thing, first.x, strict=True):
        shown = [tiny_bank.identity(things[i]) for i in np.argsort(xs) if things[i] >= 0]
        text = str(caption([(identity, TELLABLE) for identity in shown], None))
        assert np.array_equal(words, encode_prompt(sprite_tokenizer, text)[0])


def test_references_on_the_host_are_those_of_the_loss(batches):
    made = batches()
    batch = made.pairs(5, 10, Curriculum(), second=0.5)
    assert 0 < batch["cropped"].sum() < 16
    references = np.asarray(made.references(batch))

    @jax.jit
    def in_the_loss(paintings, batch):
        return compose_references(paintings, compose(paintings, batch["layout"])[0], batch)

    np.testing.assert_allclose(references, in_the_loss(made.paintings, batch), atol=1e-5)
    whole = np.asarray(made.compose(batch["reference"]))
    assert np.array_equal(np.isclose(references, whole).all((1, 2, 3)), ~batch["cropped"])
