"""Levels that codes of 8 or 4 bits represent, and the nearest level to a number.

Levels and codes are computed, not looked up: a gather from a table is slow on TPUs and
would not be fused with the update of an optimizer.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._numerics import prevent_fma

# 0.1 and 1 - 0.1 in float32, and by how much their sum is below 1; in units of 2^-31.
_TENTH, _NINE_TENTHS, _BELOW_ONE = 214_748_368, 1_932_735_232, 48
# Centres of the parts of three decades, of which the second and the fourth are rounded
# as by torch's `linspace`: their nearest float32 is a neighbour.
_SIGNED_4_BIT = (0.0055, 0.0325000025, 0.0775, 0.21249999, 0.4375, 0.6625, 0.8875)


@functools.cache
def dynamic_map(*, signed: bool) -> np.ndarray:
    """Returns the 256 levels of moments of 8 bits, increasing; float32.

    Seven decades from 1e-7 to 1 have 1, 2, 4, ..., 64 levels each (twice as many
    without a sign), at the centres of equal parts of the upper nine tenths of the
    decade; then there are 0 and 1. Negative levels mirror the decades. They are
    rounded as torch rounds them on processors with fused multiply-add.

    Args:
        signed: whether there are negative levels.

    Source: Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2021, arXiv
        2110.02861, section 2; bitsandbytes 0.50.2 `functional.py`,
        `create_dynamic_map`; torch 2.13
        `aten/src/ATen/native/cpu/RangeFactoriesKernel.cpp`, `linspace`.
    """
    decades = []
    for i in range(7):
        exponent = i + (not signed)
        k = np.arange(2**exponent, dtype=np.uint32)
        decades.append(_centre(k, exponent) * np.float32(10.0 ** (i - 6)))
    positive = np.concatenate(decades)
    negative = -positive[::-1] if signed else positive[:0]
    ends = np.array([0, 1], np.float32)
    return np.concatenate([negative, ends[:1], positive, ends[1:]])


@functools.cache
def four_bit_map(*, signed: bool) -> np.ndarray:
    """Returns the 16 levels of moments of 4 bits, increasing; float32.

    Levels with a sign are denser near 0; the others are 1/16, 2/16, ..., 1.

    Args:
        signed: whether there are negative levels.

    Source: Li et al., "Memory Efficient Optimizers with 4-bit States", 2023, arXiv
        2309.01507; torchao 0.18 `optim/subclass_4bit.py`.
    """
    if not signed:
        return np.arange(1, 17, dtype=np.float32) / np.float32(16)
    positive = np.array(_SIGNED_4_BIT, np.float32)
    ends = np.array([0, 1], np.float32)
    return np.concatenate([-positive[::-1], ends[:1], positive, ends[1:]])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Levels:
    """Levels between -1 and 1 that codes of a number of bits represent.

    Attributes:
        values: the levels, increasing; float32.
        signed: whether there are negative levels.
    """

    values: tuple[float, ...]
    signed: bool

    @classmethod
    def dynamic(cls, *, signed: bool) -> "Levels":
        """Returns the levels of `dynamic_map`."""
        return cls(values=tuple(dynamic_map(signed=signed).tolist()), signed=signed)

    @classmethod
    def four_bits(cls, *, signed: bool) -> "Levels":
        """Returns the levels of `four_bit_map`."""
        return cls(values=tuple(four_bit_map(signed=signed).tolist()), signed=signed)

    @property
    def are_paired(self) -> bool:
        """Returns whether codes have 4 bits, so that two share a byte."""
        return len(self.values) == 16

    def look_up(self, codes: jax.Array) -> jax.Array:
        """Returns the levels of `decode`, from a table where that is fast."""
        levels: jax.Array = jax.lax.platform_dependent(
            codes, tpu=self.decode, default=self._from_table
        )
        return levels

    def _from_table(self, codes: jax.Array) -> jax.Array:
        table = jnp.asarray(np.array(self.values, np.float32))
        return table.at[codes].get(mode="promise_in_bounds")

    def decode(self, codes: jax.Array) -> jax.Array:
        """Returns the level of each code; float32."""
        if len(self.values) != 256:
            level = jnp.full(codes.shape, self.values[0], jnp.float32)
            for i, value in enumerate(self.values[1:], 1):
                level = jnp.where(codes >= i, np.float32(value), level)
            return level
        # The rank of a magnitude plus `first` is 2^e + k, where k counts the levels of
        # decade e from 0. The exponent of the rank's float32 is e.
        first = 0 if self.signed else 1
        offset = codes.astype(jnp.int32) - (127 if self.signed else 0)
        rank = jnp.abs(offset) + first
        bits = jax.lax.bitcast_convert_type(rank.astype(jnp.float32), jnp.int32)
        exponent = jnp.maximum((bits >> 23) - 127, 0)
        power = jnp.full(rank.shape, 1e-6, jnp.float32)
        for i in range(1, 7):
            is_above = rank >= 2 ** (i + first)
            power = jnp.where(is_above, np.float32(10.0 ** (i - 6)), power)
        level = _centre(rank - (1 << exponent), exponent) * power
        level = jnp.where(rank == first, 0.0, level)
        level = jnp.where(rank == 2 ** (7 + first), 1.0, level)
        return jnp.where(offset < 0, -level, level)

    def encode(self, x: jax.Array, *, ties_up: bool) -> jax.Array:
        """Returns the code of the level nearest to each element; uint8.

        An element is compared to the middle between two levels, rounded to float32.

        Args:
            x: from -1 to 1, float32.
            ties_up: whether an element at the middle has the upper level.
        """
        if len(self.values) != 256:
            middles = (np.array(self.values[1:]) + self.values[:-1]).astype("f4") / 2
            above = [x >= m if ties_up else x > m for m in middles]
            return sum((a.astype("u1") for a in above), jnp.zeros(x.shape, "u1"))
        first = 0 if self.signed else 1
        size = jnp.abs(x)
        # The upper level has the larger magnitude, unless it is negative.
        ties_out = (x < 0) != ties_up if self.signed else jnp.asarray(ties_up)

        def is_above(middle: jax.Array | np.float32) -> jax.Array:
            return jnp.where(ties_out, size >= middle, size > middle)

        # Limits of the decades: each is halfway from the last level below a decade to
        # the first level of the decade.
        ranks = [2 ** (i + first) - first for i in range(8)]
        levels = np.array(self.values[127 if self.signed else 0 :], np.float32)
        limits = [(levels[r - 1] + levels[r]) / np.float32(2) for r in ranks]
        exponent = jnp.full(x.shape, first, jnp.int32)
        power = jnp.full(x.shape, 1e-6, jnp.float32)
        inverse = jnp.full(x.shape, 1e6, jnp.float32)
        for i in range(1, 7):
            is_in = is_above(limits[i])
            exponent = jnp.where(is_in, i + first, exponent)
            power = jnp.where(is_in, np.float32(10.0 ** (i - 6)), power)
            inverse = jnp.where(is_in, np.float32(10.0 ** (6 - i)), inverse)
        num_parts = 1 << exponent
        # The level below. For an element near a level, rounding may give the next or
        # the previous one, and the comparison with either middle has the same result.
        part = (size * inverse - 0.1) * (1 / 0.9) * num_parts.astype(jnp.float32) - 0.5
        below = jnp.clip(part.astype(jnp.int32), 0, jnp.maximum(num_parts - 2, 0))
        # 0 for magnitudes below 2. XLA does not know that all magnitudes are.
        zero = jax.lax.bitcast_convert_type(size, jnp.int32) >> 30
        lower, upper = (
            prevent_fma(_centre(k, exponent) * power, zero) for k in (below, below + 1)
        )
        is_upper = is_above((lower + upper) * 0.5) & (num_parts > 1)
        rank = num_parts + below + is_upper.astype(jnp.int32) - first
        rank = jnp.where(is_above(limits[0]), rank, 0)
        code = 127 + jnp.where(x < 0, -rank, rank) if self.signed else rank
        largest = is_above(limits[7]) & (x > 0)
        return jnp.where(largest, 255, code).astype(jnp.uint8)


def _centre(k: Any, exponent: Any) -> Any:
    """Returns the centre of part k of the 2^exponent parts from 0.1 to 1, float32.

    Arguments are integers, as arrays of NumPy or of JAX.

    torch computes the limits of the parts from the nearer end, with one rounding each.
    In units of 2^-31 they are integers before that rounding.
    """
    limits = []
    for number in (k, k + 1):
        is_falling = (2 * number >= (1 << exponent)).astype(k.dtype)
        units = _TENTH + (_NINE_TENTHS >> exponent) * number + _BELOW_ONE * is_falling
        limits.append(units.astype("u4").astype("f4"))
    return (limits[0] + limits[1]) * np.float32(2.0**-32)
