"""What a run is spared before its first picture and after its last, and that it makes the same without."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import realcustom_jax as rc
from realcustom_jax.sampling.lanes import Conditioning, conditionings_of_images
from realcustom_jax.sampling.options import noise_of_steps, seeded_noise

from test_sampling import OPTIONS, small_case

LEAVES = "from realcustom_jax.commands.program import leave; print('written', end=''); leave({code})"


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_noise_is_that_of_jaxs_operations_one_by_one(seed):
    keys = [jax.random.fold_in(jax.random.key(seed), i) for i in range(2)]
    shape = 5, 3, 4
    np.testing.assert_array_equal(seeded_noise(seed, 2, shape), [jax.random.normal(key, shape) for key in keys])
    solver = rc.make_solver("euler_ancestral", steps=2)
    expected = [[jax.random.normal(jax.random.fold_in(key, step), shape) for key in keys] for step in (1, 2)]
    np.testing.assert_array_equal(noise_of_steps(solver, seed, 2, shape), expected)


def test_conditionings_of_several_images_and_of_one_reference_for_several_phrases():
    text = np.arange(6, dtype=np.float32).reshape(1, 3, 2)
    tokens = np.float32([[[1, 2]], [[9, 9]]])  # of a reference, and of the negative lane
    marks = np.int32([[0, 1, 0], [0, 0, 1]])
    positive, negative, target = conditionings_of_images(2, Conditioning(text), Conditioning(-text), tokens, marks)
    np.testing.assert_array_equal(positive.text, np.concatenate([text, text]))
    np.testing.assert_array_equal(negative.text, -np.concatenate([text, text]))
    np.testing.assert_array_equal(positive.vision, np.broadcast_to(np.float32([1, 2]), (2, 2, 1, 2)))
    np.testing.assert_array_equal(negative.vision, np.full((2, 2, 1, 2), 9))
    np.testing.assert_array_equal(target, [marks, marks])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["none_direct", "none"])
@pytest.mark.parametrize("branches", ["fused", "sequential"])
def test_step_by_step_it_makes_the_same(branches, mode):
    """In a direct mode a sequential step is two programs on the host."""
    options = OPTIONS | dict(branches=branches, guidance=rc.Guidance(mode), solver=rc.make_solver(steps=4),
                             freeze_mask_step=3)
    unet, *inputs = small_case()
    done = []
    at_once = jax.jit(lambda inputs: rc.sample_latents(unet, *inputs, **options))(inputs)
    by_step = rc.sample_latents(unet, *inputs, **options, on_step=done.append)
    assert done == [0, 1, 2, 3]
    np.testing.assert_allclose(by_step.latents, at_once.latents, atol=1e-4)
    np.testing.assert_allclose(by_step.masks, at_once.masks, atol=1e-5)
    assert not jnp.array_equal(by_step.masks[0], by_step.masks[-1])


@pytest.mark.parametrize("code", [0, 2])
def test_a_process_that_leaves_has_written_all(code):
    done = subprocess.run([sys.executable, "-c", LEAVES.format(code=code)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, "written", "")


def test_a_process_that_leaves_while_nobody_reads_says_so_as_python_does():
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen([sys.executable, "-c", "input();" + LEAVES.format(code=0)], env=buffered, text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        process.stdin.write("\n")
        process.stdin.close()
        assert "BrokenPipeError" in process.stderr.read()
        assert process.wait() == 120
