"""Cost of one run of a compiled step, and a lower bound of its time."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax

from ._hlo import Collective, Program
from ._slices import Chip


class MatmulFlops(NamedTuple):
    """Floating-point operations of matrix products and convolutions."""

    narrow: float = 0.0  # inputs of 16 bits or fewer, such as bfloat16
    default: float = 0.0  # float32 at the default precision of the platform
    high: float = 0.0  # float32 at "high": TF32, or three passes in bfloat16
    highest: float = 0.0  # float32 at "highest": full precision

    def times(self, factor: float) -> "MatmulFlops":
        """Returns all counts, multiplied by a factor."""
        return MatmulFlops(*(factor * flops for flops in self))


class Cost(NamedTuple):
    """Cost of a step on each device. Memory sizes are figures of the compiler.

    The compiler's figures count the body of a loop once. All other figures count it
    once per iteration.
    """

    arguments: int  # bytes
    outputs: int  # bytes
    aliased: int  # bytes of arguments whose memory is reused for outputs
    temporary: int  # bytes; on a TPU including data prefetched into the chip
    # Bytes at the peak, on a TPU including prefetched data; 0 if the compiler has no
    # figure.
    peak: int
    code: int  # bytes of the program, which is in the device's memory too
    kernels: int  # number of instructions that run
    hbm_bytes: int  # bytes that kernels read from and write to the device's memory
    accessed: float  # bytes, a figure of the compiler that includes on-chip memory
    flops: float  # figure of the compiler; NaN if it has none
    matmul_flops: MatmulFlops  # operations in the traced function, per device
    collectives: tuple[Collective, ...]  # one entry per kind
    unused_donations: tuple[str, ...]  # donated arguments whose memory is not reused
    has_loops: bool  # whether `accessed` and `flops` count loop bodies only once
    num_open_loops: int  # loops of unknown length, counted as one iteration

    @property
    def total(self) -> int:
        """Bytes of a device's memory that the step needs."""
        return self.arguments + self.outputs - self.aliased + self.temporary + self.code

    @property
    def work(self) -> float:
        """Floating-point operations, with every iteration of loops."""
        # XLA's GPU compiler has no figure if no GPU is present.
        if not math.isnan(self.flops) and not self.has_loops:
            return self.flops
        # The compiler's count may miss iterations of loops, and `matmul_flops` contains
        # only matrix products. Both are lower bounds.
        matmul_flops = sum(self.matmul_flops)
        return matmul_flops if math.isnan(self.flops) else max(self.flops, matmul_flops)


class Estimate(NamedTuple):
    """Seconds of a step according to each of three limits.

    Real steps take longer: no kernel reaches the published peak, and arithmetic, memory
    traffic and communication do not overlap completely, as is assumed here.
    """

    arithmetic: float  # at the published peaks, for products at their precision
    memory: float  # at the published bandwidth
    network: float  # at the published bandwidth of all links together

    @property
    def seconds(self) -> float:
        """Seconds of the step: the longest of the three."""
        return max(self)

    @property
    def limit(self) -> str:
        """Name of the limit with the longest time."""
        return self._fields[self.index(max(self))]


def program_cost(compiled: Any, num_devices: int, traced: Any = None) -> Cost:
    """Returns the cost of a compiled program.

    Args:
        compiled: `jitted.lower(...).compile()`.
        num_devices: number of devices that the program is compiled for.
        traced: `jitted.trace(...)` of the same arguments, for `matmul_flops` and
            `unused_donations`. Without it these are 0 and empty.
    """
    program = Program(compiled.as_text())
    memory, analysis = compiled.memory_analysis(), compiled.cost_analysis() or {}
    kernels, hbm_bytes = program.traffic()
    are_known = program.are_loop_lengths_known()
    flops = MatmulFlops() if traced is None else matmul_flops(traced.jaxpr.jaxpr)
    return Cost(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        peak=getattr(memory, "peak_memory_in_bytes", 0),
        code=memory.generated_code_size_in_bytes,
        kernels=kernels,
        hbm_bytes=hbm_bytes,
        accessed=analysis.get("bytes accessed", math.nan),
        flops=analysis.get("flops", math.nan),
        matmul_flops=flops.times(1 / num_devices),
        collectives=program.collectives(num_devices),
        unused_donations=() if traced is None else _unused_donations(program, traced),
        has_loops=bool(are_known),
        num_open_loops=are_known.count(False),
    )


def estimate(cost: Cost, chip: Chip) -> Estimate:
    """Returns the roofline estimate of a compiled step.

    Source: Williams et al., "Roofline: An Insightful Visual Performance Model for
        Multicore Architectures", 2009, with the network as a third roof.
    """
    sent = sum(collective.sent for collective in cost.collectives)
    # Operations in float32 are converted to the number of bfloat16 operations that
    # take the same time. `cost.work` already contains each once, hence the - 1.
    wide = zip(cost.matmul_flops[1:], chip.fp32_slowdown, strict=True)
    work = cost.work + sum(flops * (slowdown - 1.0) for flops, slowdown in wide)
    return Estimate(
        work / chip.flops, cost.hbm_bytes / chip.bandwidth, sent / chip.interconnect
    )


def _unused_donations(program: Program, traced: Any) -> tuple[str, ...]:
    names = traced.jaxpr.jaxpr.debug_info.arg_names
    is_donated = [argument.donated for argument in jax.tree.leaves(traced.args_info)]
    numbers = program.parameter_numbers()
    return tuple(
        name
        for name, donated in zip(names, is_donated, strict=True)
        if donated and numbers.get(name) not in program.aliased
    )


def matmul_flops(jaxpr: Any) -> MatmulFlops:
    """Returns the operations of a traced function's products, summed over devices.

    A scan is counted with all its iterations, a loop of unknown length with one, and a
    `cond` with its most expensive branch. XLA's count contains one iteration of a scan
    and does not distinguish precisions. Work that the compiler removes or repeats is
    not considered.
    """
    return _sum(map(_equation_flops, jaxpr.eqns))


def _equation_flops(equation: Any) -> MatmulFlops:
    name, params = equation.primitive.name, equation.params
    if name in ("dot_general", "conv_general_dilated"):
        left, right = (x.aval for x in equation.invars[:2])
        out = equation.outvars[0].aval
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            summed: float = math.prod(left.shape[axis] for axis in contracted)
        else:
            # Each output element sums over all kernel elements of its output channel.
            out_axis = params["dimension_numbers"].rhs_spec[0]
            summed = right.size / max(1, right.shape[out_axis])
        return MatmulFlops(**{_precision(equation): 2.0 * out.size * summed})
    if name == "cond":
        return max(
            (matmul_flops(branch.jaxpr) for branch in params["branches"]), key=sum
        )
    num_iterations = params["length"] if name == "scan" else 1
    # Primitives such as `pjit`, `scan`, `while` and `custom_vjp_call` have their bodies
    # as parameters with different names: a Jaxpr (`eqns`) or a ClosedJaxpr (`jaxpr`).
    inner = jax.tree.leaves(
        list(params.values()),
        is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"),
    )
    jaxprs = (getattr(x, "jaxpr", x) for x in inner)
    return _sum(matmul_flops(x) for x in jaxprs if hasattr(x, "eqns")).times(
        num_iterations
    )


def _sum(found: Iterable[MatmulFlops]) -> MatmulFlops:
    return MatmulFlops(*map(sum, zip(MatmulFlops(), *found, strict=True)))


def _precision(equation: Any) -> str:
    if any(x.aval.dtype.itemsize < 4 for x in equation.invars):
        return "narrow"
    requested = equation.params["precision"]
    # JAX stores a pair, one precision per factor, or an algorithm, which counts as the
    # default.
    precision: Any = requested[0] if isinstance(requested, tuple) else None
    names = {jax.lax.Precision.HIGH: "high", jax.lax.Precision.HIGHEST: "highest"}
    return names.get(precision, "default")
