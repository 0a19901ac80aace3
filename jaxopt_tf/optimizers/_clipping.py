"""Gradient clipping with the numerics of torch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .. import _checks, _pytrees
from .._argument_names import checked_names
from .._numerics import scalar, wide_dtype, widest_dtype
from .._pytrees import varying_axes
from .._typing import PyTree, Scalar


class ClipState(NamedTuple):
    """State of `clip`; its arrays are float64 if any parameter is, else float32."""

    grad_norm: jax.Array  # (): global norm before clipping
    factor: jax.Array  # (): factor that the gradients were multiplied by


@checked_names
def clip(max_norm: Scalar) -> optax.GradientTransformationExtraArgs:
    """Scales all gradients by one factor, so that their global norm is limited.

        factor = min(1, max_norm / (global_norm + 1e-6))

    The norm is summed in float64 if any gradient is float64, and in float32 for all
    other dtypes. Each leaf keeps its dtype. As in torch, a norm of inf turns finite
    gradients into 0 and infinite ones into NaN, and a norm of NaN turns all gradients
    into NaN. Clipping therefore does not hide overflows.

    Place `clip` before the optimizer in a chain, and not inside of
    `optax.multi_transform`, which would clip each group by its own norm. Integer leaves
    are unchanged.

    Inside of `jax.shard_map`, the norm is that of all shards. A leaf is a shard along
    the mesh axes along which its type varies. With `check_vma=False` and in `jax.pmap`,
    types have no such axes, and leaves are treated as whole arrays.

    Args:
        max_norm: the largest global norm; greater than 0. With `math.inf` the norm is
            measured, and gradients are not clipped.

    Returns:
        A transformation with state `ClipState`; its norm is read with
        `optax.tree.get(opt_state, "grad_norm")`.

    Raises:
        ValueError: if `max_norm` is not greater than 0; in an update inside of
            `jax.shard_map`, if gradients vary along other mesh axes than parameters.
        TypeError: in an update, if gradients are complex or float8.

    Examples:
        >>> optimizer = optax.chain(clip(1.0), adamw_tf(1e-3))
        >>> params = {"kernel": jnp.ones(2)}
        >>> grads = {"kernel": jnp.array([3.0, 4.0])}
        >>> _, state = optimizer.update(grads, optimizer.init(params), params)
        >>> print(optax.tree.get(state, "grad_norm"))
        5.0

    Source: torch 2.13 `nn/utils/clip_grad.py`, `clip_grad_norm_`.
    Differs: `optax.clip` bounds each element; this bounds the norm of the whole tree.
        `optax.clip_by_global_norm` sums in the gradients' dtype and has no 1e-6.
    """
    _checks.positive("max_norm", max_norm, allow_inf=True)

    def init(params: PyTree) -> ClipState:
        dtype = widest_dtype(params)
        return ClipState(jnp.zeros((), dtype), jnp.ones((), dtype))

    def update(
        updates: PyTree,
        state: ClipState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ClipState]:
        del extra_args
        _pytrees.check_real("updates", updates)
        _check_shards(updates, params)
        norm = _pytrees.global_norm(updates)
        # Gradients are multiplied even by a factor of 1, as in torch, so that a NaN
        # norm reaches every leaf. `jnp.minimum` returns NaN if either argument is NaN.
        factor = jnp.minimum(scalar(max_norm, norm.dtype) / (norm + 1e-6), 1.0)

        def scaled(g: Any) -> Any:
            if not _pytrees.is_floating(g):
                return g
            g = jnp.asarray(g)
            wide = wide_dtype(g.dtype)
            return (g.astype(wide) * factor.astype(wide)).astype(g.dtype)

        # The state keeps its dtype even if gradients are wider than parameters.
        # `lax.scan` and compiled steps require equal dtypes before and after an update.
        dtype = state.grad_norm.dtype
        new = ClipState(norm.astype(dtype), factor.astype(dtype))
        return jax.tree.map(scaled, updates), new

    return optax.GradientTransformationExtraArgs(init, update)


def is_clipped(opt_state: PyTree) -> jax.Array:
    """Returns whether a `clip` scaled the last gradients down; (), bool.

    Args:
        opt_state: any tree that contains optimizer states, as for `get_learning_rate`.
            The result is False if it contains no state of `clip`.
    """
    leaves = jax.tree_util.tree_leaves_with_path(opt_state)
    # States of `clip` are found by their field names, because NNX and dicts do not keep
    # the class.
    by_path = {_pytrees.path_keys(path): leaf for path, leaf in leaves}
    factors = [
        leaf
        for keys, leaf in by_path.items()
        if keys[-1:] == ("factor",) and (*keys[:-1], "grad_norm") in by_path
    ]
    return jnp.any(jnp.asarray([factor < 1.0 for factor in factors], bool))


def _check_shards(updates: PyTree, params: PyTree | None) -> None:
    """Raises if a gradient varies along other mesh axes than its parameter.

    Such a gradient was not summed over an axis along which the parameter is replicated,
    or was summed over one along which it is sharded.
    """
    named_params = dict(_pytrees.named_leaves(params))
    wrong = [
        (name, sorted(varying_axes(g)), sorted(varying_axes(named_params[name])))
        for name, g in _pytrees.named_leaves(updates)
        if _pytrees.is_floating(g) and name in named_params
        if varying_axes(g) != varying_axes(named_params[name])
    ]
    if wrong:
        name, axes, param_axes = wrong[0]
        raise ValueError(
            "`updates` must vary along the same mesh axes as their parameters, but "
            f"{len(wrong)} leaves do not, the first being {name!r}: the gradient "
            f"varies along {axes}, the parameter along {param_axes}. Sum gradients "
            "with `jax.lax.psum` before clipping."
        )
