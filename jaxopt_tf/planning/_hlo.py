"""Text of a compiled program: what XLA's own analyses do not contain.

`cost_analysis()` counts the body of a loop once however often it runs, adds on-chip
traffic to that of the device's memory, and contains no collectives; `memory_analysis()`
does not name the arguments whose memory no result takes. Those are read from the text
here, by regular expressions: XLA has no public parser in Python.
"""

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
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# They move nothing: a `-start` counts what its `-done` hands on, and what a loop or a
# call moves is counted within.
_FREE = frozenset(
    {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
    | {"while", "call", "conditional", "after-all", "opt-barrier"}
)
_COLLECTIVES = frozenset(
    {"all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"}
    | {"collective-permute", "collective-broadcast"}
)


class Array(NamedTuple):
    """An array that an instruction computes."""

    num_bytes: int
    is_on_chip: bool  # in a TPU's own memory, S(1)


class Instruction(NamedTuple):
    """One line of a program."""

    name: str
    arrays: list[Array]  # its results
    op: str
    operands: list[str]  # names; of a parameter its number
    attributes: str
    is_root: bool  # its result is that of its computation

    @property
    def in_memory(self) -> int:
        """Bytes of the results that are in the device's memory."""
        return sum(x.num_bytes for x in self.arrays if not x.is_on_chip)


class Runs(NamedTuple):
    """Number of runs of a computation in one step; an open loop counts as one."""

    num_rounds: int
    is_kernel: bool  # it is a part of one, and runs with it


class Collective(NamedTuple):
    """All operations of one kind in a step, as one device sees them."""

    kind: str
    num_runs: int
    bytes: int  # of the arrays before or after, whichever are larger
    largest: int  # bytes of the largest array among them
    sent: float  # bytes that a device sends at least


class Program:
    """Instructions of a compiled program, and how often each computation runs."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, list[Instruction]] = {}
        # Numbers of the parameters whose memory results take.
        aliases = text[: text.index("\n")].partition("input_output_alias=")[2]
        found = re.findall(r": \((\d+), \{[^}]*\}, \w+-alias\)", aliases)
        self.aliased = {int(number) for number in found}
        current: list[Instruction] = []
        entry = ""
        for line in text.splitlines():
            if line.startswith(" "):
                current += _instruction(line)
            elif head := _HEAD.match(line):
                current = self.computations.setdefault(head[2], [])
                entry = head[2] if head[1] else entry
        self.entry = self.computations[entry]
        self.runs = {entry: Runs(1, False)}
        waiting = [entry]
        while waiting:  # calls are never recursive
            caller = waiting.pop()
            for instruction in self.computations[caller]:
                for callee, runs in _called(instruction, self.runs[caller]):
                    if callee in self.computations and callee not in self.runs:
                        self.runs[callee] = runs
                        waiting.append(callee)

    def running(self) -> Iterator[tuple[Instruction, Runs]]:
        """Yields the instructions of all computations that run."""
        for name, runs in self.runs.items():
            for instruction in self.computations[name]:
                yield instruction, runs

    def loops(self) -> list[bool]:
        """Returns, for each loop that runs, whether its length is known."""
        return [
            _TRIP_COUNT.search(instruction.attributes) is not None
            for instruction, _ in self.running()
            if instruction.op == "while"
        ]

    def parameter_numbers(self) -> dict[str, int]:
        """Returns the numbers of the parameters by their names in Python.

        Arguments that the program does not use are no parameters.
        """
        numbers = {}
        for instruction in self.entry:
            named = re.search(r'op_name="((?:[^"\\]|\\.)*)"', instruction.attributes)
            if instruction.op == "parameter" and named:
                name = re.sub(r"\\(.)", r"\1", named[1])
                numbers[name] = int(instruction.operands[0])
        return numbers

    def traffic(self) -> tuple[int, int]:
        """Returns the number of kernels, and the bytes that they read and write."""
        kernels = num_bytes = 0
        sizes: dict[str, int] = {}  # names are unique within a program
        for instruction, (num_rounds, is_kernel) in self.running():
            op = instruction.op
            sizes[instruction.name] = written = instruction.in_memory
            if is_kernel or op in _FREE or op.endswith("-done"):
                continue
            kernels += num_rounds
            if op.endswith("-start"):
                # Uniform two memories: the smaller of its arrays.
                arrays = [x.num_bytes for x in instruction.arrays[:2] if x.num_bytes]
                num_bytes += num_rounds * min(arrays, default=0)
            else:
                read = sum(sizes.get(operand, 0) for operand in instruction.operands)
                num_bytes += num_rounds * (written + read)
        return kernels, num_bytes

    def collectives(self, num_devices: int) -> tuple[Collective, ...]:
        """Returns the collectives by kind, most bytes first.

        One that is split in two, so that something else may run meanwhile, counts once.
        """
        totals: dict[str, Collective] = {}
        seen: set[tuple[str, str]] = set()
        for instruction, (num_rounds, _) in self.running():
            kind = instruction.op.removesuffix("-start")
            if kind not in _COLLECTIVES:
                continue
            # A TPU's text repeats an all-gather in each part of the kernels it runs
            # beside, with one channel. All permutes have the same channel.
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            if channel and kind != "collective-permute":
                if (kind, channel[1]) in seen:
                    continue
                seen.add((kind, channel[1]))
            size = _group_size(instruction.attributes, num_devices)
            arrays = _larger_side(kind, instruction, size)
            if size > 1 or kind == "collective-permute":
                old = totals.get(kind, Collective(kind, 0, 0, 0, 0.0))
                totals[kind] = Collective(
                    kind,
                    old.num_runs + num_rounds,
                    old.bytes + num_rounds * sum(arrays),
                    max(old.largest, *arrays),
                    old.sent + num_rounds * _sent(kind, sum(arrays), size),
                )
        return tuple(sorted(totals.values(), key=lambda total: -total.bytes))


def _instruction(line: str) -> list[Instruction]:
    found = _INSTRUCTION.match(re.sub(r"/\*.*?\*/", "", line))
    if not found:
        return []
    root, name, shape, op, operands, attributes = found.groups()
    arrays = [
        Array(_num_bytes(dtype, dims), "S(1)" in layout)
        for dtype, dims, layout in re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", shape)
    ]
    names = re.findall(r"%([\w.\-]+)", operands) or operands.split(", ")
    return [Instruction(name, arrays, op, names, attributes, root is not None)]


def _num_bytes(dtype: str, dims: str) -> int:
    bits = 8 if dtype.startswith("f8") else _BITS.get(dtype, 0)
    return bits * math.prod(int(axis) for axis in dims.split(",") if axis) // 8


def _called(instruction: Instruction, caller: Runs) -> Iterator[tuple[str, Runs]]:
    trips = _TRIP_COUNT.search(instruction.attributes)
    is_run = instruction.op in ("while", "call", "conditional")
    for kind, names in _CALLEES.findall(instruction.attributes):
        count = caller.num_rounds
        if kind in ("body", "condition") and trips:
            count *= int(trips[1])
        for name in re.findall(r"[\w.\-]+", names):
            yield name, Runs(count, caller.is_kernel or not is_run)


def _larger_side(kind: str, instruction: Instruction, size: int) -> list[int]:
    """Returns the bytes of each array, before or after, whichever are larger."""
    arrays = [x.num_bytes for x in instruction.arrays]
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
    # Each device sends its part of a sum on, and the result of the sum comes back.
    return num_bytes * (2 if kind == "all-reduce" else 1) * (size - 1) / size


def _group_size(attributes: str, num_devices: int) -> int:
    """Returns how many devices take part together, from each notation of groups."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return listed[1].count(",") + 1
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(counted[1])
    of_mesh = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes)
    if of_mesh:
        axes = dict(re.findall(r"'(\w+)'=(\d+)", of_mesh[1]))
        names = re.findall(r"'(\w+)'", of_mesh[2])
        return math.prod(int(axes.get(name, 1)) for name in names)
    return num_devices
