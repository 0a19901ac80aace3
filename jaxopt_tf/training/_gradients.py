"""Gradients of a mean loss over one batch, or accumulated over micro-batches."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from .. import _pytrees
from .._numerics import wide_dtype, widest_dtype
from .._typing import PyTree
from ._frozen import merge_params

# A tree of arrays: an argument of the loss function.
Batch = Any


@flax.struct.dataclass
class MicroBatches:
    """Micro-batches of an update whose shapes differ, so that they cannot be stacked.

    A training step receives `MicroBatches` in place of a batch with an axis of
    micro-batches. The program contains the forward and backward pass of each
    micro-batch.
    """

    batches: tuple[Any, ...]  # trees of arrays, in the order of their accumulation


# (params, batch) or (params, batch, rng) -> (loss summed over items, number of items)
LossFn = Callable[..., tuple[jax.Array, jax.Array]]


def with_float32_outputs(
    loss_fn: LossFn, compute_dtype: Any = None, frozen: PyTree | None = None
) -> LossFn:
    """Wraps `loss_fn`: casts its parameters, and converts its results to float32.

    The results are float64 if a parameter is float64. The dtype of the number of items
    matters, because the backward pass starts from 1 / (number of items).

    Args:
        loss_fn: see `make_train_step`.
        compute_dtype: dtype that floating-point parameters are cast to; None for no
            cast.
        frozen: nested dicts of parameters that are merged into those of the argument;
            None for none. These parameters are cast, too.
    """

    def cast(leaf: jax.Array) -> jax.Array:
        return leaf.astype(compute_dtype) if _pytrees.is_floating(leaf) else leaf

    def wide_loss(
        params: PyTree, batch: Batch, *rng: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        dtype = widest_dtype(params)
        if frozen is not None:
            params = merge_params(params, frozen)
        if compute_dtype is not None:
            # The parameters are cast within the differentiated function: the gradients
            # of the uncast parameters have the dtype of these parameters, not
            # `compute_dtype`.
            params = jax.tree.map(cast, params)
        total, num_items = loss_fn(params, batch, *rng)
        return jnp.asarray(total).astype(dtype), jnp.asarray(num_items).astype(dtype)

    return wide_loss


@dataclasses.dataclass(frozen=True)
class MeanLoss:
    """Mean loss over the items of a batch, and its gradient.

    Attributes:
        loss_fn: from `with_float32_outputs`.
        max_micro_batches: maximum length of the first axis of a batch, the axis of the
            micro-batches; 1 for batches without this axis.

    With micro-batches, every item has the same weight:

        sum of the summed losses of micro-batches / sum of their numbers of items

    A mean of means would give a greater weight to items of short micro-batches. Sums
    are float32, or float64 for float64 parameters.

    Source: transformers 5.23 `trainer.py`, `get_batch_samples` and `training_step`.
    """

    loss_fn: LossFn
    max_micro_batches: int

    def gradient(
        self, params: PyTree, batch: Batch, rng: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, PyTree]:
        """Returns the mean loss, the number of items and the gradient of the mean."""
        if self.max_micro_batches == 1:
            total, num_items, backward = self._forward(params, batch, *_key(rng))
            # The backward pass starts from 1 / `num_items` instead of 1: this divides
            # one scalar and not every gradient.
            (grads,) = backward(1.0 / num_items)
            return total / num_items, num_items, grads

        def sums(batch: Batch, *key: jax.Array) -> tuple[jax.Array, jax.Array, PyTree]:
            total, num_items, backward = self._forward(params, batch, *key)
            return total, num_items, *backward(jnp.ones_like(total))

        # The number of items of all micro-batches is known at the end of the scan only:
        # gradients of summed losses are accumulated, and divided once.
        start = jax.tree.map(_zero_sum, params)
        total, num_items, grads = self._accumulate(sums, params, batch, rng, start)
        scale = 1.0 / num_items

        def mean(g: jax.Array) -> jax.Array:
            return g * scale.astype(g.dtype) if _pytrees.is_floating(g) else g

        return total / num_items, num_items, jax.tree.map(mean, grads)

    def value_fn(
        self, batch: Batch, rng: jax.Array | None
    ) -> Callable[[PyTree], jax.Array]:
        """Returns a function params -> mean loss, which line searches evaluate.

        An optimizer that does not call the function causes no computation.
        """

        def value(params: PyTree) -> jax.Array:
            loss_of_batch = functools.partial(self.loss_fn, params)
            if self.max_micro_batches == 1:
                total, num_items = loss_of_batch(batch, *_key(rng))
            else:
                total, num_items = self._accumulate(loss_of_batch, params, batch, rng)
            return total / num_items

        return value

    def _forward(self, params: PyTree, batch: Batch, *key: jax.Array) -> Any:
        """Returns the summed loss, the number of items and the backward pass."""
        total, backward, num_items = jax.vjp(
            lambda params: self.loss_fn(params, batch, *key), params, has_aux=True
        )
        return total, num_items, backward

    def _accumulate(
        self,
        function: Callable[..., PyTree],
        params: PyTree,
        batches: Batch,
        rng: jax.Array | None,
        *start: PyTree,
    ) -> PyTree:
        """Sums the results of `function(batch, *key)` over micro-batches, in one scan.

        The function returns a loss and a number of items, whose sums start at 0, and
        further trees, whose sums start at `start`.
        """

        def add(sums: PyTree, micro: tuple[jax.Array, Batch]) -> tuple[PyTree, None]:
            index, batch = micro
            # Each micro-batch has its own key, so that dropout masks are not repeated.
            key = _key(rng if rng is None else jax.random.fold_in(rng, index))
            return jax.tree.map(_add_leaf, sums, function(batch, *key)), None

        zero = jnp.zeros((), widest_dtype(params))
        if isinstance(batches, MicroBatches):
            _check_length(len(batches.batches), self.max_micro_batches)
            sums: PyTree = (zero, zero, *start)
            for index, micro in enumerate(batches.batches):
                sums, _ = add(sums, (jnp.int32(index), micro))
            return sums
        indices = jnp.arange(
            _num_micro_batches(batches, self.max_micro_batches), dtype=jnp.int32
        )
        return jax.lax.scan(add, (zero, zero, *start), (indices, batches))[0]


def constrain(grads: PyTree, shardings: PyTree | None) -> PyTree:
    """Constrains gradients to `shardings`; None leaves them to the compiler.

    Without the constraint, if the optimizer's state is sharded over more axes than the
    parameters, the compiler communicates each gradient separately instead of combining
    all of them in one collective.
    """
    if shardings is None:
        return grads

    def constrained(g: jax.Array, sharding: jax.sharding.Sharding) -> jax.Array:
        # Gradients of integer leaves are of dtype float0, without data to shard.
        # `Any`: JAX does not annotate the function.
        constraint: Any = jax.lax.with_sharding_constraint
        return constraint(g, sharding) if _pytrees.is_floating(g) else g

    return jax.tree.map(constrained, grads, shardings)


def _key(rng: jax.Array | None) -> tuple[jax.Array, ...]:
    return () if rng is None else (rng,)


def _zero_sum(p: jax.Array) -> jax.Array:
    # JAX represents the gradient of an integer leaf by an array of dtype float0. The
    # carry of a scan must have the same dtype.
    if not _pytrees.is_floating(p):
        return jnp.zeros(p.shape, jax.dtypes.float0)
    # float32 also for bfloat16 parameters: in a bfloat16 sum, small addends are lost.
    # `zeros_like` has the sharding of the parameter.
    return jnp.zeros_like(p, wide_dtype(p.dtype))


def _add_leaf(total: jax.Array, g: jax.Array) -> jax.Array:
    return total + g.astype(total.dtype) if _pytrees.is_floating(g) else total


def _num_micro_batches(batches: Batch, max_micro_batches: int) -> int:
    """Returns the length of the first axis, which must be equal in all leaves."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batches)]
    lengths = {shape[0] if shape else None for shape in shapes}
    length = lengths.pop() if len(lengths) == 1 else None
    if length is None or not 1 <= length <= max_micro_batches:
        raise ValueError(
            "`batch` must have a first axis of 1 to `gradient_accumulation_steps` = "
            f"{max_micro_batches} micro-batches in every leaf, got shapes {shapes[:3]}."
            " Stack the micro-batches of an update: [k, B, ...]."
        )
    return length


def _check_length(length: int, max_length: int) -> None:
    if not 1 <= length <= max_length:
        raise ValueError(
            "`batch.batches` must contain 1 to `gradient_accumulation_steps` = "
            f"{max_length} micro-batches, got {length}."
        )
