"""Paths of disks and buckets: what is taken for which, and what is said of the others. Whole runs in buckets are in
test_buckets.py, with emulators."""

import builtins
import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from realcustom_jax import files, paths
from realcustom_jax.staging import Staging

import fresh_process


@pytest.mark.parametrize("text", ["run", "/data/run", "./a:b", "a:b", "C:\\data", "c:/data", "gs", "~/run", "x/gs://b"])
def test_paths_of_the_disk_stay_the_systems(text):
    assert paths.as_path(text) == Path(text) and type(paths.as_path(text)) is type(Path())


@pytest.mark.parametrize("text", [
    "gs:/bucket/run", "s3:/bucket", "s3:bucket", "gs:bucket/run", "gs://", "s3:///run", "GS://bucket/run",
    "gs:////bucket", "gs://Bucket/run"])
def test_a_bucket_that_is_written_otherwise_is_told_how(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scheme = text[:2].lower()
    with pytest.raises(ValueError, match=f"is no path in a bucket: write {scheme}://bucket/folder"):
        paths.as_path(text)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("text", ["http://x.org/run", "https://x.org", "az://bucket/run", "hf://owner/model", "file:///x",
                                  "memory://x", "abfs:/x"])
def test_other_schemes_are_one_sentence(text):
    with pytest.raises(ValueError, match=r"is not supported: a path is .* gs://bucket/… or s3://bucket/…\.$"):
        paths.as_path(text)


def test_a_file_of_the_disk_may_be_called_like_a_scheme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ab:").mkdir()
    (tmp_path / "ab:" / "x").touch()
    assert paths.as_path("ab:/x") == Path("ab:/x")


@pytest.mark.parametrize("scheme, package, extra", [
    ("gs", "gcsfs", "gcs"), ("s3", "s3fs", "s3"), ("gs", "etils", "gcs")])
def test_a_missing_package_is_named_with_its_extra(scheme, package, extra, monkeypatch):
    real = builtins.__import__

    def blocked(name, *arguments, **options):
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(ValueError, match=rf"begins with {scheme}:// needs the package {package}.*\[{extra}\]"):
        paths.as_path(f"{scheme}://bucket/run")


def test_objects_are_written_listed_and_removed(memory_bucket, tmp_path):
    files.write_json(memory_bucket / "config.json", {"a": 1})
    files.write_file(memory_bucket / "samples" / "1.png", b"one")
    assert paths.listing(memory_bucket) == [memory_bucket / "config.json", memory_bucket / "samples"]
    assert paths.listing(memory_bucket, "*.json") == [memory_bucket / "config.json"]
    assert paths.listing(memory_bucket / "none") == []
    paths.remove_tree(memory_bucket / "samples")
    paths.remove_tree(memory_bucket / "samples")
    assert paths.listing(memory_bucket) == [memory_bucket / "config.json"]
    assert paths.absolute(memory_bucket) is memory_bucket
    with files.sole_user(memory_bucket), files.sole_user(memory_bucket):  # buckets have no locks
        pass
    assert not (Path.cwd() / "s3:").exists()


def test_a_local_copy_follows_its_object(memory_bucket):
    files.write_file(memory_bucket / "data" / "part.npy", b"old")
    copy = paths.local_copy(memory_bucket / "data" / "part.npy")
    assert copy.name == "part.npy" and copy.read_bytes() == b"old"
    assert paths.local_copy(memory_bucket / "data" / "part.npy") == copy
    files.write_file(memory_bucket / "data" / "part.npy", b"new")
    assert paths.local_copy(memory_bucket / "data" / "part.npy").read_bytes() == b"new"
    assert copy.read_bytes() == b"old"  # whoever reads it goes on reading it
    with pytest.raises(FileNotFoundError, match=r"s3://bucket/run/data/none does not exist\."):
        paths.local_copy(memory_bucket / "data" / "none")


def test_a_local_folder_holds_what_is_wanted(memory_bucket):
    for name in ("config.json", "unet/model.safetensors", "unet/model.bin"):
        files.write_file(memory_bucket / name, name.encode())
    copy = paths.local_folder(memory_bucket, lambda names: [name for name in names if not name.endswith(".bin")])
    assert sorted(str(path.relative_to(copy)) for path in copy.rglob("*.*")) == [
        "config.json", "unet/model.safetensors"]
    assert (copy / "unet" / "model.safetensors").read_bytes() == b"unet/model.safetensors"


def test_a_copy_that_was_interrupted_goes_on(memory_bucket, monkeypatch):
    for name in ("a", "b"):
        files.write_file(memory_bucket / name, name.encode())
    copied, real = [], paths.download

    def broken(path, *rest):
        if path.name == "b":
            raise KeyboardInterrupt
        real(path, *rest)

    monkeypatch.setattr(paths, "download", broken)
    with pytest.raises(KeyboardInterrupt):
        paths.local_folder(memory_bucket)
    monkeypatch.setattr(paths, "download", lambda path, *rest: (copied.append(path.name), real(path, *rest)))
    copy = paths.local_folder(memory_bucket)
    assert copied == ["b"] and sorted(path.name for path in copy.iterdir()) == ["a", "b"]


def test_those_who_ask_at_once_share_one_copy(memory_bucket, monkeypatch):
    files.write_file(memory_bucket / "shard", b"content")
    copied, real = [], paths.download

    def slow(path, *rest):
        copied.append(path)
        time.sleep(0.05)
        real(path, *rest)

    monkeypatch.setattr(paths, "download", slow)
    with ThreadPoolExecutor(4) as readers:
        found = set(readers.map(lambda _: paths.local_copy(memory_bucket / "shard"), range(4)))
    assert len(copied) == 1 and len(found) == 1 and found.pop().read_bytes() == b"content"


def test_an_object_that_comes_with_another_length_is_no_copy(memory_bucket, monkeypatch):
    files.write_file(memory_bucket / "shard", b"content")
    short = paths.file_system(memory_bucket)
    monkeypatch.setattr(type(short), "get_file", lambda self, path, target: Path(target).write_bytes(b"con"))
    with pytest.raises(OSError, match=r"s3://bucket/run/shard came with 3 bytes of 7"):
        paths.local_copy(memory_bucket / "shard")
    assert not [path for path in paths.cache_folder().rglob("*") if path.name.endswith("shard")]


def test_what_a_client_raises_is_one_sentence_that_names_the_path(memory_bucket):
    with pytest.raises(OSError, match=r"^s3://bucket/run cannot be reached \(no credentials\); are the bucket's name"):
        with paths.reaching(memory_bucket):
            raise RuntimeError("no\ncredentials")
    with pytest.raises(OSError, match=r"^The disk of .*cache is full, so that s3://bucket/run cannot be copied to it"):
        with paths.reaching(memory_bucket):
            raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(RuntimeError), paths.reaching(Path("run")):
        raise RuntimeError


def test_staged_files_are_copied_when_they_are_new_or_have_changed(memory_bucket):
    files.write_file(memory_bucket / "metrics.jsonl", b"one\n")
    with Staging(memory_bucket, "metrics.jsonl", "none") as staged:
        with (staged.local / "metrics.jsonl").open("a") as lines:
            lines.write("two\n")
        (staged.local / "board").mkdir()
        (staged.local / "board" / "events").write_bytes(b"")
        staged.upload()
        staged.upload("board", but="events")
        assert (memory_bucket / "metrics.jsonl").name in {path.name for path in paths.listing(memory_bucket)}
        assert paths.file_system(memory_bucket).cat_file(f"{memory_bucket}/metrics.jsonl") == b"one\ntwo\n"
        assert paths.listing(memory_bucket / "board") == [memory_bucket / "board" / "events"]
        paths.remove_tree(memory_bucket / "board")
        staged.upload()  # it has not changed
        assert paths.listing(memory_bucket / "board") == []
    assert not staged.local.exists()


def test_on_a_disk_staging_is_the_folder_itself(tmp_path):
    with Staging(tmp_path) as staged:
        (staged.local / "file").touch()
        staged.upload()
    assert staged.local == tmp_path and (tmp_path / "file").exists()


def test_paths_of_the_disk_load_no_client():
    printed = fresh_process.run("""
import sys
from realcustom_jax import files, paths
paths.local_copy(paths.as_path("x"))
print([name for name in ("etils", "fsspec", "gcsfs", "s3fs", "jax") if name in sys.modules])
""")
    assert printed == "[]\n"
