"""The public face: the contract's names at the top level, and an import that loads nothing heavy."""

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import realcustom_jax as rc

import fresh_process

CONTRACT = {
    "load_unet", "load_projector", "load_text_encoder", "load_vision_encoder", "load_clip_vision", "load_autoencoder",
    "subject_mask", "classifier_free_guidance", "betas", "make_solver", "integrate", "Conditioning", "MaskConfig",
    "sample_latents", "sample_text_only", "prepare_reference", "target_tokens", "Pipeline", "Preset", "Result",
}
HEAVY = ("jax", "flax", "transformers", "numpy", "torch")


def test_importing_the_package_loads_nothing_heavy():
    """Nor does asking for its names; using one loads what that one needs."""
    printed = fresh_process.run(f"""
import sys
import realcustom_jax as rc
assert {CONTRACT!r} <= set(dir(rc)), dir(rc)
print([name for name in {HEAVY!r} if name in sys.modules])
rc.betas()
print("jax" in sys.modules, "transformers" in sys.modules)
""")
    assert printed == "[]\nTrue False\n"


def test_every_name_of_the_contract_is_public():
    assert set(rc.__all__) >= CONTRACT and rc.__all__ == sorted(rc.__all__)
    for name in rc.__all__:
        assert getattr(rc, name).__name__ == name
    with pytest.raises(AttributeError, match="'realcustom_jax' has no attribute 'load_everything'"):
        _ = rc.load_everything


def test_no_module_hides_a_name():
    """`import realcustom_jax.x` sets the attribute x of the package: none of the public names may be an x."""
    modules = [module.name for module in pkgutil.walk_packages(rc.__path__, f"{rc.__name__}.")
               if not module.name.endswith("__main__")]
    assert not {name.removeprefix(f"{rc.__name__}.") for name in modules} & set(rc.__all__)
    before = {name: getattr(rc, name) for name in rc.__all__}
    for name in modules:
        if name.count(".") == 1:
            importlib.import_module(name)
    assert {name: getattr(rc, name) for name in rc.__all__} == before


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(rc.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module.removeprefix(f"{rc.__name__}.") for node in block.body for alias in node.names}
    assert seen == rc._HOMES and set(seen) == set(rc.__all__)
    assert (Path(rc.__file__).parent / "py.typed").is_file()
