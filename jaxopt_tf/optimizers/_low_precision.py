"""Moments in bfloat16, and bfloat16 parameters that learn.

A bfloat16 number has 8 significant bits. A change below 1/512 of a parameter is rounded
away, and so are most updates at usual learning rates. Two transformations around an
optimizer prevent this: `kahan_summation` stores what was rounded away, and
`stochastic_rounding` rounds up or down at random. Both give the optimizer parameters in
float32, so that they receive its update before it is rounded.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .. import _checks, _pytrees
from .._argument_names import checked_names
from .._numerics import round_to_dtype
from .._pytrees import TorchLayout, reshard_like
from .._typing import PyTree
from ._per_leaf import LeafRule, Moments

_LOW_PRECISION = (jnp.bfloat16, jnp.float16)


class KahanState(NamedTuple):
    """State of `kahan_summation`."""

    # As params, in their dtype: what their rounding left out; else masked nodes
    compensation: PyTree
    inner_state: PyTree  # state of the optimizer for float32 parameters


class StochasticRoundingState(NamedTuple):
    """State of `stochastic_rounding`."""

    key: jax.Array  # (), uint32: key of the random numbers of the next update
    inner_state: PyTree  # state of the optimizer for float32 parameters


@checked_names
def kahan_summation(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Adds updates to bfloat16 and float16 parameters by compensated summation.

        x   = p + c
        x   = x + update(x)
        p   = round(x)
        c   = round(x - p)

    The optimizer receives x in float32. p and c have the dtype of the parameter, so
    that a bfloat16 parameter has 16 significant bits in 4 bytes, and decay and small
    steps accumulate in c. Leaves of other dtypes are passed through.

        optimizer = optax.chain(clip(1.0), kahan_summation(adamw_tf(1e-3)))

    Args:
        optimizer: any optax transformation whose updates are added to parameters. A
            later transformation of a chain must not rescale the updates.

    Returns:
        A transformation with state `KahanState`; its update needs `params`.

    Examples:
        >>> params = {"w": jnp.ones(2, jnp.bfloat16)}
        >>> optimizer = kahan_summation(adamw_tf(1e-3))
        >>> state = optimizer.init(params)
        >>> for _ in range(4):
        ...     updates, state = optimizer.update(params, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> print(params["w"][0], f"{float(state.compensation['w'][0]):.1e}")
        0.996094 -9.2e-05

    Source: W. Kahan, "Further remarks on reducing truncation errors", 1965; as in
        torch-optimi 0.3.3 `StableAdamW` and torchdistx' `AnyPrecisionAdamW`.
    Differs: these round each of their operations to the parameter's dtype, and round
        the decayed parameter before the sum, which loses a decay below 1/512.
    """
    inner = optax.with_extra_args_support(optimizer)

    def init(params: PyTree) -> KahanState:
        _pytrees.check_params(params, function="kahan_summation")
        compensation = jax.tree.map(
            lambda p: jnp.zeros_like(p) if is_low_precision(p) else optax.MaskedNode(),
            params,
        )
        return KahanState(compensation, inner.init(_widened(params)))

    def update(
        grads: PyTree, state: KahanState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, KahanState]:
        _pytrees.check_params(params, function="kahan_summation")
        _pytrees.check_grads(grads, params)
        treedef: Any = jax.tree.structure(params)
        leaves = jax.tree.leaves(params)
        old = treedef.flatten_up_to(state.compensation)
        wide = [
            p.astype(jnp.float32) + reshard_like(c, p).astype(jnp.float32)
            if is_low_precision(p)
            else p
            for p, c in zip(leaves, old, strict=True)
        ]
        updates, inner_state = inner.update(
            grads, state.inner_state, treedef.unflatten(wide), **extra
        )
        new_updates, new = list(treedef.flatten_up_to(updates)), list(old)
        for i, p in enumerate(leaves):
            if is_low_precision(p):
                total = wide[i] + new_updates[i].astype(jnp.float32)
                stored, rest = compensated(total, p.dtype)
                new_updates[i] = _difference(stored, p)
                new[i] = reshard_like(rest.astype(p.dtype), old[i])
        return treedef.unflatten(new_updates), KahanState(
            treedef.unflatten(new), inner_state
        )

    return optax.GradientTransformationExtraArgs(init, update)


@checked_names
def stochastic_rounding(
    optimizer: optax.GradientTransformation, *, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Rounds new bfloat16 parameters up or down, with the exact value as their mean.

    The new parameter is computed in float32. It lies between two bfloat16 numbers, and
    the nearer one is chosen with the larger probability, so that the expected parameter
    is the float32 one: a step of a tenth of the spacing moves one parameter in ten. No
    state is needed for a parameter. Leaves of other dtypes are passed through.

        optimizer = optax.chain(clip(1.0), stochastic_rounding(adamw_tf(1e-3)))

    The random numbers of a leaf are a function of the seed, the number of updates, the
    position of the leaf in the tree and the index of the element in the leaf. They are
    the same on every mesh and after a resume.

    Args:
        optimizer: as for `kahan_summation`.
        seed: seed of the random numbers; from 0 to 2^32 - 1.

    Returns:
        A transformation with state `StochasticRoundingState`; its update needs
        `params`.

    Raises:
        ValueError, TypeError: if `seed` is out of range.

    Examples:
        >>> params = {"w": jnp.ones(4000, jnp.bfloat16)}
        >>> optimizer = stochastic_rounding(optax.sgd(1e-3))
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> bool(jnp.all((updates["w"] == 0) | (updates["w"] == -(2.0**-8))))
        True
        >>> print(f"{updates['w'].astype(jnp.float32).mean():.4f}")
        -0.0010

    Source: Gupta et al., "Deep Learning with Limited Numerical Precision", 2015, arXiv
        1502.02551; torchao 0.18 `optim/quant_utils.py`, `_fp32_to_bf16_sr`.
    Differs: torchao draws its numbers from torch's generator.
    """
    seed = _checks.seed("seed", seed)
    inner = optax.with_extra_args_support(optimizer)

    def init(params: PyTree) -> StochasticRoundingState:
        _pytrees.check_params(params, function="stochastic_rounding")
        key = jnp.asarray(seed, jnp.uint32)
        return StochasticRoundingState(key, inner.init(_widened(params)))

    def update(
        grads: PyTree,
        state: StochasticRoundingState,
        params: PyTree | None = None,
        **extra: Any,
    ) -> tuple[PyTree, StochasticRoundingState]:
        _pytrees.check_params(params, function="stochastic_rounding")
        _pytrees.check_grads(grads, params)
        wide = _widened(params)
        updates, inner_state = inner.update(grads, state.inner_state, wide, **extra)
        key = jax.random.key(state.key, impl="threefry2x32")
        treedef: Any = jax.tree.structure(params)
        new_updates = list(treedef.flatten_up_to(updates))
        for i, p in enumerate(jax.tree.leaves(params)):
            if not is_low_precision(p):
                continue
            total = p.astype(jnp.float32) + new_updates[i].astype(jnp.float32)
            if p.dtype == jnp.bfloat16:
                stored = _rounded_at_random(total, jax.random.fold_in(key, i))
            else:
                stored = round_to_dtype(total, p.dtype)
            new_updates[i] = _difference(stored, p)
        # Multiples of 2^32 divided by the golden ratio are all different keys.
        next_key = state.key + jnp.uint32(0x9E3779B9)
        new_state = StochasticRoundingState(next_key, inner_state)
        return treedef.unflatten(new_updates), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def is_compensated(opt_state: PyTree) -> bool:
    """Returns whether bfloat16 parameters are not rounded to the nearest number.

    True for a state with a compensation of a parameter, as that of `kahan_summation`
    and `stable_adamw_tf`, or for one of `stochastic_rounding`.
    """

    def is_found(node: Any) -> bool:
        rest = getattr(node, "compensation", ())
        return bool(jax.tree.leaves(rest)) or isinstance(node, StochasticRoundingState)

    return any(map(is_found, jax.tree.leaves(opt_state, is_leaf=is_found)))


def with_moment_dtypes(
    rule: LeafRule, moment_dtype: Any, dtypes: Mapping[str, Any]
) -> LeafRule:
    """Returns `rule` with moments that are stored in other dtypes between updates.

    Args:
        rule: an optimizer whose moments have the shapes of the leaves.
        moment_dtype: float32, bfloat16 or float16; None for the dtype of the leaf.
            float32 is float64 at float64 leaves.
        dtypes: for each moment that has an argument of its own, its value by the field
            of the state: a dtype, or None for `moment_dtype`.

    Raises:
        TypeError: if a dtype is another one.
    """
    check_moment_dtype("moment_dtype", moment_dtype)
    own = dict.fromkeys(rule.moments, moment_dtype)
    for field, dtype in dtypes.items():
        check_moment_dtype(f"{field}_dtype", dtype)
        own[field] = moment_dtype if dtype is None else dtype

    def init(p: jax.Array, layout: TorchLayout | None) -> Moments:
        def stored(field: str, moment: Any) -> Any:
            dtype = p.dtype if own[field] is None else jnp.dtype(own[field])
            if _pytrees.is_masked(moment) or dtype == jnp.float32:
                return moment
            return jnp.zeros_like(p, dtype)

        return tuple(map(stored, rule.moments, rule.init_leaf(p, layout)))

    return dataclasses.replace(rule, init=init)


def check_moment_dtype(name: str, dtype: Any) -> None:
    """Raises unless `dtype` is None or a dtype in which moments can be stored."""
    choices = [None, jnp.float32, jnp.bfloat16, jnp.float16]
    try:
        is_known = dtype in [c if c is None else jnp.dtype(c) for c in choices]
    except TypeError:  # a string that is no dtype
        is_known = False
    if not is_known:
        meaning = "the dtype of each leaf"
        if name != "moment_dtype":
            meaning = "`moment_dtype`"
        raise TypeError(
            f"`{name}` must be float32, bfloat16, float16, or None for {meaning}, got "
            f"{dtype!r}."
        )


def compensated(total: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Returns `total` rounded to `dtype`, and the rest; both float32."""
    stored = round_to_dtype(total, dtype)
    return stored, total - stored


def _rounded_at_random(x: jax.Array, key: jax.Array) -> jax.Array:
    """Returns `x`, float32, rounded up or down to bfloat16 numbers; float32."""
    # A bfloat16 consists of the upper 16 bits of a float32. A random number below 2^16
    # carries into them with the probability that the lower 16 bits are of 2^16.
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    upper = (bits + noise) & jnp.uint32(0xFFFF0000)
    rounded = jax.lax.bitcast_convert_type(upper, jnp.float32)
    # The bits of infinity and NaN are not those of a number.
    return jnp.where(jnp.isfinite(x), rounded, x)


def _difference(stored: jax.Array, p: jax.Array) -> jax.Array:
    """Returns the update from `p` to `stored`, a float32 that `p.dtype` represents."""
    if p.dtype == jnp.float16:
        return stored.astype(p.dtype) - p
    return (stored - p.astype(jnp.float32)).astype(p.dtype)


def is_low_precision(leaf: Any) -> bool:
    """Returns whether a leaf is bfloat16 or float16."""
    return _pytrees.is_floating(leaf) and leaf.dtype in _LOW_PRECISION


def _widened(params: PyTree) -> PyTree:
    """Returns the parameters with low-precision leaves in float32."""

    def widened(leaf: Any) -> Any:
        if not is_low_precision(leaf):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf.update(dtype=jnp.float32)
        return leaf.astype(jnp.float32)

    return jax.tree.map(widened, params)
