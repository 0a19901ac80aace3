"""Moments that are stored as codes of 8 or 4 bits, with one scale for each block.

A block is a run of 256 elements of a torch tensor in its flattened order. Its scale is
the largest magnitude in it, and a code is the index of the nearest of 256 or 16 levels
between -1 and 1 (`_levels.py`). Codes of 8 bits have the shape of the leaf, so that
they can have the same sharding; two codes of 4 bits share a byte.
"""

import dataclasses
import functools
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
from ._blocks import Blocks
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

    def blocks(self, shape: tuple[int, ...], layout: TorchLayout) -> Blocks:
        """Returns the blocks of a leaf."""
        return Blocks(shape=shape, layout=layout, size=self.block_size)

    def scales(self, moment: jax.Array, blocks: Blocks) -> jax.Array:
        """Returns the scale of each block of a moment; float32."""
        largest = blocks.largest(moment.astype(jnp.float32))
        return jnp.maximum(largest, self.least_scale)

    def encode(self, moment: jax.Array, scale: jax.Array, levels: Levels) -> jax.Array:
        """Returns the code of each element of a moment, which is rounded to float32.

        Args:
            moment: the moment.
            scale: of each element.
            levels: of the moment.
        """
        moment = moment.astype(jnp.float32)
        if self.least_scale:
            ratio = moment / scale
        else:
            ratio = jnp.clip(moment * (1.0 / scale), -1.0, 1.0)
        codes = levels.encode(ratio, ties_up=self.ties_up)
        if self.repairs_signs and levels.signed:
            zero = np.uint8(levels.values.index(0.0))
            codes = jnp.where((codes == zero) & (moment < 0), zero - 1, codes)
        # A block of zeros has scale 0 and ratio NaN; its codes are 0 in bitsandbytes.
        return jnp.where(scale > 0, codes, np.uint8(0))

    def empty(
        self, moment: jax.Array, levels: Levels, layout: TorchLayout
    ) -> QuantizedMoment:
        """Returns the moment before the first update: code 0, scale 0, as in torch."""
        blocks = self.blocks(moment.shape, layout)
        like = blocks.halves(moment)[0] if levels.are_paired else moment
        scales = jnp.zeros_like(self.scales(moment, blocks))
        return self.moment_type(jnp.zeros_like(like, jnp.uint8), scales)


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
        blocks = self.quantizer.blocks(leaf.param.shape, layout)

        def decoded(
            levels: Levels, moment: QuantizedMoment, *, look_up: bool
        ) -> jax.Array:
            codes, scales = moment
            codes = blocks.unpacked(codes) if levels.are_paired else codes
            level = (levels.look_up if look_up else levels.decode)(codes)
            # Scales have the dtype of the computation, float64 for such parameters.
            return level.astype(scales.dtype) * blocks.spread(scales)

        def scales_of(levels: Levels, moment: jax.Array) -> jax.Array:
            del levels
            return self.quantizer.scales(moment, blocks)

        # The update is computed twice: first for the parameter and the scales, then for
        # the codes. XLA for GPUs fuses the first with the reductions of blocks, if
        # levels are looked up in a table, and writes the new codes to the memory of the
        # old ones.
        looked_up = functools.partial(decoded, look_up=True)
        new_param, *new = self.rule.update(leaf, scalars, self._map(looked_up, moments))
        scales = self._map(scales_of, new)
        if not blocks.divide_last_axis:
            # XLA cannot fuse a parameter with reductions over another axis than its
            # last. It fuses it with the codes, which it writes to the old ones if there
            # is no table.
            computed = self._map(functools.partial(decoded, look_up=False), moments)
            new_param, *_ = self.rule.update(leaf, scalars, computed)
        # The second time, codes and gradient are combined with a zero that XLA does not
        # know. XLA would otherwise keep the new moments in memory in float32, which
        # costs more than reading codes and gradient again, and a product that
        # both share would be rounded in one program and fused with a sum in another.
        # Barriers around codes and gradient would copy the codes, and write the clipped
        # gradient to memory.
        zero, scales = jax.lax.optimization_barrier((np.uint8(0), scales))
        leaf = leaf._replace(grad=prevent_fma(leaf.grad, zero.astype(jnp.int32)))
        moments = self._map(lambda _, m: m._replace(codes=m.codes ^ zero), moments)
        arguments = leaf, blocks, scalars, moments, scales
        if self.quantizer.signed.are_paired:
            codes = self._recoded_pairs(*arguments)
        else:
            param, *rest = self._recoded(*arguments)
            codes = tuple(rest)
            if self.rule.decays_gradient and leaf.is_decayed:
                # The codes depend on the old parameter, which must not be replaced yet.
                new_param = param
        moment_type = self.quantizer.moment_type
        return new_param, *self._map(lambda _, *m: moment_type(*m), codes, scales)

    def _recoded(
        self,
        leaf: Leaf,
        blocks: Blocks,
        scalars: Any,
        moments: Moments,
        scales: Moments,
    ) -> Moments:
        """Returns the new parameter, and the codes of the elements of new moments."""

        def decoded(levels: Levels, moment: QuantizedMoment) -> jax.Array:
            level = levels.decode(moment.codes).astype(moment.scales.dtype)
            return level * blocks.spread(moment.scales)

        def encoded(levels: Levels, moment: jax.Array, scales: jax.Array) -> jax.Array:
            return self.quantizer.encode(moment, blocks.spread(scales), levels)

        new_param, *new = self.rule.update(leaf, scalars, self._map(decoded, moments))
        return new_param, *self._map(encoded, new, scales)

    def _recoded_pairs(
        self,
        leaf: Leaf,
        blocks: Blocks,
        scalars: Any,
        moments: Moments,
        scales: Moments,
    ) -> Moments:
        """Returns the codes of the new moments in pairs.

        Each half of the leaf has one element for each pair, so that XLA can write the
        new pairs to the memory of the old ones.
        """
        halves = []
        for param, grad, shift in zip(
            blocks.halves(leaf.param), blocks.halves(leaf.grad), (4, 0), strict=True
        ):
            codes_of_half = functools.partial(_half, shift=np.uint8(shift))
            half = self._map(codes_of_half, moments)
            half_leaf = leaf._replace(param=param, grad=grad)
            arguments = half_leaf, blocks.of_pairs(), scalars, half, scales
            halves.append(self._recoded(*arguments)[1:])
        return self._map(lambda _, high, low: (high << 4) | low, *halves)

    def _map(self, function: Callable[..., Any], *trees: Sequence[Any]) -> Moments:
        """Returns `function(levels, ...)` for each moment that `rule` has."""
        return tuple(
            values[0] if levels is None else function(levels, *values)
            for levels, *values in zip(self.levels, *trees, strict=True)
        )


def _half(
    levels: Levels, moment: QuantizedMoment, *, shift: np.uint8
) -> QuantizedMoment:
    """Returns the moment with the codes of the pairs' first or second elements."""
    del levels
    return moment._replace(codes=(moment.codes >> shift) & np.uint8(15))


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
