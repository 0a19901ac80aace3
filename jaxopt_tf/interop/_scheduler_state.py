"""`scheduler.pt` of schedules that are asked with a step: where they are."""

from collections.abc import Mapping, Sequence
from typing import Any

from .. import _checks
from .._typing import Schedule
from ..recipes import METRIC_DRIVEN, Recipe
from ._extras import import_extra

_RELATIVE = 1e-6
# Of the base rate: where cosines cancel, doubles are no better than this.
_ABSOLUTE = 1e-15


def schedule_step_from_torch(
    scheduler_state: Mapping[str, Any], schedule: Schedule | Sequence[Schedule]
) -> int:
    """What the schedule is asked next, read from the state of a `LambdaLR`.

    The file knows how far the schedule is and which rate that gave, and nothing of its
    shape. So the rate is compared with what `schedule` has there: it is the check that
    the run goes on as it was planned.

    Args:
        scheduler_state: torch's `scheduler.state_dict()`.
        schedule: the run's schedule; or one for each parameter group.

    Returns:
        The step, for `opt_state_from_torch`.

    Raises:
        ValueError: if it is no state of a `LambdaLR`, or if the rates differ by more
            than 1e-6 of the schedule's.

    Source: torch 2.13 `optim/lr_scheduler.py`, `LambdaLR.state_dict`; `last_epoch` is
        the argument of the next update's rate, which is already in the optimizer.
    """
    needed = ("last_epoch", "_last_lr", "base_lrs", "lr_lambdas")
    missing = [key for key in needed if key not in scheduler_state]
    if missing:
        raise ValueError(
            "`scheduler_state` must be of torch's LambdaLR, got one without "
            f"{missing}. Of one that a metric drives, use `metric_state_from_torch`."
        )
    step = _checks.step_count("last_epoch", scheduler_state["last_epoch"])
    rates = [float(rate) for rate in scheduler_state["_last_lr"]]
    schedules = [schedule] * len(rates) if callable(schedule) else list(schedule)
    if len(schedules) != len(rates):
        raise ValueError(
            f"`schedule` must be one, or one for each of {len(rates)} groups, got "
            f"{len(schedules)}."
        )
    bases = scheduler_state["base_lrs"]
    for group, (rate, of, base) in enumerate(zip(rates, schedules, bases, strict=True)):
        ours = float(of(step))
        if not abs(rate - ours) <= _RELATIVE * abs(ours) + _ABSOLUTE * abs(base):
            raise ValueError(
                f"`scheduler_state` contradicts the recipe: after {step} steps its "
                f"rate is {rate!r} in group {group}, and the recipe's is {ours!r}. "
                "Take the recipe that the run was begun with."
            )
    return step


def torch_from_schedule_step(
    step: int, recipe: Recipe, *, num_groups: int = 2
) -> dict[str, Any]:
    """The state with which Transformers' own schedule goes on.

    The rate in it is the one that Transformers computes there, in double precision, so
    that a run that is handed over and back has the bits of one that never was.

    Args:
        step: what the schedule is asked next.
        recipe: the numbers of the run, whose schedule no metric drives.
        num_groups: how many parameter groups the optimizer has.

    Raises:
        ValueError, TypeError: if `step` is no step, or a metric drives the schedule.

    Source: torch 2.13 `optim/lr_scheduler.py`, `LambdaLR.state_dict`; transformers 5.23
        `optimization.py`, `get_scheduler`.
    """
    torch = import_extra("torch")
    transformers = import_extra("transformers")

    step = _checks.step_count("step", step)
    if recipe.lr_scheduler_type in METRIC_DRIVEN:
        raise ValueError(
            "`recipe` must have a schedule that is asked with a step, got "
            f"{recipe.lr_scheduler_type!r}. Use `torch_from_metric_state`."
        )
    base = float(recipe.learning_rate)
    params = [torch.nn.Parameter(torch.zeros(1)) for _ in range(num_groups)]
    scheduler = transformers.get_scheduler(
        recipe.lr_scheduler_type,
        torch.optim.SGD([{"params": [p]} for p in params], lr=base),
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
