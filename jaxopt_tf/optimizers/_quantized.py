"""Moments that are stored as codes of 8 or 4 bits, with one scale for each block.

A block is a run of 256 elements of a torch tensor in its flattened order. Its scale is
the largest magnitude in it, and a code is the index of the nearest of 256 or 16 levels
between -1 and 1 (`_levels.py`). Codes of 8 bits have the shape of the leaf, so that
they can have the same sharding; two codes of 4 bits share a byte.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from .. import _pytrees
from .._numerics import prevent_fma
from .._pytrees import TorchLayout, resolve_layouts
from .._typing import PyTree
from ._levels import Levels
from ._per_leaf import Leaf, LeafRule, Moments, check_whole


class QuantizedMoment(NamedTuple):
    """One moment of one leaf, as codes and scales.

    If torch's last axis is one axis of the leaf and a multiple of the block size, then
    `scales` has the leaf's shape with that axis divided by the block size. Otherwise
    `scales` has the stacked axes of the leaf and one axis for the blocks of a torch
    tensor. Arrays of pairs of codes of 4 bits, neighbours in torch, have the same axes.
    """

    codes: jax.Array  # uint8: codes of 8 bits in the leaf's shape, or pairs of 4 bits
    scales: jax.Array  # float32: largest magnitude of each block


class TorchaoMoment(QuantizedMoment):
    """Moment whose codes are rounded by the rule of torchao, not of bitsandbytes."""


# Names of embeddings in Flax, and in torch's state dicts of Transformers' models.
_EMBEDDINGS = re.compile(
    r"(?:^|\.)(?:embedding|(?:\w*embed\w*|wte|wpe|shared)\.weight)$"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantizer:
    """Rule by which a library rounds moments to codes.

    Attributes:
        signed: levels of a first moment.
        unsigned: levels of a second moment, which is never negative.
        block_size: number of elements with a common scale.
        ties_up: see `Levels.encode`.
        repairs_signs: whether a small negative number has a negative level, not 0.
        least_scale: lower limit of the scales.
        whole_blocks: whether a tensor that is no multiple of a block stays float32.
        skips_embeddings: whether embeddings stay float32.
        moment_type: type of the moments, which identifies the library.
    """

    signed: Levels
    unsigned: Levels
    block_size: int = 256
    ties_up: bool
    repairs_signs: bool
    least_scale: float
    whole_blocks: bool
    skips_embeddings: bool
    moment_type: type[QuantizedMoment] = QuantizedMoment

    def is_quantized(self, leaf: Any, layout: TorchLayout) -> bool:
        """Returns whether the moments of a leaf are codes."""
        # Each index of a stacked axis is a tensor of its own in torch.
        size = math.prod(layout.torch_shape(leaf.shape)[len(layout.stacked_axes) :])
        is_large = _pytrees.is_floating(leaf) and size >= 4096
        return is_large and not (self.whole_blocks and size % self.block_size)

    def decode(
        self,
        moment: QuantizedMoment,
        levels: Levels,
        layout: TorchLayout,
        shape: tuple[int, ...],
        *,
        look_up: bool = False,
    ) -> jax.Array:
        """Returns the moment of a leaf of `shape`; float32.

        Args:
            moment: codes and scales.
            levels: of the moment.
            layout: of the leaf.
            shape: of the leaf.
            look_up: whether levels may be looked up in a table.
        """
        codes, scales = moment
        if len(levels.values) == 16:
            codes = self._unpacked(codes, layout, shape)
        level = (levels.look_up if look_up else levels.decode)(codes)
        return level * self._spread(scales, shape, layout)

    def encode(
        self,
        moment: jax.Array,
        scales: jax.Array,
        levels: Levels,
        layout: TorchLayout,
    ) -> QuantizedMoment:
        """Returns a float32 moment as codes and the given scales."""
        scale = self._spread(scales, moment.shape, layout)
        if self.least_scale:
            ratio = moment / scale
        else:
            ratio = jnp.clip(moment * (1.0 / scale), -1.0, 1.0)
        codes = levels.encode(ratio, ties_up=self.ties_up)
        if self.repairs_signs and levels.signed:
            zero = np.uint8(levels.values.index(0.0))
            codes = jnp.where((codes == zero) & (moment < 0), zero - 1, codes)
        # A block of zeros has scale 0 and ratio NaN; its codes are 0 in bitsandbytes.
        codes = jnp.where(scale > 0, codes, np.uint8(0))
        if len(levels.values) == 16:
            codes = self._packed(codes, layout)
        return self.moment_type(codes, scales)

    def empty(
        self, moment: jax.Array, levels: Levels, layout: TorchLayout
    ) -> QuantizedMoment:
        """Returns the moment before the first update: code 0, scale 0, as in torch."""
        codes = jnp.zeros_like(moment, jnp.uint8)
        if len(levels.values) == 16:
            codes = self._packed(codes, layout)
        return self.moment_type(codes, jnp.zeros_like(self.scales(moment, layout)))

    def block_axis(self, shape: tuple[int, ...], layout: TorchLayout) -> int | None:
        """Returns the axis that blocks divide, or None; see `QuantizedMoment`."""
        groups = layout.groups(len(shape))
        if not groups or len(groups[-1]) != 1:
            return None
        (axis,) = groups[-1]
        return axis if shape[axis] % self.block_size == 0 and shape[axis] else None

    def scales(self, x: jax.Array, layout: TorchLayout) -> jax.Array:
        """Returns the largest magnitude of each block; see `QuantizedMoment`."""
        axis = self.block_axis(x.shape, layout)
        if axis is not None:
            largest = jnp.max(jnp.abs(_split(x, axis, self.block_size)), axis + 1)
        else:
            largest = jnp.max(jnp.abs(self._rows(x, layout)), -1)
        return jnp.maximum(largest, self.least_scale)

    def _rows(self, x: jax.Array, layout: TorchLayout) -> jax.Array:
        """Returns `x` as [*stacked, blocks, block_size], padded with zeros."""
        num_stacked = len(layout.stacked_axes)
        ordered = layout.to_torch(x)
        flat = ordered.reshape(*ordered.shape[:num_stacked], -1)
        padding = -flat.shape[-1] % self.block_size
        flat = jnp.pad(flat, [(0, 0)] * num_stacked + [(0, padding)])
        return flat.reshape(*flat.shape[:-1], -1, self.block_size)

    def _spread(
        self, scales: jax.Array, shape: tuple[int, ...], layout: TorchLayout
    ) -> jax.Array:
        """Returns the scale of each element of a leaf of `shape`."""
        axis = self.block_axis(shape, layout)
        if axis is not None:
            split = jnp.expand_dims(scales, axis + 1)
            like = [*scales.shape[: axis + 1], self.block_size, *shape[axis + 1 :]]
            return jnp.broadcast_to(split, like).reshape(shape)
        torch_shape = layout.torch_shape(shape)
        size = math.prod(torch_shape[len(layout.stacked_axes) :])
        flat = jnp.repeat(scales, self.block_size, -1)[..., :size]
        return layout.from_torch(flat.reshape(torch_shape), shape)

    def _packed(self, codes: jax.Array, layout: TorchLayout) -> jax.Array:
        """Returns pairs of neighbours in torch's order as bytes, the first one high."""
        axis = self.block_axis(codes.shape, layout)
        if axis is None:
            codes = layout.to_torch(codes)
            codes = codes.reshape(*codes.shape[: len(layout.stacked_axes)], -1)
            axis = codes.ndim - 1
        pairs = _split(codes, axis, 2)
        high, low = (jax.lax.index_in_dim(pairs, i, axis + 1, False) for i in (0, 1))
        return (high << 4) | low

    def _unpacked(
        self, codes: jax.Array, layout: TorchLayout, shape: tuple[int, ...]
    ) -> jax.Array:
        """Returns codes of the leaf's `shape` from pairs of `_packed`."""
        axis = self.block_axis(shape, layout)
        at = codes.ndim if axis is None else axis + 1
        # The two codes are shifted out of a broadcast byte: XLA would write the result
        # of a concatenation to memory.
        pairs = jnp.expand_dims(codes, at)
        shape_of_shifts = [1] * at + [2] + [1] * (codes.ndim - at)
        shifts = np.array([4, 0], np.uint8).reshape(shape_of_shifts)
        pairs = (pairs >> shifts) & np.uint8(15)
        if axis is not None:
            return pairs.reshape(shape)
        return layout.from_torch(pairs.reshape(layout.torch_shape(shape)), shape)


def quantized(
    rule: LeafRule,
    quantizer: Quantizer,
    signed: Sequence[bool | None],
    *,
    layouts: Mapping[str, TorchLayout] | None,
    keep_float32: Callable[[PyTree], PyTree] | PyTree | None,
) -> LeafRule:
    """Returns `rule` with moments that are stored as codes between updates.

    An update decodes the moments, applies `rule` in float32, and encodes the new
    moments. The new parameter is computed from the new moments before they are rounded.

    Args:
        rule: an optimizer whose moments have the shapes of the leaves.
        quantizer: see `Quantizer`.
        signed: for each moment, whether its levels have signs; None for a moment that
            `rule` does not have.
        layouts: layouts of the leaves in torch, which order the elements of blocks.
        keep_float32: whether each leaf keeps float32 moments: a tree of bools, or a
            callable from params to one. None: embeddings, if
            `quantizer.skips_embeddings`, else no leaf.
    """
    levels = tuple(
        None if s is None else quantizer.signed if s else quantizer.unsigned
        for s in signed
    )
    leaves = _QuantizedLeaves(rule, quantizer, levels, layouts, keep_float32)
    return dataclasses.replace(
        rule, init=leaves.init, update=leaves.update, layouts=leaves.layouts_of
    )


@dataclasses.dataclass(frozen=True)
class _QuantizedLeaves:
    """Functions of the returned rule; attributes are the arguments of `quantized`."""

    rule: LeafRule
    quantizer: Quantizer
    levels: tuple[Levels | None, ...]  # of each moment
    layouts: Mapping[str, TorchLayout] | None
    keep_float32: Callable[[PyTree], PyTree] | PyTree | None

    def layouts_of(self, params: PyTree, grads: Sequence[Any]) -> list[Any]:
        """Returns for each leaf its layout, and whether it is quantized."""
        reason = "each scale is computed from a whole block"
        check_whole(self.rule.name, params, grads, reason)
        found = jax.tree.leaves(resolve_layouts(self.layouts, params))
        skips = self.quantizer.skips_embeddings
        stays_float32 = _stays_float32(self.keep_float32, params, skips)
        return [
            (layout, not is_float32 and self.quantizer.is_quantized(leaf, layout))
            for leaf, layout, is_float32 in zip(
                jax.tree.leaves(params), found, stays_float32, strict=True
            )
        ]

    def init(self, p: jax.Array, layout: Any) -> Moments:
        """Returns the moments of a leaf before the first update."""
        torch_layout, is_quantized = layout
        plain = dataclasses.replace(self.rule, layouts=None)
        if not is_quantized:
            return plain.init_leaf(p, None)

        def stored(p: jax.Array) -> Moments:
            moments, empty = plain.init_leaf(p, None), self.quantizer.empty
            return tuple(
                moment if levels is None else empty(moment, levels, torch_layout)
                for moment, levels in zip(moments, self.levels, strict=True)
            )

        shapes = jax.eval_shape(stored, jax.ShapeDtypeStruct(p.shape, p.dtype))
        sharding = _pytrees.explicit_sharding(p)

        def zeros(like: jax.ShapeDtypeStruct) -> jax.Array:
            if like.shape == p.shape:
                return jnp.zeros_like(p, like.dtype)
            place = None if sharding is None else _sharding_of(like, p, sharding)
            return jnp.zeros(like.shape, like.dtype, out_sharding=place)

        moments: Moments = jax.tree.map(zeros, shapes)
        return moments

    def update(self, leaf: Leaf, scalars: Any, moments: Moments) -> Moments:
        """Returns the new parameter and the new moments of a leaf."""
        layout, is_quantized = leaf.layout
        leaf = leaf._replace(layout=None)
        if not is_quantized:
            return self.rule.update(leaf, scalars, moments)

        def of_arrays(
            param: jax.Array, grad: jax.Array, scalars: Any, moments: Moments
        ) -> Moments:
            arrays = leaf._replace(param=param, grad=grad)
            return self._update_quantized(arrays, layout, scalars, moments)

        sharding = _pytrees.explicit_sharding(leaf.param)
        arguments = leaf.param, leaf.grad, scalars, moments
        if sharding is None:
            return of_arrays(*arguments)
        # Blocks are not aligned with shards: with `auto_axes` the compiler chooses the
        # shardings of intermediate results, also on explicit mesh axes.
        shardings = jax.tree.map(
            lambda x: _sharding_of(x, leaf.param, sharding), (leaf.param, *moments)
        )
        with_auto_axes = jax.sharding.auto_axes(of_arrays, out_sharding=shardings)
        new: Moments = with_auto_axes(*arguments)
        return new

    def _update_quantized(
        self, leaf: Leaf, layout: TorchLayout, scalars: Any, moments: Moments
    ) -> Moments:
        quantizer = self.quantizer

        def updated(leaf: Leaf, old: Moments, *, look_up: bool = False) -> Moments:
            shape = leaf.param.shape
            decoded = tuple(
                moment
                if levels is None
                else quantizer.decode(moment, levels, layout, shape, look_up=look_up)
                for moment, levels in zip(old, self.levels, strict=True)
            )
            return self.rule.update(leaf, scalars, decoded)

        # With a table, XLA for GPUs fuses the update with the reductions. Without one,
        # it writes the new codes to the memory of the old ones.
        _, *new = updated(leaf, moments, look_up=True)
        scales = [
            None if levels is None else quantizer.scales(moment, layout)
            for moment, levels in zip(new, self.levels, strict=True)
        ]
        # The update is computed twice: first for the scales, then for the codes. The
        # second time, codes and gradient are combined with a zero that XLA does not
        # know. XLA would otherwise keep the new moments in memory in float32, which
        # costs more than reading codes and gradient again, and a product that
        # both share would be rounded in one program and fused with a sum in another.
        # Barriers around codes and gradient would copy the codes, and write the clipped
        # gradient to memory.
        zero, scales = jax.lax.optimization_barrier((np.uint8(0), scales))
        leaf = leaf._replace(grad=prevent_fma(leaf.grad, zero.astype(jnp.int32)))
        moments = tuple(
            moment if levels is None else moment._replace(codes=moment.codes ^ zero)
            for moment, levels in zip(moments, self.levels, strict=True)
        )
        new_param, *new = updated(leaf, moments)
        return new_param, *(
            moment
            if levels is None
            else quantizer.encode(moment, scale, levels, layout)
            for moment, scale, levels in zip(new, scales, self.levels, strict=True)
        )


def _sharding_of(
    moment: jax.Array | jax.ShapeDtypeStruct, param: jax.Array, of_param: NamedSharding
) -> NamedSharding:
    """Returns the sharding of codes or scales on explicit mesh axes.

    An axis is sharded like that of the leaf if its size is a multiple of the number of
    shards, else replicated. All are replicated if the leaf has more or fewer axes.
    """
    if moment.ndim != param.ndim:
        return NamedSharding(of_param.mesh, PartitionSpec())
    axes = []
    for size, names in zip(moment.shape, of_param.spec, strict=False):
        several = (names,) if isinstance(names, str) else names or ()
        num_shards = math.prod(of_param.mesh.shape[name] for name in several)
        axes.append(names if size % num_shards == 0 else None)
    return NamedSharding(of_param.mesh, PartitionSpec(*axes))


def _stays_float32(
    keep_float32: Any, params: PyTree, skips_embeddings: bool
) -> list[bool]:
    """Returns for each leaf whether its moments remain float32."""
    if keep_float32 is None:
        names = _pytrees.leaf_names(params)
        return [skips_embeddings and is_embedding(name) for name in names]
    mask = keep_float32(params) if callable(keep_float32) else keep_float32
    return [bool(kept) for kept in jax.tree.leaves(mask)]


def is_embedding(name: str) -> bool:
    """Returns whether a leaf's name is that of an embedding in Flax or Transformers."""
    return bool(_EMBEDDINGS.search(name))


def _split(x: jax.Array, axis: int, size: int) -> jax.Array:
    """Returns `x` with `axis` divided into parts of `size`."""
    shape = x.shape
    return x.reshape(*shape[:axis], shape[axis] // size, size, *shape[axis + 1 :])
