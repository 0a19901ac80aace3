"""Update of parameters and optimizer state in a step, unless the step is skipped.

The new state is written into the donated buffers of the old one. A program that reads
the old state after that, for a norm or to keep it, copies it first. On CPUs, where that
took half of the time of an update, the update has a form of its own.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .. import _pytrees
from .._typing import PyTree
from ._state import Norms, TrainState


class Updated(NamedTuple):
    """Parameters and optimizer state after a step, and the norms of the step."""

    params: PyTree
    opt_state: PyTree
    norms: Norms
    layers: dict[str, Norms]  # by the path of the module; {} without `per_layer`


def update_unless_skipped(
    optimizer: optax.GradientTransformationExtraArgs,
    state: TrainState,
    grads: PyTree,
    is_made: jax.Array,
    extra: dict[str, Any],
    *,
    per_layer: bool,
) -> Updated:
    """Returns the updated parameters and optimizer state, or the old ones.

    Args:
        optimizer: the optimizer.
        state: state before the step.
        grads: gradients, which may contain NaN if `is_made` is False.
        is_made: bool scalar: whether the update is applied. The norm of an update that
            is not applied is 0.
        extra: further arguments of the optimizer.
        per_layer: whether to compute norms of each layer.
    """
    norms_of = functools.partial(_norms, per_layer=per_layer)
    of_grads, of_params = norms_of(grads), norms_of(state.params)

    # Both forms call it, and it is traced once.
    @jax.jit
    def update(grads: PyTree, opt_state: PyTree, params: PyTree) -> Any:
        updates, opt_state = optimizer.update(grads, opt_state, params, **extra)
        return optax.apply_updates(params, updates), opt_state, norms_of(updates)

    def of_cpu(*old: PyTree) -> Any:
        """Computes the update in a branch, in which no old state is selected.

        XLA for CPUs computes parameters and each moment in loops of their own. If each
        new moment is selected, the parameter's loop computes the moments again from the
        old ones, which are therefore copied.
        """

        def skipped(_: PyTree, opt_state: PyTree, params: PyTree) -> Any:
            *new, of_updates = jax.eval_shape(update, *old)
            zeros = jax.tree.map(jnp.zeros_like, of_updates)
            return *jax.tree.map(_as_dtype_of, [params, opt_state], new), zeros

        def made(grads: PyTree, opt_state: PyTree, params: PyTree) -> Any:
            new_params, opt_state, of_updates = update(grads, opt_state, params)
            new_params = _select(_are_computed(of_updates), new_params, params)
            return new_params, opt_state, of_updates

        may_write = is_made & _are_computed((of_grads, of_params))
        return jax.lax.cond(may_write, made, skipped, *old)

    def of_others(grads: PyTree, opt_state: PyTree, params: PyTree) -> Any:
        """Selects the new or the old state.

        A GPU would wait for the host to take a branch. An order of norms and state, as
        on CPUs, would give it more kernels, and more bytes than it copies.
        """
        *new, of_updates = update(grads, opt_state, params)
        of_updates = jax.tree.map(lambda x: jnp.where(is_made, x, 0), of_updates)
        return *_select(is_made, new, [params, opt_state]), of_updates

    params, opt_state, of_updates = jax.lax.platform_dependent(
        grads, state.opt_state, state.params, cpu=of_cpu, default=of_others
    )
    norms, layers = jax.tree.map(Norms, of_grads, of_updates, of_params)
    return Updated(params, opt_state, norms, layers)


def _norms(tree: PyTree, *, per_layer: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the norm of a tree, and that of each module by its path."""
    layers: dict[str, list[jax.Array]] = {}
    for name, leaf in _pytrees.named_leaves(tree) if per_layer else ():
        layers.setdefault(name.rpartition(".")[0] or name, []).append(leaf)
    norms = {name: _pytrees.global_norm(x) for name, x in layers.items()}
    return _pytrees.global_norm(tree), norms


def _select(is_new: jax.Array, new: PyTree, old: PyTree) -> Any:
    # `where` selects old leaves, also if the new ones contain NaN.
    return jax.tree.map(lambda x, y: jnp.where(is_new, x, y), new, old)


def _as_dtype_of(old: jax.Array, new: jax.ShapeDtypeStruct) -> jax.Array:
    # Some optimizers of optax return moments in another dtype.
    return old if old.dtype == new.dtype else old.astype(new.dtype)


def _are_computed(norms: PyTree) -> jax.Array:
    """Returns True, which the compiler does not know before it has all norms.

    The norms read the old state. Unless the new state depends on them, XLA does not
    order both, and copies the old state in each step.
    """
    # A norm is not negative. It may be NaN, for which each comparison is False.
    are_computed: jax.Array = functools.reduce(
        jnp.logical_and, [~(norm < 0.0) for norm in jax.tree.leaves(norms)]
    )
    return are_computed
