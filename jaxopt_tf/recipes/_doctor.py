"""doctor: what is wrong with a plan, before it costs a day."""

from collections.abc import Mapping
from dataclasses import dataclass

import optax

from .. import _pytrees
from .._typing import PyTree
from ..optimizers import LayerNorms, TorchLayout
from ._optimizer_findings import optimizer_findings
from ._plan_findings import params_findings, recipe_findings
from ._recipe import Recipe
from ._tried_out import floating_leaves


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong with a plan.

    Attributes:
        what: what was found, with its numbers.
        why: why it matters.
        instead: what to write instead.
    """

    what: str
    why: str
    instead: str

    def __str__(self) -> str:
        """All three in one sentence."""
        return f"{self.what}: {self.why}. {self.instead}."


def doctor(
    recipe: Recipe,
    optimizer: optax.GradientTransformation | None = None,
    params: PyTree | None = None,
    *,
    layout: Mapping[str, TorchLayout] | None = None,
    layer_norms: LayerNorms | None = None,
) -> list[Finding]:
    """Looks for what would run and yet not do what was meant.

    What cannot be right at all is refused by `Recipe` itself. An optimizer is a closure
    that nobody can look into, so it is tried out: on a miniature of the parameters (the
    same names and dtypes, axes of at most 4), at the step after the warm-up, with small
    gradients, with one element a thousand times larger, and with zeros.

    Args:
        recipe: the numbers of the run.
        optimizer: what shall run with them, if that is not `build_optimizer(recipe)`.
        params: the parameters, or `jax.ShapeDtypeStruct` in their place.
        layout: what `build_optimizer` is given, or would be.
        layer_norms: likewise.

    Returns:
        What was found; an empty list for a plan in which nothing was.

    Raises:
        ValueError: if there is an optimizer, but no parameters to try it out on, or
            none that is floating-point; if a path of `layer_norms` matches nothing.
    """
    if optimizer is not None and params is None:
        raise ValueError(
            "`params` must be given with an `optimizer`, which is tried out on them, "
            "got None. Pass the parameters, or `jax.eval_shape` of their init."
        )
    if optimizer is not None and not floating_leaves(params):
        raise ValueError(
            "`params` must have a floating-point leaf that an `optimizer` is tried out "
            f"on, got {_pytrees.leaf_names(params)}. Pass all that is trained."
        )
    found = recipe_findings(recipe, params)
    if params is not None:
        found += params_findings(recipe, params, layout or {}, layer_norms or ())
    if optimizer is not None:
        found += optimizer_findings(recipe, optimizer, params, layer_norms or ())
    return [
        Finding(what=what, why=why, instead=instead) for what, why, instead in found
    ]
