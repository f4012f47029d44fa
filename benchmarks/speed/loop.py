"""How fast the denoising loop is: fused, sequential, and torch doing the same number of UNet evaluations.

    python -m benchmarks.speed.loop --kind mini                          # the bundled miniature, as it is
    python -m benchmarks.speed.loop --kind sdxl50m                       # SDXL's shape at about 50 million parameters
    python -m benchmarks.speed.loop --kind sdxl --dtype bfloat16 --side 1024 --compile --peak-tflops 989   # on a GPU

All contenders run in this process on the same device, one after the other in every round, so that what slows the
machine slows them all; the figures are medians over the rounds after a warm-up. Weights are random: no time depends
on them. Torch runs diffusers' own UNet, without vision tokens, masks and maps, which is less than ours do:

    passes     one lane at a time, the released way: guidance (before the freeze), generation, negative
    batched    the lanes of a step in one call
"""

import argparse
import concurrent.futures
import functools
import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import CONFIGS, TOKENS, latent_side, make_unet, measure, parser_of, show
from realcustom_jax.devices.compilation import enable_compilation_cache
from realcustom_jax.devices.jaxprs import flops
from realcustom_jax.models.unet import UNet
from realcustom_jax.sampling.lanes import Conditioning
from realcustom_jax.sampling.sampler import BRANCHES, sample_latents
from realcustom_jax.sampling.solvers import make_solver


def main() -> None:
    parser = loop_parser(__doc__)
    one_size(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="also torch.compile of the batched pass")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--peak-tflops", type=float, help="of the device in this dtype, to say what share is reached")
    options = parser.parse_args()
    side = latent_side(options.kind, options.side)
    enable_compilation_cache()

    unet, params = make_unet(options.kind, options.dtype)
    program, arguments, figures = ours(unet, params, options, side)
    contenders = {branches: lambda branches=branches: run_once(program(branches), arguments) for branches in BRANCHES}
    if not options.no_torch:
        contenders |= torchs(options, side)
    with concurrent.futures.ThreadPoolExecutor() as pool:  # compilers keep one thread busy each
        list(pool.map(program, BRANCHES))
    seconds = measure(contenders, options.rounds)
    figures |= {
        "temporary_bytes": program("fused").memory_analysis().temp_size_in_bytes,
        "device": jax.devices()[0].device_kind, "kind": options.kind, "latents": [options.batch, side, side],
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")},
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "times as fast as": {name: round(value / seconds["fused"], 3) for name, value in seconds.items()}}
    figures["fused_tflops"] = round(figures["flop"]["fused"] / seconds["fused"] / 1e12, 4)
    if options.peak_tflops:
        figures["share_of_peak"] = round(figures["fused_tflops"] / options.peak_tflops, 3)
    show(figures, options.json)


def loop_parser(description: str) -> argparse.ArgumentParser:
    """The options of every benchmark of the denoising loop."""
    parser = parser_of(description)
    add = parser.add_argument
    add("--kind", choices=sorted(CONFIGS), default="mini")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--steps", type=int, default=25)
    add("--freeze", type=int, default=12, help="the first step that reuses its predecessor's mask")
    add("--no-guidance", action="store_true", help="no negative lane, as distilled models are sampled")
    add("--given-masks", action="store_true", help="masks of the user's own: no guidance lane")
    add("--json", type=Path, help="where to write the figures")
    return parser


def one_size(parser: argparse.ArgumentParser) -> None:
    """The options of what is measured at one size."""
    parser.add_argument("--side", type=int, help="of the picture, in pixels (what the model was made for)")
    parser.add_argument("--batch", type=int, default=1)


def ours(unet: UNet, params, options: argparse.Namespace, side: int):
    """(program, arguments, figures): our sampler compiled in an order of its branches, what to call it with, and how
    many operations it and torch's lanes take."""
    config, (text, vision) = unet.config, TOKENS[options.kind]
    rng = np.random.default_rng(1)

    def array(*shape):
        return jnp.asarray(rng.standard_normal((options.batch, *shape), np.float32))

    def conditioning():
        pooled = {"pooled": array(config.pooled_dim), "time_ids": array(6)} if config.addition_embed else {}
        width = config.cross_attention_dim
        return Conditioning(array(text, width), vision=array(1, vision, width), **pooled)

    inputs = array(side, side, config.in_channels), conditioning(), conditioning()
    target = jnp.zeros((options.batch, 1, text)).at[:, :, 2].set(1)
    solver = make_solver(steps=options.steps)

    @functools.partial(jax.jit, static_argnames="branches", compiler_options=dict(unet.platform.compiler_options))
    def sample(params, inputs, branches):
        return sample_latents(unet, params, *inputs, target, solver=solver, freeze_mask_step=options.freeze,
                              branches=branches, guidance_scale=None if options.no_guidance else 3.5,
                              masks=jnp.ones((options.batch, 1, side, side)) if options.given_masks else None).latents

    def text_lane(params, x, c):
        return unet.apply({"params": params}, x, 500, c.text, pooled=c.pooled, time_ids=c.time_ids).noise

    @functools.cache
    def program(branches):
        return sample.lower(params, inputs, branches=branches).compile()

    noise, positive, _ = inputs
    lane = flops(jax.make_jaxpr(text_lane)(params, noise, positive).jaxpr)
    fused = flops(sample.trace(params, inputs, branches="fused").jaxpr.jaxpr)
    lanes = sum(lanes_of_step(options, i) for i in range(options.steps))
    figures = {"flop": {"torch, all lanes": lanes * lane, "fused": fused}}
    return program, (params, inputs), figures


def lanes_of_step(options: argparse.Namespace, i: int) -> int:
    """How many lanes step i has: generation, and those of guidance and negative that are run."""
    return 1 + (i < options.freeze and not options.given_masks) + (not options.no_guidance)


def run_once(program, arguments) -> None:
    """Runs a compiled program to its end, and makes sure that what it makes is finite."""
    assert np.isfinite(np.asarray(program(*arguments))).all()


def torchs(options: argparse.Namespace, side: int) -> dict[str, Callable[[], None]]:
    """Diffusers' UNet through as many evaluations: eager passes, eager batches, and compiled batches if asked for."""
    import diffusers
    import torch

    config = {name: value for name, value in CONFIGS[options.kind].items() if not name.startswith("_")}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        unet = diffusers.UNet2DConditionModel(**config).eval().to(getattr(torch, options.dtype))
    text, dims = TOKENS[options.kind][0], unet.config

    def inputs(lanes):
        rows = lanes * options.batch
        added = {}
        if dims.addition_embed_type:
            pooled = dims.projection_class_embeddings_input_dim - 6 * dims.addition_time_embed_dim
            added = {"added_cond_kwargs": {"text_embeds": torch.randn(rows, pooled), "time_ids": torch.ones(rows, 6)}}
        moved = [torch.randn(rows, dims.in_channels, side, side), torch.randn(rows, text, dims.cross_attention_dim)]
        added = {k: {n: x.to(device, unet.dtype) for n, x in v.items()} for k, v in added.items()}
        return [x.to(device, unet.dtype) for x in moved], added

    @torch.inference_mode()
    def run(network, lanes_a_call):
        """Each step's three or two lanes, `lanes_a_call` of them at a time (None: all)."""
        for i in range(options.steps):
            lanes = lanes_of_step(options, i)
            size = lanes_a_call or lanes
            for _ in range(lanes // size):
                (x, context), added = prepared[size]
                network(x, times[i], context, **added)
        if device == "cuda":
            torch.cuda.synchronize()

    times = torch.arange(options.steps, device=device)  # a number would make torch.compile begin again at every step
    prepared = {lanes: inputs(lanes) for lanes in (1, 2, 3)}
    contenders = {"torch passes": functools.partial(run, unet, 1), "torch batched": functools.partial(run, unet, None)}
    if options.compile:
        contenders["torch compiled"] = functools.partial(run, torch.compile(unet, dynamic=False), None)
    return contenders


if __name__ == "__main__":
    main()
