"""LoRAs merged into our networks against diffusers' own pipelines with PEFT, which fuse the same files.

Every layer of small networks that a trainer touches is changed: linear layers, convolutions of one and of nine pixels,
in the UNet and in the text encoders. Needs torch, diffusers and peft.
"""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from realcustom_jax.model_files import single_file, weights

from goldens import assert_close, nchw, nhwc

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optimised")]
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

from test_live_parity import UNETS, random, written  # noqa: E402  (it needs torch)
from torch_models import disturbed  # noqa: E402

TEXT = {"vocab_size": 100, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3,
        "projection_dim": 10, "bos_token_id": 97, "eos_token_id": 98, "pad_token_id": 98}
IDS = np.array([[97, 5, 7, 98], [97, 9, 98, 98]])
ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0")


class Model:
    """A small model of diffusers, our networks of the same files, and both sides' outputs."""

    def __init__(self, kind, folder):
        torch.manual_seed(0)
        self.kind = kind
        self.parts = {"unet": diffusers.UNet2DConditionModel(**UNETS[kind], norm_num_groups=4),
                      "text_encoder": transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT))}
        if kind == "sdxl":
            self.parts["text_encoder_2"] = transformers.CLIPTextModelWithProjection(
                transformers.CLIPTextConfig(**TEXT, hidden_act="gelu"))
        self.files = {}
        for name, part in self.parts.items():
            (folder / name).mkdir()
            self.files[name] = written(disturbed(part), folder / name)
        self.start = {name: {key: value.clone() for key, value in part.state_dict().items()}
                      for name, part in self.parts.items()}
        self.latents, self.text = random(1, 4, 16, 16), random(1, 5, 12, seed=1)
        self.added = {"pooled": random(1, 10, seed=2), "time_ids": np.float32([[64, 48, 0, 8, 64, 48]])}
        self.compiled = {}
        self.before = self.theirs()

    def layers(self):
        """(part, layer's name, weight's shape) of all layers that LoRAs change, in transformers' published names."""
        for part, module in self.parts.items():
            for name, layer in module.named_modules():
                if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)) and name != "text_projection":
                    published = part == "unet" or name.startswith(("text_model.", "text_projection"))
                    yield part, name if published else f"text_model.{name}", tuple(layer.weight.shape)

    def pipe(self):
        """diffusers' pipeline with the weights as they were."""
        for name, part in self.parts.items():
            part.load_state_dict(self.start[name])
        others = {"scheduler": diffusers.DDIMScheduler(), "vae": None, "tokenizer": None}
        if self.kind == "sdxl":
            return diffusers.StableDiffusionXLPipeline(**self.parts, **others, tokenizer_2=None, add_watermarker=False)
        return diffusers.StableDiffusionPipeline(
            **self.parts, **others, safety_checker=None, feature_extractor=None, requires_safety_checker=False)

    def theirs(self, *loras):
        """Part → output, after diffusers fused the LoRAs."""
        pipe = self.pipe()
        try:
            for i, (file, _) in enumerate(loras):
                pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=f"a{i}")
            if loras:
                names = [f"a{i}" for i in range(len(loras))]
                pipe.set_adapters(names, [scale for _, scale in loras])
                pipe.fuse_lora(components=list(self.parts), adapter_names=names)
            added = {"text_embeds": "pooled", "time_ids": "time_ids"}
            with torch.no_grad():
                added = {theirs: torch.from_numpy(self.added[ours]) for theirs, ours in added.items()}
                made = {"unet": pipe.unet(torch.from_numpy(self.latents), torch.tensor([500]),
                                          torch.from_numpy(self.text), added_cond_kwargs=added).sample}
                for name in list(self.parts)[1:]:
                    made[name] = getattr(pipe, name)(torch.from_numpy(IDS)).last_hidden_state
        finally:
            pipe.unfuse_lora(components=list(self.parts))
            pipe.unload_lora_weights()
        return {name: value.numpy() for name, value in made.items()}

    def ours(self, *loras):
        """Part → output of our networks, into which the LoRAs were merged."""
        made = {}
        for name, part in self.parts.items():
            if name == "unet":
                module, params = weights.load_unet(dict(part.config), self.files[name], loras=loras)
            else:
                module, params = weights.load_text_encoder(part.config.to_dict(), self.files[name], loras=loras,
                                                           prefix="te2" if name.endswith("2") else "te1")
            made[name] = np.asarray(self.compiled.setdefault(name, jax.jit(self.computed(name, module)))(params))
        return made | {"unet": nchw(made["unet"])}

    def computed(self, name, module):
        """Our network's output, a function of its parameters."""
        if name != "unet":
            return lambda params: module.apply({"params": params}, IDS).last
        added = self.added if self.kind == "sdxl" else {}
        return lambda params: module.apply(
            {"params": params}, nhwc(self.latents), np.array([500]), self.text, **added).noise


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def model(request, tmp_path_factory):
    return Model(request.param, tmp_path_factory.mktemp(request.param))


def matrices(model, seed=0, *, alphas=True, select=lambda part, name: True):
    """(part, layer) → (down, up, α or None) of every selected layer, of several ranks, as large as it takes to be seen.

    One α for all: where they differ, diffusers (0.42) takes the one that is most frequent for layers of attention.
    """
    rng = np.random.default_rng(seed)
    found = {}
    for part, name, (out, into, *kernel) in model.layers():
        if select(part, name):
            rank = int(rng.integers(1, 4))
            down = 0.3 * rng.standard_normal((rank, into, *kernel))
            up = 0.3 * rng.standard_normal((out, rank, *[1] * len(kernel)))
            found[part, name] = (down.astype(np.float32), up.astype(np.float32),
                                 1.5 if alphas else None)
    return found


def saved(path, tensors, metadata=None):
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    if path.suffix == ".safetensors":
        safetensors.numpy.save_file(tensors, path, metadata)
    else:
        torch.save({name: torch.from_numpy(value) for name, value in tensors.items()}, path)
    return path


def kohya(model, layers, rename=lambda part, name: name):
    prefixes = {"unet": "lora_unet_", "text_encoder": "lora_te1_" if model.kind == "sdxl" else "lora_te_",
                "text_encoder_2": "lora_te2_"}
    tensors = {}
    for (part, name), (down, up, alpha) in layers.items():
        layer = prefixes[part] + rename(part, name).replace(".", "_")
        tensors |= {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}
        if alpha is not None:
            tensors[f"{layer}.alpha"] = np.float32(alpha)
    return tensors


def dotted(layers, down_name="lora_A", up_name="lora_B"):
    return {f"{part}.{name}.{role}.weight": value for (part, name), (down, up, _) in layers.items()
            for role, value in ((down_name, down), (up_name, up))}


def assert_same(model, *loras):
    ours, theirs = model.ours(*loras), model.theirs(*loras)
    for name in ours:
        assert np.abs(theirs[name] - model.before[name]).max() > 1e-2 * np.abs(model.before[name]).max(), name
        assert_close(ours[name], theirs[name], 2e-5)


def but_sizes(part, name):
    """diffusers does not know SDXL's embedding of sizes by the name that its own UNet has for it."""
    return not name.startswith("add_embedding.")


def attention(part, name):
    return name.endswith(ATTENTION if part == "unet" else "_proj")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_kohyas_names_with_alphas_and_convolutions(model, tmp_path, suffix):
    tensors = kohya(model, matrices(model, select=but_sizes))
    if suffix == ".safetensors":
        tensors = {name: value.astype(np.float16) for name, value in tensors.items()}
    assert_same(model, (saved(tmp_path / f"lora{suffix}", tensors), 0.7))


def test_kohyas_names_of_the_original_unet(model, tmp_path):
    """As its SDXL trainer writes them."""
    if model.kind == "sd15":
        pytest.skip("trained under diffusers' names")
    layers = matrices(model)
    names = [name for part, name in layers if part == "unet"]
    original = {ours: theirs for theirs, ours in single_file.original_names(
        "unet", dict(model.parts["unet"].config), names).items()}
    assert set(original) == set(names)
    assert {"input_blocks.0.0", "out.2", "label_emb.0.0", "time_embed.2", "middle_block.1.proj_in"} < set(
        original.values())
    tensors = kohya(model, layers, lambda part, name: original.get(name, name))
    assert_same(model, (saved(tmp_path / "lora.safetensors", tensors), 0.7))


def test_names_of_peft(model, tmp_path):
    tensors = dotted(matrices(model, alphas=False))
    assert_same(model, (saved(tmp_path / "lora.safetensors", tensors), -0.6))


def test_alphas_that_diffusers_writes_into_the_metadata(model, tmp_path):
    layers = matrices(model, alphas=False)
    settings = {}
    for part in model.parts:
        # transformers 5 does not call it text_model, and PEFT takes its names.
        ranks = {name if part == "unet" else name.removeprefix("text_model."): len(down)
                 for (where, name), (down, _, _) in layers.items() if where == part}
        settings |= {f"{part}.r": 2, f"{part}.lora_alpha": 3, f"{part}.rank_pattern": ranks, f"{part}.use_rslora": True,
                     f"{part}.target_modules": list(ranks)}
    settings["unet.alpha_pattern"] = {"attn2.to_k": 5, "down_blocks.1.resnets.0.conv1": 7}
    file = saved(tmp_path / "lora.safetensors", dotted(layers), {"lora_adapter_metadata": json.dumps(settings)})
    assert_same(model, (file, 0.4))


def test_old_names_of_diffusers(model, tmp_path):
    """Of the time when the layers of a LoRA belonged to attention processors."""
    tensors = {}
    for (part, name), (down, up, _) in matrices(model, alphas=False, select=attention).items():
        name = name.removesuffix(".0")
        if part == "unet":
            path, _, last = name.rpartition(".")
            name = f"{part}.{path}.processor.{last}_lora"
        else:
            name = f"{part}.{name}.lora_linear_layer"
        tensors |= {f"{name}.down.weight": down, f"{name}.up.weight": up}
    assert_same(model, (saved(tmp_path / "lora.safetensors", tensors), 0.7))


def test_two_loras_at_once(model, tmp_path):
    first = saved(tmp_path / "first.safetensors", kohya(model, matrices(model, 1, select=but_sizes)))
    second = saved(tmp_path / "second.safetensors", dotted(matrices(model, 2, alphas=False, select=attention)))
    assert_same(model, (first, 0.8), (second, -0.5))
