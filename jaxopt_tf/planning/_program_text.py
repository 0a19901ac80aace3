"""A compiled program's text: its instructions, and how often each of them runs."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_BITS = {
    "pred": 8,
    **{f"{kind}{bits}": bits for kind in "su" for bits in (2, 4, 8, 16, 32, 64)},
    **{"bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128},
}
_INSTRUCTION = re.compile(
    r"\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(.*)"
)
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_CALLEES = re.compile(
    r"(body|condition|calls|to_apply|true_computation|false_computation|"
    r"branch_computations|called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Instruction(NamedTuple):
    """One line of a program."""

    name: str
    shape: str  # of its result
    op: str
    operands: tuple[str, ...]  # names
    rest: str  # attributes
    is_root: bool  # its result is that of its computation


class Times(NamedTuple):
    """How often a computation runs in one step; an open loop is taken for one round."""

    num_rounds: int
    is_kernel: bool  # it is a part of one, and runs with it


def computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The instructions of each computation by its name, and the name of the first."""
    found: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line.startswith(" "):
            instruction = _instruction(line) if current is not None else None
            if instruction is not None and current is not None:
                current.append(instruction)
        elif head := _HEAD.match(line):
            current = found.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
    return found, entry


def times(found: dict[str, list[Instruction]], entry: str) -> dict[str, Times]:
    """For each computation that runs, how often: bodies of loops once a round."""
    result = {entry: Times(1, False)}
    waiting = [entry]
    while waiting:  # a program's calls are no cycle
        caller = waiting.pop()
        for instruction in found[caller]:
            for callee, of_callee in _called(instruction, result[caller]):
                if callee in found and callee not in result:
                    result[callee] = of_callee
                    waiting.append(callee)
    return result


def _called(instruction: Instruction, caller: Times) -> Iterator[tuple[str, Times]]:
    rounds = _TRIPS.search(instruction.rest) if instruction.op == "while" else None
    for kind, names in _CALLEES.findall(instruction.rest):
        count = caller.num_rounds
        if kind in ("body", "condition"):
            count *= int(rounds[1]) if rounds else 1
        runs = instruction.op in ("while", "call", "conditional")
        for name in re.findall(r"[\w.\-]+", names):
            yield name, Times(count, caller.is_kernel or not runs)


def arrays(shape: str) -> list[tuple[int, bool]]:
    """Bytes of each array of a shape, and whether it is on the chip: a TPU's S(1)."""
    found = re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", shape)
    return [(_bytes(dtype, dims), "S(1)" in lay) for dtype, dims, lay in found]


def sizes(shape: str) -> list[int]:
    """Bytes of each array of a shape, in order."""
    return [num_bytes for num_bytes, _ in arrays(shape)]


def in_memory(shape: str) -> int:
    """Bytes of those arrays that are not on the chip."""
    return sum(num_bytes for num_bytes, is_on_chip in arrays(shape) if not is_on_chip)


def _bytes(dtype: str, dims: str) -> int:
    bits = 8 if dtype.startswith("f8") else _BITS.get(dtype, 0)
    return bits * math.prod(int(axis) for axis in dims.split(",") if axis) // 8


def _instruction(line: str) -> Instruction | None:
    found = _INSTRUCTION.match(re.sub(r"/\*.*?\*/", "", line))
    if not found:
        return None
    root, name, shape, op, operands, rest = found.groups()
    named = tuple(re.findall(r"%([\w.\-]+)", operands))
    operands = named or tuple(operands.split(", "))
    return Instruction(name, shape, op, operands, rest, root is not None)
