"""A plan as tables."""

import math
from collections.abc import Mapping
from typing import Literal

import rich.console
import rich.table

from ._plan import Plan

# Of leaves that are not divided by all devices, and of axes that went elsewhere.
_MOST_LISTED = 5


def print_plan(plan: Plan, *, console: rich.console.Console | None = None) -> None:
    """Prints what a step needs: memory, traffic, time.

    Args:
        plan: from `plan_shapes` or `plan_step`.
        console: where to; None for standard output.
    """
    out = console or rich.console.Console()
    out.print(_memory(plan))
    for line in _remarks(plan):
        out.print(line, markup=False, highlight=False)
    if plan.cost is not None:
        if plan.cost.collectives:
            out.print(_collectives(plan))
        for line in _compiled(plan):
            out.print(line, markup=False, highlight=False)


def print_comparison(
    plans: Mapping[str, Plan], *, console: rich.console.Console | None = None
) -> None:
    """Prints plans side by side, one a line.

    Args:
        plans: by the names that they shall have; all with the same parts.
        console: where to; None for standard output.
    """
    parts = [part.name for part in next(iter(plans.values())).parts]
    columns = ["compared", *parts, "all of these", "compiled", "step, at least"]
    table = _table("On each device", columns)
    for name, plan in plans.items():
        by_name = {part.name: part.on_device for part in plan.parts}
        roof = plan.estimate
        table.add_row(
            name,
            *(told_bytes(by_name[part]) if part in by_name else "" for part in parts),
            told_bytes(sum(by_name.values())),
            "" if plan.cost is None else told_bytes(plan.cost.total),
            "" if roof is None else told_seconds(roof.seconds),
        )
    (console or rich.console.Console()).print(table)


def told_bytes(number: float) -> str:
    """1.49 GB, say."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} B"


def told_seconds(number: float) -> str:
    """31 ms, say."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number / 1e-9:.3g} ns"


def _memory(plan: Plan) -> rich.table.Table:
    slice_, chip = plan.slice_, plan.slice_.chip
    title = f"{slice_.name}: {slice_.num_devices} x {chip.name}"
    if not math.isnan(chip.memory):
        title += f" of {told_bytes(chip.memory)}"
    table = _table(title, ["", "on each device", "of all, divided evenly"])
    for part in plan.parts:
        even = part.whole / slice_.num_devices
        table.add_row(part.name, told_bytes(part.on_device), told_bytes(even))
    table.add_section()
    if plan.cost is None:
        table.add_row("all of these", told_bytes(plan.on_device), "")
        return table
    cost = plan.cost
    for name, number in (
        ("compiled: arguments", cost.arguments),
        ("results, in new memory", cost.outputs - cost.donated),
        ("temporary: activations, gradients", cost.temporary),
        ("the program itself", cost.code),
    ):
        table.add_row(name, told_bytes(number), "")
    table.add_section()
    table.add_row("the step needs", told_bytes(cost.total), "")
    return table


def _remarks(plan: Plan) -> list[str]:
    lines = []
    if plan.note:
        lines.append(plan.note)
    if plan.fits is False:
        lines.append("It does not fit.")
    elif plan.fits:
        share = plan.on_device / plan.slice_.chip.memory
        missing = "" if plan.cost else "; activations come on top"
        lines.append(f"It fits: {share:.0%} of a device's memory{missing}.")
    for moved in plan.moved[:_MOST_LISTED]:
        where = "no axis" if moved.got is None else f"its axis {moved.got}"
        lines.append(
            f"{moved.mesh_axis} does not divide axis {moved.wanted} of {moved.name}: "
            f"it divides {where}."
        )
    if len(plan.moved) > _MOST_LISTED:
        lines.append(f"... and {len(plan.moved) - _MOST_LISTED} more such axes.")
    repeated = plan.repeated()
    if repeated:
        num_bytes = sum(extra for _, _, extra in repeated)
        part, leaf, extra = repeated[0]
        lines.append(
            f"{len(repeated)} leaves are not divided by all devices, which costs "
            f"{told_bytes(num_bytes)} on each; the most, {told_bytes(extra)}, "
            f"{leaf.name} of {part}."
        )
    return lines


def _collectives(plan: Plan) -> rich.table.Table:
    assert plan.cost is not None
    table = _table(
        "What the devices send each other in a step",
        ["", "how often", "bytes", "largest", "each sends"],
    )
    for each in plan.cost.collectives:
        table.add_row(
            each.kind,
            f"{each.num_runs:,}",
            told_bytes(each.bytes),
            told_bytes(each.largest),
            told_bytes(each.sent),
        )
    return table


def _compiled(plan: Plan) -> list[str]:
    cost, roof = plan.cost, plan.estimate
    assert cost is not None
    lines = [
        f"donated: {told_bytes(cost.donated)} of {told_bytes(cost.arguments)}"
        + (
            f"; given and not taken: {len(cost.not_donated)}, the first being "
            f"{cost.not_donated[0]}"
            if cost.not_donated
            else ""
        ),
        f"work: {cost.work:.3g} floating-point operations, {told_bytes(cost.moved)} to "
        f"and from memory, {cost.kernels:,} kernels",
    ]
    if cost.num_open_loops:
        lines.append(
            f"{cost.num_open_loops} loops of unknown length are counted as one round."
        )
    if roof is not None:
        rate = (
            f", {plan.num_items / roof.seconds:,.0f} tokens a second at most"
            if plan.num_items
            else ""
        )
        lines.append(
            "estimated from published peaks: a step of "
            f"{told_seconds(roof.seconds)} at least{rate} (arithmetic "
            f"{told_seconds(roof.arithmetic)}, memory {told_seconds(roof.memory)}, "
            f"network {told_seconds(roof.network)})"
        )
    return lines


def _table(title: str, columns: list[str]) -> rich.table.Table:
    table = rich.table.Table(title=title, title_justify="left", box=None)
    for i, column in enumerate(columns):
        # A name that is too long goes on in the next line: cut off, it names nothing.
        overflow: Literal["ellipsis", "fold"] = "ellipsis" if i else "fold"
        table.add_column(column, justify="right" if i else "left", overflow=overflow)
    return table
