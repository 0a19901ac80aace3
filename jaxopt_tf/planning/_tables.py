"""Tables of plans for the console."""

import math
from collections.abc import Iterable, Mapping
from typing import Literal

import rich.console
import rich.table

from ._cost import Cost
from ._plan import Plan

# Largest number of unmet rules that are listed.
_MAX_LISTED = 5


def print_plan(plan: Plan, *, console: rich.console.Console | None = None) -> None:
    """Prints the memory, traffic and time of a step.

    Args:
        plan: the plan, from `plan_shapes` or `plan_step`.
        console: console to print to; None for standard output.
    """
    out = console or rich.console.Console()
    out.print(_memory(plan))
    lines = _remarks(plan)
    if plan.cost is not None:
        if plan.cost.collectives:
            _print_lines(out, lines)
            out.print(_collectives(plan.cost))
            lines = []
        lines += _compiled(plan, plan.cost)
    _print_lines(out, lines)


def print_comparison(
    plans: Mapping[str, Plan], *, console: rich.console.Console | None = None
) -> None:
    """Prints a table with one plan per line.

    Args:
        plans: plans by their names in the table; all have the same parts.
        console: console to print to; None for standard output.
    """
    parts = [part.name for part in next(iter(plans.values())).parts]
    columns = ["plan", *parts, "total", "compiled", "minimum step time"]
    rows = []
    for name, plan in plans.items():
        sizes = {part.name: part.on_device for part in plan.parts}
        roof = plan.estimate
        row = [_bytes(sizes[part]) if part in sizes else "" for part in parts]
        row.append(_bytes(sum(sizes.values())))
        row.append("" if plan.cost is None else _bytes(plan.cost.total))
        row.append("" if roof is None else _seconds(roof.seconds))
        rows.append((name, *row))
    table = _table("On each device", columns, rows)
    (console or rich.console.Console()).print(table)


def _print_lines(console: rich.console.Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False)


def _memory(plan: Plan) -> rich.table.Table:
    slice_, chip, cost = plan.slice_, plan.slice_.chip, plan.cost
    title = f"{slice_.name}: {slice_.num_devices} x {chip.name}"
    if not math.isnan(chip.memory):
        title += f" of {_bytes(chip.memory)}"
    rows: list[tuple[str, ...]] = [
        (p.name, _bytes(p.on_device), _bytes(p.global_bytes / slice_.num_devices))
        for p in plan.parts
    ]
    compiled: list[tuple[str, float]] = [("total", plan.on_device)]
    if cost is not None:
        compiled = [
            ("compiled: arguments", cost.arguments),
            ("results in new memory", cost.outputs - cost.aliased),
            ("temporary: activations, gradients", cost.temporary),
            ("program code", cost.code),
            ("total of the step", cost.total),
        ]
    rows += [(name, _bytes(size)) for name, size in compiled]
    table = _table(title, ["", "on each device", "if divided evenly"], rows)
    for row in {len(plan.parts), len(rows) - 1} - {0}:
        table.rows[row - 1].end_section = True
    return table


def _remarks(plan: Plan) -> list[str]:
    lines = [plan.note] if plan.note else []
    if plan.fits is False:
        lines.append("It does not fit.")
    elif plan.fits:
        lines.append(f"It fits: {plan.memory_fraction:.0%} of a device's memory.")
    elif not math.isnan(plan.memory_fraction):
        names = ", ".join(part.name for part in plan.parts)
        lines.append(
            f"{names[:1].upper()}{names[1:]} fit ({plan.memory_fraction:.0%} of a "
            "device's memory); activations were not counted."
        )
    lines += plan.remarks
    for rule in plan.unmet[:_MAX_LISTED]:
        replacement = "no axis" if rule.used_axis is None else f"axis {rule.used_axis}"
        lines.append(
            f"{rule.mesh_axis} does not divide axis {rule.requested_axis} of "
            f"{rule.name}; it divides {replacement} instead."
        )
    if len(plan.unmet) > _MAX_LISTED:
        lines.append(f"... and {len(plan.unmet) - _MAX_LISTED} more unmet rules.")
    replicated = plan.replicated()
    if replicated:
        num_bytes = sum(extra for _, _, extra in replicated)
        part, leaf, extra = replicated[0]
        lines.append(
            f"{len(replicated)} leaves are not sharded over all devices, which costs "
            f"{_bytes(num_bytes)} per device. The largest cost is {_bytes(extra)}, of "
            f"{leaf.name} in {part}."
        )
    return lines


def _collectives(cost: Cost) -> rich.table.Table:
    rows = [
        (c.kind, f"{c.num_runs:,}", _bytes(c.bytes), _bytes(c.largest), _bytes(c.sent))
        for c in cost.collectives
    ]
    title = "Communication between devices in one step"
    return _table(title, ["", "runs", "bytes", "largest", "sent per device"], rows)


def _compiled(plan: Plan, cost: Cost) -> list[str]:
    donated = f"donated: {_bytes(cost.aliased)} of {_bytes(cost.arguments)}"
    if cost.unused_donations:
        donated += (
            f"; donated but not reused: {len(cost.unused_donations)}, the first being "
            f"{cost.unused_donations[0]}"
        )
    lines = [
        donated,
        f"work: {cost.work:.3g} floating-point operations, {_bytes(cost.hbm_bytes)} to "
        f"and from memory, {cost.kernels:,} kernels",
    ]
    if cost.num_open_loops:
        lines.append(
            f"{cost.num_open_loops} loops of unknown length count as one iteration."
        )
    if (roof := plan.estimate) is not None:
        rate = f", at most {plan.num_items / roof.seconds:,.0f} tokens per second"
        lines.append(
            f"estimated from published peaks: at least {_seconds(roof.seconds)} per "
            f"step{rate if plan.num_items else ''} (arithmetic "
            f"{_seconds(roof.arithmetic)}, memory {_seconds(roof.memory)}, network "
            f"{_seconds(roof.network)})"
        )
    return lines


def _table(
    title: str, columns: list[str], rows: Iterable[tuple[str, ...]]
) -> rich.table.Table:
    table = rich.table.Table(title=title, title_justify="left", box=None)
    for i, column in enumerate(columns):
        # Long names are wrapped, because an ellipsis would hide where they differ.
        overflow: Literal["ellipsis", "fold"] = "ellipsis" if i else "fold"
        table.add_column(column, justify="right" if i else "left", overflow=overflow)
    for row in rows:
        table.add_row(*row)
    return table


def _bytes(number: float) -> str:
    """Returns a size with its unit, such as "1.49 GB"."""
    return _scaled(number, {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3}, "B")


def _seconds(number: float) -> str:
    """Returns a time with its unit, such as "31 ms"."""
    return _scaled(number, {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}, "s")


def _scaled(number: float, units: Mapping[str, float], unit: str) -> str:
    for name, size in units.items():
        if abs(number) >= size:
            return f"{number / size:.3g} {name}"
    return f"{number:.0f} {unit}"
