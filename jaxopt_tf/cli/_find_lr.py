"""`jaxopt-tf find-lr`: which learning rate the job of `train` is to have."""

from collections.abc import Sequence
from dataclasses import dataclass

import rich.console

from .. import tuning
from ._flags import flags_of
from ._job_task import folder_of, job_corpus, job_task
from ._train import parse_with

_PROG = "jaxopt-tf find-lr"
_DESCRIPTION = (
    "Trains the job of `jaxopt-tf train` for a while with many learning rates side by "
    "side, and suggests one."
)
# Enough to tell losses apart that differ by 5 %; every run is evaluated on them.
_NUM_HELD_OUT = 2**14


@dataclass(frozen=True, kw_only=True)
class _Search:
    """What is tried.

    Attributes:
        min_rate: the lowest rate; above 0.
        max_rate: the highest; above `min_rate`.
        num_rates: how many, evenly on a scale of logarithms; 24 if not given.
        num_steps: of each run; a quarter of `max_steps`, from 100 to 1,000, if not
            given.
        rising: whether it is one run, whose rate rises from step to step: it costs
            less, and can tell less.
        memory_limit: bytes that runs side by side may take on each device; 90 % of what
            it has if not given, and no limit on CPUs.
    """

    min_rate: float = 1e-6
    max_rate: float = 1.0
    num_rates: int | None = None
    num_steps: int | None = None
    rising: bool = False
    memory_limit: float | None = None


def find_lr(args: Sequence[str]) -> int:
    """Suggests a learning rate.

    Args:
        args: what stands after the command's name.

    Returns:
        The exit status: 0; 1 if none can be told.
    """
    (recipe, model, job), typed = parse_with(
        flags_of(_Search, {}), args, prog=_PROG, description=_DESCRIPTION
    )
    search = _Search(**typed)
    _check_search(search)
    folder = folder_of(job)
    task = job_task(
        recipe,
        model,
        job,
        job_corpus(model, job, folder),
        num_held_out=0 if search.rising else _NUM_HELD_OUT,
    )
    num_rates = 24 if search.num_rates is None else search.num_rates
    what = "One rising rate" if search.rising else f"{num_rates} rates side by side"
    print(
        f"{what}, from {search.min_rate:g} to {search.max_rate:g}, in {folder}. It is "
        "compiled first, and more is told at the end.",
        flush=True,
    )
    if search.rising:
        found = tuning.range_test(
            task,
            recipe,
            min_rate=search.min_rate,
            max_rate=search.max_rate,
            num_steps=search.num_steps,
        )
    else:
        found = tuning.find_learning_rate(
            task,
            recipe,
            min_rate=search.min_rate,
            max_rate=search.max_rate,
            num_rates=num_rates,
            num_steps=search.num_steps,
            memory_limit=search.memory_limit,
        )
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "find_lr.png"
    tuning.plot_rates(found, picture)
    if not search.rising:  # where each of its steps has a rate
        rich.console.Console().print(found.table())
    print(f"picture {picture}\n{found.reason}")
    if found.suggestion is None:
        return 1
    print(f"--learning_rate {found.suggestion:g}")
    return 0


def _check_search(search: _Search) -> None:
    for name in ("num_rates", "memory_limit"):
        value = getattr(search, name)
        if search.rising and value is not None:
            raise ValueError(
                f"`{name}` must be left out with `rising`, got {value!r}: one run has "
                "a rate for each of its steps. Give `num_steps`, or leave `rising` out."
            )
