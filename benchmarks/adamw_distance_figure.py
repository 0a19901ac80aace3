"""Draws the distance of AdamW to torch over 1,000 steps, for the README.

    python -m benchmarks.adamw_distance_figure docs/images/distance_to_torch.svg

The runs are those of `adamw_distance_to_torch`: 100,000 parameters in float32.
"""

import sys
from pathlib import Path

import matplotlib
import optax
from matplotlib.figure import Figure

from benchmarks.adamw_distance_to_torch import OPTIONS, distance, run, work
from jaxopt_tf import adamw_tf
from tests.references import adamw as reference

STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def distances() -> dict[str, list[float]]:
    """Returns the largest distance to torch in float32 after each of `STEPS`."""
    params, grads = work(max(STEPS), 100_000)
    ours = adamw_tf(OPTIONS["lr"], weight_decay=OPTIONS["weight_decay"])
    plain = optax.adamw(OPTIONS["lr"], weight_decay=OPTIONS["weight_decay"])
    found: dict[str, list[float]] = {"optax": [], "float64": [], "jaxopt_tf": []}
    for step in STEPS:
        torch32, *_ = reference.torch_adamw(params, grads[:step], **OPTIONS)
        torch64, *_ = reference.torch_adamw(
            params, grads[:step], dtype="float64", **OPTIONS
        )
        found["optax"].append(distance(run(plain, params, grads[:step])[0], torch32))
        found["float64"].append(distance(torch64, torch32))
        found["jaxopt_tf"].append(distance(run(ours, params, grads[:step])[0], torch32))
    return found


def draw(found: dict[str, list[float]], path: Path) -> None:
    """Writes the figure, which is readable on light and dark pages and on a phone."""
    gray = "#808080"
    figure = Figure(figsize=(4.8, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, label, style in (
        ("optax", "optax.adamw", {"color": "#d62728", "marker": "o"}),
        ("float64", "PyTorch in float64", {"color": gray, "linestyle": "--"}),
        ("jaxopt_tf", "jaxopt_tf.adamw_tf", {"color": "#1f77b4", "marker": "o"}),
    ):
        axes.plot(STEPS, found[name], label=label, linewidth=2, markersize=4, **style)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("step", color=gray)
    axes.set_ylabel("distance to PyTorch", color=gray)
    axes.tick_params(which="both", colors=gray)
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(gray)
    axes.grid(color=gray, alpha=0.2)
    axes.legend(frameon=False, labelcolor=gray)
    # Equal bytes in each run, and text instead of paths.
    with matplotlib.rc_context({"svg.hashsalt": path.name, "svg.fonttype": "none"}):
        figure.savefig(path, transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    values = distances()
    for step, *of_step in zip(STEPS, *values.values(), strict=True):
        print(step, dict(zip(values, of_step, strict=True)))
    draw(values, Path(sys.argv[1]))
