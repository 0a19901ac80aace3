"""`scheduler.pt` of schedules that are evaluated at a step."""

from collections.abc import Mapping
from typing import Any

from .. import _checks
from .._typing import Schedule
from ..recipes import Recipe
from ._extras import import_extra

_RELATIVE = 1e-6
# Relative to the base rate: where cosines cancel, doubles are no better than this.
_ABSOLUTE = 1e-15


def schedule_step_from_torch(
    scheduler_state: Mapping[str, Any], schedule: Schedule
) -> int:
    """Returns the step passed to the schedule next, from the state of a `LambdaLR`.

    The file contains the number of steps and the rate there, and not the shape of the
    schedule. The rate is compared with that of `schedule`, to check that the run
    continues as it was planned.

    Args:
        scheduler_state: torch's `scheduler.state_dict()`.
        schedule: the run's schedule.

    Raises:
        ValueError: if it is no state of a `LambdaLR`, or if a group's rate differs from
            the schedule's by more than 1e-6 of it.

    Source: torch 2.13 `optim/lr_scheduler.py`, `LambdaLR.state_dict`; `last_epoch` is
        the argument of the next update's rate, which is already in the optimizer.
    """
    needed = ("last_epoch", "_last_lr", "base_lrs", "lr_lambdas")
    missing = [key for key in needed if key not in scheduler_state]
    if missing:
        raise _checks.ArgumentError(
            "recipe",
            "`scheduler_state` must be of torch's LambdaLR, got one without "
            f"{missing}.",
            "Take the recipe that the run was begun with.",
        )
    step = _checks.step_count("last_epoch", scheduler_state["last_epoch"])
    rates = [float(rate) for rate in scheduler_state["_last_lr"]]
    ours, bases = float(schedule(step)), scheduler_state["base_lrs"]
    for group, (rate, base) in enumerate(zip(rates, bases, strict=True)):
        # Written so that NaN fails.
        if not abs(rate - ours) <= _RELATIVE * abs(ours) + _ABSOLUTE * abs(base):
            raise _checks.ArgumentError(
                "recipe",
                f"`scheduler_state` contradicts the recipe: after {step} steps its "
                f"rate is {rate!r} in group {group}, and the recipe's is {ours!r}.",
                "Take the recipe that the run was begun with.",
            )
    return step


def torch_from_schedule_step(step: int, recipe: Recipe) -> dict[str, Any]:
    """Returns the state from which Transformers' own schedule continues.

    The rate in it is computed by Transformers in double precision, so that a run that
    is exported and imported again has the same bits as one that never was.

    Args:
        step: step passed to the schedule next.
        recipe: the numbers of the run, whose schedule no metric drives.

    Source: torch 2.13 `optim/lr_scheduler.py`, `LambdaLR.state_dict`; transformers 5.23
        `optimization.py`, `get_scheduler`.
    """
    torch = import_extra("torch")
    transformers = import_extra("transformers")

    step = _checks.step_count("step", step)
    base = float(recipe.learning_rate)
    # Trainer's two groups, decayed and not.
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(2)]
    scheduler = transformers.get_scheduler(
        recipe.lr_scheduler_type,
        torch.optim.SGD(groups, lr=base),
        recipe.num_warmup_steps,
        recipe.max_steps,
        dict(recipe.lr_scheduler_kwargs) or None,
    )
    return {
        **scheduler.state_dict(),
        "last_epoch": step,
        "_step_count": step + 1,
        "_last_lr": [base * factor(step) for factor in scheduler.lr_lambdas],
    }
