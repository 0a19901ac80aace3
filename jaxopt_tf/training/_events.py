"""What a run tells those who watch it."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from ._state import Metrics


class Window(NamedTuple):
    """A few steps in a row, on the host."""

    first_step: int  # of the first; 1 for the run's first step
    metrics: Metrics  # [n] each, numpy: one entry per step
    seconds: float  # from the window before to this one; NaN where nobody measured


class Evaluation(NamedTuple):
    """One look at held-out data."""

    step: int  # batches taken so far
    metrics: Mapping[str, float]  # means over all items: "loss", and what else there is


class Monitor(NamedTuple):
    """Three functions; one that has nothing to say is `lambda _: None`.

    After `window` and `evaluation` return, what they write is in the file: a checkpoint
    that follows relies on it.
    """

    window: Callable[[Window], None]
    evaluation: Callable[[Evaluation], None]
    close: Callable[[], None]  # called once, also if the run is broken off
