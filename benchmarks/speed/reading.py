"""How many examples a second the reader of a dataset gives: 1024² targets and references of 768², both from JPEG files.

    python -m benchmarks.speed.reading                             # 0, 1, 2 and 4 threads
    python -m benchmarks.speed.reading --workers 1 8 --rounds 5
    python -m benchmarks.speed.reading --processes                 # Grain's worker processes besides

All contenders run in this process, one after the other in every round; the best round of each counts, because whatever
else the machine does only makes it slower. The pictures are blurred noise, of a photograph's size in bytes. Also said:
how much processor time the parts of one example take, which holds on a machine with other work too.
"""

import argparse
import functools
import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import grain.python as grain
import numpy as np
from absl import flags
from etils import epath
from PIL import Image
from tqdm import tqdm

from benchmarks.common import at_least, parser_of, show
from realcustom_jax.conditioning.images import load_rgb
from realcustom_jax.conditioning.references import square_pixels
from realcustom_jax.data.batches import BucketBatches
from realcustom_jax.data.build import build
from realcustom_jax.data.dataset import Dataset
from realcustom_jax.data.examples import Example
from realcustom_jax.data.reading import Prefetched
from realcustom_jax.data.sources import open_source
from realcustom_jax.training.curriculum import Curriculum

_BATCH = 16


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--workers", type=at_least(0), nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--rows", type=at_least(1), default=64)
    parser.add_argument("--views", type=at_least(1), default=1, help="other pictures of each row's subject")
    parser.add_argument("--batches", type=at_least(1), default=12, help="that are read by each contender in each round")
    parser.add_argument("--rounds", type=at_least(1), default=3)
    parser.add_argument("--target", type=at_least(64), default=1024, help="side of the targets as they are stored")
    parser.add_argument("--reference", type=at_least(64), default=768, help="side of the references as they are stored")
    parser.add_argument("--processes", action="store_true", help="also Grain's worker processes")
    parser.add_argument("--out", type=Path, help="also write the figures here, as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_dataset(Path(folder), options)
        contenders = {f"{count} threads": functools.partial(by_threads, folder, count, options.batches)
                      for count in options.workers}
        if options.processes:
            contenders |= {f"{count} processes": functools.partial(by_processes, folder, count, options.batches)
                           for count in options.workers if count}
        rounds = [{name: run() for name, run in contenders.items()} for _ in tqdm(range(options.rounds), unit="round")]
        rates = {name: max(found[name] for found in rounds) for name in contenders}
        parts = of_one_example(folder)
    one = rates.get("1 threads", next(iter(rates.values())))
    show({"examples_per_second": {name: round(rate, 1) for name, rate in rates.items()},
          "times_one_thread": {name: round(rate / one, 2) for name, rate in rates.items()},
          "processor_milliseconds_of_one_example": parts, "cores": len(os.sched_getaffinity(0)),
          "load": [round(x, 1) for x in os.getloadavg()], "rows": options.rows, "views": options.views,
          "stored": {"target": options.target, "reference": options.reference}}, options.out)
    for name, rate in rates.items():
        print(f"| {name} | {rate:.1f} | {rate / one:.2f} |")


def make_dataset(folder: Path, options: argparse.Namespace) -> None:
    """Pictures with their manifest, and the dataset of them in `folder`/data."""
    rng, lines = np.random.default_rng(0), []
    for row in range(options.rows):
        views = [f"{row}-{view}.jpg" for view in range(options.views)]
        for name, side in ((f"{row}.jpg", options.target), *((view, options.reference) for view in views)):
            (folder / name).write_bytes(picture(rng, side))
        lines.append({"target": f"{row}.jpg", "caption": "a toy on a table", "word": "toy", "reference": views})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    build(open_source(str(folder)), epath.Path(folder / "data"), workers=1)


def picture(rng: np.random.Generator, side: int) -> bytes:
    """A JPEG file of about 0.3 byte a pixel."""
    noise = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), np.uint8))
    buffer = io.BytesIO()
    noise.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@functools.cache
def batches(folder: str) -> BucketBatches:
    """Each process opens them once."""
    return BucketBatches(Dataset(Path(folder) / "data"), side=1024, reference_side=768, batch_size=_BATCH, seed=0,
                         curriculum=Curriculum(), steps=1000)


def by_threads(folder: str, workers: int, count: int) -> float:
    """Examples a second."""
    with Prefetched(batches(folder), 1000, workers=workers, prefetch=2) as read:
        return rate(read.batch, count)


def by_processes(folder: str, workers: int, count: int) -> float:
    """Examples a second of Grain's worker processes, each of which reads examples, joined here."""
    flags.FLAGS.mark_as_parsed()  # Grain reads its own
    numbers = grain.MapDataset.range(0, 1000 * _BATCH).map(functools.partial(_read, folder))
    read = numbers.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)).mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
    examples = iter(read)
    join = batches(folder).join
    found = rate(lambda step: join([next(examples) for _ in range(_BATCH)]), count)
    examples.close()
    return found


def _read(folder: str, number: int) -> Example:
    return batches(folder).read(*divmod(number, _BATCH))


def rate(read: Callable[[int], object], count: int) -> float:
    """Examples a second from the third batch on: before, workers start, and what was read ahead counts nothing."""
    for step in range(2):
        read(step)
    start = time.perf_counter()
    for step in range(2, 2 + count):
        read(step)
    return count * _BATCH / (time.perf_counter() - start)


def of_one_example(folder: str) -> dict[str, float]:
    """Milliseconds of its parts."""
    of = batches(folder)
    record = of.rows.record(0)
    target = load_rgb(record.pictures[0])
    pixels, size = np.asarray(target), (1152, 896)
    parts = {
        "the whole": lambda: of.read(0, 0),
        "drawing it": lambda: of.choose(0, 0),
        "reading its record": lambda: of.rows.record(0),
        "decoding its target": lambda: load_rgb(record.pictures[0]),
        "decoding its reference": lambda: load_rgb(record.pictures[1]),
        "a target of another size": lambda: target.resize(size, Image.Resampling.LANCZOS),
        "a reference of another size": lambda: square_pixels(pixels, 768),
        "joining a batch, for each": lambda: of.join([example] * _BATCH),
    }
    example = of.read(0, 0)
    found = {name: 1000 * best(run) for name, run in parts.items()}
    found["joining a batch, for each"] /= _BATCH
    return {name: round(value, 2) for name, value in found.items()}


def best(run: Callable[[], object], times: int = 20) -> float:
    """Seconds of this thread's processor time, the least of many: what else the machine does is not in it."""
    found = []
    for _ in range(times):
        start = time.thread_time()
        run()
        found.append(time.thread_time() - start)
    return min(found)


if __name__ == "__main__":
    main()
