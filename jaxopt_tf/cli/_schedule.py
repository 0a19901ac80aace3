"""`jaxopt-tf schedule`: learning rates looked at before a run."""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import _checks
from .._typing import Schedule
from ..plots import plot_schedule, sample_schedule
from ..schedules import MetricDrivenSchedule, get_scheduler
from ._command_line import typed_settings
from ._flags import flags_of
from ._terminal_curve import terminal_curve

_PROG = "jaxopt-tf schedule NAME [NAME ...]"
_DESCRIPTION = (
    "Draws schedules by the names that Transformers has for them, in the terminal: "
    "linear, cosine, inverse_sqrt and so on. Several have one scale."
)


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """What is drawn.

    Attributes:
        learning_rate: the highest rate; at least 0.
        num_warmup_steps: steps of warm-up; None for a tenth of all.
        num_training_steps: steps of the run; at least 1.
        scheduler_specific_kwargs: further arguments of the schedule, by name; of
            several schedules, such an object for each by its name.
        output: also draw a picture there: .png, .svg or .pdf.
    """

    learning_rate: float = 1e-3
    num_warmup_steps: int | None = None
    num_training_steps: int = 1_000
    scheduler_specific_kwargs: Mapping[str, Any] | None = None
    output: Path | None = None


def schedule(args: Sequence[str]) -> int:
    """Draws schedules in the terminal.

    Args:
        args: what stands after the command's name: names, then flags.

    Returns:
        The exit status: 0.
    """
    num_names = next((k for k, a in enumerate(args) if a.startswith("-")), len(args))
    names = list(dict.fromkeys(args[:num_names]))
    typed = typed_settings(
        {"schedule": list(flags_of(_Drawn, {}).values())},
        args[num_names:],
        prog=_PROG,
        description=_DESCRIPTION,
    )
    if not names:
        raise ValueError(
            "`schedule` must be given the name of a schedule, got none. Write "
            "`jaxopt-tf schedule cosine`, or several names to compare them."
        )
    drawn = _Drawn(**typed)
    num_steps = _checks.step_count(
        "num_training_steps", drawn.num_training_steps, least=1
    )
    options = _options(names, drawn.scheduler_specific_kwargs)
    schedules = {
        name: _named(name, drawn, num_steps, options.get(name)) for name in names
    }
    if drawn.output is not None:
        try:
            plot_schedule(schedules, num_steps, drawn.output)
        except ValueError as error:  # in the words of the command
            raise ValueError(str(error).replace("`path`", "`output`")) from error
    _print(schedules, num_steps)
    if drawn.output is not None:
        print(f"picture {drawn.output}")
    return 0


def _options(names: list[str], given: Any) -> Mapping[str, Any]:
    """Each schedule's own arguments, by its name."""
    if given is None:
        return {}
    by_name = given if len(names) > 1 else {names[0]: given}
    if not isinstance(by_name, dict) or not all(
        isinstance(options, dict) for options in by_name.values()
    ):
        example = f'{{"{names[0]}": {{...}}}}' if len(names) > 1 else '{"power": 2}'
        raise TypeError(
            f"`scheduler_specific_kwargs` must be a JSON object, such as {example}, "
            f"got {json.dumps(given)}."
        )
    for name in by_name:
        _checks.one_of("scheduler_specific_kwargs", name, names)
    return by_name


def _named(
    name: str, drawn: _Drawn, num_steps: int, options: Mapping[str, Any] | None
) -> Schedule:
    num_warmup = drawn.num_warmup_steps
    made = get_scheduler(
        name,
        drawn.learning_rate,
        num_steps // 10 if num_warmup is None else num_warmup,
        # A schedule whose phases are all given ends with them.
        None if options and options.get("num_stable_steps") is not None else num_steps,
        options,
    )
    if isinstance(made, MetricDrivenSchedule):
        raise ValueError(
            f"{name!r} must be the name of a schedule that follows the steps: of this "
            "one a metric decides, so its rates are not known before the run. Those "
            "of a run are in its curves.png."
        )
    return made


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
