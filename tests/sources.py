"""Small real files for the tests of sources, and what all sources must do."""

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from realcustom_jax.data.records import read_record, write_record
from realcustom_jax.data.sources import BrokenRow, open_source


def picture(size=(24, 16), colour="red", kind="JPEG", mode="RGB", **options) -> bytes:
    """A picture's file of `size` (width, height)."""
    buffer = io.BytesIO()
    image = Image.new("RGB", size, colour)
    image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257) if mode == "I;16" else (
        image.convert(mode))
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def mask(size=(24, 16), box=(2, 3, 12, 13)) -> bytes:
    """A mask's file: white in the box (left, top, right, bottom)."""
    image = Image.new("L", size, 0)
    image.paste(255, box)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def rows_of(source) -> tuple[list, list[str]]:
    """(records of the rows that can be written, sentences of the others). Parts go to another process."""
    records, broken = [], []
    for part in pickle.loads(pickle.dumps(list(source.parts()))):
        assert part.name
        for row in part.rows():
            if isinstance(row, BrokenRow):
                broken.append(str(row))
                continue
            try:
                records.append(read_record(write_record(row)[0]))
            except (ValueError, OSError) as error:
                broken.append(str(BrokenRow(row.where, str(error))))
    return records, broken


def opened(path, **options):
    """The same of the source at a path."""
    return rows_of(open_source(str(path), **options))


def write_tar(file, members):
    """A tar of {name: bytes, text or object}."""
    with tarfile.open(file, "w") as tar:
        for name, content in members.items():
            content = content if isinstance(content, bytes) else (
                content.encode() if isinstance(content, str) else json.dumps(content).encode())
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def dog(key, **more):
    """The files of a row in a tar; `more` for its .json."""
    return {f"{key}.jpg": picture(), f"{key}.json": {"caption": "a dog", "word": "dog"} | more,
            f"{key}.ref.webp": picture(colour="blue", kind="WEBP")}


def write_parquet(file, columns, **options):
    """Lists as columns of a Parquet file."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    metadata = options.pop("metadata", None)
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata(metadata), file, **options)


def image(content):
    """A cell as `datasets` writes it."""
    return {"bytes": content, "path": None}


def write_dataset(folder, features, rows, **options):
    """A dataset as TFDS writes it; rows may be serialized already."""
    tfds = pytest.importorskip("tensorflow_datasets")
    from array_record.python.array_record_module import ArrayRecordWriter

    features = tfds.features.FeaturesDict(features)
    name = tfds.core.ShardedFileTemplate(
        folder, dataset_name="some", split="train", filetype_suffix=options.get("kind", "array_record"))
    split = tfds.core.SplitInfo(name="train", shard_lengths=[len(rows)], num_bytes=1000, filename_template=name)
    identity = tfds.core.dataset_info.DatasetIdentity("some", tfds.core.Version("1.0.0"), str(folder), "")
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    info.set_file_format(options.get("kind", "array_record"))
    info.set_splits(tfds.core.SplitDict([split]))
    folder.mkdir(exist_ok=True)
    info.write_to_directory(folder)
    writer = ArrayRecordWriter(str(folder / "some-train.array_record-00000-of-00001"), "group_size:1")
    for row in rows:
        writer.write(row if isinstance(row, bytes) else features.serialize_example(features.encode_example(row)))
    writer.close()
    return folder


def every_kind(folder) -> dict:
    """{kind: (path, options of `open_source`)} of a source of each kind with six rows of the miniature's words, which
    are pictures of 64 pixels a side."""
    tfds = pytest.importorskip("tensorflow_datasets")
    colours = ("red", "green", "blue", "yellow", "purple", "orange")
    target = [picture((64, 64), colour) for colour in colours]
    other = [picture((48, 64), colour, "WEBP") for colour in colours]
    captions = [f"a {word} on the beach" for word in ("dog", "car") * 3]
    words = ["dog", "car"] * 3
    for name in ("manifest", "groups", "tars", "parquet", *(f"views/dog/{i}" for i in range(6))):
        (folder / name).mkdir(parents=True)
    for i in range(6):
        (folder / "manifest" / f"{i}.jpg").write_bytes(target[i])
        (folder / "manifest" / f"{i}.webp").write_bytes(other[i])
        (folder / "views" / "dog" / f"{i}" / "0.jpg").write_bytes(target[i])
        (folder / "views" / "dog" / f"{i}" / "1.webp").write_bytes(other[i])
    (folder / "views" / "captions.json").write_text(json.dumps({"dog": ["a dog on the beach", "a dog in the room"]}))
    rows = [{"target": f"{i}.jpg", "caption": captions[i], "word": words[i]} for i in range(6)]
    ways = ({"reference": "0.webp"}, {"box": [4, 4, 60, 60]}, {"mask": [[4, 4, 60, 4, 60, 60, 4, 60]]})
    (folder / "manifest" / "manifest.jsonl").write_text(
        "\n".join(json.dumps(row | ways[i % 3]) for i, row in enumerate(rows)))
    groups = [{"views": [f"../manifest/{i}.jpg", f"../manifest/{i}.webp"], "caption": captions[i], "word": words[i]}
              for i in range(6)]
    (folder / "groups" / "manifest.jsonl").write_text("\n".join(map(json.dumps, groups)))
    for tar in (0, 1):
        members = {}
        for i in range(3 * tar, 3 * tar + 3):
            members |= {f"{i}.jpg": target[i], f"{i}.txt": captions[i], f"{i}.cls": words[i], f"{i}.ref.webp": other[i]}
        write_tar(folder / "tars" / f"train-{tar:03}.tar", members)
    write_parquet(folder / "parquet" / "train.parquet", {
        "image": [image(x) for x in target], "text": captions, "word": words, "ref": [image(x) for x in other]},
        row_group_size=2)
    write_dataset(folder / "tfds", {"image": tfds.features.Image(encoding_format="jpeg"), "text": tfds.features.Text()},
                  [{"image": x, "text": "a dog on the beach"} for x in target])
    kinds = {name: (folder / name, {}) for name in ("manifest", "groups", "tars", "parquet", "views")}
    return kinds | {"tfds": (folder / "tfds", {"word": "dog"})}


KINDS = "manifest", "groups", "tars", "parquet", "views", "tfds"
