"""Counts of optimizer steps compiled for an H100 and for TPUs.

    python -m benchmarks.optimizer_step_on_accelerators    # without one

Counts are those of the compiled program, and equal in every run.
"""

import math
import os
import time
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import optax

from benchmarks import _optimizer_steps as steps
from benchmarks._report import Row, main
from benchmarks.optimizer_step_at_memory_speed import (
    ADAFACTOR,
    ADAMW,
    OPTAX_ADAMW,
    SCALED,
)
from jaxopt_tf.planning import (
    CompilerMissingError,
    Cost,
    named_slice,
    slice_devices,
)

SHAPES = steps.gpt2()
NUM = steps.num_elements(SHAPES)


def rows(smoke: bool) -> Iterator[Row]:
    del smoke  # this alone takes a minute
    for name in ("h100", "v5e:2x4", "v5p:2x2x1"):
        try:
            device = slice_devices(named_slice(name))[0]
        except CompilerMissingError as error:
            print(f"{name} is left out: {error}")
            continue
        count = _h100 if name == "h100" else _tpu
        yield from count(name, device)


def _h100(name, device) -> Iterator[Row]:
    theirs, _ = _counted(OPTAX_ADAMW, device)
    yield from _gpu_rows(f"{name}, clip and adamw_tf", ADAMW, theirs, device, 32.5, 140)
    theirs, _ = _counted(optax.adafactor(1e-4), device)
    for title, tx, limit in (
        ("adafactor_trainer", ADAFACTOR, 20.5),
        ("adafactor_tf with scale_parameter", SCALED, 24.5),
    ):
        yield from _gpu_rows(f"{name}, {title}", tx, theirs, device, limit, 1000)


def _gpu_rows(title, optimizer, theirs, device, moved, kernels) -> Iterator[Row]:
    ours, seconds = _counted(optimizer, device)
    for claim, value, limit, of_optax, unit in (
        ("moved", _moved(ours), moved, _moved(theirs), "bytes per parameter"),
        ("kernels", ours.kernels, kernels, theirs.kernels, ""),
        ("temporary", _percent(ours), 1.0, _percent(theirs), "% of the gradients"),
    ):
        yield Row(
            claim=f"{title}: {claim}",
            value=value,
            unit=unit,
            limit=limit,
            optax=of_optax,
            detail=f"{ours.aliased / 1e6:.0f} MB donated, compiled in {seconds:.0f} s",
        )


def _tpu(name, device) -> Iterator[Row]:
    adafactor = optax.adafactor(1e-4, multiply_by_parameter_scale=False)
    for title, ours, optaxs, share in (
        ("clip and adamw_tf", ADAMW, OPTAX_ADAMW, 1.0),
        ("adafactor_trainer", ADAFACTOR, adafactor, 0.7),
        ("adafactor_tf with scale_parameter", SCALED, optax.adafactor(1e-4), 0.7),
    ):
        (us, seconds), (optax_, _) = _counted(ours, device), _counted(optaxs, device)
        detail = f"{us.aliased / 1e6:.0f} MB donated, compiled in {seconds:.0f} s"
        each, grads = "bytes per parameter", "% of the gradients"
        for claim, unit, figure, limit in (
            ("moved to and from its memory", each, _moved, math.inf),
            ("accessed, on the chip too", each, _accessed, share),
            ("temporary, on the chip too", grads, _percent, share),
        ):
            yield Row(
                claim=f"{name}, {title}: {claim}",
                value=figure(us),
                unit=unit,
                # A ratio to optax's 0 is not a number.
                limit=limit if math.isinf(limit) else limit * figure(optax_),
                optax=figure(optax_),
                detail=detail,
            )


def _counted(optimizer, device) -> tuple[Cost, float]:
    start = time.perf_counter()
    cost = steps.cost_on(optimizer, SHAPES, device)
    return cost, time.perf_counter() - start


def _moved(cost: Cost) -> float:
    return cost.hbm_bytes / NUM


def _accessed(cost: Cost) -> float:
    return cost.accessed / NUM


def _percent(cost: Cost) -> float:
    return 100 * cost.temporary / (4 * NUM)


if __name__ == "__main__":
    main("The optimizer's step on accelerators", rows)
