"""Programs that are kept on disk: found by the next process, and by nothing that differs."""

import functools
import os
import stat

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realcustom_jax.devices import programs
from realcustom_jax.devices.compilation import jit_kept
from realcustom_jax.model_files import weights
from realcustom_jax.models.unet import UNet, UNetConfig

import fresh_process


@flax.struct.dataclass
class Pair:
    name: str = flax.struct.field(pytree_node=False)
    value: jax.Array


traced = []


def double(kind, x, pair, *, scale=1.0):
    traced.append(kind)
    return Pair(pair.name, pair.value + x), {"kind": jnp.float32(scale) * x * (2 if kind == "double" else 3)}


@pytest.fixture
def folder(tmp_path):
    """JAX's cache, on, in a folder of its own."""
    names = "jax_enable_compilation_cache", "jax_compilation_cache_dir"
    before = {name: jax.config.values[name] for name in names}
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    programs.compilation_cache.reset_cache()
    traced.clear()
    yield tmp_path / "programs"
    for name, value in before.items():
        jax.config.update(name, value)
    programs.compilation_cache.reset_cache()


def fresh():
    """The function as another process has it: with no program in memory."""
    jax.clear_caches()
    return jit_kept(double, static_argnums=0)


def call(function, kind="double", x=None, name="a", **options):
    x = np.float32([1, 2]) if x is None else x
    return function(kind, x, Pair(name, jnp.ones(2)), **options)


def files(folder):
    return sorted(folder.iterdir()) if folder.exists() else []


def test_the_next_process_does_not_trace(folder):
    first, second = call(fresh(), scale=0.5), call(fresh(), scale=0.5)
    assert traced == ["double"] and len(files(folder)) == 1
    assert jax.tree.structure(first) == jax.tree.structure(second) and second[0].name == "a"
    for ours, expected in zip(jax.tree.leaves(second), jax.tree.leaves(first), strict=True):
        np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(second[1]["kind"], [1, 2])


def test_a_program_serves_all_numbers_of_its_shapes(folder):
    function = fresh()
    call(function)
    np.testing.assert_array_equal(call(function, x=np.float32([5, 7]))[1]["kind"], [10, 14])
    assert traced == ["double"]


@pytest.mark.parametrize("other", [
    {"kind": "triple"}, {"x": np.float32([[1, 2]])}, {"x": np.int32([1, 2])}, {"name": "b"}, {"scale": 2.0}, {"x": 1.0},
    {"x": jnp.bfloat16(1)},
])
def test_what_differs_is_another_program(folder, other):
    call(fresh())
    call(fresh(), **other)
    assert len(traced) == 2 and len(files(folder)) == 2


@pytest.mark.parametrize("change", ["code", "flags", "precision"])
def test_other_surroundings_are_another_program(folder, change, monkeypatch):
    call(fresh())
    if change == "code":
        lasting = programs._lasting()
        monkeypatch.setattr(programs, "_lasting", lambda: (*lasting[:-1], "another package"))
    elif change == "flags":
        monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    else:
        jax.config.update("jax_default_matmul_precision", "highest")
    try:
        call(fresh())
    finally:
        jax.config.update("jax_default_matmul_precision", None)
    assert len(traced) == 2 and len(files(folder)) == 2


@pytest.mark.parametrize("damage", [
    lambda content: content[: len(content) // 2], lambda content: b"", lambda content: b"something else",
    lambda content: content[:-100] + bytes(100), lambda content: content.replace(b"program 1", b"program 2", 1)])
def test_damaged_files_are_told_and_written_anew(folder, damage):
    expected = call(fresh())
    (file,) = files(folder)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    with pytest.warns(UserWarning, match="a compiled program in .* cannot be used .ValueError. and is compiled anew"):
        again = call(fresh())
    np.testing.assert_array_equal(again[1]["kind"], expected[1]["kind"])
    assert len(traced) == 2 and len(file.read_bytes()) > len(whole) / 2
    call(fresh())
    assert len(traced) == 2


def test_a_program_that_cannot_be_run_is_told(folder, monkeypatch):
    call(fresh())

    def unusable(*_):
        def program(*_, **__):
            raise RuntimeError("another XLA")
        return program

    monkeypatch.setattr(programs.serialize_executable, "deserialize_and_load", unusable)
    with pytest.warns(UserWarning, match="RuntimeError"):
        np.testing.assert_array_equal(call(fresh())[1]["kind"], [2, 4])


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="has no users")
def test_only_a_folder_of_ones_own_is_read(folder):
    call(fresh())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    call(fresh())
    assert len(traced) == 2


def test_a_folder_that_cannot_be_made_keeps_nothing(folder):
    folder.write_text("a file in its place")
    np.testing.assert_array_equal(call(fresh())[1]["kind"], [2, 4])
    call(fresh())
    assert len(traced) == 2


def test_the_oldest_go_first(folder, monkeypatch):
    call(fresh())
    (old,) = files(folder)
    os.utime(old, (1, 1))
    monkeypatch.setattr(programs, "_LARGEST", 1.5 * old.stat().st_size)
    call(fresh(), kind="triple")
    assert len(files(folder)) == 1 and not old.exists()


def test_transformations_and_settings_are_as_ever(folder):
    function = fresh()

    def loss(x):
        return call(function, x=x)[1]["kind"].sum()

    np.testing.assert_array_equal(jax.grad(loss)(np.float32([1, 2])), [2, 2])
    np.testing.assert_array_equal(
        jax.vmap(lambda x: call(function, x=x)[1]["kind"])(np.ones((3, 2))), np.full((3, 2), 2))
    np.testing.assert_array_equal(jax.jit(lambda x: call(function, x=x)[1]["kind"])(np.float32([1, 2])), [2, 4])
    assert jax.eval_shape(loss, np.float32([1, 2])).shape == ()
    with jax.debug_nans(True):
        call(function)
    with jax.disable_jit():
        call(function)
    assert not files(folder)


def test_without_jaxs_cache_nothing_is_kept(folder):
    jax.config.update("jax_enable_compilation_cache", False)
    call(fresh())
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", "gs://bucket/cache")
    call(fresh())
    assert len(traced) == 2 and not files(folder)


def test_shapes_are_those_of_init(folder, monkeypatch):
    config = UNetConfig(
        block_out_channels=(8, 16), layers_per_block=1, cross_attention=(True, False), transformer_layers=(2, 1),
        heads=(2, 2), cross_attention_dim=12, norm_num_groups=4, use_linear_projection=True, vision=True)
    args, kwargs = weights.unet_inputs(config)
    expected = jax.eval_shape(UNet(config).init, jax.random.key(0), *args, **kwargs)["params"]
    assert weights.parameter_shapes(UNet(config), *args, **kwargs) == expected
    monkeypatch.setattr(jax, "eval_shape", None)  # the second time nothing is traced
    again = weights.parameter_shapes(UNet(config), *args, **kwargs)
    assert again == expected and len(files(folder)) == 1
    files(folder)[0].write_bytes(b"damaged")
    monkeypatch.undo()
    assert weights.parameter_shapes(UNet(config), *args, **kwargs) == expected


TWICE = """
import sys
import jax
import numpy as np
import realcustom_jax as rc

jax.config.update("jax_enable_compilation_cache", True)
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
pipeline = rc.Pipeline.load(sys.argv[2])
seconds = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, duration, **_: seconds.append(duration if "jaxpr_trace" in name or "to_mlir" in name else 0))
reference = np.zeros((16, 16, 3), np.uint8)
made = pipeline(reference, "a dog on the beach", "dog", steps=3, freeze_mask_step=2, on_step=lambda step: None)
np.save(sys.argv[3], made.latents)
print("traced", sum(seconds))
"""


@pytest.mark.slow
def test_a_second_process_makes_the_same_picture_and_traces_little(mini_folder, tmp_path):
    seconds = [float(fresh_process.run(TWICE, str(tmp_path / "cache"), str(mini_folder), str(tmp_path / f"{i}.npy"))
                  .split("traced ")[-1]) for i in range(2)]
    assert seconds[1] < 0.3 * seconds[0]
    np.testing.assert_array_equal(np.load(tmp_path / "0.npy"), np.load(tmp_path / "1.npy"))


def test_names_stay(folder):
    assert functools.partial(jit_kept, static_argnums=0)(double).__name__ == "double"
