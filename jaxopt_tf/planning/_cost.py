"""Cost of one run of a compiled step, and the time that it takes at least."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax

from ._hlo import Collective, Program
from ._slices import Chip


class MatmulFlops(NamedTuple):
    """Floating-point operations of products of matrices and convolutions."""

    narrow: float = 0.0  # of bfloat16 and what is no wider
    default: float = 0.0  # of float32, with nothing asked: each platform has its own
    high: float = 0.0  # of float32: in TF32, or in three passes of bfloat16
    highest: float = 0.0  # of float32 as such

    def times(self, factor: float) -> "MatmulFlops":
        """Returns all of them, multiplied."""
        return MatmulFlops(*(factor * flops for flops in self))


class Cost(NamedTuple):
    """Cost of a step on each device; bytes of memory are the compiler's own figures."""

    arguments: int  # bytes
    outputs: int  # bytes
    donated: int  # bytes of arguments whose memory results take
    temporary: int  # bytes; on a TPU with those that are prefetched into the chip
    peak: int  # bytes at once, likewise; 0 if the compiler has no such figure
    code: int  # bytes of the program, which is in the device's memory too
    kernels: int  # instructions that run, those of a loop once a round
    hbm_bytes: int  # bytes between kernels and the device's memory, likewise
    accessed: float  # bytes, by the compiler: on-chip ones too, loops one round
    flops: float  # by the compiler, loops one round; NaN if it has no such figure
    products: MatmulFlops  # as written, loops whole, a device's share
    collectives: tuple[Collective, ...]  # by kind, those of a loop once a round
    not_donated: tuple[str, ...]  # donated arguments whose memory no result takes
    has_loops: bool  # whether the compiler's two figures are of one round
    num_open_loops: int  # loops of unknown length, counted as one round everywhere

    @property
    def total(self) -> int:
        """Bytes of a device's memory that the step needs."""
        return self.arguments + self.outputs - self.donated + self.temporary + self.code

    @property
    def work(self) -> float:
        """Floating-point operations, loops whole."""
        # The compiler for GPUs has no figure without a GPU.
        if not math.isnan(self.flops) and not self.has_loops:
            return self.flops
        written = sum(self.products)
        return written if math.isnan(self.flops) else max(self.flops, written)


class Estimate(NamedTuple):
    """Seconds of a step by each of three limits: an estimate, not a promise.

    Real steps take longer: no kernel reaches its peak, and work that is taken here to
    run at the same time waits in part for each other.
    """

    arithmetic: float  # at the published peaks, products as precise as asked
    memory: float  # at the published bandwidth
    network: float  # at the published rate of all links together

    @property
    def seconds(self) -> float:
        """Seconds of the step: the longest of the three."""
        return max(self)

    @property
    def limit(self) -> str:
        """Name of the longest."""
        return self._fields[self.index(max(self))]


def program_cost(compiled: Any, num_devices: int, traced: Any = None) -> Cost:
    """Returns the cost of a compiled program.

    Args:
        compiled: `jitted.lower(...).compile()`.
        num_devices: how many it is compiled for.
        traced: `jitted.trace(...)` of the same arguments, for `products` and
            `not_donated`; without it these are 0 and empty.
    """
    program = Program(compiled.as_text())
    memory, analysis = compiled.memory_analysis(), compiled.cost_analysis() or {}
    kernels, hbm_bytes = program.traffic()
    loops = program.loops()
    flops = MatmulFlops() if traced is None else products(traced.jaxpr.jaxpr)
    return Cost(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        donated=memory.alias_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        peak=getattr(memory, "peak_memory_in_bytes", 0),
        code=memory.generated_code_size_in_bytes,
        kernels=kernels,
        hbm_bytes=hbm_bytes,
        accessed=analysis.get("bytes accessed", math.nan),
        flops=analysis.get("flops", math.nan),
        products=flops.times(1 / num_devices),
        collectives=program.collectives(num_devices),
        not_donated=() if traced is None else _not_donated(program, traced),
        has_loops=bool(loops),
        num_open_loops=loops.count(False),
    )


def estimate(cost: Cost, chip: Chip) -> Estimate:
    """Returns the roofline of a compiled step.

    Source: Williams et al., "Roofline: An Insightful Visual Performance Model for
        Multicore Architectures", 2009, with the network as a third roof.
    """
    sent = sum(collective.sent for collective in cost.collectives)
    wide = zip(cost.products[1:], chip.slower, strict=True)
    work = cost.work + sum(flops * (slower - 1.0) for flops, slower in wide)
    return Estimate(
        work / chip.flops, cost.hbm_bytes / chip.bandwidth, sent / chip.interconnect
    )


def _not_donated(program: Program, traced: Any) -> tuple[str, ...]:
    names = traced.jaxpr.jaxpr.debug_info.arg_names
    is_given = [argument.donated for argument in jax.tree.leaves(traced.args_info)]
    numbers = program.parameter_numbers()
    return tuple(
        name
        for name, given in zip(names, is_given, strict=True)
        if given and numbers.get(name) not in program.aliased
    )


def products(jaxpr: Any) -> MatmulFlops:
    """Returns the products of a traced function, on all devices.

    A scan counts once a round, a loop of unknown length as one round, and a choice as
    its dearest branch. XLA's own count takes a scan for one round, and does not tell
    precisions apart. Work that the compiler leaves out or repeats is not known here.
    """
    return _sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation: Any) -> MatmulFlops:
    name, params = equation.primitive.name, equation.params
    if name in ("dot_general", "conv_general_dilated"):
        left, right = (x.aval for x in equation.invars[:2])
        out = equation.outvars[0].aval
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            summed: float = math.prod(left.shape[axis] for axis in contracted)
        else:
            out_axis = params["dimension_numbers"].rhs_spec[0]
            summed = right.size / max(1, right.shape[out_axis])
        return MatmulFlops(**{_precision(equation): 2.0 * out.size * summed})
    if name == "cond":
        return max((products(branch.jaxpr) for branch in params["branches"]), key=sum)
    rounds = params["length"] if name == "scan" else 1
    inner = jax.tree.leaves(
        list(params.values()),
        is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"),
    )
    jaxprs = (getattr(x, "jaxpr", x) for x in inner)
    return _sum(products(x) for x in jaxprs if hasattr(x, "eqns")).times(rounds)


def _sum(found: Iterable[MatmulFlops]) -> MatmulFlops:
    return MatmulFlops(*map(sum, zip(MatmulFlops(), *found, strict=True)))


def _precision(equation: Any) -> str:
    if any(x.aval.dtype.itemsize < 4 for x in equation.invars):
        return "narrow"
    asked = equation.params["precision"]
    # Of both factors. An algorithm that is named by text counts as the default.
    precision: Any = asked[0] if isinstance(asked, tuple) else None
    names = {jax.lax.Precision.HIGH: "high", jax.lax.Precision.HIGHEST: "highest"}
    return names.get(precision, "default")
