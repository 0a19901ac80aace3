"""The work of a step's products of matrices, by how precise each was asked to be."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax

_NAMES = {
    jax.lax.Precision.HIGH: "high",
    jax.lax.Precision.HIGHEST: "highest",
}


class Products(NamedTuple):
    """Floating-point operations of products of matrices and convolutions."""

    narrow: float = 0.0  # of bfloat16 and what is no wider
    default: float = 0.0  # of float32, with nothing asked: each platform has its own
    high: float = 0.0  # of float32: in TF32, or in three passes of bfloat16
    highest: float = 0.0  # of float32 as such

    def times(self, factor: float) -> "Products":
        """Of so many rounds, or of a share."""
        return Products(*(factor * flops for flops in self))


def products(jaxpr: Any) -> Products:
    """Of a traced function, on all devices.

    A scan counts once a round, a loop of unknown length as one round, and of a choice
    the dearest way. What the compiler leaves out or computes twice is not known here.
    """
    return _together(map(_of_equation, jaxpr.eqns))


def _of_equation(equation: Any) -> Products:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left, out = equation.invars[0].aval, equation.outvars[0].aval
        summed = math.prod(left.shape[axis] for axis in contracted)
        return Products(**{_precision(equation): 2.0 * out.size * summed})
    if name == "conv_general_dilated":
        kernel, out = equation.invars[1].aval, equation.outvars[0].aval
        out_axis = params["dimension_numbers"].rhs_spec[0]
        summed = kernel.size / max(1, kernel.shape[out_axis])
        return Products(**{_precision(equation): 2.0 * out.size * summed})
    if name == "cond":
        return max((products(branch.jaxpr) for branch in params["branches"]), key=sum)
    rounds = params["length"] if name == "scan" else 1
    inner = jax.tree.leaves(
        list(params.values()),
        is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"),
    )
    jaxprs = (getattr(x, "jaxpr", x) for x in inner)
    found = (products(jaxpr) for jaxpr in jaxprs if hasattr(jaxpr, "eqns"))
    return _together(found).times(rounds)


def _together(found: Iterable[Products]) -> Products:
    return Products(*map(sum, zip(Products(), *found, strict=True)))


def _precision(equation: Any) -> str:
    if any(x.aval.dtype.itemsize < 4 for x in equation.invars):
        return "narrow"
    asked = equation.params["precision"]
    # Of both factors; an algorithm by its name says nothing that is understood here.
    return _NAMES.get(asked[0], "default") if isinstance(asked, tuple) else "default"
