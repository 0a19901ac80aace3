"""Spread of the figures of several runs of a benchmark, from their JSON lines.

    python -m benchmarks.optimizer_step_at_memory_speed > one.txt   # at three times
    python -m benchmarks.spread one.txt two.txt three.txt

The spread is the range of the figures of a claim, relative to their median.
"""

import json
import sys
from pathlib import Path

import numpy as np
import rich.console
import rich.table

LIMIT = 0.15  # range relative to the median


def main(paths: list[str]) -> int:
    """Prints the figures of each claim; returns 1 if a spread exceeds the limit."""
    runs = [_figures(Path(path).read_text("utf-8")) for path in paths]
    table = rich.table.Table(title=f"{len(runs)} runs")
    for column in ("claim", "figures", "spread"):
        table.add_column(column, overflow="fold")
    widest = 0.0
    for claim in runs[0]:
        figures = np.array([run[claim] for run in runs])
        spread = float(np.ptp(figures) / max(abs(np.median(figures)), 1e-30))
        widest = max(widest, spread)
        listed = " ".join(f"{figure:.3g}" for figure in sorted(figures))
        table.add_row(claim, listed, f"{100 * spread:.0f} %")
    rich.console.Console(width=120).print(table)
    return int(widest > LIMIT)


def _figures(text: str) -> dict[str, float]:
    rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return {row["claim"]: row["value"] for row in rows}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
