"""`jaxopt-tf doctor` and `jaxopt-tf explain`: a plan looked at, before it costs a day.

Both take the flags of `jaxopt-tf train`, and compute nothing.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax

from .. import recipes
from .._typing import PyTree
from ..jobs import Job
from ..models import GPT2Config, gpt2_layer_norms, gpt2_layout, make_loss_fn
from ._flags import flag_kinds, in_flags
from ._run_flags import RunFlags, parse


@dataclass(frozen=True, kw_only=True)
class Doctor(RunFlags):
    """Finds mistakes in the settings of a run, without training.

    Example:
      jaxopt-tf doctor --config runs/books/config.json
    """

    prog: ClassVar[str] = "jaxopt-tf doctor"
    # All others are checked, alone or against each other.
    unused: ClassVar[frozenset[str]] = frozenset(
        {"intended_changes", "output_dir", "resume_from_checkpoint"}
    )


@dataclass(frozen=True, kw_only=True)
class Explain(RunFlags):
    """Lists how each parameter of a run is updated, without training.

    Example:
      jaxopt-tf explain --preset gpt2 --optim adafactor
    """

    prog: ClassVar[str] = "jaxopt-tf explain"
    unused: ClassVar[frozenset[str]] = frozenset(flag_kinds(Job))


def doctor(args: Sequence[str]) -> int:
    """Says what is wrong with a plan.

    Args:
        args: what stands after the command's name.

    Returns:
        The exit status: 0 where nothing was found, else 1.
    """
    run = parse(Doctor, args).run
    recipe, model = run.recipe, run.model
    found = recipes.doctor(
        recipe,
        params=_shapes(model),
        layout=gpt2_layout(model),
        layer_norms=gpt2_layer_norms(model),
    )
    for finding in found:
        told = in_flags(str(finding), flag_kinds(Doctor))
        print(textwrap.fill(told, 88, subsequent_indent="  "))
    if not found:
        print("nothing found")
    return 1 if found else 0


def explain(args: Sequence[str]) -> int:
    """Says what becomes of each parameter.

    Args:
        args: what stands after the command's name.

    Returns:
        The exit status: 0.
    """
    run = parse(Explain, args).run
    recipe, model = run.recipe, run.model
    print(
        recipes.explain(
            recipe,
            _shapes(model),
            layout=gpt2_layout(model),
            layer_norms=gpt2_layer_norms(model),
        )
    )
    return 0


def _shapes(model: GPT2Config) -> PyTree:
    return jax.eval_shape(lambda: make_loss_fn(model, 0)[0])
