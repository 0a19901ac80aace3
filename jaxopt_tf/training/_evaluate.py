"""Parameters come in, means over held-out data go out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from .. import _checks
from .._typing import PyTree
from ._gradients import Batch
from ._step import EvalStep


def make_evaluate(
    eval_step: EvalStep, batches: Sequence[Batch]
) -> Callable[[PyTree], dict[str, float]]:
    """A function from params to means over all items of `batches`.

    Args:
        eval_step: from `make_eval_step`; or any (params, batch) -> (sums, number of
            items), where sums is one number, the loss, or a dict of several:
            {"loss": ..., "accuracy": number of right answers}.
        batches: the held-out batches, the same at every evaluation; at least one.

    Returns:
        params -> {"loss": mean, ...}.

    Raises:
        ValueError: if there is no batch, or, when called, no item in any.
        TypeError: when called, if a sum or a number of items is not a real number.
    """
    if not batches:
        raise ValueError(
            "`batches` must hold at least one batch to evaluate on, got none. Hold out "
            "more of the data, or take smaller batches."
        )

    def evaluate(params: PyTree) -> dict[str, float]:
        results = jax.device_get([eval_step(params, batch) for batch in batches])
        named = [_checked_sums(sums, number) for sums, number in results]
        # Summed in the host's doubles: the order of batches leaves no trace.
        num_items = sum(float(number) for _, number in results)
        if not num_items:
            raise ValueError(
                "`batches` must hold items to take a mean over, got none in any of "
                f"{len(batches)}. Are all labels ignored?"
            )
        return {
            name: sum(float(sums[name]) for sums in named) / num_items
            for name in named[0]
        }

    return evaluate


def _checked_sums(sums: Any, number: Any) -> Mapping[str, Any]:
    """Returns the sums of a batch by name; raises unless all are real numbers."""
    _checks.real_number("eval_step(params, batch)[1]", number)
    if not isinstance(sums, Mapping):
        _checks.real_number("eval_step(params, batch)[0]", sums)
        return {"loss": sums}
    for name, value in sums.items():
        _checks.real_number(f"eval_step(params, batch)[0][{name!r}]", value)
    return sums
