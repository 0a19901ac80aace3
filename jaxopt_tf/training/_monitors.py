"""Who is told how a run goes: the console, a file of JSON lines, a picture."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ._state import Metrics


class Window(NamedTuple):
    """A few steps in a row, on the host."""

    first_step: int  # of the first; 1 for the run's first step
    metrics: Metrics  # [n], float32 each: one entry per step
    seconds: float  # from the window before to this one


class Evaluation(NamedTuple):
    """One look at held-out data."""

    step: int  # updates applied so far
    loss: float  # mean over all items


class Monitor(NamedTuple):
    """Three functions; one that has nothing to say is `lambda _: None`."""

    window: Callable[[Window], None]
    evaluation: Callable[[Evaluation], None]
    close: Callable[[], None]  # called once, also if the run is broken off


def console(num_steps: int, *, unit: str = "tokens") -> Monitor:
    """A progress bar: loss, learning rate, gradient norm, speed, time left.

    Args:
        num_steps: the length of the bar.
        unit: what `Metrics.num_items` counts.
    """
    # Here, not above: whoever trains without a console need not load it.
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    progress = Progress(
        TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
        BarColumn(bar_width=8),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
    )
    task = progress.add_task("train", total=num_steps, numbers="compiling")
    progress.start()

    def window(window: Window) -> None:
        metrics = window.metrics
        speed = metrics.num_items.sum() / max(window.seconds, 1e-9)
        numbers = (
            f"loss {metrics.loss.mean():.3f} rate {metrics.learning_rate[-1]:.2e} "
            f"norm {metrics.grad_norm.mean():.2f} {speed:,.0f} {unit}/s"
        )
        progress.update(task, advance=len(metrics.loss), numbers=numbers)

    def evaluation(evaluation: Evaluation) -> None:
        progress.print(
            f"step {evaluation.step:5d}  held-out loss {evaluation.loss:.4f}"
        )

    return Monitor(window, evaluation, progress.stop)


def json_lines(path: Path) -> Monitor:
    """One JSON object per line: one for each step, one for each evaluation.

        {"step": 1, "loss": 5.56, "learning_rate": 0.0, "grad_norm": 2.1, ...}
        {"step": 0, "eval_loss": 5.55}

    The names are those of the Trainer's log. A number that is not finite is null.

    Args:
        path: the file; its folder must exist.
    """
    file = path.open("w", encoding="utf-8")

    def write(record: dict[str, Any]) -> None:
        clean = {k: v if math.isfinite(v) else None for k, v in record.items()}
        file.write(json.dumps(clean) + "\n")

    def window(window: Window) -> None:
        for i in range(len(window.metrics.loss)):
            write({"step": window.first_step + i, **_at(window.metrics, i)})
        file.flush()  # so that it can be followed while the run goes on

    def evaluation(evaluation: Evaluation) -> None:
        write({"step": evaluation.step, "eval_loss": evaluation.loss})
        file.flush()

    return Monitor(window, evaluation, file.close)


def curves(path: Path, *, unit: str = "nats per token") -> Monitor:
    """A picture of the run, drawn at its end: loss, learning rate, gradient norm.

    Args:
        path: the picture; its ending says the format, as matplotlib has it.
        unit: of the loss.
    """
    windows: list[Window] = []
    evaluations: list[Evaluation] = []

    def close() -> None:
        if windows:
            _draw(path, unit, windows, evaluations)

    return Monitor(windows.append, evaluations.append, close)


def _at(metrics: Metrics, i: int) -> dict[str, float]:
    fields = ("loss", "learning_rate", "grad_norm", "num_items")
    return {name: float(getattr(metrics, name)[i]) for name in fields}


def _draw(
    path: Path, unit: str, windows: list[Window], evaluations: list[Evaluation]
) -> None:
    # The figure without pyplot: no window system, no state of matplotlib's touched.
    from matplotlib.figure import Figure

    def column(name: str) -> np.ndarray:
        return np.concatenate([getattr(window.metrics, name) for window in windows])

    steps = windows[0].first_step + np.arange(len(column("loss")))
    figure = Figure(figsize=(7, 8), layout="constrained")
    loss, rate, norm = figure.subplots(3, sharex=True, height_ratios=(2, 1, 1))
    loss.plot(steps, column("loss"), linewidth=0.8, alpha=0.6, label="training")
    if evaluations:
        at, held_out = zip(*evaluations, strict=True)
        loss.plot(at, held_out, marker="o", label=f"held out: {held_out[-1]:.3f}")
    loss.set_ylabel(f"loss ({unit})")
    loss.legend()
    rate.plot(steps, column("learning_rate"))
    rate.set_ylabel("learning rate")
    norm.plot(steps, column("grad_norm"), linewidth=0.8)
    norm.set_ylabel("gradient norm")
    norm.set_xlabel("step")
    for axes in (loss, rate, norm):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
