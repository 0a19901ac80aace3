"""How many runs fit into memory side by side."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import numpy as np

from .. import _checks
from .._typing import PyTree
from ..training import Batch
from ._cohort import Cohort, next_batch
from ._program import Program

# Share of a device's memory that runs may take, where no limit is given.
_OF_A_DEVICE = 0.9


def at_most(
    devices: Sequence[jax.Device] | None, num_runs: int
) -> Sequence[jax.Device]:
    """The devices, or all of this process; not more than there are runs."""
    devices = jax.local_devices() if devices is None else devices
    if not devices:
        raise ValueError(
            "`devices` must name at least one device, got none. Leave it out for all "
            "of this process."
        )
    return devices[:num_runs]


def side_by_side(
    program: Program,
    make: Callable[[Sequence[int]], Cohort],
    runs: Sequence[int],
    num_streams: int,
    memory_limit: float | None,
    held_out: Sequence[Batch] = (),
) -> int:
    """How many runs are trained side by side, a multiple of the devices.

    Args:
        program: of the runs.
        make: the runs of these numbers before a step, to be measured.
        runs: numbers of all.
        num_streams: of batches, with all runs.
        memory_limit: as for `train_many`.
        held_out: a batch that the runs are evaluated on, if they are.
    """
    limit = _limit_of_devices() if memory_limit is None else memory_limit
    most = len(runs)
    if limit is not None:
        _checks.positive("memory_limit", limit)
        one = make([runs[0]] * program.num_devices)
        most = _as_many_as_fit(one, num_streams, most, limit, held_out)
    # Groups as equal as can be, each filled up to the devices.
    size = -(-len(runs) // -(-len(runs) // most))
    return -(-size // program.num_devices) * program.num_devices


def _limit_of_devices() -> float | None:
    """90 % of what a device says that it has; None where, as a CPU, it says nothing."""
    stats = jax.local_devices()[0].memory_stats() or {}
    has = stats.get("bytes_limit")
    return None if has is None else _OF_A_DEVICE * has


def _as_many_as_fit(
    one: Cohort,
    num_streams: int,
    num_runs: int,
    limit: float,
    held_out: Sequence[Batch],
) -> int:
    """The most runs, at most `num_runs`, that stay within a limit.

    Their step, and their evaluation, are compiled for as many as are hoped for, and the
    compiler is asked.

    Args:
        one: a run on each device, before the first step.
        num_streams: of batches, with all runs.
        num_runs: how many there are.
        limit: bytes on each device.
        held_out: a batch to evaluate on, or none.

    Raises:
        ValueError: if it is below what one run on each device needs.
    """
    num_devices = one.program.num_devices
    batches = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            (num_streams, *np.shape(x)), np.asarray(x).dtype
        ),
        next_batch(one.streams[0], 0),
    )
    most = num_runs
    while True:
        whole = -(-most // num_devices) * num_devices
        needed = _bytes_on_each(one, batches, held_out, whole)
        if needed <= limit:
            return most
        if most <= num_devices:
            raise ValueError(
                f"`memory_limit` must be at least {needed:,} bytes, which one run "
                f"needs on a device, got {limit:,.0f}. Give more, or take a smaller "
                "model or batch."
            )
        most = max(num_devices, min(most - 1, int(most * limit / needed)))


def _bytes_on_each(
    one: Cohort, batches: PyTree, held_out: Sequence[Batch], num_runs: int
) -> int:
    program = one.program
    carried = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (num_runs, *leaf.shape[1:]), leaf.dtype, sharding=program.over_runs
        ),
        one.carried,
    )
    step, evaluate = (cast(Any, f) for f in (program.step, program.evaluate))
    lowered = [step.lower(carried, batches)]
    lowered += [evaluate.lower(carried.state.params, batch) for batch in held_out]
    return max(_bytes_of(of.compile().memory_analysis()) for of in lowered)


def _bytes_of(analysis: Any) -> int:
    new = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + new
