"""`doctor`: checks of a recipe, an optimizer and parameters before training starts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import jax
import optax

from .. import _pytrees
from .._argument_names import checked_names
from .._typing import PyTree
from ..optimizers import LayerNorms, TorchLayout, is_compensated
from ._optim_args import rounds_well
from ._optimizer_findings import optimizer_findings
from ._recipe import Recipe, without_ignored
from ._recipe_findings import (
    Finding,
    floating_leaves,
    ignored_findings,
    params_findings,
    recipe_findings,
)

# Aspects that are never judged. A check whose arguments are missing adds its own.
_NEVER_JUDGED = (
    "whether learning rate, batch size and number of steps suit the model and the data",
    "the data",
    "the loss function",
)


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Result of `doctor`: findings, and a list of aspects that were not judged.

    Iteration yields the findings. The string contains one line per finding and a last
    line that lists what was not judged.
    """

    findings: tuple[Finding, ...]
    not_judged: tuple[str, ...]  # noun phrases, joined in `closing_line`

    def __iter__(self) -> Iterator[Finding]:
        """Iterates over the findings."""
        return iter(self.findings)

    def __len__(self) -> int:
        """Returns the number of findings."""
        return len(self.findings)

    def __str__(self) -> str:
        """Returns one line for each finding, and one for what was not judged."""
        lines = [str(finding) for finding in self] or ["nothing found"]
        return "\n".join([*lines, self.closing_line])

    @property
    def closing_line(self) -> str:
        """Sentence that lists what was not judged."""
        return f"Not judged: {'; '.join(self.not_judged)}."


@checked_names
def doctor(
    recipe: Recipe,
    optimizer: optax.GradientTransformation | None = None,
    params: PyTree | None = None,
    *,
    layouts: Mapping[str, TorchLayout] | None = None,
    layer_norms: LayerNorms | None = None,
) -> Diagnosis:
    """Finds settings that are valid but probably not intended.

        print(doctor(recipe, optimizer, params))

    Invalid values are rejected by `Recipe` itself. An optimizer is a closure that
    cannot be inspected. It is therefore run on small parameters (equal names and
    dtypes, axes of at most 4 elements), at the step after the warmup, with zero
    gradients, with small gradients, and with one element a thousand times larger.

    Args:
        recipe: the hyperparameters of the run.
        optimizer: optimizer of the run; None for `build_optimizer(recipe)`.
        params: the parameters, or a tree of `jax.ShapeDtypeStruct`.
        layouts: see `build_optimizer`.
        layer_norms: see `build_optimizer`.

    Returns:
        The findings, and a list of aspects that were not judged.

    Raises:
        ValueError: if `optimizer` is given and `params` is None or has no
            floating-point leaf; if a path of `layer_norms` matches no module.
    """
    if optimizer is not None and params is None:
        raise ValueError(
            "`params` must be given with an `optimizer`, which is run on them, got "
            "None. Pass the parameters, or `jax.eval_shape` of their init function."
        )
    if optimizer is not None and not floating_leaves(params):
        raise ValueError(
            "`params` must have a floating-point leaf on which `optimizer` is run, got "
            f"{_pytrees.leaf_names(params)}. Pass all parameters that are trained."
        )
    found: list[Finding | str] = [*_NEVER_JUDGED, *ignored_findings(recipe)]
    recipe = without_ignored(recipe)
    found += recipe_findings(recipe, params)
    norms = layer_norms or ()
    if params is None:
        found.append("names, shapes and dtypes of parameters: pass `params`")
    else:
        is_rounded_well = rounds_well(recipe.optim, recipe.optim_args)
        if optimizer is not None:
            is_rounded_well = is_compensated(jax.eval_shape(optimizer.init, params))
        found += params_findings(
            recipe, params, layouts or {}, norms, is_rounded_well=is_rounded_well
        )
    if optimizer is not None:
        found += optimizer_findings(recipe, optimizer, params, norms)
    return Diagnosis(
        findings=tuple(entry for entry in found if isinstance(entry, Finding)),
        not_judged=tuple(entry for entry in found if isinstance(entry, str)),
    )
