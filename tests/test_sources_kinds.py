"""Tars, Parquet files, datasets and trees of views as sources: what they give, what is broken, what is no source."""

import json
import tarfile

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader
from sources import dog, image, mask, opened, picture, rows_of, write_dataset, write_parquet, write_tar

from realcustom_jax.data.sources import open_source

RLE = {"size": [16, 24], "counts": [35, 10, 339]}


def test_tars_hold_rows_by_the_names_of_their_files(tmp_path):
    png = picture(kind="PNG", colour="green")
    write_tar(tmp_path / "train-000.tar", {
        **dog("a/1", score=0.7, subject="Rex", url="http://x", sha256="0"),
        "2.png": png, "2.txt": "a red\ncar ", "2.cls": "car\n", "2.mask.png": mask(),
        "2.reference.0.png": png, "2.ref1.jpg": picture(), "2.REF.2.JPG": picture(colour="pink")})
    write_tar(tmp_path / "train-001.tar", {
        "g.view.0.jpg": picture(colour="red"), "g.view.10.jpg": picture(colour="pink"), "g.view.2.jpg": picture(),
        "g.cls": "toy",
        "s.jpg": picture(), "s.mask.1.png": mask(), "s.ref.0.jpg": png, "s.ref.0.1.jpg": png,
        "s.json": {"text": "a dog and a cat", "subjects": [{"word": "dog"}, {"word": "cat"}]},
        "r.jpeg": picture(), "r.json": {"caption": ["a dog", "the dog"], "word": "dog", "mask": RLE}})
    records, broken = opened(tmp_path)
    assert not broken and [row.where for row in records] == [
        "train-000.tar: a/1", "train-000.tar: 2", "train-001.tar: g", "train-001.tar: s", "train-001.tar: r"]
    one, two, group, several, lengths = records
    assert one.identity == "Rex" and one.pictures[0] == picture() and one.views.tolist() == [[0, 1]]
    assert two.captions == ["a red car"] and two.words == ["car"] and len(two.masks) == 1
    assert two.pictures == [png, png, picture(), picture(colour="pink")]
    assert group.targets == 3 and group.captions == ["a photo of a toy"]
    assert group.pictures[2] == picture(colour="pink")  # 2 before 10
    assert several.views.tolist() == [[0, 1], [0, 2]] and list(several.masks) == [1]
    assert lengths.captions == ["a dog", "the dog"] and len(lengths.masks) == 1
    assert len(open_source(str(tmp_path)).parts()) == 2
    for pattern in ("train-{000..001}.tar", "train-{000,001}.tar", "train-*.tar", "{train,train}-00[01].tar"):
        assert len(opened(tmp_path / pattern)[0]) in (5, 10)


def test_names_of_a_tars_json_and_one_word_for_all_rows(tmp_path):
    write_tar(tmp_path / "t.tar", {"1.jpg": picture(), "1.ref.jpg": picture(), "1.json": {"alt": "a dog", "n": 3},
                                   "2.jpg": picture(), "2.ref.jpg": picture(), "2.txt": "a cat", "2.cls": "cat"})
    records, broken = opened(tmp_path, columns={"caption": "alt"}, word="dog")
    assert not broken and [(row.words, row.captions) for row in records] == [(["dog"], ["a dog"]), (["cat"], ["a cat"])]


@pytest.mark.parametrize("members, words", [
    ({"x.jpg": b"not a picture"} | {"x.json": {"caption": "a dog", "word": "dog"}, "x.ref.jpg": picture()},
     r"x\.jpg cannot be read"),
    ({"x.jpg": picture(), "x.json": "{"}, "its .json is not JSON"),
    ({"x.jpg": picture(), "x.json": "[]"}, "its .json is not a JSON object"),
    ({"x.jpg": picture()}, "no .json and no .txt"),
    ({"x.json": {"caption": "a dog", "word": "dog"}, "x.ref.jpg": picture()}, "'target' is missing"),
    ({"x.jpg": picture(), "x.txt": "a dog", "x.cls": "7"}, "its .cls is the number 7"),
    ({"x.jpg": picture(), "x.txt": b"\xff", "x.cls": "dog"}, "no text in UTF-8"),
    ({"x.jpg": picture(), "x.txt": "a dog"}, "'word' is missing"),
    (dog("x", reference="b.jpg"), "its .json has 'reference'"),
    (dog("x", mask="m.png"), "it names the file 'm.png'"),
    (dog("x") | {"x.png": picture(kind="PNG")}, "more than one target"),
    (dog("x") | {"x.mask.png": mask((9, 9), (1, 1, 3, 3))}, r"mask.png is 9 x 9, its target 24 x 16"),
    ({"x.jpg": picture(), "x.ref.5.jpg": picture(), "x.json": {
        "caption": "a dog", "subjects": [{"word": "dog"}]}}, "is of subject 5, and it has 1"),
])
def test_a_broken_row_of_a_tar_costs_itself_alone(tmp_path, members, words):
    write_tar(tmp_path / "t.tar", dog("a") | members | dog("z"))
    records, broken = opened(tmp_path)
    assert [row.where for row in records] == ["t.tar: a", "t.tar: z"] and len(broken) == 1
    with pytest.raises(ValueError, match=f"^t.tar: x: .*{words}"):
        raise ValueError(broken[0])


@pytest.mark.parametrize("kept", ["in its last file", "in its last header", "damaged header"])
def test_a_truncated_tar_costs_its_last_row(tmp_path, kept):
    file = tmp_path / "t.tar"
    write_tar(file, dog("a") | dog("b") | dog("c"))
    content = bytearray(file.read_bytes())
    with tarfile.open(file) as tar:
        last = tar.getmembers()[-1]
    if kept == "damaged header":
        content[last.offset + 100] ^= 0x55
    else:
        del content[last.offset_data + 10 if kept == "in its last file" else last.offset + 99:]
    file.write_bytes(content)
    records, broken = opened(tmp_path)
    assert [row.where for row in records] == ["t.tar: a", "t.tar: b"]
    assert len(broken) == 1 and broken[0].startswith("t.tar: c: t.tar is cut off or damaged here")


@pytest.mark.parametrize("content, words", [
    (b"", "is no plain tar (empty file)"), (b"<html>404</html>" * 100, "is no plain tar (invalid header)"), (None, "")])
def test_a_tar_that_is_none_costs_itself_alone_wherever_it_stands(tmp_path, content, words):
    for name in ("0.tar", "2.tar"):
        write_tar(tmp_path / name, {})  # without a row
        if content is not None:
            (tmp_path / name).write_bytes(content)
    write_tar(tmp_path / "1.tar", dog("a"))
    records, broken = opened(tmp_path)
    assert [row.where for row in records] == ["1.tar: a"] and len(broken) == (0 if content is None else 2)
    assert all(line.startswith(f"{name}.tar: {words}") for line, name in zip(broken, "02", strict=False))


def test_a_changed_picture_of_a_tar_is_another_source_and_a_moved_tar_is_not(tmp_path):
    identities = []
    for folder, colour in (("a", "red"), ("b", "red"), ("c", "blue")):
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "t.tar", dog("1") | {"1.jpg": picture(colour=colour)})
        identities.append(open_source(str(tmp_path / folder)).identity(tmp_path / "seen"))
    assert identities[0] == identities[1] != identities[2]


def test_parquet_as_hugging_face_writes_it(tmp_path):
    (tmp_path / "data").mkdir()
    references = [[image(picture(colour="blue"))] * i for i in (1, 2, 3)]
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", {
        "image": [image(picture(colour=c)) for c in ("red", "green", "pink")], "text": ["a dog", "a cat", "a dog"],
        "reference": references, "word": ["dog", "cat", "dog"], "identity": ["1", "2", "1"],
        "bbox": [[1.0, 2.0, 9.0, 9.0], None, None], "other": [1, 2, 3]}, row_group_size=2)
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", {"image": [picture()], "text": ["a dog"]})
    source = open_source(str(tmp_path))
    assert [part.name for part in source.parts()] == [
        "train-00000-of-00001.parquet, row group 0", "train-00000-of-00001.parquet, row group 1"]
    records, broken = rows_of(source)
    assert not broken and [len(row.pictures) for row in records] == [2, 3, 4]
    assert records[2].where == "train-00000-of-00001.parquet row 2" and records[2].identity == "1"
    assert records[1].pictures[0] == picture(colour="green") and records[0].boxes[0].tolist() == [1, 2, 9, 9]


def test_columns_of_other_names_plain_bytes_masks_and_classes(tmp_path):
    label = {"names": ["n02084071-dog", "red_car"], "_type": "ClassLabel"}
    names = json.dumps({"info": {"features": {"label": label}}})
    write_parquet(tmp_path / "a.parquet", {"jpg": [picture(), picture()], "label": [0, 1]},
                  metadata={"huggingface": names})
    (one, two), broken = opened(tmp_path / "a.parquet")
    assert not broken and one.words == ["dog"] and two.captions == ["a photo of a red car"]
    assert one.boxes[0].tolist() == [0, 0, 24, 16]  # nothing says where it is: the whole picture
    write_parquet(tmp_path / "b.parquet", {
        "photo": [picture()] * 3, "TEXT": ["a toy"] * 3, "target": [1, 2, 3],
        "segmentation": [json.dumps(RLE), json.dumps([[2, 3, 12, 3, 12, 13]]), "m.png"]})
    (tmp_path / "m.png").write_bytes(mask())
    records, broken = opened(tmp_path / "b.parquet", columns={"target": "photo", "mask": "segmentation"}, word="toy")
    assert not broken and [len(row.masks) for row in records] == [1, 1, 1]
    write_parquet(tmp_path / "c.parquet", {
        "images": [[image(picture()), image(picture(colour="blue"))]], "prompt": ["a toy"], "class": ["toy"],
        "mask": pytest.importorskip("pyarrow").nulls(1)})
    (group,), broken = opened(tmp_path / "c.parquet")
    assert not broken and group.targets == 2


@pytest.mark.parametrize("columns, words", [
    ({"image": [b"no picture"]}, "row 1, image cannot be read"),
    ({"image": [None]}, "'target' is missing"),
    ({"image": ["gone.jpg"]}, "the file .*gone.jpg does not exist"),
    ({"image": [picture()], "text": [None]}, "'caption' is missing"),
    ({"image": [picture()], "mask": ["[[1,"]}, "'mask' is not JSON"),
    ({"image": [picture()], "box": [[1, 2, 3]]}, "the box"),
])
def test_a_broken_row_of_a_table_costs_itself_alone(tmp_path, columns, words):
    pa = pytest.importorskip("pyarrow")
    good = {"image": [picture()], "text": ["a dog"], "word": ["dog"]}
    kind = pa.string() if isinstance(columns["image"][0], str) else pa.binary()
    cells = {name: [*good.get(name, [None]), *columns.get(name, good.get(name, [None]))] for name in good | columns}
    if kind == pa.string():  # names of files that lie beside
        (tmp_path / "a.jpg").write_bytes(picture())
        cells["image"][0] = "a.jpg"
    write_parquet(tmp_path / "t.parquet", cells | {"image": pa.array(cells["image"], kind),
                                                   "reference": pa.array([picture()] * 2, pa.binary())})
    records, broken = opened(tmp_path)
    assert len(records) == len(broken) == 1
    with pytest.raises(ValueError, match=f"^t.parquet row 1: .*{words}"):
        raise ValueError(broken[0])


def test_a_damaged_row_group_costs_its_rows_alone(tmp_path):
    file = tmp_path / "t.parquet"
    write_parquet(file, {"image": [picture(colour=colour) for colour in ("red", "green", "blue", "yellow")],
                         "text": ["a dog"] * 4}, row_group_size=2, use_dictionary=False)
    pq = pytest.importorskip("pyarrow.parquet")
    at = pq.read_metadata(file).row_group(0).column(0).data_page_offset
    content = bytearray(file.read_bytes())
    content[at:at + 300] = bytes(300)
    file.write_bytes(content)
    records, broken = opened(tmp_path, word="dog")
    assert [row.where for row in records] == ["t.parquet row 2", "t.parquet row 3"]
    assert [line.partition(" (")[0] for line in broken] == [
        f"t.parquet row {row}: the file is damaged at row 0" for row in (0, 1)]


def test_numbers_of_classes_without_names_take_the_one_word(tmp_path):
    write_parquet(tmp_path / "t.parquet", {"image": [picture()], "text": ["a dog"], "label": [3]})
    (row,), broken = opened(tmp_path, word="dog")
    assert row.words == ["dog"] and not broken
    assert opened(tmp_path)[1] == ["t.parquet row 0: the word is the number 3, and the table has no name for it; give "
                                   "the names of the classes, or one word for all rows as word"]


def test_trees_of_views_are_groups(tmp_path):
    for folder, names in {"red_toy_01": ("2.jpg", "10.jpg", "1.jpg", "1_mask.png", "note.txt"),
                          "teapot/0a1b/images": ("001.jpg", "002.png"), "teapot/0a1b/masks": ("001.png", "002.png"),
                          "7/99": ("a.jpg", "b.jpg"), "8/9": ("a.jpg", "b.jpg"), "dogs/alone": ("a.jpg",),
                          "n02084071-dog/x": ("a.jpg", "b.jpg"), "dogs/rex": ("a.jpg", "b.jpg")}.items():
        (tmp_path / folder).mkdir(parents=True)
        for name in names:
            (tmp_path / folder / name).write_bytes(picture(colour="red" if name != "1.jpg" else "blue"))
    (tmp_path / "words.json").write_text(json.dumps({"8": "cup", "dogs": "dog"}))
    (tmp_path / "captions.json").write_text(json.dumps({
        "dogs/rex": ["Rex, a dog", "a dog"], "teapot": {"caption": "my pot", "word": "pot"}}))
    (tmp_path / "loop").symlink_to(tmp_path)
    records, broken = opened(tmp_path)
    found = {row.where: (row.captions, row.words, row.targets) for row in records}
    assert found == {
        "8/9": (["a photo of a cup"], ["cup"], 2), "dogs/rex": (["Rex, a dog", "a dog"], ["dog"], 2),
        "n02084071-dog/x": (["a photo of a dog"], ["dog"], 2), "red_toy_01": (["a photo of a red toy"], ["red toy"], 3),
        "teapot/0a1b/images": (["my pot"], ["pot"], 2)}
    assert sorted(broken) == [
        "7/99: no folder's name says what the object is: say it in words.json, {\"FOLDER\": \"word\"}",
        "dogs/alone: 'views' are fewer than two: there is no other picture of the subject"]
    toy = next(row for row in records if row.where == "red_toy_01")
    assert toy.pictures[0] == picture(colour="blue") and toy.identity == "red_toy_01" and not toy.masks
    first = open_source(str(tmp_path)).identity(tmp_path.parent / "seen")
    (tmp_path / "words.json").write_text(json.dumps({"8": "mug", "dogs": "dog"}))
    assert open_source(str(tmp_path)).identity(tmp_path.parent / "seen") != first


def test_a_tree_says_what_is_wrong_with_its_words(tmp_path):
    (tmp_path / "dog").mkdir()
    for name in "ab":
        (tmp_path / "dog" / f"{name}.jpg").write_bytes(picture())
    for content, words in (("{", "is not JSON"), ("[]", "expected an object"), ('{"dog": {"wrod": "x"}}', "'wrod'")):
        (tmp_path / "words.json").write_text(content)
        with pytest.raises(ValueError, match=words):
            open_source(str(tmp_path)).parts()
    (tmp_path / "words.json").write_text('{"dog": 3}')
    assert opened(tmp_path)[1] == ["dog: 'word' is missing or no text"]


def test_what_is_no_source_says_what_to_do(tmp_path):
    def said(name, **options):
        with pytest.raises((ValueError, OSError)) as error:
            open_source(str(tmp_path / name) if name else "", **options)
        assert "\n" not in str(error.value) and str(error.value).endswith(".")
        return str(error.value)

    (tmp_path / "empty").mkdir()
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "a.jpg").write_bytes(picture())
    (tmp_path / "inner" / "images").mkdir(parents=True)
    (tmp_path / "inner" / "images" / "a.jpg").write_bytes(picture())
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("a")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "x.array_record-00000-of-00001").write_text("a")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "dataset_info.json").write_text("{}")
    write_tar(tmp_path / "pairless.tar", {"a.jpg": picture(), "b.doc": "a"})
    write_tar(tmp_path / "none.tar", {})
    (tmp_path / "no.tar").write_bytes(b"not a tar" * 200)
    (tmp_path / "a.tar.gz").write_bytes(b"x")
    assert "does not exist; expected a manifest.jsonl" in said("gone") and "is empty" in said("")
    assert "empty is empty; expected a manifest.jsonl" in said("empty")
    (tmp_path / "split" / "train").mkdir(parents=True)
    (tmp_path / "split" / "train" / "a.jpg").write_bytes(picture())
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "metadata.jsonl").write_text("{}")
    assert "metadata.jsonl with columns.target=file_name" in said("hub")
    for name in ("bare", "inner", "split"):
        assert "has pictures, and nothing says what they show: write" in said(name)
    assert "text is no training data: it has 'a.txt'" in said("text")
    assert "is no training data" in said("text/a.txt") and "is a picture" in said("bare/a.jpg")
    assert "did not come to its end" in said("half") and "no dataset" in said("foreign")
    assert "no pair of a picture and what it shows: expected KEY.jpg with KEY.json" in said("pairless.tar")
    assert "found KEY.doc, KEY.jpg" in said("pairless.tar")
    assert "found no files" in said("none.tar") and "is no plain tar" in said("no.tar")
    assert "compressed tar" in said("a.tar.gz") and "There is no file" in said("x-{00..02}.tar")
    assert "There is no file" in said("*.parquet") and "more than" in said("{0..1000000}.tar")
    assert "columns is 3" in said("bare", columns=3)


def test_what_is_no_table_of_pictures_names_its_columns(tmp_path):
    write_parquet(tmp_path / "t.parquet", {"photo": [picture()], "text": ["a dog"]})
    for options, words in (({}, "has no column of pictures: it has photo, text; expected one of target, image"),
                           ({"columns": {"target": "photos"}}, "did you mean 'photo'"),
                           ({"columns": {"target": "photo"}}, "no column that names the subject")):
        with pytest.raises(ValueError, match=words):
            open_source(str(tmp_path), **options)
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="no whole Parquet file"):
        open_source(str(tmp_path))


def test_the_extra_for_parquet_is_named(tmp_path, monkeypatch):
    import sys

    (tmp_path / "t.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "realcustom_jax.data.sources.parquet", raising=False)
    with pytest.raises(ValueError, match=r"needs the package pyarrow.*realcustom-jax\[parquet\]"):
        open_source(str(tmp_path))


def test_a_dataset_of_tfds_with_pictures_and_texts(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    box = tfds.features.BBox(0.25, 0.5, 1.0, 1.0)
    rows = [{"image": picture(), "text": "a red car", "label": 1, "id": 3, "bbox": box,
             "references": [picture(colour="blue")] * 2}]
    folder = write_dataset(tmp_path / "d", {
        "image": tfds.features.Image(encoding_format="jpeg"), "text": tfds.features.Text(), "id": np.int64,
        "label": tfds.features.ClassLabel(names=["dog", "red_car"]), "bbox": tfds.features.BBoxFeature(),
        "references": tfds.features.Sequence(tfds.features.Image())}, rows)
    (row,), broken = opened(folder)
    assert not broken and row.words == ["red car"] and row.captions == ["a red car"] and row.where == "train 0"
    assert row.pictures == [picture(), picture(colour="blue"), picture(colour="blue")]
    assert row.boxes[0].tolist() == [12, 4, 24, 16]
    other = write_dataset(tmp_path / "e", {"image": tfds.features.Image(), "text": tfds.features.Text()},
                          [{"image": picture(), "text": "a toy"}, {"image": picture(), "text": "a dog"}])
    with pytest.raises(ValueError, match="no column that names the subject: it has image, text"):
        open_source(str(other))
    (row,), broken = opened(other, word="toy")
    assert row.boxes[0].tolist() == [0, 0, 24, 16]
    assert broken == ["train 1: the word 'toy' is not in the caption 'a dog'"]
    texts = write_dataset(tmp_path / "f", {"text": tfds.features.Text()}, [{"text": "a toy"}])
    with pytest.raises(ValueError, match="no column of pictures: it has text"):
        open_source(str(texts))


def test_a_dataset_that_was_built_here_gives_its_rows_again(tmp_path):
    from realcustom_jax.data.records import FEATURES, write_record

    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "in" / "t.tar", dog("1", subject="Rex", score=0.5, box=[1, 2, 9, 9], mask=RLE) | {
        "g.view.0.jpg": picture(), "g.view.1.jpg": picture(), "g.cls": "toy"} | {
        "s.jpg": picture(), "s.mask.1.png": mask(), "s.ref.0.jpg": picture(), "s.json": {
            "text": "a dog and a cat", "subjects": [{"word": "dog"}, {"word": "cat"}]}})
    written = [write_record(row)[0] for part in open_source(str(tmp_path / "in")).parts() for row in part.rows()]
    folder = write_dataset(tmp_path / "out", dict(FEATURES.items()), written)
    again = [write_record(row)[0] for part in open_source(str(folder)).parts() for row in part.rows()]
    assert again == written
    shard = folder / "some-train.array_record-00000-of-00001"
    assert ArrayRecordReader(str(shard)).num_records() == 3
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged"):
        opened(folder)
