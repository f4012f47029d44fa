"""How well anything could tell whose place is whose under noise, and how near the base model's maps come to it.

    python -m benchmarks.experiments.place_ceiling --out runs/place_ceiling

A small convolutional network is trained on what the base model's maps are made from: the noisy latents of painted
pictures of two things, the timestep, and the words of the caption (both nouns and the scene). It tells which of the two
things is at each place. Its maps and the base model's are scored by the same function (`losses.right_place`) on the
same held-out pictures with the same noise: test identities, which neither was trained on. No network learns all that
could be told: the ceiling lies between what both tell together and 1, and each row's share of either way is given. The
training resumes; the table is in docs/evidence.md, "Right place".
"""

import dataclasses
import functools
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

import realcustom_jax as rc
from benchmarks.common import parser_of
from benchmarks.experiments.two_things import GRID, TwoThings, draw, held_out_bank, maps_of, noised, told
from configs.mini import get_config
from realcustom_jax.data.sprites.bank import Bank, BankConfig, paint_bank
from realcustom_jax.data.sprites.world import NOUNS, SCENES
from realcustom_jax.evaluation.intervals import mean_with_interval, ratio_with_interval
from realcustom_jax.files import write_file, write_json
from realcustom_jax.models.resize import average_pixels
from realcustom_jax.models.resnet import ResnetBlock
from realcustom_jax.models.unet import sinusoidal_embedding
from realcustom_jax.sampling import solvers
from realcustom_jax.training.loop import fit
from realcustom_jax.training.losses import right_place
from realcustom_jax.training.reports import Findings, Report
from realcustom_jax.training.settings import TrainSettings

TIMESTEPS = (900, 700, 500)
CHANCE = 0.5
_TRAINED_ON = (250, 950)
"""Timesteps, from and below which training draws uniformly: with less noise than it is scored on, it sooner learns what
things look like."""
_AT_ONCE = 64  # pictures whose maps are made together
_PART = 2048  # pictures a file


class Telltale(nn.Module):
    """Which noun is where: noisy latents [B, H, W, C], t int32 [B], nouns int32 [B, 2] and scene int32 [B] → logits
    float32 [B, H/4, W/4, nouns].

    A noun that is not told is -1.
    """

    fine: int = 48
    coarse: int = 128
    blocks: int = 3
    groups: int = 8

    @nn.compact
    def __call__(self, noisy, t, nouns, scene):
        block = functools.partial(ResnetBlock, groups=self.groups, epsilon=1e-5)
        # The order of the nouns says nothing of their places, so that their sum is all there is to know.
        named = jax.nn.one_hot(nouns, len(NOUNS)).sum(1)
        known = jnp.concatenate([sinusoidal_embedding(t, 64), named, jax.nn.one_hot(scene, len(SCENES))], axis=-1)
        known = nn.Dense(self.coarse, name="known_out")(nn.silu(nn.Dense(self.coarse, name="known_in")(known)))
        x = nn.Conv(self.fine, (5, 5), strides=2, name="stem")(noisy)
        x = block(self.fine, name="fine")(x, known)
        x = nn.Conv(self.coarse, (3, 3), strides=2, name="down")(x)
        for i in range(self.blocks):
            x = block(self.coarse, name=f"coarse_{i}")(x, known)
        return nn.Dense(len(NOUNS), name="nouns")(nn.silu(nn.GroupNorm(self.groups, name="norm")(x)))

    def maps(self, params: Any, noisy: jax.Array, t: int, nouns: np.ndarray, scene: np.ndarray) -> list[jax.Array]:
        """A map of each of two nouns, as `losses.right_place` takes those of a base model's layers."""
        logits = _logits(self, params, noisy, jnp.full(len(noisy), t), nouns, scene)
        pair = jnp.take_along_axis(logits, nouns[:, None, None], axis=-1)
        return [jnp.moveaxis(jax.nn.softmax(pair), -1, 1)]


@functools.partial(jax.jit, static_argnums=0)
def _logits(module, params, noisy, t, nouns, scene):
    return module.apply({"params": params}, noisy, t, nouns, scene)


@dataclasses.dataclass
class PlaceTask:
    """Trains a `Telltale` on pictures of two things, with fresh noise in each step.

    Half of a batch is told both nouns, and has to choose between them; the other half is told none, and has to choose
    among all, which teaches what a noun looks like with more than a bit a picture. So that few pictures are not learnt
    by heart, half of them are put together anew, of the left half of one and the right half of another one of the same
    scene: each thing is in a half of its own (`draws.place`).
    """

    module: Telltale
    pictures: TwoThings
    betas: np.ndarray
    batch_size: int
    seed: int = 0

    frozen = ()

    def __post_init__(self):
        self.pictures = self.pictures.left_to_right()
        self._rows_of = [np.flatnonzero(self.pictures.scenes == scene) for scene in range(len(SCENES))]

    def init(self, key):
        one = {name: x[:1] for name, x in self.batch(0).items()}
        t = np.zeros(1, np.int32)
        return jax.jit(self.module.init)(key, one["latents"], t, one["nouns"], one["scenes"])["params"]

    def batch(self, step):
        rng = np.random.default_rng((self.seed, step))
        rows = rng.integers(len(self.pictures.latents), size=self.batch_size)
        others = np.array([rng.choice(self._rows_of[scene]) for scene in self.pictures.scenes[rows]])
        same = self.pictures.nouns[rows, 0] == self.pictures.nouns[others, 1]
        others = np.where(same | (rng.random(self.batch_size) < 0.5), rows, others)
        left, right = self.pictures.part(rows), self.pictures.part(others)
        half = left.latents.shape[2] // 2
        return {"latents": np.concatenate([left.latents[:, :, :half], right.latents[:, :, half:]], axis=2),
                "coverage": np.stack([left.coverage[:, 0], right.coverage[:, 1]], axis=1),
                "nouns": np.stack([left.nouns[:, 0], right.nouns[:, 1]], axis=1), "scenes": left.scenes}

    def loss(self, params, frozen, batch, key):
        noise_key, time_key = jax.random.split(key)
        latents = batch["latents"]
        t = jax.random.randint(time_key, (len(latents),), *_TRAINED_ON)
        noisy = solvers.add_noise(latents, jax.random.normal(noise_key, latents.shape), t, self.betas)
        is_told = jnp.arange(len(latents)) % 2 == 0
        nouns = jnp.where(is_told[:, None], batch["nouns"], -1)
        logits = self.module.apply({"params": params}, noisy, t, nouns, batch["scenes"])
        absent = is_told[:, None] & ~jax.nn.one_hot(batch["nouns"], len(NOUNS), dtype=bool).any(1)
        logits = jnp.where(absent[:, None, None], -1e9, logits)
        there = average_pixels(batch["coverage"], logits.shape[1:3])
        right = jax.nn.one_hot(batch["nouns"], len(NOUNS))
        likelihood = jnp.einsum("bhwn,bkn,bkhw->b", jax.nn.log_softmax(logits), right, there)
        losses = -likelihood / there.sum((1, 2, 3))
        return losses.mean(), {"of_two": losses[::2].mean(), "of_all": losses[1::2].mean()}


def score(maps: Sequence[jax.Array], pictures: TwoThings) -> np.ndarray:
    """`right_place` [N] of two nouns' maps, of whatever they come from."""
    return np.asarray(right_place(maps, pictures.coverage))


def base_maps(pipeline: rc.Pipeline, bank: Bank, pictures: TwoThings, t: int) -> dict[str, list[np.ndarray]]:
    """The base model's maps [N, 2, h, w] of both nouns, in the ways that they are read: "as trained", every layer's, of
    which `right_place` takes those that the training reports; "plain", all layers' at the masks' places; "refined", the
    same after self-attention."""
    conditioning, marks = told(pipeline, bank, pictures)
    noisy = noised(pipeline.betas, pictures.latents, t)
    parts = []
    for start in range(0, len(noisy), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        out = maps_of(pipeline, noisy[some], t, *jax.tree.map(lambda x, some=some: x[some], (conditioning, marks)))
        whole = functools.partial(rc.subject_mask, out.maps, size=GRID, scope=1.0)
        parts.append(jax.device_get(
            {"as trained": list(out.maps), "plain": [whole()], "refined": [whole(self_maps=out.self_maps)]}))
    return jax.tree.map(lambda *of_parts: np.concatenate(of_parts), *parts)


def network_maps(module: Telltale, params: Any, betas: np.ndarray, pictures: TwoThings, t: int) -> np.ndarray:
    """The network's maps [N, 2, *GRID], under the noise of `base_maps`."""
    maps, = module.maps(params, noised(betas, pictures.latents, t), t, pictures.nouns, pictures.scenes)
    return np.repeat(np.repeat(maps, GRID[0] // maps.shape[2], axis=2), GRID[1] // maps.shape[3], axis=3)


def told_by(network: np.ndarray, base: Mapping[str, Sequence[np.ndarray]], pictures: TwoThings
            ) -> dict[str, np.ndarray]:
    """`right_place` [N] of each way to tell. "together" is the mean of the network's and the base model's plain maps: a
    ceiling is at least as high as what is told by all that is there."""
    ways = {"network": [network], **{f"maps, {way}": maps for way, maps in base.items()},
            "together": [network, *base["plain"]]}
    return {way: score(maps, pictures) for way, maps in ways.items()}


def summary(scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The means of scores [N] with their intervals; and what share of the way from chance to what is told together
    (`to_together`), and to telling all (`to_one`), each has."""
    each = np.arange(len(scores["together"]))

    def share(way, end):
        return ratio_with_interval(scores[way] - CHANCE, end - CHANCE, each)

    return {way: mean_with_interval(values, each)
            | {"to_together": share(way, scores["together"]), "to_one": share(way, np.ones(len(each)))}
            for way, values in scores.items()}


def table(found: Mapping[str, Any]) -> str:
    """What `main` writes, for docs/evidence.md."""
    lines = _head("t", "", "right place", "of the way to both together", "of the way to 1")
    for t, rows in found["timesteps"].items():
        lines += [f"| {t} | {way} | {_cell(row)} | {_cell(row['to_together'], 2)} | {_cell(row['to_one'], 2)} |"
                  for way, row in rows.items()]
    columns = [(which, t) for t in TIMESTEPS for which in ("held_out", "pool")]
    lines += ["", *_head("pictures seen", *(f"t = {t}, {which.replace('_', ' ')}" for which, t in columns))]
    for point in found["curve"]:
        values = [f"{point[f'{which}_{t}']:.3f}" for which, t in columns]
        lines.append(f"| {point['pictures']} | {' | '.join(values)} |")
    return "\n".join(lines)


def _head(*titles: str) -> list[str]:
    return [f"| {' | '.join(titles)} |", "|" + "--:|" * len(titles)]


def _cell(found: Mapping[str, Any], digits: int = 3) -> str:
    low, high = found["ci95"]
    return f"{found['value']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def kept(file: Path, make: Callable[[], TwoThings]) -> TwoThings:
    """The pictures in `file`, which are made where it is not there, so that a run that was stopped goes on. Latents and
    coverage are kept in half precision."""
    if not file.is_file():
        made = make()
        half = {name: getattr(made, name).astype(np.float16) for name in ("latents", "coverage")}
        written = io.BytesIO()
        np.savez(written, **(vars(made) | half))
        write_file(file, written.getvalue())
    with np.load(file) as arrays:
        return TwoThings(**{name: x.astype(np.float32) if x.dtype == np.float16 else x for name, x in arrays.items()})


def pool_of(pipeline: rc.Pipeline, bank: Bank, count: int, folder: Path) -> TwoThings:
    """At least so many pictures to train on, in parts that are kept in `folder`."""
    parts = [kept(folder / f"part{number}.npz", functools.partial(draw, pipeline, bank, _PART, seed=number))
             for number in range(1, 1 + -(-count // _PART))]
    return TwoThings(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of result, pictures and checkpoints")
    parser.add_argument("--bank", type=Path, help="of painted things, made if it is not there; default: OUT/bank")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--pictures", type=int, default=6144, help="to train on")
    parser.add_argument("--held-out", type=int, default=512, help="pictures to score on")
    parser.add_argument("--steps", type=int, default=1500, help="of training, of 128 pictures each")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    pipeline = rc.Pipeline.load(options.model)
    bank = paint_bank(BankConfig(**get_config().data.to_dict()), options.bank or options.out / "bank")
    pool = pool_of(pipeline, bank, options.pictures, options.out)
    unseen = held_out_bank()
    held_out = kept(options.out / f"held_out{options.held_out}.npz",
                    functools.partial(draw, pipeline, unseen, options.held_out))
    base = {t: base_maps(pipeline, unseen, held_out, t) for t in TIMESTEPS}

    module = Telltale()
    of_each = {"held_out": held_out, "pool": pool.part(slice(options.held_out))}

    def look(params) -> Findings:
        return Findings({
            f"{which}_{t}": float(score([network_maps(module, params, pipeline.betas, pictures, t)], pictures).mean())
            for which, pictures in of_each.items() for t in TIMESTEPS})

    task = PlaceTask(module, pool, pipeline.betas, 128)
    settings = TrainSettings(
        steps=options.steps, batch_size=task.batch_size, learning_rate=2e-3, decay=0.5, optimizer="muon", ema=0.995,
        sample_every=0)
    params = fit("place ceiling", task, settings, epath.Path(options.out), run={"pictures": len(pool.latents)},
                 reports=[Report(max(1, options.steps // 6), look)])
    records = [json.loads(line) for line in (options.out / "metrics.jsonl").read_text().splitlines()]
    curve = [record | {"pictures": (record["step"] + 1) * task.batch_size} for record in records
             if f"held_out_{TIMESTEPS[0]}" in record]
    rows = {str(t): summary(told_by(network_maps(module, params, pipeline.betas, held_out, t), base[t], held_out))
            for t in TIMESTEPS}
    found = {"pool": len(pool.latents), "held_out": options.held_out, "steps": options.steps, "timesteps": rows,
             "curve": curve}
    write_json(options.out / "place_ceiling.json", found)
    print(table(found))


if __name__ == "__main__":
    main()
