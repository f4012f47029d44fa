"""Trains the adapter of a published model (SD-1.5, SDXL; the miniature too) on your own pictures.

The model's parts are frozen, in `dtype`; latents, texts and image features are computed within the step or, with
`precomputed`, once before the first. The run's folder gets `data/` (the pictures as a dataset), `features/` (what was
computed before), `fresh/adapter/` (what a new adapter begins with), the loop's checkpoints, metrics and samples, and at
the end `adapter/`, for `sample.py --adapter`.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from realcustom_jax.data.batches import BucketBatches
from realcustom_jax.data.reading import Prefetched
from realcustom_jax.devices import sharding
from realcustom_jax.devices.compilation import enable_compilation_cache
from realcustom_jax.devices.shared_disk import on_first_process
from realcustom_jax.files import sole_user
from realcustom_jax.model_files import bundle
from realcustom_jax.model_files.adapter import adapter_tensors, find_adapter, remembered_choices
from realcustom_jax.model_files.source import ModelSource
from realcustom_jax.paths import as_path, check_reachable, make_folder
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.training.curriculum import Curriculum
from realcustom_jax.training.identity import RunIdentity, has_checkpoints
from realcustom_jax.training.loop import fit
from realcustom_jax.training.published.config import PublishedConfig
from realcustom_jax.training.published.encoders import Encoders
from realcustom_jax.training.published.features import StoredBatches
from realcustom_jax.training.published.initial_adapter import with_tokens_like_text, write_fresh_adapter
from realcustom_jax.training.published.pictures import Pictures, find_pictures
from realcustom_jax.training.published.precompute import compute_features
from realcustom_jax.training.published.tasks import PrecomputedTask, PublishedTask
from realcustom_jax.training.scored import find_judge, scored_pictures

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

_LOOKED_AT = 4
_PLACES = ("model", "vision", "tokenizer", "adapter")
"""What of a configuration says where something lies."""
_THE_RUN = ("kind", "side", "preset", "fresh", "curriculum", "snr_limit", "dtype")
"""What of a configuration may not change while its run goes on; nor may the content of what its paths name."""


def train_adapter(config: ConfigDict, workdir: "AnyPath") -> None:
    """Trains `config.train` (see configs/sdxl.py) in `workdir`; the same command resumes.

    Raises:
        FileNotFoundError, ValueError: the pictures, the model or the settings cannot be used, or the checkpoints in
            `workdir` are of another run; names which. As far as it can be known, this is said before anything is built.
        BlockingIOError: another process trains there.
    """
    enable_compilation_cache()
    plain = config.train.to_dict()
    train = PublishedConfig.from_config(plain)
    for path in (as_path(workdir), *(as_path(entry.path) for entry in train.data.mixture()),
                 *(as_path(getattr(train, name)) for name in _PLACES if getattr(train, name))):
        check_reachable(path)
    mesh = sharding.make_mesh(**dataclasses.asdict(train.mesh))
    on_first_process(functools.partial(_find_parts, train))  # before the pictures take their hours
    with contextlib.ExitStack() as alone:
        on_first_process(lambda: alone.enter_context(_sole_user(workdir)))
        _train(train, plain, mesh, workdir)


def _train(train: PublishedConfig, plain: Mapping[str, Any], mesh: Mesh, workdir: "AnyPath") -> None:
    settings, checkpoints = train.optimization, workdir / "checkpoints"
    if settings.evaluate_every and not train.data.held_out:
        raise ValueError(f"config.train.optimization.evaluate_every is {settings.evaluate_every}, and no pairs are "
                         "held out whose loss could be computed: set data.held_out to a share of the subjects, such "
                         "as 0.05, or evaluate_every to 0.")
    judge = find_judge(settings.evaluate_pictures_every, ModelSource.open(train.model).root)
    continued = find_adapter(train.adapter) if train.adapter else None
    vision = continued.vision if continued else train.fresh.vision_settings
    pictures = find_pictures(train.data, workdir / "data", train.side)
    identity = {name: plain[name] for name in _THE_RUN} | {
        "data": pictures.about,
        "adapter": {"settings": continued.settings, "vision": dataclasses.asdict(vision)} if continued else "fresh"}
    RunIdentity.of(identity, settings).check(checkpoints, settings.on_existing)
    batches, held_out = _batches(train, pictures, vision.size, mesh)
    start = as_path(train.adapter) if train.adapter else workdir / "fresh" / "adapter"
    # What a run began with stays as it is while the run goes on, also where the model turns out to be another one.
    begun = settings.on_existing == "resume" and has_checkpoints(checkpoints) and (start / "config.json").is_file()
    if not (train.adapter or begun):
        on_first_process(lambda: write_fresh_adapter(start, train.model, train.vision, train.fresh))
    # The parts lie in the host's memory until `fit` shares them out, so that no single chip has to hold all of them.
    with jax.default_device(jax.local_devices(backend="cpu")[0]) if _has_cpu() else contextlib.nullcontext():
        pipeline = Pipeline.load(train.model, start, vision=train.vision or None, tokenizer=train.tokenizer or None,
                                 preset=train.preset, dtype=train.dtype, offload=True, scan_layers=True)
        identity |= _contents(train.dtype, pipeline)
        RunIdentity.of(identity, settings).check(checkpoints, settings.on_existing)  # before features take their hours
        if not train.adapter:
            some = [batches.read_row(0, int(row), 0, 0, 0) for row in batches.order.shown[:_LOOKED_AT]]
            pipeline = with_tokens_like_text(pipeline, [row.reference for row in some], [row.caption for row in some])
    with _task(pipeline, train, batches, held_out, pictures.identity, workdir) as task:
        scored = scored_pictures(settings.evaluate_pictures_every, judge, task.trained_pipeline)
        params = fit("adapter", task, settings, workdir, mesh=mesh, run=identity, reports=scored)
    adapter = {"image_prompt_settings": find_adapter(start).settings, **remembered_choices(pipeline.preset),
               "vision_settings": dataclasses.asdict(pipeline.vision_settings)}
    tensors = bundle.to_half(adapter_tensors(params["projector"], params["vision"]))
    on_first_process(lambda: bundle.save_part(workdir, "adapter", adapter, tensors))


def _batches(train: PublishedConfig, pictures: Pictures, reference_side: int,
             mesh: Mesh) -> tuple[BucketBatches, BucketBatches | None]:
    """Of the rows that are trained on, and of those that are held out, if any are asked for. Those show other pictures
    of their subjects throughout, so that their loss does not move with the curriculum."""
    settings, rows = train.optimization, pictures.rows()
    shares = sharding.batch_sharding(mesh, settings.batch_size // settings.accumulate)
    batches = functools.partial(
        BucketBatches, rows, side=train.side, reference_side=reference_side, batch_size=settings.batch_size,
        placing=train.data.seed, examples=sharding.examples_here(shares, settings.batch_size))
    trained = batches(seed=settings.seed, steps=settings.steps, curriculum=train.curriculum,
                      weights=pictures.weights(rows))
    if not (train.data.held_out and settings.evaluate_every):
        return trained, None
    hard = Curriculum(recipe="recontextualisation")
    return trained, batches(seed=0, steps=1, curriculum=hard, weights=pictures.weights(rows, "held_out"))


@contextlib.contextmanager
def _task(pipeline: Pipeline, train: PublishedConfig, batches: BucketBatches, held_out: BucketBatches | None,
          data: str, workdir: "AnyPath") -> Iterator[PublishedTask]:
    """The task, whose batches are read ahead. `data` is the identity of the pictures."""
    def stored(rows: BucketBatches) -> StoredBatches:
        return StoredBatches(compute_features(Encoders(pipeline), data, rows, workdir / "features"), rows)

    read, held = (rows and (stored(rows) if train.precomputed else rows) for rows in (batches, held_out))
    with Prefetched(read, train.optimization.steps, workers=train.data.workers, prefetch=train.data.prefetch) as ahead:
        options = {"snr_limit": train.snr_limit or None, "read": ahead.batch, "held_out": held or ()}
        yield (PrecomputedTask(pipeline, batches, read.stored, **options) if train.precomputed
               else PublishedTask(pipeline, batches, **options))


def _contents(dtype: str, pipeline: Pipeline) -> dict[str, Any]:
    """What the model's files hold. Paths are not compared: a model may be trained anew at its path, or moved. The
    precision stands beside a part's name, as the same files give other numbers in another precision."""
    return {f"the content of the {name} in {dtype}": found for name, found in pipeline.fingerprints().items()}


@contextlib.contextmanager
def _sole_user(workdir: "AnyPath") -> Iterator[None]:
    make_folder(workdir)
    with sole_user(workdir):
        yield


def _find_parts(train: PublishedConfig) -> None:
    """Raises FileNotFoundError or ValueError for what is not where the configuration says."""
    for name in _PLACES:
        try:
            if path := getattr(train, name):
                (find_adapter if name == "adapter" else ModelSource.open)(path)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"config.train.{name}: {error}") from None


def _has_cpu() -> bool:
    try:
        return bool(jax.local_devices(backend="cpu"))
    except RuntimeError:
        return False
