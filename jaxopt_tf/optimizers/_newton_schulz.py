"""Newton-Schulz iteration of Muon, for leaves on one device or divided over a mesh."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .. import _checks
from .._numerics import scalar, wide_dtype
from .._pytrees import TorchLayout


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewtonSchulz:
    """Iteration that moves the singular values of matrices to about 1.

    Attributes:
        num_steps: number of steps; from 1 to 99.
        coefficients: the coefficients a, b and c of a step
            x = a x + (b x x^T + c (x x^T)^2) x.
        eps: smallest norm that a matrix is divided by before the first step.
        dtype: "bfloat16", or "float32", which is float64 for float64 leaves.

    Raises:
        ValueError, TypeError: if a value is out of range.

    Source: torch 2.13 `optim/_muon.py`, `_zeropower_via_newtonschulz`.
    """

    num_steps: int
    coefficients: tuple[float, float, float]
    eps: float
    dtype: str

    def __post_init__(self) -> None:
        """Checks that each value is in its range; errors have names of `muon_tf`."""
        if _checks.whole_number("ns_steps", self.num_steps, minimum=1) > 99:
            raise ValueError(
                f"`ns_steps` must be at most 99, as in torch, got {self.num_steps!r}. "
                "Use 5."
            )
        is_sequence = isinstance(self.coefficients, tuple | list)
        if not is_sequence or len(self.coefficients) != 3:
            raise ValueError(
                "`ns_coefficients` must be three numbers, got "
                f"{self.coefficients!r}. Leave it out for those of torch."
            )
        for i, value in enumerate(self.coefficients):
            _checks.finite(f"ns_coefficients[{i}]", value)
        _checks.positive("ns_eps", self.eps)
        _checks.one_of("ns_dtype", self.dtype, ("bfloat16", "float32"))

    def __call__(
        self, leaf: jax.Array, layout: TorchLayout, sharding: NamedSharding | None
    ) -> jax.Array:
        """Returns the result for a leaf whose tensors in torch are matrices.

        Args:
            leaf: one matrix, or a stack of matrices; float32 or float64.
            layout: layout of the leaf in torch.
            sharding: sharding of the leaf; None if it is not known, or explicit.
        """
        wide, shape = leaf.dtype, leaf.shape
        narrow = wide if self.dtype == "float32" else jnp.dtype("bfloat16")
        num_rows, num_cols = layout.torch_shape(shape)[-2:]
        is_tall = num_rows > num_cols
        division = _Division.of(leaf, layout, sharding, is_tall)
        # Converted before it is sent to other devices.
        x = division.constrain(leaf.astype(narrow), division.of_leaf)
        x = layout.to_torch(x)
        x = jnp.matrix_transpose(x) if is_tall else x
        for step in division.steps:
            x = division.constrain(x, step)
        iterate = functools.partial(self._iterate, of_gram=division.of_gram)
        if division.is_one_at_a_time:
            matrices = x.reshape(-1, *x.shape[-2:])
            x = jax.lax.map(iterate, matrices).reshape(x.shape)
        else:
            x = iterate(x)
        # The last one again: the compiler would move the next one into the loop.
        for step in division.steps[::-1]:
            x = division.constrain(x, step)
        x = layout.from_torch(jnp.matrix_transpose(x) if is_tall else x, shape)
        return division.constrain(x, division.of_leaf).astype(wide)

    def _iterate(self, x: jax.Array, of_gram: NamedSharding | None) -> jax.Array:
        """Returns the result for matrices that are not tall.

        Args:
            x: [..., rows, columns], in the dtype of the iteration.
            of_gram: sharding of x x^T, if the axes of the mesh are explicit.
        """
        narrow, wide = x.dtype, wide_dtype(x.dtype)
        # As in torch, products are sums in float32, and norm, quotient, Gram matrix,
        # polynomial and result are rounded to the narrow dtype once each.
        squares = jnp.square(x.astype(wide))
        norm = jnp.sqrt(jnp.sum(squares, (-2, -1), keepdims=True)).astype(narrow)
        norm = jnp.maximum(norm, scalar(self.eps, narrow))
        x = (x.astype(wide) / norm.astype(wide)).astype(narrow)
        # The default precision of float32 products is bfloat16 on a TPU.
        product = functools.partial(
            jnp.einsum, precision="highest", preferred_element_type=wide
        )
        a, b, c = (scalar(value, wide) for value in self.coefficients)

        def step(_: int, x: jax.Array) -> jax.Array:
            gram = product("...ik,...jk->...ij", x, x, out_sharding=of_gram)
            gram = gram.astype(narrow)
            squared = product("...ik,...kj->...ij", gram, gram)
            polynomial = (b * gram.astype(wide) + c * squared).astype(narrow)
            change = product("...ik,...kj->...ij", polynomial, x)
            return (a * x.astype(wide) + change).astype(narrow)

        # A loop: the program of each matrix contains the products once.
        result: jax.Array = jax.lax.fori_loop(0, self.num_steps, step, x)
        return result


class _Division(NamedTuple):
    """Division of the matrices of a leaf over the devices of its mesh.

    Each mesh axis divides the stacked layers if it can, so that every device has whole
    matrices and the iteration needs no communication. Otherwise it divides the longer
    axis of the matrices. Products over this axis are then sums over devices, with the
    shape of the shorter axis, and the matrices are not gathered.
    """

    of_leaf: NamedSharding | None = None  # of the leaf; None: left to the compiler
    # Of [..., shorter axis, longer axis]. The last is that of the iteration. From one
    # to the next only one mesh axis moves: XLA gathers a whole array if two do.
    steps: tuple[NamedSharding, ...] = ()
    is_explicit: bool = False
    is_one_at_a_time: bool = False  # if no mesh axis divides the stacked layers

    @classmethod
    def of(
        cls,
        leaf: jax.Array,
        layout: TorchLayout,
        sharding: NamedSharding | None,
        is_tall: bool,
    ) -> "_Division":
        """Returns the division of a leaf; arguments as for `NewtonSchulz`."""
        own: Any = jax.typeof(leaf).sharding
        is_explicit = AxisType.Explicit in own.mesh.axis_types
        of_leaf = own if is_explicit else sharding
        if of_leaf is None or of_leaf.mesh.size == 1:
            return cls()
        mesh = of_leaf.mesh
        names_of = [_names(entry) for entry in of_leaf.spec]
        names_of += [()] * (leaf.ndim - len(names_of))
        groups = layout.groups(leaf.ndim)
        groups = [
            *((i,) for i in layout.stacked_axes),
            *groups[:: -1 if is_tall else 1],
        ]
        shape = [math.prod(leaf.shape[i] for i in group) for group in groups]
        # An axis that is merged into another one is divided only after a gather.
        parts = [names_of[group[0]] if group else () for group in groups]
        *stacked, _, longer = range(len(groups))

        def target(name: str) -> int | None:
            for axis in (*stacked, longer):
                others = [n for n in parts[axis] if n != name]
                size = math.prod(mesh.shape[n] for n in (*others, name))
                if shape[axis] and shape[axis] % size == 0:
                    return axis
            return None

        found = [list(parts)]
        # The last name of an axis divides it most finely and moves first.
        moving: list[tuple[int | None, str]]
        moving = [(axis, n) for axis, names in enumerate(parts) for n in names[::-1]]
        used = {name for _, name in moving}
        moving += [(None, n) for n in mesh.shape if n not in used]
        for old, name in moving:
            new = target(name)
            if mesh.shape[name] == 1 or new == old:
                continue
            if old is not None:
                parts[old] = tuple(n for n in parts[old] if n != name)
            if new is not None:
                parts[new] += (name,)
            found.append(list(parts))
        return cls(
            of_leaf,
            tuple(NamedSharding(mesh, PartitionSpec(*entry)) for entry in found),
            is_explicit,
            math.prod(shape[:-2]) > 1 and not any(parts[:-2]),
        )

    @property
    def of_gram(self) -> NamedSharding | None:
        """Sharding of products over the longer axis, on explicit mesh axes."""
        if not self.is_explicit:
            return None
        mesh, spec = self.steps[-1].mesh, self.steps[-1].spec
        stacked = () if self.is_one_at_a_time else spec[:-2]
        return NamedSharding(mesh, PartitionSpec(*stacked, None, None))

    def constrain(self, x: jax.Array, sharding: NamedSharding | None) -> jax.Array:
        """Returns `x` with `sharding`, unless that is left to the compiler."""
        if sharding is None:
            return x
        if self.is_explicit:
            resharded: jax.Array = jax.sharding.reshard(x, sharding)
        else:
            resharded = jax.lax.with_sharding_constraint(x, sharding)
        return resharded


def _names(entry: Any) -> tuple[str, ...]:
    """Returns the mesh axes of an entry of a `PartitionSpec`."""
    if entry is None:
        return ()
    return entry if isinstance(entry, tuple) else (entry,)
