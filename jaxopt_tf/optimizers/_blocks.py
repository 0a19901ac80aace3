"""Blocks of a leaf, which share a scale, and pairs of its elements, which share a byte.

A block is a run of elements of a torch tensor in its flattened order, and a pair is two
neighbours in it. If torch's last axis is one axis of the leaf, both are parts of that
axis, and nothing is transposed.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from .._pytrees import TorchLayout

# Rows that an array in the memory of a TPU has side by side, in tiles of 8 x 128.
_ROWS_OF_A_TILE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """Blocks of a leaf.

    Attributes:
        shape: of the leaf.
        layout: of the leaf in torch.
        size: number of elements of a block.
    """

    shape: tuple[int, ...]
    layout: TorchLayout
    size: int

    @property
    def axis(self) -> int | None:
        """The axis that blocks divide, or None; see `QuantizedMoment`."""
        groups = self.layout.groups(len(self.shape))
        if not groups or len(groups[-1]) != 1:
            return None
        (axis,) = groups[-1]
        length = self.shape[axis]
        return axis if length and length % self.size == 0 else None

    @property
    def divide_last_axis(self) -> bool:
        """Returns whether blocks are parts of the leaf's last axis."""
        return self.axis == len(self.shape) - 1

    def largest(self, x: jax.Array) -> jax.Array:
        """Returns the largest magnitude of each block, in the shape of the scales."""
        x = jnp.abs(x)
        if self.axis is None:
            return jnp.max(self._rows(x), -1)
        if not self.divide_last_axis:
            # XLA for GPUs fuses reductions of few rows with the arithmetic before them,
            # but not one of all rows of a block.
            num_rows = math.gcd(self.size, 16)
            x = jnp.max(_split(x, self.axis, num_rows), self.axis + 1)
            return jnp.max(_split(x, self.axis, self.size // num_rows), self.axis + 1)
        if not self._has_tiles:
            return jnp.max(_split(x, self.axis, self.size), -1)
        tiles = _split(_split(x, self.axis, self.size), self.axis - 1, _ROWS_OF_A_TILE)
        largest = jnp.max(jnp.swapaxes(tiles, -2, -3), -1)
        return jnp.swapaxes(largest, -1, -2).reshape(*self.shape[:-1], -1)

    def spread(self, scales: jax.Array) -> jax.Array:
        """Returns the scale of each element of the leaf."""
        axis = self.axis
        if axis is None:
            torch_shape = self.layout.torch_shape(self.shape)
            num = math.prod(torch_shape[len(self.layout.stacked_axes) :])
            flat = jnp.repeat(scales, self.size, -1)[..., :num]
            return self.layout.from_torch(flat.reshape(torch_shape), self.shape)
        if self._has_tiles:
            tiles = jnp.swapaxes(_split(scales, axis - 1, _ROWS_OF_A_TILE), -1, -2)
            tiles = jnp.broadcast_to(tiles[..., None], (*tiles.shape, self.size))
            return jnp.swapaxes(tiles, -2, -3).reshape(self.shape)
        like = [*scales.shape[: axis + 1], self.size, *self.shape[axis + 1 :]]
        split = jnp.broadcast_to(jnp.expand_dims(scales, axis + 1), like)
        return split.reshape(self.shape)

    def halves(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the first and the second element of each pair of the leaf.

        Both have the leaf's shape with the axis of the blocks halved. Without such an
        axis they have the stacked axes and one axis for the pairs of a torch tensor.
        """
        axis = self.axis
        if axis is None:
            num_stacked = len(self.layout.stacked_axes)
            x = self.layout.to_torch(x)
            x = x.reshape(*x.shape[:num_stacked], -1)
            axis = num_stacked
        first, second = (
            jax.lax.slice_in_dim(x, i, x.shape[axis], 2, axis) for i in (0, 1)
        )
        return first, second

    def of_pairs(self) -> "Blocks":
        """Returns the blocks of an array that has one element for each pair."""
        like = jax.ShapeDtypeStruct(self.shape, jnp.uint8)
        first, _ = jax.eval_shape(self.halves, like)
        layout = self.layout
        if self.axis is None:
            layout = TorchLayout(stacked_axes=tuple(range(first.ndim - 1)))
        return Blocks(shape=first.shape, layout=layout, size=self.size // 2)

    def unpacked(self, pairs: jax.Array) -> jax.Array:
        """Returns the leaf's codes of 4 bits; the first of each pair is the high one.

        Args:
            pairs: codes of `halves` as bytes.
        """
        # Zeros between the elements of each half. XLA would write the result of a
        # concatenation to memory, and pad an axis of size 2 to 128 on a TPU.
        axis = pairs.ndim - 1 if self.axis is None else self.axis
        first, second = ([(0, 0, 0)] * pairs.ndim for _ in range(2))
        first[axis], second[axis] = (0, 1, 1), (1, 0, 1)
        high, low, zero = pairs >> 4, pairs & np.uint8(15), np.uint8(0)
        codes = jax.lax.pad(high, zero, first) | jax.lax.pad(low, zero, second)
        if self.axis is not None:
            return codes
        torch_shape = self.layout.torch_shape(self.shape)
        return self.layout.from_torch(codes.reshape(torch_shape), self.shape)

    @property
    def _has_tiles(self) -> bool:
        """Returns whether blocks are computed in tiles of several rows.

        A TPU's compiler would transpose the leaf, its codes and its gradient in memory
        to divide the last axis alone. If the axis before is divided, too, and the
        blocks are moved before the rows of a tile, the elements are in the order that
        they have in the memory of a TPU, and nothing is moved. Other compilers fuse the
        transposition with the arithmetic.
        """
        if not self.divide_last_axis or len(self.shape) < 2:
            return False
        return self.shape[-2] % _ROWS_OF_A_TILE == 0

    def _rows(self, x: jax.Array) -> jax.Array:
        """Returns `x` as [*stacked, blocks, block_size], padded with zeros."""
        num_stacked = len(self.layout.stacked_axes)
        ordered = self.layout.to_torch(x)
        flat = ordered.reshape(*ordered.shape[:num_stacked], -1)
        padding = -flat.shape[-1] % self.size
        flat = jnp.pad(flat, [(0, 0)] * num_stacked + [(0, padding)])
        return flat.reshape(*flat.shape[:-1], -1, self.size)


def _split(x: jax.Array, axis: int, size: int) -> jax.Array:
    """Returns `x` with `axis` divided into parts of `size`."""
    shape = x.shape
    return x.reshape(*shape[:axis], shape[axis] // size, size, *shape[axis + 1 :])
