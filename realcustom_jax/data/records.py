"""A row as a record of an ArrayRecord shard, and back: TFDS's features, so that TFDS's `data_source` reads it too.

Pictures stay the bytes that they were (JPEG, WebP, PNG …); cropping and scaling is done when they are read. Whoever
reads a record decodes only the pictures that are used.
"""

import dataclasses
import hashlib
import io
import math
import warnings

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from realcustom_jax.conditioning.images import load_rgb
from realcustom_jax.conditioning.words import word_spans
from realcustom_jax.data.rows import Row, called
from realcustom_jax.files import png

CUT_OUT, PLACED_ANEW = -1, -2
"""References made of the target: cut out as it is, and with its mask changed and placed on another background. Numbers
from 0 on are pictures of the row."""
_PICTURE = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
FEATURES = tfds.features.FeaturesDict({
    "where": tfds.features.Text(),
    "identity": tfds.features.Text(),
    "pictures": tfds.features.Sequence(_PICTURE),
    "targets": tfds.features.Scalar(np.int32),
    "captions": tfds.features.Sequence(tfds.features.Text()),
    "words": tfds.features.Sequence(tfds.features.Text()),
    # (subject, picture) of every view, (subject) of every mask and of every box.
    "views": tfds.features.Sequence(tfds.features.Tensor(shape=(2,), dtype=np.int32)),
    "masks": tfds.features.Sequence(tfds.features.Image(shape=(None, None, 1), encoding_format="png")),
    "masked": tfds.features.Sequence(tfds.features.Scalar(np.int32)),
    "boxes": tfds.features.Sequence(tfds.features.Tensor(shape=(4,), dtype=np.float32)),
    "boxed": tfds.features.Sequence(tfds.features.Scalar(np.int32)),
    "score": tfds.features.Scalar(np.float32),
})


class Undecoded(tfds.decode.SkipDecoding):
    """TFDS's own skips single features only, not sequences, when it decodes with NumPy."""

    def decode_batch_example_np(self, examples):
        return examples


_UNDECODED = {"pictures": Undecoded(), "masks": Undecoded()}


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the index says of a row, see `index.Index`."""

    sizes: list[tuple[int, int]]
    targets: int
    captions: int
    choices: list[tuple[int, int]]
    identity: int
    score: float


@dataclasses.dataclass(frozen=True)
class Record:
    """A record, its pictures and masks not decoded; masks and boxes by subject."""

    where: str
    identity: str
    pictures: list[bytes]
    targets: int
    captions: list[str]
    words: list[str]
    views: np.ndarray
    masks: dict[int, bytes]
    boxes: dict[int, np.ndarray]
    score: float


def write_record(row: Row) -> tuple[bytes, Entry]:
    """A row as a record, with what the index says of it.

    Raises:
        OSError, ValueError: a picture or mask cannot be read, or the row makes no sense; says which and why, without
            the row's own name.
    """
    _check(row)
    contents = [picture.read() for picture in row.pictures]
    sizes = [size_of(content, picture.name) for content, picture in zip(contents, row.pictures, strict=True)]
    masks = {i: subject.mask.pixels(sizes[0]) for i, subject in enumerate(row.subjects) if subject.mask is not None}
    boxes = {i: _within(subject.box, sizes[0]) for i, subject in enumerate(row.subjects) if subject.box is not None}
    views = [(i, picture) for i, subject in enumerate(row.subjects) for picture in subject.views]
    score = math.nan if row.score is None else row.score
    record = FEATURES.serialize_example(FEATURES.encode_example({
        "where": row.where, "identity": row.identity, "pictures": contents, "targets": row.targets,
        "captions": list(row.captions),
        "words": [subject.word for subject in row.subjects], "views": np.array(views, np.int32).reshape(-1, 2),
        "masks": [png(Image.fromarray(mask)) for mask in masks.values()], "masked": list(masks),
        "boxes": np.array(list(boxes.values()), np.float32).reshape(-1, 4), "boxed": list(boxes),
        "score": score}))
    # A message orders its features as it likes; in one order, the same row has the same bytes wherever it is written.
    record = tf_example_pb2.Example.FromString(record).SerializeToString(deterministic=True)
    made = [(i, CUT_OUT) for i in sorted(masks.keys() | boxes.keys())] + [(i, PLACED_ANEW) for i in masks]
    named = row.identity.encode() if row.identity else b"\0".join(contents[:row.targets])
    identity = int.from_bytes(hashlib.blake2b(named, digest_size=8).digest(), "little")
    return record, Entry(sizes, row.targets, len(row.captions), views + made, identity, score)


def read_record(content: bytes) -> Record:
    """What `write_record` wrote."""
    found = FEATURES.deserialize_example_np(content, decoders=_UNDECODED)
    texts = {name: [text.decode() for text in found[name]] for name in ("captions", "words")}
    return Record(
        where=found["where"].decode(), identity=found["identity"].decode(), pictures=list(found["pictures"]),
        targets=int(found["targets"]), views=np.asarray(found["views"], np.int32).reshape(-1, 2),
        masks=dict(zip(np.asarray(found["masked"]).tolist(), found["masks"], strict=True)),
        boxes=dict(zip(np.asarray(found["boxed"]).tolist(), np.asarray(found["boxes"]), strict=True)),
        score=float(found["score"]), **texts)


def size_of(content: bytes, name: str) -> tuple[int, int]:
    """(height, width) as the picture is meant to be seen; `name` is for messages. Raises ValueError.

    The whole picture is decoded, because a damaged one has to be noticed now rather than in the middle of the training.
    """
    with called(name), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of metadata that it skips, and of sizes below its limit
        width, height = load_rgb(io.BytesIO(content)).size
    return height, width


def _check(row: Row) -> None:
    if not row.captions or not row.subjects or not 1 <= row.targets <= len(row.pictures):
        raise ValueError("it has no caption, no subject or no target")
    for number, subject in enumerate(row.subjects):
        for caption in row.captions:
            if not word_spans(caption, subject.word):
                raise ValueError(f"the word {subject.word!r} is not in the caption {caption!r}")
        if not set(subject.views) <= set(range(len(row.pictures))):
            raise ValueError(f"the views of subject {number} are no pictures of it")
        if row.targets > 1 and (subject.mask is not None or subject.box is not None):
            raise ValueError("a group of views has no mask and no box: they would be of one view only")
        others = [view for view in subject.views if view > 0 or row.targets > 1]
        if subject.mask is None and subject.box is None and len(others) <= (row.targets > 1):
            raise ValueError("it has none of 'reference', 'mask' and 'box': there is no picture of the subject")


def _within(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The pixels that a box touches, as whole numbers: float32, as which it is stored, could make a narrow box of
    fractions an empty one."""
    left, top, right, bottom = box
    if not (int(left) < size[1] and int(top) < size[0] and right > 0 and bottom > 0):
        raise ValueError(f"the box {list(box)} lies outside its target of {size[1]} x {size[0]}")
    return math.floor(left), math.floor(top), math.ceil(min(right, size[1])), math.ceil(min(bottom, size[0]))
