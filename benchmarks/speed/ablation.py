"""What each optimisation of the fused step is worth: one three-lane step, with one of them switched off at a time.

    python -m benchmarks.speed.ablation --kind sdxl50m
    python -m benchmarks.speed.ablation --kind sdxl --dtype bfloat16 --side 1024       # on a GPU or TPU

    as it is                    guidance, generation and negative as the batch of one UNet call
    without the maps            what the target word's maps cost
    nothing kept                keys, values and the timestep's shifts computed in the step
    every lane alike            maps and (with mask 0) the visual term in all three lanes
    lane by lane                three UNet calls
    XLA's attention             no fused attention kernel (on a CPU there is none)
    layers scanned              one program for all layers of a stack (elsewhere than on a GPU they always are)
"""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import CONFIGS, TOKENS, latent_side, make_unet, measure, parser_of, show
from realcustom_jax.models import context

TIMESTEP = 500


def main() -> None:
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--kind", choices=sorted(CONFIGS), default="mini")
    add("--side", type=int, help="of the picture, in pixels (what the model was made for)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--rounds", type=int, default=15)
    add("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    side = latent_side(options.kind, options.side)

    model = make_unet(options.kind, options.dtype, scanned=True)
    seconds = measure(variants(*model, TOKENS[options.kind], side), options.rounds)
    figures = {
        "device": jax.devices()[0].device_kind, "kind": options.kind, "side": side, "dtype": options.dtype,
        "seconds": {name: round(value, 5) for name, value in seconds.items()},
        "relative": {name: round(value / seconds["as it is"], 3) for name, value in seconds.items()}}
    show(figures, options.json)


def variants(unet, params, tokens, side: int) -> dict:
    """The contenders, of equal predictions."""
    config, rng = unet.config, np.random.default_rng(0)

    def array(*shape):
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    inputs = {
        "x": array(3, side, side, config.in_channels), "text": array(3, tokens[0], config.cross_attention_dim),
        "vision": array(2, 1, tokens[1], config.cross_attention_dim),
        "mask": jnp.abs(array(2, 1, side // 2, side // 2)),
        "target": jnp.zeros((1, 1, tokens[0])).at[:, :, 2].set(1),
        "added": {"pooled": array(3, config.pooled_dim), "time_ids": array(3, 6)} if config.addition_embed else {}}
    times = jnp.full((3,), TIMESTEP)
    keep = jax.jit(lambda params, text, vision, pooled=None, time_ids=None: context.merge(
        context.project_tokens(unet, params, text, vision),
        context.project_time(unet, params, times, pooled, time_ids)))
    scanned, params = params, context.for_platform(params, unet.platform)
    kept, kept_scanned = (keep(p, inputs["text"], inputs["vision"], **inputs["added"]) for p in (params, scanned))

    def apply(params, kept, *args, network=unet, **kwargs):
        return network.apply({"params": params, "context": kept}, *args, **kwargs)

    def step(params, kept, i, target=True, network=unet):
        return apply(params, kept, i["x"], None, i["text"], vision=i["vision"], mask=i["mask"],
                     target=i["target"] if target else None, guidance_lanes=1, network=network)

    def nothing_kept(params, _, i):
        return unet.apply({"params": params}, i["x"], times, i["text"], vision=i["vision"], mask=i["mask"],
                          target=i["target"], guidance_lanes=1, **i["added"])

    def alike(params, kept, i):
        every = {name: jnp.concatenate([x[:1], x]) for name, x in (("vision", i["vision"]), ("mask", i["mask"]))}
        every["mask"] = every["mask"].at[0].set(0)
        return apply(params, kept, i["x"], None, i["text"], target=jnp.tile(i["target"], (3, 1, 1)), **every)

    def lane_by_lane(params, kept, i):
        outs = []
        for lane in range(3):
            visual = max(lane - 1, 0)
            mine = _of_lanes(kept, lambda name, visual=visual, lane=lane: visual if name.endswith("vision") else lane)
            maps_or_vision = {"target": i["target"]} if lane == 0 else {
                "vision": i["vision"][visual:][:1], "mask": i["mask"][visual:][:1]}
            outs.append(apply(params, mine, i["x"][lane:][:1], None, i["text"][lane:][:1], **maps_or_vision))
        return outs

    everywhere = _of_lanes(kept, lambda name: [0, 0, 1] if name.endswith("vision") else [0, 1, 2])
    contenders = {}
    for name, function, known in (
        ("as it is", step, kept),
        ("without the maps", functools.partial(step, target=False), kept),
        ("nothing kept", nothing_kept, {}),
        ("every lane alike", alike, everywhere),
        ("lane by lane", lane_by_lane, kept),
    ):
        contenders[name] = functools.partial(_run, jax.jit(function), params, known, inputs)
    contenders["layers scanned"] = functools.partial(_run, jax.jit(step), scanned, kept_scanned, inputs)
    plain = unet.clone(platform=dataclasses.replace(unet.platform, attention="plain"))
    contenders["XLA's attention"] = functools.partial(
        _run, jax.jit(functools.partial(step, network=plain)), params, kept, inputs)
    return contenders


def _of_lanes(kept, choose):
    """The context of some lanes: `choose` gives a lane, or several, for the name of a leaf."""
    def take(path, x):
        stacked = any(key.key == "transformer_blocks" for key in path)  # the leading axis is the layers'
        return jnp.take(x, np.atleast_1d(choose(path[-1].key)), axis=int(stacked))

    return jax.tree_util.tree_map_with_path(take, kept)


def _run(function, params, kept, inputs) -> None:
    jax.block_until_ready(function(params, kept, inputs))


if __name__ == "__main__":
    main()
