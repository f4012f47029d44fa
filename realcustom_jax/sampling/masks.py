"""From attention maps to the mask of each subject.

**Adaptive mask guidance** (RealCustom, arXiv 2403.00483; RealCustom++, arXiv 2408.09744). The target word's
cross-attention maps, one per layer, are resized to one size and averaged to a map a over the n positions,
optionally refined by the self-attention map S (n × n): a ← S a. The map is normalised, and the mask keeps its
strongest positions, a fraction γ (the scope), or those of at least 1 − γ:

    max_norm               a / max a
    min_max_norm           (a − min a) / (max a − min a)
    min_max_per_channel    min_max_norm of each layer's map before the average, and of the result
    none                   a as it is, without S

Released original: ``mask_generation.py``.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from realcustom_jax.arrays import Array
from realcustom_jax.errors import check_choice
from realcustom_jax.models.resize import resize_bilinear
from realcustom_jax.models.unet import UNetOutput

NORMALIZATIONS = "max_norm", "min_max_norm", "min_max_per_channel", "none"
SELECTIONS = "topk", "threshold"
SHARING: tuple[str, ...] = ("argmax", "argmax_plain", "argmax_mean", "split_first", "seeds")
"""Ways to give each position to one of several references, see ``owners``."""


@dataclasses.dataclass(frozen=True)
class MaskConfig:
    """How the guidance lane's maps become masks; hashable. The options are `masks.subject_mask`'s, and

    downscale: the mask's size is the latents', divided by this.
    refine_at: (h, w) of the self-attention layers whose maps refine the mask; None does not refine. The paper
        takes the highest resolution that has attention.
    """

    scope: float = 0.25
    normalize: str = "max_norm"
    select: str = "topk"
    binary: bool = False
    overlap: str = "sum"
    downscale: int = 2
    refine_at: tuple[int, int] | None = None
    normalize_self: str | None = None

    def size_of(self, latents: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the masks of latents of size (H, W)."""
        return latents[0] // self.downscale, latents[1] // self.downscale

    def masks_of(self, output: UNetOutput, size: tuple[int, int], allowed: jax.Array | None = None) -> jax.Array:
        """The masks [B, R, h, w] of a UNet evaluation with target maps (and self maps at `refine_at`); `allowed` as
        of `subject_mask`."""
        if self.refine_at and not output.self_maps:
            sizes = sorted({m.shape[-2:] for m in output.maps}, reverse=True)
            raise ValueError(f"refine_at={self.refine_at}: no self-attention layer has that size; there are {sizes}.")
        return subject_mask(
            output.maps, size=size, allowed=allowed, scope=self.scope, normalize=self.normalize, select=self.select,
            binary=self.binary, overlap=self.overlap, self_maps=output.self_maps, normalize_self=self.normalize_self)


def subject_mask(
    maps: Sequence[Array],
    *,
    size: tuple[int, int],
    scope: float = 0.25,
    normalize: str = "max_norm",
    select: str = "topk",
    binary: bool = False,
    self_maps: Sequence[Array] | None = None,
    normalize_self: str | None = None,
    overlap: str = "sum",
    allowed: Array | None = None,
) -> jax.Array:
    """The guidance mask of every reference in every sample.

    Args:
        maps: one [B, R, h_l, w_l] for each cross-attention layer, of any size, non-negative: how much each place
            attends to the reference's phrase.
        size: (h, w) of the masks.
        scope: γ in (0, 1].
        normalize: max_norm | min_max_norm | min_max_per_channel | none.
        select: topk keeps exactly int(h · w · γ) positions, the first of equal ones; threshold keeps those of at least
            1 − γ.
        binary: kept positions become 1 (with threshold, those above 1 − γ).
        self_maps: any number of [B, heads, n_l, n_l], resized as images to [h·w, h·w] and averaged, after
            normalize_self.
        normalize_self: None | max_norm, over a sample | min_max_per_channel, over a head.
        overlap: sum lets masks overlap; every other way first gives each position to one reference, so that a
            reference may keep fewer positions: argmax and its brothers in `SHARING`, see `owners`.
        allowed: [B, R, h, w] in [0, 1] weighs the positions, and none is kept where it is 0, even if fewer are left
            than the scope's; None: all are allowed.
    Returns:
        float32 [B, R, h, w]: 0 outside of the mask, inside 1 (binary) or the strength of the normalised map.
    Raises:
        ValueError: an unknown choice, a scope that keeps nothing, or maps that do not fit each other.

    Two layers of 2 × 2 that agree on the right column; a scope of a half keeps two of four positions:

    >>> import jax.numpy as jnp
    >>> maps = [jnp.array([[[[0.0, 0.4], [0.1, 0.8]]]]), jnp.array([[[[0.2, 0.4], [0.1, 0.8]]]])]
    >>> mask = subject_mask(maps, size=(2, 2), scope=0.5, binary=True)
    >>> mask.shape
    (1, 1, 2, 2)
    >>> print(mask[0, 0])
    [[0. 1.]
     [0. 1.]]
    """
    check_choice("normalize", normalize, NORMALIZATIONS)
    check_choice("select", select, SELECTIONS)
    check_choice("overlap", overlap, ("sum", *SHARING))
    if normalize_self is not None:
        check_choice("normalize_self", normalize_self, ("max_norm", "min_max_per_channel"))
    if any(isinstance(x, jax.core.Tracer) for x in (scope, *size)):
        raise ValueError("size and scope decide how many places are kept, so that they must be numbers, not traced "
                         "values: name them in static_argnames of jax.jit, or close over them.")
    if not 0 < scope <= 1:
        raise ValueError(f"scope must be in (0, 1], got {scope}.")
    _check_maps(maps, self_maps)
    height, width = size
    kept = int(height * width * scope)
    if select == "topk" and kept < 1:
        raise ValueError(f"scope {scope} keeps none of {height} x {width} positions: enlarge either.")

    refine = None if not self_maps else _mean_self_map(self_maps, height * width, normalize_self)
    weight = 1.0 if allowed is None else allowed.reshape(*allowed.shape[:2], height * width)
    strength = _normalised_map(maps, size, refine, normalize, weight)
    if overlap != "sum":
        plain = _normalised_map(maps, size, None, "none", weight)
        strength = jnp.where(owners(strength, plain, refine, overlap), strength, -jnp.inf)
    if allowed is not None:
        strength = jnp.where(weight > 0, strength, -jnp.inf)

    if select == "topk":
        keep = _top_k(strength, kept) & jnp.isfinite(strength)
    else:
        keep = strength > 1 - scope if binary else strength >= 1 - scope
    mask = jnp.where(keep, 1.0 if binary else strength, 0.0)
    return mask.reshape(*mask.shape[:2], height, width)


def owners(strength: jax.Array, plain: jax.Array, refine: jax.Array | None, way: str) -> jax.Array:
    """Which reference each position belongs to where R references share a picture: bool [B, R, n], one of R each.

    Normalised by its maximum, a flat map wins positions from a sharp one; the ways differ in what they compare.

    Args:
        strength: the normalised maps [B, R, n], refined where masks are. plain: the maps as they are.
        refine: the self-attention map [B, n, n] that refined them, or None.
        way: of ``SHARING``:
            argmax        the highest normalised map, as RealCustom++ draws it
            argmax_plain  the phrase that the position attends to most, by the maps as they are
            argmax_mean   the highest of the normalised maps, each divided by its mean
            split_first   the highest of the plain maps by their means: refinement moves no border
            seeds         each phrase's eighth where it leads by most, grown along self-attention
    """
    if way == "argmax_plain":
        return strongest_reference(plain)
    if way == "argmax_mean":
        return strongest_reference(_by_mean(strength))
    if way == "split_first":
        return strongest_reference(_by_mean(plain))
    if way == "seeds":
        relative = _by_mean(plain)
        others = jnp.where(jnp.eye(relative.shape[1], dtype=bool)[:, :, None], -jnp.inf, relative[:, None])
        lead = relative - jnp.where(relative.shape[1] > 1, others.max(2), 0)
        seeds = _top_k(lead, max(1, relative.shape[-1] // 8)).astype(jnp.float32)
        grown = seeds if refine is None else jnp.einsum("bij,brj->bri", refine, seeds, precision="highest")
        return strongest_reference(_by_mean(grown) + 1e-3 * relative)
    return strongest_reference(strength)


def _by_mean(maps: jax.Array) -> jax.Array:
    return maps / (maps.mean(-1, keepdims=True) + 1e-9)


def strongest_reference(strength: jax.Array) -> jax.Array:
    """Which reference owns each position: [B, R, n] -> bool [B, R, n], the first of equal ones."""
    references = jnp.arange(strength.shape[1])[:, None]
    return references == jnp.argmax(strength, axis=1, keepdims=True)


def _check_maps(maps: Sequence[jax.Array], self_maps: Sequence[jax.Array] | None) -> None:
    for what, given in (("maps", maps), ("self_maps", self_maps)):
        if hasattr(given, "shape"):
            raise ValueError(f"{what} is one array, of shape {given.shape}; give a list with an array for each layer, "
                             f"[{what}] if there is one layer.")
    if not maps:
        raise ValueError("maps is empty: run the network with a target so that its layers return their maps.")
    shapes = [x.shape for x in maps]
    if any(len(s) != 4 or s[:2] != shapes[0][:2] for s in shapes):
        raise ValueError(f"maps must all be [B, R, h, w] with the same B and R, got shapes {shapes}.")
    shapes = [x.shape for x in self_maps or ()]
    if any(len(s) != 4 or s[0] != maps[0].shape[0] or s[2] != s[3] for s in shapes):
        raise ValueError(f"self_maps must all be [B, heads, n, n] with the maps' B, got shapes {shapes}.")


def _stack_resized(maps: Sequence[jax.Array], size: tuple[int, int]) -> jax.Array:
    """[B, C, h_l, w_l] each -> float32 [B, C, L, h·w]."""

    def resize(x):
        x = resize_bilinear(jnp.moveaxis(jnp.asarray(x, jnp.float32), 1, -1), size)
        return jnp.moveaxis(x, -1, 1).reshape(x.shape[0], x.shape[-1], -1)

    return jnp.stack([resize(x) for x in maps], axis=2)


def _added_by_size(maps: Sequence[jax.Array]) -> list[jax.Array]:
    """The sums of the maps of each size: resizing is linear, and a GPU takes as long for one small map as for a sum."""
    sums = {}
    for x in maps:
        sums[x.shape] = sums.get(x.shape, 0) + x.astype(jnp.float32)
    return list(sums.values())


def _mean_self_map(self_maps: Sequence[jax.Array], positions: int, normalize: str | None) -> jax.Array:
    """[B, heads_l, n_l, n_l] each -> [B, positions, positions], the mean over the heads of all layers."""
    heads = jnp.concatenate([_stack_resized([x], (positions, positions))[:, :, 0] for x in self_maps], axis=1)
    if normalize == "max_norm":
        heads = heads / (heads.max((1, 2), keepdims=True) + 1e-10)
    elif normalize == "min_max_per_channel":
        heads = _min_max(heads)
    return heads.mean(1).reshape(-1, positions, positions)


def _normalised_map(
    maps: Sequence[jax.Array], size: tuple[int, int], refine: jax.Array | None, normalize: str,
    weight: jax.Array | float,
) -> jax.Array:
    """The layers' maps -> [B, R, n], n = h · w, refined by ``refine`` [B, n, n]. ``weight``: [B, R, n] or a number;
    what it leaves out neither sends strength by the refinement nor takes any."""
    if normalize == "min_max_per_channel":
        strength = _min_max(_stack_resized(maps, size)).mean(2)
    else:
        strength = _stack_resized(_added_by_size(maps), size).sum(2) / len(maps)
    strength = strength * weight
    if normalize == "none":
        return strength
    if refine is not None:
        strength = jnp.einsum("bij,brj->bri", refine, strength, precision="highest") * weight
    if normalize == "max_norm":
        return strength / (strength.max(-1, keepdims=True) + 1e-6)
    return _min_max(strength)


def _min_max(x: jax.Array) -> jax.Array:
    low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
    return (x - low) / (high - low + 1e-6)


def _top_k(x: jax.Array, k: int) -> jax.Array:
    """Where the k largest values along the last axis are, exactly k, the first of equal ones: bool like x."""
    rank = jnp.argsort(jnp.argsort(-x, axis=-1, stable=True), axis=-1)
    return rank < k
