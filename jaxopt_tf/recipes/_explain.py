"""`explain`: weight decay, rate, optimizer and memory of each parameter."""

import collections
import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np

from .. import _pytrees
from .._argument_names import checked_names
from .._typing import PyTree
from ..optimizers import LayerNorms, TorchLayout, decay_reasons
from ._build import build_optimizer, leaf_optimizers, recipes_by_label
from ._rate_groups import DEFAULT_GROUP, group_labels
from ._recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class ExplainedLeaf:
    """Weight decay, rate, optimizer, factoring and memory of one parameter."""

    path: str  # dotted name
    torch_name: str  # "" if unknown
    shape: tuple[int, ...]  # shape of the leaf in JAX
    dtype: str
    is_decayed: bool
    why_not_decayed: str  # "" if it is decayed
    rate_group: str  # pattern of its rate group, or "rest"
    optimizer: str  # with a reason if "muon" updates it with AdamW
    # Shape in torch, of which Adafactor factors the last two axes; None: not factored.
    factored_shape: tuple[int, ...] | None
    state_bytes: int  # size of the leaves of the optimizer's state that belong to it


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Result of `explain`; its string is a table."""

    leaves: tuple[ExplainedLeaf, ...]  # one entry per parameter
    shared_bytes: int  # size of the optimizer's state that belongs to no parameter

    @property
    def num_params(self) -> int:
        """Number of elements of the parameters."""
        return sum(math.prod(leaf.shape) for leaf in self.leaves)

    @property
    def num_decayed(self) -> int:
        """Number of elements to which weight decay is applied."""
        return sum(math.prod(leaf.shape) for leaf in self.leaves if leaf.is_decayed)

    @property
    def state_bytes(self) -> int:
        """Size of the optimizer's state, in bytes."""
        return self.shared_bytes + sum(leaf.state_bytes for leaf in self.leaves)

    @property
    def _optimizers(self) -> list[str]:
        """Optimizer of each parameter; empty strings if all have the same."""
        found = [leaf.optimizer for leaf in self.leaves]
        return found if len(set(found)) > 1 else [""] * len(found)

    def __str__(self) -> str:
        """Returns a table; empty columns are omitted."""
        columns = {
            "parameter": [leaf.path for leaf in self.leaves],
            "in torch": [leaf.torch_name for leaf in self.leaves],
            "shape": [_dims(leaf.shape) for leaf in self.leaves],
            "dtype": [leaf.dtype for leaf in self.leaves],
            "decayed": [
                "yes" if leaf.is_decayed else f"no: {leaf.why_not_decayed}"
                for leaf in self.leaves
            ],
            "rate": [leaf.rate_group for leaf in self.leaves],
            "optimizer": self._optimizers,
            "factored as": [_dims(leaf.factored_shape) for leaf in self.leaves],
            "state, bytes": [f"{leaf.state_bytes:,}" for leaf in self.leaves],
        }
        # A column "rate" with "rest" in every row (no rate groups) counts as empty.
        shown = [
            [name, *cells]
            for name, cells in columns.items()
            if set(cells) - {"", DEFAULT_GROUP}
        ]
        widths = [max(map(len, column)) for column in shown]
        # Only the last column contains numbers; it is right-aligned.
        row_format = "  ".join(
            [*(f"{{:{w}}}" for w in widths[:-1]), f"{{:>{widths[-1]}}}"]
        )
        lines = [row_format.format(*row).rstrip() for row in zip(*shown, strict=True)]
        size = self.state_bytes / max(1, self.num_params)
        lines.append(
            f"{self.num_params:,} parameters, {self.num_decayed:,} of them decayed; "
            f"{self.state_bytes:,} bytes of state, {size:.2f} per parameter"
        )
        return "\n".join(lines)


@checked_names
def explain(
    recipe: Recipe,
    params: PyTree,
    *,
    layouts: Mapping[str, TorchLayout] | None = None,
    layer_norms: LayerNorms | None = None,
    torch_names: Mapping[str, str] | None = None,
) -> Explanation:
    """Returns weight decay, rate, optimizer and memory of each parameter.

        print(explain(recipe, params))

    Args:
        recipe: the hyperparameters of the run.
        params: the parameters, or a tree of `jax.ShapeDtypeStruct`: no array is
            computed.
        layouts: see `build_optimizer`.
        layer_norms: see `build_optimizer`.
        torch_names: names in torch by the paths of leaves; adds a column.

    Returns:
        One row for each floating-point leaf, and totals.

    Raises:
        ValueError: as in `build_optimizer`, if a pattern or a path matches nothing.
    """
    optimizer = build_optimizer(recipe, layouts=layouts, layer_norms=layer_norms)
    state = _pytrees.named_leaves(jax.eval_shape(optimizer.init, params))
    named = _pytrees.named_leaves(params)
    leaves = {name: leaf for name, leaf in named if _pytrees.is_floating(leaf)}
    groups = dict(_pytrees.named_leaves(group_labels(recipe.rate_groups)(params)))
    optimizers = leaf_optimizers(recipe, params, layouts)
    reasons_not_decayed = dict.fromkeys(leaves, "`weight_decay` is 0")
    decaying = [
        n
        for n, in_group in recipes_by_label(recipe).items()
        if in_group.weight_decay > 0
    ]
    if decaying:
        norms = layer_norms or ()
        reasons = decay_reasons(params, rule=recipe.decay_rule, layer_norms=norms)
        reasons_not_decayed |= {
            name: reason
            for name, reason in _pytrees.named_leaves(reasons)
            if groups[name] in decaying
        }
    # Leaves of the state are assigned to parameters by their paths: the path of a
    # moment is the path of a field ("mu", "nu_row" and others) followed by the name of
    # the parameter. The owner of leaves without a parameter, such as `step`, is None.
    num_bytes: collections.Counter[str | None] = collections.Counter()
    shapes: dict[tuple[str | None, str], tuple[int, ...]] = {}
    owners = _pytrees.owner_names([path for path, _ in state], leaves)
    for (path, leaf), owner in zip(state, owners, strict=True):
        num_bytes[owner] += leaf.size * np.dtype(leaf.dtype).itemsize
        field = path.removesuffix(f".{owner}").rpartition(".")[2]
        shapes[owner, field] = leaf.shape
    return Explanation(
        leaves=tuple(
            ExplainedLeaf(
                path=name,
                torch_name=(torch_names or {}).get(name, ""),
                shape=tuple(leaf.shape),
                dtype=str(leaf.dtype),
                is_decayed=not reasons_not_decayed[name],
                why_not_decayed=reasons_not_decayed[name],
                rate_group=groups[name],
                optimizer=optimizers[name],
                factored_shape=(*shapes[name, "nu_row"], shapes[name, "nu_col"][-1])
                if (name, "nu_row") in shapes
                else None,
                state_bytes=num_bytes[name],
            )
            for name, leaf in leaves.items()
        ),
        shared_bytes=num_bytes[None],
    )


def _dims(shape: tuple[int, ...] | None) -> str:
    if shape is None:  # the parameter is not factored
        return ""
    return " x ".join(map(str, shape)) or "scalar"
