"""`jaxopt-tf doctor` and `jaxopt-tf explain`: checks of a plan before the run starts.

Both take the flags of `jaxopt-tf train`, and compute nothing.
"""

import textwrap
from collections.abc import Sequence

import jax

from .. import recipes
from .._typing import PyTree
from ..models import GPT2Config, gpt2_layer_norms, gpt2_layout, make_loss_fn
from ._errors import in_flags
from ._train import parse


def doctor(args: Sequence[str]) -> int:
    """Prints what is wrong with a plan, and what was not judged.

    Args:
        args: the arguments after the command's name.

    Returns:
        The exit status: 0 if nothing was found, else 1.
    """
    recipe, model, _ = parse(
        args,
        prog="jaxopt-tf doctor",
        description="Prints what is wrong with a run that these flags would train.",
    )
    diagnosis = recipes.doctor(
        recipe,
        params=_shapes(model),
        layouts=gpt2_layout(model),
        layer_norms=gpt2_layer_norms(model),
    )
    for line in str(diagnosis).splitlines():
        text = in_flags(line, "doctor")
        print(textwrap.fill(text, 88, subsequent_indent="  "))
    return 1 if diagnosis else 0


def explain(args: Sequence[str]) -> int:
    """Prints decay, rate, factors and memory of each parameter.

    Args:
        args: the arguments after the command's name.

    Returns:
        The exit status: 0.
    """
    recipe, model, _ = parse(
        args,
        prog="jaxopt-tf explain",
        description="Prints decay, rate, factors and memory of each parameter in a run "
        "with these flags.",
    )
    print(
        recipes.explain(
            recipe,
            _shapes(model),
            layouts=gpt2_layout(model),
            layer_norms=gpt2_layer_norms(model),
        )
    )
    return 0


def _shapes(model: GPT2Config) -> PyTree:
    return jax.eval_shape(lambda: make_loss_fn(model, 0)[0])
