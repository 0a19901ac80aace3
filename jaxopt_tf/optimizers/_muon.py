"""Muon with the numerics of torch for matrices, and AdamW for all other leaves."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding

from .. import _checks, _pytrees
from .._argument_names import checked_names
from .._numerics import (
    exact_scalar,
    one_minus,
    prevent_fma,
    rounded,
    scalar,
)
from .._pytrees import TorchLayout, resolve_layouts
from .._typing import PyTree, Scalar, ScalarOrSchedule
from ._adamw import adamw_rule, check_moment_dtype, lerp
from ._decay_mask import decay_reasons
from ._learning_rate import Rate
from ._newton_schulz import NewtonSchulz
from ._per_leaf import Leaf, LeafRule, Moments, per_leaf_optimizer
from ._quantized import check_whole

# Names of embeddings and of output layers, as parts of dotted names.
_EMBEDDING = re.compile(r"(?:^|\.)(?:\w*embed\w*|wte|wpe|shared)(?:\.|$)")
_HEAD = re.compile(
    r"(?:^|\.)(?:\w*head|classifier|score|qa_outputs|logits)(?:\.|$)"
    r"|(?:^|\.)output\.(?:kernel|weight)$"
)
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ADJUSTMENTS = ("original", "match_rms_adamw")

Matrices = str | Sequence[str] | PyTree | Callable[[PyTree], PyTree] | None


class MuonState(NamedTuple):
    """State of `muon_tf`.

    A leaf that Muon updates has `momentum`, all others have `mu` and `nu`. Moments that
    a leaf does not have are `MaskedNode`.
    """

    count: PyTree  # (), int32: number of moment updates; or a tree, as in `AdamWState`
    step: jax.Array  # (), int32: number of updates, the argument of a schedule
    learning_rate: jax.Array  # (), float32: Muon's rate in the last update
    rate_source: jax.Array  # (), int32: origin of that rate, see `_learning_rate`
    momentum: PyTree  # as params, `moment_dtype`: mean of gradients of matrices
    mu: PyTree  # as params, `moment_dtype`: mean of gradients of other leaves
    nu: PyTree  # as params, `moment_dtype`: their mean of squared gradients


class _LeafKind(NamedTuple):
    """Layout of a leaf in torch, and whether Muon updates it."""

    layout: TorchLayout
    is_matrix: bool
    sharding: NamedSharding | None  # of the leaf; None if it is not known


class _Scalars(NamedTuple):
    """Scalars of one update; `muon` and `adamw` are the scalars of `adamw_tf`."""

    rate: jax.Array  # (), the learning rate of Muon, not adjusted to a shape
    muon: Any  # at the rate of Muon, for its weight decay
    adamw: Any  # at the rate of AdamW


@checked_names
def muon_tf(
    learning_rate: ScalarOrSchedule,
    *,
    momentum: Scalar = 0.95,
    nesterov: bool = True,
    ns_steps: int = 5,
    ns_coefficients: tuple[float, float, float] = _COEFFICIENTS,
    ns_eps: float = 1e-7,
    ns_dtype: str = "bfloat16",
    adjust_lr_fn: str = "original",
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    adamw_rate_factor: float = 1.0,
    weight_decay: Scalar = 0.1,
    decay_mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    moment_dtype: Any = "float32",
    matrices: Matrices = None,
    layouts: Mapping[str, TorchLayout] | None = None,
    shardings: PyTree | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Muon as `torch.optim.Muon` computes it for matrices, AdamW for other leaves.

        momentum = momentum + (1 - mu) * (g - momentum)
        u = g + mu * (momentum - g)                      (momentum without `nesterov`)
        x = u / max(|u|, ns_eps), transposed if it has more rows than columns
        x = a x + (b (x x^T) + c (x x^T)^2) x            (`ns_steps` times)
        p = p * (1 - rate * weight_decay)                (decayed leaves)
        p = p - rate * s * x

    The Newton-Schulz iteration moves all singular values of u to about 1. The factor s
    is sqrt(max(1, rows / columns)), or 0.2 * sqrt(max(rows, columns)), with which the
    update has the size of AdamW's. Rows and columns are those of torch: a Flax kernel
    `[in, out]` needs the layout `TorchLayout.dense()`, without which it is not
    transposed. Layers that are stacked by their layout are a batch of matrices.

    Leaves that are no matrices are updated as in `adamw_tf`. By default matrices are
    the leaves that have two axes in torch, except embeddings, output layers, biases and
    normalization layers, which are recognized by name. `explain` lists them.

    With `shardings`, or a mesh with explicit axes, no matrix is gathered. A stack is
    divided into whole matrices if their number is a multiple of a mesh axis; nothing is
    sent during the iteration then. Otherwise each matrix is divided along its longer
    axis, and each step sums products over devices, whose size is the square of the
    shorter axis. A leaf with another sharding is sent to this one and back, in
    `ns_dtype`. Without `shardings` the compiler decides: if the shorter axis is
    divided, it gathers leaves, whole stacks among them, in every step of the iteration.
    Shards inside of `jax.shard_map` are refused.

    Args:
        learning_rate: as for `adamw_tf`.
        momentum: decay rate mu of the mean of gradients; from 0 to below 1.
        nesterov: whether u contains the gradient again.
        ns_steps: number of steps of the iteration; from 1 to 99.
        ns_coefficients: the coefficients a, b and c.
        ns_eps: smallest norm that u is divided by; greater than 0.
        ns_dtype: dtype of x. "bfloat16" as in torch, or "float32", which is float64 at
            float64 leaves.
        adjust_lr_fn: "original" for the first factor s, "match_rms_adamw" for the
            second.
        betas: of AdamW, as for `adamw_tf`.
        eps: of AdamW, as for `adamw_tf`.
        adamw_rate_factor: the rate of AdamW is the learning rate times this factor; at
            least 0.
        weight_decay: as for `adamw_tf`, for both.
        decay_mask: as for `adamw_tf`.
        moment_dtype: as for `adamw_tf`, for both. None is torch's choice.
        matrices: leaves that Muon updates: regular expressions that are searched in
            their names; or bool for each leaf, or a callable from params to that. None
            for the default.
        layouts: as for `adafactor_tf`.
        shardings: shardings of the parameters, from `param_shardings`; None if they are
            on one device or not known.

    Returns:
        A transformation with state `MuonState`.

    Raises:
        ValueError, TypeError: as `adamw_tf` and, for layouts, as `adafactor_tf`; in
            `init`, if no leaf is a matrix, if a pattern matches no leaf, or if
            `matrices` selects a leaf that has another number of axes than two in torch.

    Examples:
        >>> params = {"dense": {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}}
        >>> optimizer = muon_tf(0.02, layouts={".*kernel": TorchLayout.dense()})
        >>> state = optimizer.init(params)
        >>> state.momentum["dense"]["kernel"].shape, state.mu["dense"]["bias"].shape
        ((4, 2), (2,))

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks",
        2024; Liu et al., "Muon is Scalable for LLM Training", 2025, arXiv 2502.16982;
        torch 2.13 `optim/_muon.py`, `_single_tensor_muon`.
    Differs: `torch.optim.Muon` takes matrices only, and `weight_decay` applies to all
        of them. `optax.contrib.muon` corrects the bias of its momentum, adds `eps` to
        the norm, iterates in the dtype of the leaf, decays nothing by default, and
        updates embeddings and output layers with Muon.
    """
    check_moment_dtype(moment_dtype)
    arithmetic = _Muon(
        momentum=momentum,
        nesterov=nesterov,
        iteration=NewtonSchulz(
            num_steps=ns_steps,
            coefficients=ns_coefficients,
            eps=ns_eps,
            dtype=ns_dtype,
        ),
        adjust_lr_fn=adjust_lr_fn,
        adamw=adamw_rule("muon_tf", betas, eps, weight_decay, "torch", moment_dtype),
        adamw_rate_factor=adamw_rate_factor,
        matrices=matrices,
        layouts=layouts,
        shardings=shardings,
    )
    rule = LeafRule(
        "muon_tf",
        MuonState,
        arithmetic.scalars,
        arithmetic.update,
        init=arithmetic.init,
        layouts=arithmetic.layouts_of,
    )
    return per_leaf_optimizer(rule, learning_rate, weight_decay, decay_mask)


def muon_reasons(
    params: PyTree,
    *,
    matrices: Matrices = None,
    layouts: Mapping[str, TorchLayout] | None = None,
) -> PyTree:
    """Returns for each leaf why `muon_tf` updates it with AdamW, or "" for Muon.

    Args:
        params: parameters, or their shapes.
        matrices: as for `muon_tf`.
        layouts: as for `muon_tf`.

    Raises:
        ValueError, TypeError: as `muon_tf` in `init`.
    """
    structure: Any = jax.tree.structure(params)
    found = _leaf_reasons(params, matrices, resolve_layouts(layouts, params))
    return structure.unflatten(found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Muon:
    """Arithmetic of one leaf, with the arguments of `muon_tf`."""

    momentum: Scalar
    nesterov: bool
    iteration: NewtonSchulz
    adjust_lr_fn: str
    adamw: LeafRule
    adamw_rate_factor: float
    matrices: Matrices
    layouts: Mapping[str, TorchLayout] | None
    shardings: PyTree | None

    def __post_init__(self) -> None:
        """Checks that each argument is in its range."""
        _checks.fraction_below_one("momentum", self.momentum)
        _checks.one_of("adjust_lr_fn", self.adjust_lr_fn, _ADJUSTMENTS)
        _checks.non_negative("adamw_rate_factor", self.adamw_rate_factor)

    def layouts_of(self, params: PyTree, grads: Sequence[Any]) -> list[Any]:
        """Returns layout and kind of each leaf; raises if there is no matrix."""
        check_whole("muon_tf", params, grads, "the iteration needs whole matrices")
        layouts = resolve_layouts(self.layouts, params)
        reasons = _leaf_reasons(params, self.matrices, layouts)
        # A part of a tree, as in `optax.multi_transform`, need not have a matrix.
        if reasons and all(reasons) and not _pytrees.has_masked_nodes(params):
            raise ValueError(
                f"`params` must have a matrix for `muon_tf`, got {len(reasons)} leaves "
                f"without one, the first being {_pytrees.leaf_names(params)[0]!r} "
                f"({reasons[0]}). Select matrices with `matrices`, describe stacked "
                "layers by `layouts`, or use `adamw_tf`."
            )
        known = dict(_pytrees.named_leaves(self.shardings))
        return [
            _LeafKind(layout, not reason, known.get(name))
            for layout, reason, name in zip(
                jax.tree.leaves(layouts),
                reasons,
                _pytrees.leaf_names(params),
                strict=True,
            )
        ]

    def init(self, p: jax.Array, kind: _LeafKind) -> Moments:
        """Returns momentum, mu and nu as zeros."""
        mu, nu = self.adamw.init_leaf(p, None)
        absent = optax.MaskedNode()
        return (mu, absent, absent) if kind.is_matrix else (absent, mu, nu)

    def scalars(self, rate: Rate, count: jax.Array) -> _Scalars:
        """Returns the scalars of update `count`, from 1."""
        dtype, factor = rate.value.dtype, self.adamw_rate_factor
        of_adamw = rate
        if factor != 1.0:
            product = rounded(rate.exact() * exact_scalar(factor, dtype))
            given = None if rate.given is None else rate.given * factor
            of_adamw = Rate(product, given)
        return _Scalars(
            rate.value,
            self.adamw.scalars(rate, count),
            self.adamw.scalars(of_adamw, count),
        )

    def update(self, leaf: Leaf, scalars: _Scalars, moments: Moments) -> Moments:
        """Returns the new parameter and the new momentum, mu and nu."""
        absent = optax.MaskedNode()
        if not leaf.layout.is_matrix:
            new = self.adamw.update(leaf, scalars.adamw, moments[1:])
            return new[0], absent, *new[1:]
        p, g, dtype = leaf.param, leaf.grad, leaf.grad.dtype
        average = lerp(moments[0], g, one_minus(self.momentum, dtype))
        direction = average
        if self.nesterov:
            direction = lerp(g, average, scalar(self.momentum, dtype))
        if leaf.is_decayed:
            # Torch stores the decayed parameter before it adds the step.
            p = prevent_fma(p * scalars.muon.decay_factor, scalars.muon.opaque_zero)
        sides = leaf.layout.layout.torch_shape(p.shape)[-2:]
        size = scalars.rate * scalar(self._adjustment(*sides), dtype)
        step = size * self.iteration(
            direction, leaf.layout.layout, leaf.layout.sharding
        )
        return p - step, average, absent, absent

    def _adjustment(self, num_rows: int, num_cols: int) -> float:
        """Returns the factor s of the rate for a matrix of torch."""
        if self.adjust_lr_fn == "original":
            return math.sqrt(max(1.0, num_rows / max(num_cols, 1)))
        return 0.2 * math.sqrt(max(num_rows, num_cols))


def _leaf_reasons(params: PyTree, matrices: Matrices, layouts: PyTree) -> list[str]:
    """Returns for each leaf why AdamW updates it, or "" for Muon."""
    leaves, names = jax.tree.leaves(params), _pytrees.leaf_names(params)
    num_axes = [
        len(layout.groups(leaf.ndim))
        for leaf, layout in zip(leaves, jax.tree.leaves(layouts), strict=True)
    ]
    if matrices is None:
        unnamed = _pytrees.unnamed_leaves(params)
        if unnamed:
            raise ValueError(
                "`params` must have names for the default `matrices` of `muon_tf`, "
                f"which excludes embeddings and output layers by name, got "
                f"{len(unnamed)} leaves without a name. Pass `matrices`: bool for each "
                "leaf."
            )
        undecayed = jax.tree.leaves(decay_reasons(params))
        return [
            _default_reason(name, *rest)
            for name, *rest in zip(names, leaves, num_axes, undecayed, strict=True)
        ]
    selected = _selected(matrices, params)
    for name, leaf, number, is_selected in zip(
        names, leaves, num_axes, selected, strict=True
    ):
        if is_selected and (number != 2 or not _pytrees.is_floating(leaf)):
            raise ValueError(
                "`matrices` must select matrices, but selects "
                f"{name!r}, {leaf.dtype}{list(leaf.shape)}, which has {number} axes in "
                "torch. Describe merged or stacked axes by `layouts`, or leave it to "
                "AdamW."
            )
    return ["" if is_selected else "not in `matrices`" for is_selected in selected]


def _default_reason(name: str, leaf: Any, num_axes: int, undecayed: str) -> str:
    if not _pytrees.is_floating(leaf):
        return "no floating-point numbers"
    if num_axes != 2:
        return f"{num_axes} axes in torch"
    if found := _EMBEDDING.search(name) or _HEAD.search(name):
        return f"{found.group().strip('.')!r} in its name"
    return undecayed


def _selected(matrices: Matrices, params: PyTree) -> list[bool]:
    """Returns for each leaf whether patterns or a mask select it."""
    names = _pytrees.leaf_names(params)
    given = [matrices] if isinstance(matrices, str) else matrices
    is_list = isinstance(given, list | tuple) and len(given) > 0
    patterns: Any = given if is_list else [None]
    if not all(isinstance(pattern, str) for pattern in patterns):
        return _masked(matrices(params) if callable(matrices) else matrices, names)
    for pattern in patterns:
        try:
            is_used = any(re.search(pattern, name) for name in names)
        except re.error as error:
            raise ValueError(
                f"`matrices` must be regular expressions, got {pattern!r}: {error}. "
                "Escape special characters."
            ) from error
        if names and not is_used and not _pytrees.has_masked_nodes(params):
            raise ValueError(
                f"`matrices` must match at least one leaf with each pattern, but "
                f"{pattern!r} matches none of the {len(names)} names, such as "
                f"{names[0]!r}. Correct the pattern."
            )
    return [any(re.search(p, name) for p in patterns) for name in names]


def _masked(mask: PyTree, names: Sequence[str]) -> list[bool]:
    """Returns the values of a mask; by name, as a part of its leaves may be missing."""
    found = dict(_pytrees.named_leaves(mask))
    for name in names:
        if not isinstance(found.get(name), bool | np.bool_):
            raise TypeError(
                "`matrices` must be regular expressions or have a bool for each leaf, "
                f"got {found.get(name)!r} for {name!r}. Pass a tree like `params`."
            )
    return [bool(found[name]) for name in names]
