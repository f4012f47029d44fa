"""XLA's options of public recipes: none of the user's is changed, and none that this XLA does not know is set."""

import os
import subprocess
import sys

import pytest

from realcustom_jax.devices import xla_flags


def taken(platform, environment):
    return None


def test_a_recipe_stands_in_front_of_what_the_user_has_set():
    environment = {"XLA_FLAGS": "--xla_gpu_enable_triton_gemm=true --xla_dump_to=/tmp/x"}
    added = xla_flags.set_recipe("gpu", environment, taken)
    assert "xla_gpu_enable_triton_gemm" not in added and "xla_gpu_enable_latency_hiding_scheduler" in added
    assert environment["XLA_FLAGS"].endswith(" --xla_gpu_enable_triton_gemm=true --xla_dump_to=/tmp/x")
    assert environment["XLA_FLAGS"].count("--") == len(added) + 2
    assert xla_flags.set_recipe("gpu", environment, taken) == {}, "a second time nothing is left to add"


@pytest.mark.parametrize("platform", ["cpu", "metal"])
def test_other_platforms_have_none(platform):
    environment = {"XLA_FLAGS": "--xla_dump_to=x"}
    assert xla_flags.set_recipe(platform, environment, taken) == {}
    assert environment == {"XLA_FLAGS": "--xla_dump_to=x"}


def test_what_xla_does_not_know_is_left_out():
    name = "xla_tpu_overlap_compute_collective_tc"
    environment = {}
    added = xla_flags.set_recipe("tpu", environment,
                                 lambda _, tried: name if name in tried["LIBTPU_INIT_ARGS"] else None)
    assert name not in added and name not in environment["LIBTPU_INIT_ARGS"]
    assert len(added) == len(xla_flags.RECIPES["tpu"]) - 1
    environment = {}
    assert xla_flags.set_recipe("tpu", environment, lambda *_: "") == {} == environment, "it cannot be tried"


def test_the_scratch_memory_of_a_v6e():
    assert "xla_tpu_scoped_vmem_limit_kib" in xla_flags.recipe("tpu", {"TPU_ACCELERATOR_TYPE": "v6e-8"})
    assert "xla_tpu_scoped_vmem_limit_kib" not in xla_flags.recipe("tpu", {"TPU_ACCELERATOR_TYPE": "v5litepod-16"})


@pytest.mark.parametrize("wanted, platform", [("cpu", "cpu"), ("cuda,cpu", "gpu"), ("tpu", "tpu"), ("rocm", "gpu")])
def test_the_platform_that_is_asked_for(wanted, platform):
    assert xla_flags.platform_here({"JAX_PLATFORMS": wanted}) == platform


def test_this_xla_is_asked_and_ends_no_process_of_ours():
    """With the options of a GPU, which every jaxlib reads, and one that there is not."""
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("JAX_PLATFORMS", None)
    added = xla_flags.set_recipe("gpu", environment)
    assert added == xla_flags.RECIPES["gpu"], "all are known to the jaxlib that the tests run with"
    unknown = {**environment, "XLA_FLAGS": "--xla_gpu_no_such_thing=true"}
    assert xla_flags._first_unknown("gpu", unknown) == "xla_gpu_no_such_thing"


@pytest.mark.slow
def test_libtpu_knows_its_recipe():
    pytest.importorskip("libtpu")
    environment = {**os.environ, "LIBTPU_INIT_ARGS": "", "PYTHONPATH": os.pathsep.join(sys.path),
                   "TPU_ACCELERATOR_TYPE": "v6e-8"}
    assert xla_flags.set_recipe("tpu", environment) == {**xla_flags.RECIPES["tpu"], **xla_flags._OF_V6E}
    assert xla_flags._first_unknown("tpu", {**environment, "LIBTPU_INIT_ARGS": "--xla_tpu_no_such_thing=1"}) == (
        "xla_tpu_no_such_thing")


def test_options_that_are_set_after_jax_is_imported_count():
    """As the command sets them: JAX is there by then, and no device has been started."""
    script = ("import jax, os; os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=3'; "
              "print(len(jax.devices()))")
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_NUM_CPU_DEVICES", None)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3"]
