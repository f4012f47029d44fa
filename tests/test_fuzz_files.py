"""Weight files that are damaged in any of the ways in which files are: they load, or one sentence says what is wrong.

Never another exception, and never a weight to which nothing was written: what loads has the values of the file.
"""

import shutil
import warnings

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from realcustom_jax.model_files import weights
from realcustom_jax.model_files.adapter import find_adapter, load_adapter_projector, split_unet
from realcustom_jax.model_files.parts import with_parts
from realcustom_jax.model_files.source import ModelSource
from realcustom_jax.model_files.tensors import headers_only, read_tensors

FILES = {"unet": "unet/diffusion_pytorch_model", "vae": "vae/diffusion_pytorch_model", "text_encoder":
         "text_encoder/model", "image_encoder_dinov2": "image_encoder_dinov2/model", "adapter": "adapter/realcustom"}
TYPES = ("float16", "float64", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8", "int32", "bool", "complex64")
fuzzing = settings(max_examples=40, deadline=None, derandomize=True, database=None,
                   suppress_health_check=list(HealthCheck))

index = st.integers(0, 10**6)
text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
names = st.one_of(text, st.sampled_from([
    "epoch", "global_step", "v_pred", "ztsnr", "scaled_fp8", "logit_scale", "module.conv_in.weight", "model.x",
    "conv_in.scale_weight", "lora_unet_x.lora_down.weight", "encoder_hidden_states_vision_projection.",
    "model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.quant_conv.bias", ".weight", "weight", "."]))
prefixes = st.one_of(text, st.sampled_from(["module.", "_orig_mod.", "model.", "state_dict.", "model.module."]))
changes = st.one_of(
    st.tuples(st.just("drop"), index), st.tuples(st.just("rename"), index, names),
    st.tuples(st.just("add"), names, st.sampled_from([(), (0,), (1,), (2, 3), (1, 4, 1, 1)])),
    st.tuples(st.just("type"), index, st.sampled_from(TYPES)), st.tuples(st.just("types"), st.sampled_from(TYPES)),
    st.tuples(st.just("shape"), index, st.sampled_from(["flat", "transposed", "longer", "empty", "scalar", "deeper"])),
    st.tuples(st.just("prefix"), prefixes))
cuts = st.one_of(st.none(), st.tuples(st.sampled_from(["cut", "byte", "head"]), st.floats(0, 1), st.integers(0, 255)))


def changed(tensors, change):
    """A copy of the tensors with one thing changed."""
    kind, *how = change
    tensors = dict(tensors)
    if kind == "prefix":
        return {how[0] + name: value for name, value in tensors.items()}
    if kind == "types":
        return {name: value.astype(dtype(how[0])) for name, value in tensors.items()}
    if kind == "add":
        return tensors | {how[0]: np.ones(how[1], np.float32)}
    if not tensors:
        return tensors
    name = sorted(tensors)[how[0] % len(tensors)]
    value = tensors.pop(name)
    if kind == "rename":
        tensors[how[1]] = value
    elif kind == "type":
        tensors[name] = value.astype(dtype(how[1]))
    elif kind == "shape":
        tensors[name] = np.ascontiguousarray({
            "flat": value.reshape(-1), "transposed": value.T, "longer": np.concatenate([value.reshape(-1)] * 2),
            "empty": value[:0] if value.ndim else value, "scalar": np.zeros((), value.dtype),
            "deeper": value[None]}[how[1]])
    return tensors


def dtype(name):
    return np.dtype(getattr(ml_dtypes, name, None) or name)


def damaged(content: bytes, cut) -> bytes:
    if cut is None:
        return content
    kind, where, byte = cut
    at = min(int(where * len(content)), len(content) - 1)
    if kind == "cut":
        return content[:at]
    if kind == "head":  # the length and the names, where a wrong byte is most harmful
        at %= min(len(content), 300)
    return content[:at] + bytes([byte]) + content[at + 1:]


def written(path, tensors, cut):
    try:
        content = safetensors.numpy.save(tensors)
    except (safetensors.SafetensorError, ValueError):
        content = b""
    path.write_bytes(damaged(content, cut) if content else content)
    return path


def assert_loaded_or_refused(folder, original, load, check, headers_fit):
    """Damages a file of these tensors in many ways. Each time `load(file)` makes what `check(made, file, whole)` finds
    right, or refuses in a sentence, and `headers_fit(problem, problem of the headers alone)`, None where there is none;
    `whole` says that no bytes were damaged."""
    seen = set()

    def outcome(file):
        try:
            return load(file), None
        except (ValueError, OSError) as error:
            return None, str(error)

    @fuzzing
    @given(st.lists(changes, max_size=2), cuts)
    def run(how, cut):
        tensors = original
        for change in how:
            tensors = changed(tensors, change)
        file = written(folder / "file.safetensors", tensors, cut)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made, problem = outcome(file)
            with headers_only():
                assert headers_fit(problem, outcome(file)[1])
            seen.add("refused" if problem else "loaded")
            if problem:
                assert len(problem) > 10 and problem[-1] in ".)" and "\n" not in problem, problem
                assert "our code that reads it is wrong" not in problem, problem
            else:
                check(made, file, cut is None)

    run()
    assert seen == {"loaded", "refused"}


def loaded(source, part, file):
    """What the program makes of the file in place of this part's: parameters, each with the prefix of its names."""
    if part == "adapter":
        adapter = find_adapter(file)
        visual = split_unet(source.load_unet(adapter)[1])[0]
        return (load_adapter_projector(adapter)[1], weights.PROJECTOR_PREFIX), (visual, "")
    if part in ("unet", "vae"):
        source = with_parts(source, **{part: file})
    if part == "unet":
        source.schedule()
        return (split_unet(source.load_unet(source.adapter())[1])[1], ""),
    if part == "vae":
        return (source.load(part)[1], ""),
    loader = {"text_encoder": weights.load_text_encoder, "image_encoder_dinov2": weights.load_vision_encoder}[part]
    return (loader(source.config(part), file)[1], ""),


@pytest.mark.parametrize("part", [
    pytest.param(part, marks=[pytest.mark.slow] * (part != "image_encoder_siglip")) for part in FILES])
def test_a_changed_file_loads_its_own_values_or_is_refused_in_a_sentence(part, mini_folder, tmp_path):
    """And `--memory`, which reads the headers only, says the same."""
    source = ModelSource.open(mini_folder)
    original = dict(read_tensors(mini_folder / f"{FILES[part]}.safetensors"))
    if part == "adapter":
        shutil.copy(mini_folder / "adapter/config.json", tmp_path)

    def check(made, file, whole):
        stored = read_tensors(file) if whole else {}
        for params, prefix in made if whole else ():
            for name, value in weights.to_torch(params, prefix).items():
                np.testing.assert_array_equal(value, np.asarray(stored[name], np.float32).reshape(value.shape))

    assert_loaded_or_refused(tmp_path, original, lambda file: loaded(source, part, file), check,
                             lambda problem, of_headers: of_headers == problem)


@pytest.mark.parametrize("suffix", [".bin", pytest.param(".pth", marks=pytest.mark.slow)])
def test_a_damaged_torch_file_is_refused_in_a_sentence(mini_folder, tmp_path, suffix):
    torch = pytest.importorskip("torch")
    original = dict(read_tensors(mini_folder / f"{FILES['vae']}.safetensors"))
    source = ModelSource.open(mini_folder)
    leaves = st.one_of(st.none(), st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=2))
    keys = st.one_of(text, st.integers(0, 3))
    odd = st.recursive(leaves, lambda inner: st.dictionaries(keys, inner, max_size=2), max_leaves=4)

    @settings(fuzzing, max_examples=15)
    @given(st.lists(changes.filter(lambda change: "type" not in change[0]), max_size=1), cuts,
           st.dictionaries(names, odd, max_size=1))
    def check(how, cut, others):
        tensors = original
        for change in how:
            tensors = changed(tensors, change)
        file = tmp_path / f"file{suffix}"
        torch.save({name: torch.from_numpy(value) for name, value in tensors.items()} | others, file)
        file.write_bytes(damaged(file.read_bytes(), cut))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                values = loaded(source, "vae", file)
            except (ValueError, OSError) as error:
                assert len(str(error)) > 10 and "our code that reads it is wrong" not in str(error), error
                return
        assert len(weights.to_torch(values[0][0])) == len(original)

    check()
