"""`jaxopt-tf doctor` and `jaxopt-tf explain`: a plan looked at, before it costs a day.

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
    """Says what is wrong with a plan.

    Args:
        args: what stands after the command's name.

    Returns:
        The exit status: 0 where nothing was found, else 1.
    """
    recipe, model, _ = parse(
        args,
        prog="jaxopt-tf doctor",
        description="Says what is wrong with a run that these flags would train.",
    )
    found = recipes.doctor(
        recipe,
        params=_shapes(model),
        layout=gpt2_layout(model),
        layer_norms=gpt2_layer_norms(model),
    )
    for finding in found:
        told = in_flags(str(finding), "doctor")
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
    recipe, model, _ = parse(
        args,
        prog="jaxopt-tf explain",
        description="Says what becomes of each parameter in a run with these flags.",
    )
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
