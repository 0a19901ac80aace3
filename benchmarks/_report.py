"""Reports of benchmarks: one row per figure, as a JSON line and as a table."""

import dataclasses
import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

import rich.console
import rich.table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """Measured figure, with its limit and the figures of other libraries."""

    claim: str  # measured quantity and setting; the same in every run
    value: float  # figure of jaxopt_tf
    unit: str
    limit: float
    at_least: bool = False  # whether the limit is a lower bound
    optax: float | None = None  # figure of optax, if it has the feature
    torch: float | None = None  # reference to its float64 run, or see claim
    detail: str = ""  # additional figures of this run

    @property
    def reached(self) -> bool:
        """Whether the limit is reached; False for NaN."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def versions() -> dict[str, str]:
    """Returns the versions of the compared packages."""
    found = {}
    for name in ("jax", "optax", "torch", "transformers"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def report(title: str, rows: Iterable[Row]) -> bool:
    """Prints rows as JSON lines and as a table; returns whether all limits hold."""
    rows = [_printed(row) for row in rows]
    table = rich.table.Table(title=title)
    for column in ("claim", "ours", "optax", "torch itself", "limit", "reached"):
        table.add_column(column, overflow="fold")
    for row in rows:
        sign = ">=" if row.at_least else "<="
        table.add_row(
            f"{row.claim}; {row.detail}" if row.detail else row.claim,
            f"{row.value:.3g}",
            "" if row.optax is None else f"{row.optax:.3g}",
            "" if row.torch is None else f"{row.torch:.3g}",
            f"{sign} {row.limit:.3g} {row.unit}",
            "yes" if row.reached else "NO",
        )
    rich.console.Console(width=120).print(table)
    return all(row.reached for row in rows)


def _printed(row: Row) -> Row:
    line = dataclasses.asdict(row) | {"reached": row.reached, "versions": versions()}
    print(json.dumps(line), flush=True)
    return row


def main(title: str, rows: Callable[[bool], Iterable[Row]]) -> NoReturn:
    """Reports `rows(smoke)` and exits with status 1 if a limit is not reached."""
    sys.exit(0 if report(title, rows("--smoke" in sys.argv[1:])) else 1)
