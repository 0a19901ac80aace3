"""What one run of a compiled step costs, read from the program itself."""

import math
import re
from typing import Any, NamedTuple

import jax

from ._collectives import Collective, collectives
from ._live import live_bytes
from ._products import Products, products
from ._program_text import Instruction, Times, computations, in_memory, sizes, times

# They move nothing; what a `-start` fetched is counted there, and what a loop or a call
# moves is counted within.
_FREE = frozenset(
    {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
    | {"while", "call", "conditional", "after-all", "opt-barrier"}
)


class Cost(NamedTuple):
    """What a step costs each device; bytes of memory are the compiler's own figures."""

    arguments: int  # bytes
    outputs: int  # bytes
    donated: int  # bytes of arguments whose place results take
    temporary: int  # bytes; on a TPU with what it fetches ahead into the chip
    peak: int  # bytes at once, likewise; 0 where the compiler does not say
    live: int  # bytes of `temporary` at once, off the chip; within loops not known
    code: int  # bytes of the program, which lies in the device's memory too
    kernels: int  # instructions that run, those of a loop once a round
    moved: int  # bytes between kernels and the device's memory, likewise
    accessed: float  # bytes, as the compiler says: on-chip ones too, loops one round
    flops: float  # as the compiler says, loops one round; NaN where it does not
    products: Products  # as written, loops whole, a device's share
    collectives: tuple[Collective, ...]  # by kind, those of a loop once a round
    not_donated: tuple[str, ...]  # arguments that were given away and not taken
    has_loops: bool  # whether the compiler's two figures are of one round
    num_open_loops: int  # loops of unknown length, counted as one round everywhere

    @property
    def total(self) -> int:
        """Bytes of a device's memory that the step needs."""
        return self.arguments + self.outputs - self.donated + self.temporary + self.code

    @property
    def work(self) -> float:
        """Floating-point operations, loops whole."""
        # A GPU's compiler says none without the GPU.
        is_said = not math.isnan(self.flops)
        if is_said and not self.has_loops:
            return self.flops
        written = sum(self.products)
        return max(self.flops, written) if is_said else written


def program_cost(compiled: Any, num_devices: int, traced: Any = None) -> Cost:
    """Reads a compiled program.

    Args:
        compiled: `jitted.lower(...).compile()`.
        num_devices: how many it is compiled for.
        traced: `jitted.trace(...)` of the same arguments, for `products` and
            `not_donated`; without it these are 0 and empty.
    """
    text = compiled.as_text()
    found, entry = computations(text)
    runs = times(found, entry)
    memory, said = compiled.memory_analysis(), compiled.cost_analysis() or {}
    in_loops = [
        instruction
        for name in runs
        for instruction in found[name]
        if instruction.op == "while"
    ]
    kernels, moved = _traffic(found, runs)
    return Cost(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        donated=memory.alias_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        peak=getattr(memory, "peak_memory_in_bytes", 0),
        live=live_bytes(found[entry]),
        code=memory.generated_code_size_in_bytes,
        kernels=kernels,
        moved=moved,
        accessed=said.get("bytes accessed", math.nan),
        flops=said.get("flops", math.nan),
        products=Products()
        if traced is None
        else products(traced.jaxpr.jaxpr).times(1 / num_devices),
        collectives=collectives(found, runs, num_devices),
        not_donated=() if traced is None else _not_donated(text, found[entry], traced),
        has_loops=bool(in_loops),
        num_open_loops=sum('"known_trip_count"' not in loop.rest for loop in in_loops),
    )


def _traffic(
    found: dict[str, list[Instruction]], runs: dict[str, Times]
) -> tuple[int, int]:
    kernels = moved = 0
    for name, of in runs.items():
        if of.is_kernel:
            continue
        results: dict[str, int] = {}
        for instruction in found[name]:
            results[instruction.name] = in_memory(instruction.shape)
            if instruction.op in _FREE or instruction.op.endswith("-done"):
                continue
            kernels += of.num_rounds
            if instruction.op.endswith("-start"):
                # Between two memories: the smaller of its arrays.
                arrays = [x for x in sizes(instruction.shape)[:2] if x]
                moved += of.num_rounds * min(arrays, default=0)
                continue
            read = sum(results.get(operand, 0) for operand in instruction.operands)
            moved += of.num_rounds * (results[instruction.name] + read)
    return kernels, moved


def _not_donated(text: str, entry: list[Instruction], traced: Any) -> tuple[str, ...]:
    """Names of arguments that the caller gave away and no result took the place of."""
    aliases = text[: text.index("\n")].partition("input_output_alias=")[2]
    taken = {int(i) for i in re.findall(r": \((\d+), \{[^}]*\}, \w+-alias\)", aliases)}
    names = traced.jaxpr.jaxpr.debug_info.arg_names
    is_given = [argument.donated for argument in jax.tree.leaves(traced.args_info)]
    # Unused arguments are no parameters of the program; the others keep their names.
    numbers = {}
    for instruction in entry:
        if instruction.op == "parameter":
            said = re.search(r'op_name="((?:[^"\\]|\\.)*)"', instruction.rest)
            name = re.sub(r"\\(.)", r"\1", said[1]) if said else None
            numbers[name] = int(instruction.operands[0])
    return tuple(
        name
        for name, given in zip(names, is_given, strict=True)
        if given and numbers.get(name) not in taken
    )
