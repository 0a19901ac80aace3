"""Parser for the HLO text of a compiled program.

The text contains facts that XLA's analyses lack. `cost_analysis()` counts the body of a
loop once for any number of iterations, does not separate on-chip traffic from traffic
of the device's memory, and contains no collectives. `memory_analysis()` does not list
donated arguments whose memory is not reused. The text is parsed by regular expressions,
because XLA has no public parser in Python.
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
# Matches a line such as
#     ROOT %add.3 = f32[8,4]{1,0:S(1)} add(%p.0, %p.1), metadata={op_name="jit(f)/add"}
# with the groups ROOT, name, shape (or a tuple of shapes), operation, operands and
# attributes.
_INSTRUCTION = re.compile(
    r"\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(.*)"
)
# Matches the first line of a computation: `%body.1 (p: f32[4]) -> f32[4] {`. That of
# the main computation begins with ENTRY.
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_CALLEES = re.compile(
    r"(body|condition|calls|to_apply|true_computation|false_computation|"
    r"branch_computations|called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
# XLA writes the number of iterations into the backend configuration of a loop if its
# analysis could determine the number. The compiler for TPUs never writes it.
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# Operations without memory traffic of their own. The traffic of a loop, a call or a
# branch is counted in the computations that it runs.
_FREE = frozenset(
    {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
    | {"while", "call", "conditional", "after-all", "opt-barrier"}
)
_COLLECTIVES = frozenset(
    {"all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"}
    | {"collective-permute", "collective-broadcast"}
)


class Array(NamedTuple):
    """Array that an instruction computes."""

    num_bytes: int
    is_on_chip: bool  # whether it is in a TPU's on-chip memory, S(1) in its layout


class Instruction(NamedTuple):
    """Instruction of a program, which is one line of the text."""

    name: str
    arrays: list[Array]  # results
    op: str  # operation, such as "fusion" or "all-reduce-start"
    operands: list[str]  # names; for a parameter its number, for a constant its value
    attributes: str  # rest of the line
    is_root: bool  # whether its result is that of the computation

    @property
    def bytes_in_memory(self) -> int:
        """Bytes of the results that are in the device's main memory."""
        return sum(x.num_bytes for x in self.arrays if not x.is_on_chip)


class Runs(NamedTuple):
    """Number of runs of a computation in one step."""

    num_runs: int  # a loop of unknown length counts as one iteration
    is_fused: bool  # whether it is part of a fusion, which runs as one kernel


class Collective(NamedTuple):
    """Totals of all collectives of one kind in a step, per device."""

    kind: str  # operation, such as "all-reduce"
    num_runs: int  # number of executions in a step
    bytes: int  # bytes of the operands or of the results, whichever are larger
    largest: int  # bytes of the largest array
    sent: float  # least number of bytes that a device sends


class Program:
    """Instructions of a compiled program, and the number of runs of each computation.

    Attributes:
        computations: instructions by the name of their computation.
        aliased: numbers of the parameters whose memory is reused for results.
        entry: instructions of the main computation.
        runs: `Runs` of each computation that a step executes, by its name.
    """

    def __init__(self, text: str) -> None:
        self.computations: dict[str, list[Instruction]] = {}
        # The first line, `HloModule ...`, lists the aliases of donated arguments as
        # `{1}: (0, {}, may-alias)`: result 1 reuses the memory of parameter 0.
        aliases = text[: text.index("\n")].partition("input_output_alias=")[2]
        found = re.findall(r": \((\d+), \{[^}]*\}, \w+-alias\)", aliases)
        self.aliased = {int(number) for number in found}
        instructions: list[Instruction] = []
        entry = ""
        for line in text.splitlines():
            if line.startswith(" "):
                instructions += _parse_instruction(line)
            elif head := _HEAD.match(line):
                instructions = self.computations.setdefault(head[2], [])
                entry = head[2] if head[1] else entry
        self.entry = self.computations[entry]
        self.runs = {entry: Runs(1, False)}
        pending = [entry]
        while pending:  # ends, because HLO has no recursion
            caller = pending.pop()
            for instruction in self.computations[caller]:
                trips = self._trip_count(instruction)
                for callee, runs in _callees(instruction, self.runs[caller], trips):
                    if callee in self.computations and callee not in self.runs:
                        self.runs[callee] = runs
                        pending.append(callee)

    def running(self) -> Iterator[tuple[Instruction, Runs]]:
        """Yields all instructions that run, with the runs of their computation."""
        for name, runs in self.runs.items():
            for instruction in self.computations[name]:
                yield instruction, runs

    def are_loop_lengths_known(self) -> list[bool]:
        """Returns, for each loop that runs, whether its length is known."""
        return [
            self._trip_count(instruction) is not None
            for instruction, _ in self.running()
            if instruction.op == "while"
        ]

    def _trip_count(self, instruction: Instruction) -> int | None:
        """Returns the number of iterations of a loop; None if it is unknown.

        If XLA does not state the number, it is computed from a condition of the form
        counter < constant, with a counter that starts at 0. Loops of `jax.lax.scan`
        have this form, and so do those that XLA makes to split a matrix product. XLA
        unrolls the loops that it makes, so that their counter increases by more than 1.
        """
        if instruction.op != "while":
            return None
        if stated := _TRIP_COUNT.search(instruction.attributes):
            return int(stated[1])
        condition = self._callee(instruction, "condition")
        body = self._callee(instruction, "body")
        root = next((x for x in condition if x.is_root and x.op == "compare"), None)
        if root is None or "direction=LT" not in root.attributes:
            return None
        counter, limit = (_find_instruction(condition, name) for name in root.operands)
        index = _tuple_index(counter)
        if limit is None or not limit.operands[0].isdecimal() or index is None:
            return None
        return -(-int(limit.operands[0]) // self._increment(instruction, body, index))

    def _increment(self, loop: Instruction, body: list[Instruction], index: int) -> int:
        """Returns the increment of element `index` of a loop's state; 1 if unknown."""
        state = next(x.operands for x in body if x.is_root)
        update = _find_instruction(body, state[index])
        if update is None or update.op != "add":
            return 1
        addends = [_find_instruction(body, name) for name in update.operands]
        added = next((x for x in addends if x and _tuple_index(x) != index), None)
        if added is not None and (invariant_index := _tuple_index(added)) is not None:
            # The increment is a constant that the caller stored in the loop's state.
            caller = next(c for c in self.computations.values() if loop in c)
            initial_state = _find_instruction(caller, loop.operands[0])
            added = initial_state and _find_instruction(
                caller, initial_state.operands[invariant_index]
            )
            if added is not None and added.op == "copy":
                added = _find_instruction(caller, added.operands[0])
        if added is None or added.op != "constant":
            return 1
        return int(added.operands[0])

    def _callee(self, instruction: Instruction, kind: str) -> list[Instruction]:
        """Returns the computation in the attribute `kind` ("body", ...); else []."""
        name = re.search(rf"\b{kind}=%?([\w.\-]+)", instruction.attributes)
        return self.computations.get(name[1], []) if name else []

    def parameter_numbers(self) -> dict[str, int]:
        """Returns the numbers of the parameters by the names of the arguments.

        XLA removes unused arguments, so they have no number.
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
        # An instruction reads the results of its operands. Operands come before it in
        # the text, and names are unique within a program.
        sizes: dict[str, int] = {}
        for instruction, (num_runs, is_fused) in self.running():
            op = instruction.op
            sizes[instruction.name] = instruction.bytes_in_memory
            if is_fused or op in _FREE or op.endswith("-done"):
                continue
            kernels += num_runs
            if op.endswith("-start"):
                # An asynchronous copy or slice returns source and destination. The
                # number of bytes copied is the size of the smaller one.
                arrays = [x.num_bytes for x in instruction.arrays[:2] if x.num_bytes]
                num_bytes += num_runs * min(arrays, default=0)
            else:
                num_bytes += num_runs * self._bytes_accessed(instruction, sizes)
        return kernels, num_bytes

    def _bytes_accessed(self, instruction: Instruction, sizes: dict[str, int]) -> int:
        """Returns the bytes that an instruction reads and writes.

        A fusion in a loop over layers selects the parameters of one layer from the
        stack of all, and writes its results into a part of another stack. Only these
        parts are counted.
        """
        fused = self._callee(instruction, "calls")
        if instruction.op != "fusion" or not fused:
            fused = [instruction]
            inputs = {name: sizes.get(name, 0) for name in instruction.operands}
        else:
            operand_sizes = [sizes.get(operand, 0) for operand in instruction.operands]
            inputs = {
                member.name: operand_sizes[int(member.operands[0])]
                for member in fused
                if member.op == "parameter"
            }
        users: dict[str, list[Instruction]] = {}
        for member in fused:
            for operand in set(member.operands):
                users.setdefault(operand, []).append(member)
        by_name = {member.name: member for member in fused}
        bytes_read = sum(
            min(size, sum(_bytes_read(user, name, size, users) for user in users[name]))
            for name, size in inputs.items()
            if name in users
        )
        root = next((member for member in fused if member.is_root), instruction)
        results = root.operands if root.op == "tuple" else [root.name]
        bytes_written = 0
        for array, name in zip(instruction.arrays, results, strict=False):
            result = by_name.get(name)
            while result is not None and result.op == "bitcast":
                result = by_name.get(result.operands[0])
            size = array.num_bytes
            if result is not None and result.op == "dynamic-update-slice":
                part = by_name.get(result.operands[1])
                size = sizes.get(result.operands[1], size)
                size = size if part is None else part.arrays[0].num_bytes
            bytes_written += 0 if array.is_on_chip else size
        return bytes_read + bytes_written

    def collectives(self, num_devices: int) -> tuple[Collective, ...]:
        """Returns the collectives by kind, in descending order of their bytes.

        An asynchronous collective, a pair of `-start` and `-done`, counts once.
        """
        totals: dict[str, Collective] = {}
        counted: set[tuple[str, str]] = set()
        for instruction, (num_runs, _) in self.running():
            kind = instruction.op.removesuffix("-start")
            if kind not in _COLLECTIVES:
                continue
            # On a TPU, an all-gather appears once in every kernel that it overlaps
            # with, under one channel id. All collective-permutes share one id, which
            # therefore does not identify them.
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            if channel and kind != "collective-permute":
                if (kind, channel[1]) in counted:
                    continue
                counted.add((kind, channel[1]))
            group_size = _group_size(instruction.attributes, num_devices)
            arrays = _larger_side(kind, instruction, group_size)
            if group_size > 1 or kind == "collective-permute":
                old = totals.get(kind, Collective(kind, 0, 0, 0, 0.0))
                totals[kind] = Collective(
                    kind,
                    old.num_runs + num_runs,
                    old.bytes + num_runs * sum(arrays),
                    max(old.largest, *arrays),
                    old.sent + num_runs * _sent_bytes(kind, sum(arrays), group_size),
                )
        return tuple(sorted(totals.values(), key=lambda total: -total.bytes))


def _parse_instruction(line: str) -> list[Instruction]:
    # Comments such as /*index=5*/ occur in long tuples.
    found = _INSTRUCTION.match(re.sub(r"/\*.*?\*/", "", line))
    if not found:  # another kind of line
        return []
    root, name, shape, op, operands, attributes = found.groups()
    arrays = [
        Array(_num_bytes(dtype, dims), "S(1)" in layout)
        for dtype, dims, layout in re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", shape)
    ]
    names = re.findall(r"%([\w.\-]+)", operands) or operands.split(", ")
    return [Instruction(name, arrays, op, names, attributes, root is not None)]


def _bytes_read(
    user: Instruction, name: str, size: int, users: dict[str, list[Instruction]]
) -> int:
    """Returns the bytes of the array `name` that an instruction of a fusion reads."""
    if user.op == "bitcast":
        further = users.get(user.name, ())
        return sum(_bytes_read(member, user.name, size, users) for member in further)
    if user.op == "dynamic-slice" and name == user.operands[0]:
        return user.arrays[0].num_bytes
    # An array that is updated in place is not read.
    if user.op == "dynamic-update-slice" and name == user.operands[0]:
        return 0
    return size


def _num_bytes(dtype: str, dims: str) -> int:
    # There are several float8 formats: f8e4m3fn, f8e5m2, ...
    bits = 8 if dtype.startswith("f8") else _BITS.get(dtype, 0)
    return bits * math.prod(int(axis) for axis in dims.split(",") if axis) // 8


def _find_instruction(computation: list[Instruction], name: str) -> Instruction | None:
    return next((member for member in computation if member.name == name), None)


def _tuple_index(instruction: Instruction | None) -> int | None:
    """Returns the index of a `get-tuple-element`."""
    if instruction is None or instruction.op != "get-tuple-element":
        return None
    found = re.search(r"index=(\d+)", instruction.attributes)
    return int(found[1]) if found else None


def _callees(
    instruction: Instruction, caller: Runs, trips: int | None
) -> Iterator[tuple[str, Runs]]:
    # All operations except these three fuse the computations that they call into their
    # own kernel.
    is_fusing = instruction.op not in ("while", "call", "conditional")
    for kind, names in _CALLEES.findall(instruction.attributes):
        count = caller.num_runs
        if kind in ("body", "condition") and trips is not None:
            count *= trips
        for name in re.findall(r"[\w.\-]+", names):
            yield name, Runs(count, caller.is_fused or is_fusing)


def _larger_side(kind: str, instruction: Instruction, group_size: int) -> list[int]:
    """Returns the bytes of each operand or of each result, whichever are larger."""
    arrays = [x.num_bytes for x in instruction.arrays]
    # The result of a `-start` is a tuple of operands, then results. Exceptions are an
    # all-reduce (results only) and a permute (operand, result and two counters).
    if instruction.op.endswith("-start"):
        if kind == "collective-permute":
            return arrays[:1]
        half = len(arrays) // 2
        if kind == "reduce-scatter":
            return arrays[:half]  # operands, which are larger here
        if kind != "all-reduce":
            return arrays[half:]
    if kind == "reduce-scatter":
        return [group_size * array for array in arrays]
    return arrays or [0]


def _sent_bytes(kind: str, num_bytes: int, group_size: int) -> float:
    if kind in ("collective-permute", "collective-broadcast"):
        return num_bytes
    # A ring all-gather or reduce-scatter in a group of n devices sends (n - 1) / n of
    # the array. An all-reduce is a reduce-scatter that is followed by an all-gather.
    num_rings = 2 if kind == "all-reduce" else 1
    return num_bytes * num_rings * (group_size - 1) / group_size


def _group_size(attributes: str, num_devices: int) -> int:
    """Returns the number of devices in a group, from any of the three notations."""
    # The notations are {{0,1},{2,3}}; [2,4]<=[8], which means 2 groups of 4; and the
    # axes of a mesh. An absent or empty list means one group of all devices.
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return listed[1].count(",") + 1
    if group_shape := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(group_shape[1])
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes)
    if mesh:
        axes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        names = re.findall(r"'(\w+)'", mesh[2])
        return math.prod(int(axes.get(name, 1)) for name in names)
    return num_devices
