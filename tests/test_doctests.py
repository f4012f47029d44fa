"""The examples in the docstrings of the public face say what comes out."""

import doctest
import importlib

import pytest

import realcustom_jax as rc

WITH_EXAMPLES = ("betas", "classifier_free_guidance", "integrate", "make_solver", "prepare_reference", "subject_mask",
                 "target_tokens")


@pytest.mark.parametrize("module", sorted({getattr(rc, name).__module__ for name in WITH_EXAMPLES}))
def test_the_examples_of_a_module_come_out_as_they_say(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_a_pure_function_has_an_example(name):
    assert doctest.DocTestFinder(recurse=False).find(getattr(rc, name))[0].examples
