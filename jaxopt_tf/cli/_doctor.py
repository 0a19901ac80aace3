"""Subcommands `doctor` and `explain`: checks of a recipe before the run starts.

The two subcommands accept the flags of `jaxopt-tf train`, and do not train.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .. import recipes
from ..jobs import Job, RunConfig, run_model
from ._flags import flag_kinds, with_flag_names
from ._run_flags import RunFlags, parse


@dataclass(frozen=True, kw_only=True)
class Doctor(RunFlags):
    """Finds mistakes in the settings of a run, without training.

    Example:
      jaxopt-tf doctor --config runs/books/settings.json
    """

    prog: ClassVar[str] = "jaxopt-tf doctor"
    # All other flags are validated, individually or against each other.
    unused: ClassVar[frozenset[str]] = frozenset(
        {
            "intended_changes",
            "output_dir",
            "resume_from_checkpoint",
            "compilation_cache",
        }
    )


@dataclass(frozen=True, kw_only=True)
class Explain(RunFlags):
    """Lists how each parameter of a run is updated, without training.

    Example:
      jaxopt-tf explain --preset gpt2 --optim adafactor
    """

    prog: ClassVar[str] = "jaxopt-tf explain"
    unused: ClassVar[frozenset[str]] = frozenset(
        {*flag_kinds(Job), "compilation_cache"}
        - {"model_name_or_path", "model_implementation", "freeze"}
        - {"lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"}
    )


def doctor(args: Sequence[str]) -> int:
    """Runs `jaxopt-tf doctor`: prints findings on a recipe.

    Args:
        args: command line after the name of the command.

    Returns:
        The exit status: 0 if nothing was found, else 1.
    """
    run = parse(Doctor, args).run
    diagnosis = recipes.doctor(run.recipe, **_model_parts(run))
    for line in str(diagnosis).splitlines():
        text = with_flag_names(line, flag_kinds(Doctor))
        print(textwrap.fill(text, 88, subsequent_indent="  "))
    return 1 if diagnosis else 0


def explain(args: Sequence[str]) -> int:
    """Runs `jaxopt-tf explain`: prints decay, rate and memory of each parameter.

    Args:
        args: command line after the name of the command.

    Returns:
        The exit status: 0.
    """
    run = parse(Explain, args).run
    print(recipes.explain(run.recipe, **_model_parts(run)))
    return 0


def _model_parts(run: RunConfig) -> dict[str, Any]:
    """Returns the shapes, layouts and layer norms of the trained parameters."""
    model = run_model(run.model, run.job)
    return {
        "params": model.shapes,
        "layouts": model.layouts,
        "layer_norms": model.layer_norms,
    }
