import contextlib
import gc
import importlib.machinery
import importlib.util
import itertools
import os
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from fresh_process import emulator
from goldens import FIXTURES

_COMPILED, _MOST_BYTES = Path(__file__).parents[1] / ".pytest_cache" / "compiled", 2**29

# Tests have a cache of compiled programs of their own, which the processes of a call share and the next call finds
# again; they neither read nor fill the user's. It has every program: the small ones are many, and each process that a
# test starts would compile them again. JAX is told of no bound, with which it looks at all files for each that it
# writes; `pytest_configure` keeps to it. As most programs take longer to compile than to run, machine code is not
# optimised unless the caller says so (what XLA makes of a program before that stays; see `optimised`). JAX reads this
# when it is imported, and so do the processes that tests start.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
os.environ |= {
    "JAX_COMPILATION_CACHE_DIR": str(_COMPILED), "JAX_COMPILATION_CACHE_MAX_SIZE": "-1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def pytest_configure(config):
    """Before the workers start, removes the oldest compiled programs beyond the bound."""
    if hasattr(config, "workerinput") or not _COMPILED.is_dir():
        return
    files = [(file.stat(), file) for file in _COMPILED.iterdir() if file.is_file()]
    files.sort(key=lambda found: -found[0].st_mtime_ns)
    for (_, file), total in zip(files, itertools.accumulate(state.st_size for state, _ in files), strict=True):
        if total > _MOST_BYTES:
            file.unlink(missing_ok=True)


# In the order of their times in .ci/run, more than a minute each.
_LONGEST = [f"test_{name}.py" for name in (
    "stages", "published", "buckets", "notebooks", "interruption", "site", "ahead", "sources_training", "unet",
    "miniature", "finetune_mini", "distill", "sampling", "transforms", "benchmarks")]


def pytest_collection_modifyitems(items):
    """Each file runs in one process, where what it trains and compiles serves all its tests; the longest begin."""
    items.sort(key=lambda item: _LONGEST.index(item.path.name) if item.path.name in _LONGEST else len(_LONGEST))


_MANY_MAPS = 25_000


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_do_not_pile_up():
    """A compiled program holds memory maps until JAX forgets it, of which Linux lets a process have 65,530
    (vm.max_map_count): beyond, LLVM aborts."""
    yield
    maps = Path("/proc/self/maps")
    if maps.is_file() and maps.read_bytes().count(b"\n") > _MANY_MAPS:
        import jax

        jax.clear_caches()
        gc.collect()


@pytest.fixture
def fixtures() -> Path:
    """The folder of the golden files."""
    return FIXTURES


@pytest.fixture
def memory_bucket(monkeypatch, tmp_path):
    """A folder of a bucket that fsspec keeps in memory."""
    from realcustom_jax import files, paths, staging

    fsspec = pytest.importorskip("fsspec")
    epath = pytest.importorskip("etils.epath")
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]

    class Bucket(type(memory)):
        protocol, cachable = "s3", False

        @classmethod
        def _strip_protocol(cls, path):
            return super()._strip_protocol(path.replace("s3://", "memory://"))

        # Buckets' names begin without a slash, and an object has a version.
        def ls(self, path, detail=True, **options):
            found = super().ls(path, detail=detail, **options)
            return found if detail else [name.lstrip("/") for name in found]

        def find(self, path, **options):
            found = super().find(path, **options)
            return {name.lstrip("/"): self.info(name) for name in found}

        def info(self, path, **options):
            found = super().info(path, **options)
            return found | {"ETag": hash(self.cat_file(path))} if found["type"] == "file" else found

    for module in (paths, files, staging):
        monkeypatch.setattr(module, "file_system", lambda path: Bucket())
    monkeypatch.setenv(paths.CACHE_VARIABLE, str(tmp_path / "cache"))
    yield epath.Path("s3://bucket/run")
    memory.store.clear()


@pytest.fixture(scope="module")
def quickly_compiled():
    """For files whose programs always take longer to compile than to run: without most of XLA's optimisations."""
    import jax

    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def optimised():
    """For files whose programs are to be compiled as users have them: with all of XLA's optimisations."""
    import jax

    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS")
        yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def mini_folder(tmp_path_factory) -> Path:
    """A model folder of random weights; not to be changed."""
    from mini_bundle import write_mini_bundle

    return write_mini_bundle(tmp_path_factory.mktemp("mini"))


@pytest.fixture(scope="session")
def mini_pipeline(mini_folder):
    """The loaded model of `mini_folder`."""
    from realcustom_jax.pipeline import Pipeline

    return Pipeline.load(mini_folder)


@pytest.fixture(scope="session")
def tiny_bank():
    """Two identities of each noun in two poses and two views of each scene, as small as they can be told apart."""
    from realcustom_jax.data.sprites.bank import BankConfig, paint_bank

    return paint_bank(BankConfig(identities=36, poses=2, scenes=2, side=32, cut_out=36))


@pytest.fixture(scope="session")
def sprite_tokenizer():
    """The painted world's, with prompts of 32 tokens."""
    from realcustom_jax.conditioning.prompts import build_tokenizer
    from realcustom_jax.data.sprites.captions import VOCABULARY

    return build_tokenizer(VOCABULARY, max_length=32)


@pytest.fixture(scope="session")
def new_bucket(tmp_path_factory):
    """A function that makes a bucket, "gs" or "s3", in an emulator, and gives its URL."""
    numbers, started = itertools.count(), set()
    with contextlib.ExitStack() as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("REALCUSTOM_BUCKET_CACHE", str(tmp_path_factory.mktemp("buckets")))

        def make(scheme: str) -> str:
            if scheme not in started:
                running.enter_context(emulator(scheme))
                started.add(scheme)
            import fsspec

            url = f"{scheme}://pictures-bucket-{next(numbers)}"
            fsspec.filesystem(scheme).mkdir(url)
            return url

        yield make


@pytest.fixture(scope="session")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="session")
def transformers(torch):
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def vision_transformer():
    """timm's module. It imports torchvision for its picture transforms, which are replaced where that is missing."""
    names = ("", ".transforms", ".transforms.functional", ".ops", ".ops.misc", ".datasets", ".models",
             ".models.feature_extraction")
    stand_ins = {}
    if importlib.util.find_spec("torchvision") is None:
        for name in (f"torchvision{name}" for name in names):
            stand_ins[name] = MagicMock(__path__=[])
            stand_ins[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
    # Only the stand-ins leave again: some of what timm imports, as numpy.fft, cannot be loaded twice in a process.
    with pytest.MonkeyPatch.context() as patched:
        for name, module in stand_ins.items():
            patched.setitem(sys.modules, name, module)
        yield pytest.importorskip("timm.models.vision_transformer")
