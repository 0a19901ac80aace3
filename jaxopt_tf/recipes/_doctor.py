"""doctor: finds what is wrong with a plan before the run starts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import optax

from .. import _pytrees
from .._argument_names import checked_names
from .._typing import PyTree
from ..optimizers import LayerNorms, TorchLayout
from ._optimizer_findings import optimizer_findings
from ._recipe import Recipe
from ._recipe_findings import (
    Finding,
    floating_leaves,
    params_findings,
    recipe_findings,
)

# Of every run. Other steps add what they could not judge.
_NEVER_JUDGED = (
    "whether learning rate, batch size and number of steps suit the model and the data",
    "the data",
    "the loss function",
)


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Findings of `doctor`, and what it does not judge.

    As an iterable it holds its findings; as a string it has a line for each of them,
    and one for what was not judged.
    """

    findings: tuple[Finding, ...]
    not_judged: tuple[str, ...]

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
    """Looks for settings that would run and yet not do what was meant.

        print(doctor(recipe, optimizer, params))

    Values that cannot be right at all are refused by `Recipe` itself. An optimizer is a
    closure that cannot be inspected, so it is tried out: on small parameters (the same
    names and dtypes, axes of at most 4), at the step after the warmup, with small
    gradients, with one element a thousand times larger, and with zeros.

    Args:
        recipe: the numbers of the run.
        optimizer: the optimizer of the run, if it is not `build_optimizer(recipe)`.
        params: the parameters, or `jax.ShapeDtypeStruct` in their place.
        layouts: as for `build_optimizer`.
        layer_norms: as for `build_optimizer`.

    Returns:
        Findings, none for a plan in which nothing was found, and a list of what was not
        judged.

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
    found: list[Finding | str] = [*_NEVER_JUDGED, *recipe_findings(recipe, params)]
    norms = layer_norms or ()
    if params is None:
        found.append("names, shapes and dtypes of parameters: pass `params`")
    else:
        found += params_findings(recipe, params, layouts or {}, norms)
    if optimizer is not None:
        found += optimizer_findings(recipe, optimizer, params, norms)
    return Diagnosis(
        findings=tuple(each for each in found if isinstance(each, Finding)),
        not_judged=tuple(each for each in found if isinstance(each, str)),
    )
