"""Subcommand `schedule`: draws schedules in the terminal."""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import tyro

from .. import _checks
from .._typing import Schedule
from ..plots import plot_schedule, sample_schedule
from ..schedules import MetricDrivenSchedule, get_scheduler
from ._flags import build, read_flags
from ._terminal_curve import terminal_curve


@dataclass(frozen=True, kw_only=True)
class Schedules:
    """Draws learning rates over the steps of a run, in the terminal.

    Schedules have the names of Transformers, and are drawn with the same scale.

    Example:
      jaxopt-tf schedule cosine linear --num_training_steps 2000

    Attributes:
        names: names of schedules: linear, cosine, inverse_sqrt and others.
        learning_rate: highest rate; at least 0.
        num_warmup_steps: number of warmup steps. Default: a tenth of all steps.
        num_training_steps: number of steps of the run; at least 1.
        scheduler_specific_kwargs: further arguments of the schedule as a JSON object;
            for several schedules, an object of these objects by the name of the
            schedule.
        output: file to which a picture is also written: .png, .svg or .pdf.
    """

    prog: ClassVar[str] = "jaxopt-tf schedule"

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    learning_rate: float = 1e-3
    num_warmup_steps: int | None = None
    num_training_steps: int = 1_000
    scheduler_specific_kwargs: Mapping[str, Any] | None = None
    output: Path | None = None


def schedule(args: Sequence[str]) -> int:
    """Runs `jaxopt-tf schedule`.

    Args:
        args: command line after the name of the command: names, then flags.

    Returns:
        The exit status: 0.
    """
    command = build(Schedules, read_flags(Schedules, args))
    names = list(dict.fromkeys(command.names))
    if not names:
        raise ValueError(
            "`schedule` must be given the name of a schedule, got none. An example is "
            "`jaxopt-tf schedule cosine`; several names are compared."
        )
    num_steps = _checks.step_count(
        "num_training_steps", command.num_training_steps, minimum=1
    )
    options = _options(names, command.scheduler_specific_kwargs)
    schedules = {
        n: _build_schedule(n, command, num_steps, options.get(n)) for n in names
    }
    if command.output is not None:
        plot_schedule(schedules, num_steps, command.output)
    _print(schedules, num_steps)
    if command.output is not None:
        print(f"picture {command.output}")
    return 0


def _options(names: list[str], given: Any) -> Mapping[str, Any]:
    """Returns the further arguments of each schedule, by name."""
    if given is None:
        return {}
    # For a single schedule, the object contains its arguments, without its name.
    by_name = given if len(names) > 1 else {names[0]: given}
    objects = [by_name, *by_name.values()] if isinstance(by_name, dict) else [by_name]
    if not all(isinstance(value, dict) for value in objects):
        example = f'{{"{names[0]}": {{...}}}}' if len(names) > 1 else '{"power": 2}'
        raise TypeError(
            f"`scheduler_specific_kwargs` must be a JSON object, such as {example}, "
            f"got {json.dumps(given)}."
        )
    for name in by_name:
        _checks.one_of("scheduler_specific_kwargs", name, names)
    return by_name


def _build_schedule(
    name: str, command: Schedules, num_steps: int, options: Mapping[str, Any] | None
) -> Schedule:
    num_warmup = command.num_warmup_steps
    schedule = get_scheduler(
        name,
        command.learning_rate,
        num_steps // 10 if num_warmup is None else num_warmup,
        # With `num_stable_steps` the length of the schedule is the sum of its phases.
        # If `num_training_steps` is given as well, warmup_stable_decay would warn that
        # it is not used.
        None if options and options.get("num_stable_steps") is not None else num_steps,
        options,
    )
    if isinstance(schedule, MetricDrivenSchedule):
        raise ValueError(
            f"{name!r} must be the name of a schedule of the step: the rates of this "
            "schedule depend on a metric, and are unknown before the run. curves.png "
            "of a run shows them."
        )
    return schedule


def _print(schedules: Mapping[str, Schedule], num_steps: int) -> None:
    sampled = {name: sample_schedule(one, num_steps) for name, one in schedules.items()}
    top = max(float(rates.max()) for _, rates in sampled.values())
    for name, (steps, rates) in sampled.items():
        peak = int(rates.argmax())
        print(
            f"{name}: first {rates[0]:.4g}, peak {rates[peak]:.4g} at step "
            f"{steps[peak]:,}, last {rates[-1]:.4g} at step {steps[-1]:,}"
        )
        lines = terminal_curve(
            steps,
            rates,
            top=top or 1.0,
            width=shutil.get_terminal_size().columns,
            height=8 if len(sampled) == 1 else 5,
            encoding=sys.stdout.encoding or "ascii",
        )
        print("\n".join(lines))
