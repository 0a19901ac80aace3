"""What the devices of a compiled program send each other."""

import math
import re
from typing import NamedTuple

from ._program_text import Instruction, Times, sizes

_KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


class Collective(NamedTuple):
    """All operations of one kind in a step, as one device sees them."""

    kind: str
    num_runs: int
    bytes: int  # of the arrays before or after, whichever are larger
    largest: int  # bytes of the largest array among them
    sent: float  # bytes that a device sends at least


def collectives(
    found: dict[str, list[Instruction]], times: dict[str, Times], num_devices: int
) -> tuple[Collective, ...]:
    """Counts them in all computations that run; most bytes first.

    One that is taken apart, so that something else may run meanwhile, counts once.
    """
    totals: dict[str, Collective] = {}
    seen: set[tuple[str, str]] = set()
    for name, of in times.items():
        for instruction in found[name]:
            kind = instruction.op.removesuffix("-start")
            if kind not in _KINDS:
                continue
            # A TPU's text has an all-gather in each part of the kernels it runs beside;
            # its number tells that it is the same. Permutes share one number.
            channel = re.search(r"channel_id=(\d+)", instruction.rest)
            if channel and kind != "collective-permute":
                if (kind, channel[1]) in seen:
                    continue
                seen.add((kind, channel[1]))
            size = _group_size(instruction.rest, num_devices)
            arrays = _larger(kind, instruction, size)
            if size > 1 or kind == "collective-permute":
                old = totals.get(kind, Collective(kind, 0, 0, 0, 0.0))
                totals[kind] = Collective(
                    kind,
                    old.num_runs + of.num_rounds,
                    old.bytes + of.num_rounds * sum(arrays),
                    max(old.largest, *arrays),
                    old.sent + of.num_rounds * _sent(kind, sum(arrays), size),
                )
    return tuple(sorted(totals.values(), key=lambda total: -total.bytes))


def _larger(kind: str, instruction: Instruction, size: int) -> list[int]:
    """Bytes of each array on the side where they are larger."""
    arrays = sizes(instruction.shape)
    if instruction.op.endswith("-start"):
        if kind == "collective-permute":
            return arrays[:1]  # operand, result, two counters
        if kind != "all-reduce":
            return arrays[len(arrays) // 2 :]  # operands, results
    if kind == "reduce-scatter":
        return [size * array for array in arrays]
    return arrays or [0]


def _sent(kind: str, num_bytes: int, size: int) -> float:
    if kind in ("collective-permute", "collective-broadcast"):
        return num_bytes
    # Each device has its part of a sum to send on, and a sum's result comes back.
    return num_bytes * (2 if kind == "all-reduce" else 1) * (size - 1) / size


def _group_size(rest: str, num_devices: int) -> int:
    """How many devices take part together, in each way in which that is written."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return listed[1].count(",") + 1
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest):
        return int(counted[1])
    if of_mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", of_mesh[1]))
        names = re.findall(r"'(\w+)'", of_mesh[2])
        return math.prod(int(axes.get(name, 1)) for name in names)
    return num_devices
