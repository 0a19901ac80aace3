"""Lengths and intervals of a run in epochs and in fractions of all steps, as steps."""

import math
from collections.abc import Mapping
from typing import Any

# Settings that may be a fraction of `max_steps`.
INTERVALS = ("eval_steps", "save_steps", "logging_steps")
# Settings of which each replaces the other one if it comes from a source of higher
# precedence: `--max_steps` replaces the epochs of a file, for example.
_REPLACES = {
    "max_steps": "num_train_epochs",
    "num_train_epochs": "max_steps",
    "eval_steps": "eval_strategy",
    "save_steps": "save_strategy",
}


def num_steps_per_epoch(
    num_rows: int, *, batch_size: int, gradient_accumulation_steps: int
) -> int:
    """Returns the number of updates in an epoch, as Trainer counts them.

    Args:
        num_rows: number of rows to train on; at least 1.
        batch_size: number of rows in a micro-batch on all devices.
        gradient_accumulation_steps: number of micro-batches in an update.

    Source: transformers 5.23 `trainer.py`, `set_initial_training_values`.
    Differs: in Trainer the last batch of an epoch contains the remaining rows only.
        Here all batches are full: the last batch also contains the first rows of the
        next epoch.
    """
    num_batches = -(-num_rows // batch_size)
    return max(1, -(-num_batches // gradient_accumulation_steps))


def steps_of_fraction(value: Any, max_steps: Any) -> Any:
    """Returns a fraction of all steps as a number of steps, rounded up.

    Other values, and fractions of an unknown number of steps, are returned unchanged.

    Source: transformers 5.23 `trainer_callback.py`, `TrainerState.compute_steps`.
    """
    is_fraction = isinstance(value, float) and 0 < value < 1
    is_known = isinstance(max_steps, int) and max_steps > 0
    return math.ceil(max_steps * value) if is_fraction and is_known else value


def with_whole_intervals(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces intervals that are fractions of `max_steps` by numbers of steps."""
    max_steps = settings.get("max_steps")
    if isinstance(max_steps, float) and max_steps.is_integer():
        max_steps = int(max_steps)
    found = {name: settings[name] for name in INTERVALS if name in settings}
    return {
        **settings,
        **{name: steps_of_fraction(value, max_steps) for name, value in found.items()},
    }


def merge_settings(
    lower: Mapping[str, Any], upper: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the settings of two sources.

    A length in steps replaces one in epochs, and conversely; an interval replaces a
    strategy.

    Args:
        lower: settings of lower precedence.
        upper: settings of higher precedence.
    """
    given = [name for name, value in upper.items() if value is not None]
    replaced = {_REPLACES.get(name) for name in given}
    return {n: v for n, v in lower.items() if n not in replaced} | dict(upper)
