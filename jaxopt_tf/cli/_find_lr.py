"""Subcommand `find-lr`: suggests a learning rate for the job of `train`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import rich.console

from .. import tuning
from .._checks import pluralize
from ..jobs import compilation_cache
from ._run_flags import parse
from ._searches import SearchFlags

# Number of tokens on which each run is evaluated: enough to distinguish losses that
# differ by 5 %.
_NUM_EVAL_TOKENS = 2**14


@dataclass(frozen=True, kw_only=True)
class FindLr(SearchFlags):
    """Suggests a learning rate for the job of `jaxopt-tf train`.

    Trains the job for a small number of steps with many learning rates at once.

    Example:
      jaxopt-tf find-lr --text books --num_rates 12

    Attributes:
        min_rate: lowest rate; greater than 0.
        max_rate: highest rate; greater than `min_rate`.
        num_rates: number of rates, evenly spaced on a logarithmic scale. Default: 24.
        num_steps: number of steps of each run. Default: a quarter of `max_steps`, at
            least 100 and at most 1,000.
        rising: train a single run whose rate rises at every step (range test). This is
            faster and less reliable.
    """

    prog: ClassVar[str] = "jaxopt-tf find-lr"

    min_rate: float = 1e-6
    max_rate: float = 1.0
    num_rates: int | None = None
    num_steps: int | None = None
    rising: bool = False

    def __post_init__(self) -> None:
        """Checks that the flags are compatible."""
        for name in ("num_rates", "memory_limit"):
            value = getattr(self, name)
            if self.rising and value is not None:
                raise ValueError(
                    f"`{name}` must be left out with `rising`, got {value!r}: one run "
                    "has a rate for each of its steps. Give `num_steps`, or leave "
                    "`rising` out."
                )


def find_lr(args: Sequence[str]) -> int:
    """Runs `jaxopt-tf find-lr`.

    Args:
        args: command line after the name of the command.

    Returns:
        The exit status: 0; 1 if no rate can be suggested.
    """
    flags = parse(FindLr, args)
    with compilation_cache(flags.compilation_cache):
        return _find_lr(flags)


def _find_lr(flags: FindLr) -> int:
    num_eval_tokens = 0 if flags.rising else _NUM_EVAL_TOKENS
    folder, _, task = flags.prepare(num_eval_tokens=num_eval_tokens)
    num_rates = 24 if flags.num_rates is None else flags.num_rates
    runs = (
        "One rising rate" if flags.rising else pluralize(num_rates, "rate") + " at once"
    )
    print(
        f"{runs}, from {flags.min_rate:g} to {flags.max_rate:g}, in {folder}. The "
        "program is compiled first; results are printed at the end.",
        flush=True,
    )
    names = ("min_rate", "max_rate", "num_steps")
    options: dict[str, Any] = {name: getattr(flags, name) for name in names}
    find: Callable[..., tuning.LRFinderResult] = tuning.range_test
    if not flags.rising:
        find = tuning.find_learning_rate
        options |= {"num_rates": num_rates, "memory_limit": flags.memory_limit}
    found = find(task, flags.run.recipe, **options)
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "find_lr.png"
    tuning.plot_rates(found, picture)
    if not flags.rising:  # a rate for each of its steps would be a long table
        rich.console.Console().print(found.table())
    print(f"picture {picture}\n{found.reason}")
    if found.suggestion is None:
        return 1
    print(f"--learning_rate {found.suggestion:g}")
    return 0
