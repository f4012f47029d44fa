"""Pictures composed of cut-outs and scenes on the device: pure functions of a bank's arrays and a layout.

Resizing a cut-out to its place is two matrix products, one for each axis, whose weights average over the pixels that
fall together (`jax.image.scale_and_translate`); so a batch of pictures costs little beside a training step, on a CPU
and on an accelerator.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from realcustom_jax.data.sprites.world import FRAME


@flax.struct.dataclass
class Paintings:
    """The arrays of a bank that composing needs: cut_outs uint8 [N, S, S, 4] and scenes uint8 [M, P, P, 3]."""

    cut_outs: jax.Array
    scenes: jax.Array


@flax.struct.dataclass
class Layout:
    """What stands where in B pictures of at most K things, the first at the back.

    Attributes:
        scene: int32 [B], a row of `Paintings.scenes`, or -1 for a plain background of `plain` float32 [B, 3] in [0, 1].
        mirrored_scene: bool [B].
        thing: int32 [B, K], rows of `Paintings.cut_outs`; -1 for none.
        x, y: float32 [B, K], the middle of the thing's frame as a fraction of the picture, y down.
        size: float32 [B, K], a thing's height as a fraction of the picture.
        mirrored: bool [B, K], whether it faces left.
    """

    scene: jax.Array
    plain: jax.Array
    mirrored_scene: jax.Array
    thing: jax.Array
    x: jax.Array
    y: jax.Array
    size: jax.Array
    mirrored: jax.Array


def compose(paintings: Paintings, layout: Layout) -> tuple[jax.Array, jax.Array]:
    """The pictures [B, P, P, 3] in [0, 1] and how much of each pixel each thing covers [B, K, P, P], float32."""
    return jax.vmap(_compose_one, in_axes=(None, 0))(paintings, layout)


def compose_few(cut_outs: np.ndarray, scenes: np.ndarray, layout: Layout) -> tuple[jax.Array, jax.Array]:
    """`compose` of a bank's arrays in the host's memory, of which only those that the layout names go to the device."""
    thing, scene = np.asarray(layout.thing), np.asarray(layout.scene)
    picked = Paintings(cut_outs[np.maximum(thing, 0).ravel()], scenes[np.maximum(scene, 0)])
    renumbered = np.where(thing >= 0, np.arange(thing.size).reshape(thing.shape), -1)
    return _compose(picked, layout.replace(thing=renumbered, scene=np.where(scene >= 0, np.arange(len(scene)), -1)))


def _compose_one(paintings: Paintings, layout: Layout) -> tuple[jax.Array, jax.Array]:
    side = paintings.scenes.shape[1]
    scene = paintings.scenes[jnp.maximum(layout.scene, 0)].astype(jnp.float32) / 255
    scene = jnp.where(layout.mirrored_scene, scene[:, ::-1], scene)
    picture = jnp.where(layout.scene < 0, layout.plain, scene)
    coverages = []
    for k in range(layout.thing.shape[0]):
        cut_out = paintings.cut_outs[jnp.maximum(layout.thing[k], 0)].astype(jnp.float32) / 255
        cut_out = jnp.where(layout.mirrored[k], cut_out[:, ::-1], cut_out)
        scale = layout.size[k] * side * FRAME / cut_out.shape[0]
        corner = jnp.stack([layout.y[k], layout.x[k]]) * side - layout.size[k] * side * FRAME / 2
        placed = jax.image.scale_and_translate(
            cut_out, (side, side, 4), (0, 1), jnp.stack([scale, scale]), corner, "linear", antialias=True)
        placed = jnp.where(layout.thing[k] >= 0, placed, 0)
        opacity = placed[..., 3:]
        picture = picture * (1 - opacity) + placed[..., :3]
        coverages = [earlier * (1 - opacity[..., 0]) for earlier in coverages] + [opacity[..., 0]]
    return jnp.clip(picture, 0, 1), jnp.stack(coverages)


_compose = jax.jit(compose)


def crop(pictures: jax.Array, boxes: jax.Array) -> jax.Array:
    """Squares of pictures [B, P, P, C], enlarged to the pictures' size.

    boxes: float32 [B, 3], left, top and side of each square as fractions of the picture.
    """
    side = pictures.shape[1]

    def one(picture, box):
        scale = jnp.stack([1 / box[2], 1 / box[2]])
        return jax.image.scale_and_translate(
            picture, picture.shape, (0, 1), scale, -box[1::-1] * side * scale, "linear", antialias=True)

    return jax.vmap(one)(pictures, boxes)
