"""Optimizer steps compiled for 8 to 4,096 TPU chips.

    python -m benchmarks.scales_to_a_pod    # needs libtpu, no TPU; 10 minutes

The first tree grows with the number of chips, so that each has a part of constant size.
The second one is Llama 3 with 70B parameters on 512 chips. Counts are those of the
compiled program, and equal in every run. `--smoke` compiles for 8 CPU devices instead.
Their compiler differs, so limits do not apply.
"""

import math
import os
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import optax
from jax.sharding import PartitionSpec

from benchmarks import _on_slices as slices
from benchmarks import _optimizer_steps as steps
from benchmarks._report import Row, main
from benchmarks.optimizer_step_at_memory_speed import OPTAX_ADAMW
from jaxopt_tf import adamw_tf, clip
from jaxopt_tf.optimizers import adafactor_tf
from jaxopt_tf.planning import CompilerMissingError, named_slice, slice_devices

ADAMW = adamw_tf(steps.rate, weight_decay=0.01)
CLIPPED = optax.chain(clip(1.0), ADAMW)
ADAFACTOR = adafactor_tf()
GROWING = {
    "v5p:2x2x2": (2, 4),
    "v5p:4x4x4": (8, 8),
    "v5p:8x8x8": (16, 32),
    "v5p:16x16x16": (64, 64),
}
# 128,256 tokens are divisible by 256 and not by 512: two of the three axes have 256.
THREE_AXES = ("data=2,fsdp=16,tensor=16", PartitionSpec("fsdp", ("tensor", "data")))
ONE_AXIS = ("fsdp=512", PartitionSpec("fsdp"))


def rows(smoke: bool) -> Iterator[Row]:
    if smoke:
        yield from _growing({"cpu:8": (2, 4)}, flat=math.inf)
        mesh = "data=2,fsdp=2,tensor=2", THREE_AXES[1]
        yield from _llama("cpu:8", slices.llama(2, 512), *mesh, limit=math.inf)
        return
    try:
        slice_devices(named_slice("v5p:2x2x2"))
    except CompilerMissingError as error:
        print(error)
        return
    yield from _growing(GROWING, flat=1.02)
    for axes, spec in (THREE_AXES, ONE_AXIS):
        yield from _llama("v5p:8x8x8", slices.llama(), axes, spec, limit=1.0)


def _growing(meshes: dict[str, tuple[int, int]], flat: float) -> Iterator[Row]:
    for title, optimizer in (("clip, adamw_tf", CLIPPED), ("adafactor_tf", ADAFACTOR)):
        first = None
        for name, (down, across) in meshes.items():
            shapes = {f"{i:02}.kernel": (1024 * down, 512 * across) for i in range(24)}
            shapes |= {f"{i:02}.scale": (128 * down * across,) for i in range(24)}
            found = slices.compiled(
                optimizer,
                shapes,
                named_slice(name),
                f"fsdp={down},tensor={across}",
                PartitionSpec("fsdp", "tensor"),
            )
            cost = found.cost
            num_bytes = sum(each.bytes for each in cost.collectives)
            first = first or (cost.hbm_bytes, num_bytes)
            detail = (
                f"{found.plan.on_device / 1e6:.0f} MB of parameters, state and "
                f"gradients, compiled in {found.seconds:.0f} s"
            )
            for claim, value, at_8 in (
                ("moved to and from its memory", cost.hbm_bytes, first[0]),
                ("in collectives", num_bytes, first[1]),
            ):
                yield Row(
                    claim=f"{name}, {title}: {claim}, each chip",
                    value=value / 1e6,
                    unit="MB",
                    limit=flat * at_8 / 1e6,
                    detail=detail,
                )


def _llama(name, shapes, axes, spec, limit) -> Iterator[Row]:
    slice_ = named_slice(name)
    plain, clipped, factored, theirs = (
        slices.compiled(optimizer, shapes, slice_, axes, spec)
        for optimizer in (ADAMW, CLIPPED, ADAFACTOR, OPTAX_ADAMW)
    )
    title = f"Llama 70B, {name}, {axes}"
    smallest = min(4 * math.prod(shape) for shape in shapes.values() if len(shape) > 1)
    row_and_column_bytes = sum(
        leaf.global_bytes
        for leaf in factored.plan.parts[1].leaves
        if leaf.name.startswith(("nu_row", "nu_col"))
    )
    for optimizer, found, seconds, share in (
        ("clip, adamw_tf", clipped, 90, 1.0),
        ("adafactor_tf", factored, 150, 3.0),
    ):
        cost, grads = found.cost, found.plan.parts[2].on_device
        state = found.plan.parts[1]
        even = state.global_bytes / slice_.num_devices
        largest = max(each.largest for each in cost.collectives)
        beyond = [each for each in found.plan.replicated() if each[0] == state.name]
        dearest = (
            f"{beyond[0][1].name} costs {beyond[0][2]:.0f} bytes" if beyond else ""
        )
        live = 100 * found.live / grads
        for claim, value, most, unit, optax_, detail in (
            (
                "collectives of a parameter's size",
                sum(each.largest >= smallest for each in cost.collectives),
                0,
                "",
                None,
                f"the largest array is {largest:,} bytes",
            ),
            (
                "state beyond its part",
                100 * (state.on_device / even - 1),
                share,
                "%",
                None,
                dearest,
            ),
            (
                "temporary, on the chip too",
                100 * cost.temporary / grads,
                2.0,
                "% of the gradients",
                100 * theirs.cost.temporary / grads,
                "as the compiler reports, whose own peak is "
                f"{100 * (cost.peak - cost.arguments) / grads:.1f} % above the "
                "arguments",
            ),
            (
                "temporary at once, in its memory",
                live,
                2.0,
                "% of the gradients",
                100 * theirs.live / grads,
                "by the order of the program",
            ),
            ("to compile", found.seconds, seconds, "s", theirs.seconds, ""),
        ):
            yield Row(
                claim=f"{title}, {optimizer}: {claim}",
                value=value,
                unit=unit,
                limit=limit * most if most else 0 if limit == 1.0 else limit,
                optax=optax_ if found is clipped else None,
                detail=detail,
            )
    more = _num_collectives(clipped) - _num_collectives(plain)
    yield Row(
        claim=f"{title}: collectives for clipping",
        value=more,
        unit="",
        limit=limit,
        detail=f"{_bytes(clipped) - _bytes(plain)} bytes; {_num_collectives(plain)} "
        "without",
    )
    yield Row(
        claim=f"{title}, adafactor_tf: in collectives, of its rows and columns",
        value=_bytes(factored) / row_and_column_bytes,
        unit="",
        limit=limit,
        detail=f"{_bytes(factored) / 1e6:.1f} MB in {_num_collectives(factored)}",
    )


def _num_collectives(found: slices.Compiled) -> int:
    return sum(each.num_runs for each in found.cost.collectives)


def _bytes(found: slices.Compiled) -> int:
    return sum(each.bytes for each in found.cost.collectives)


if __name__ == "__main__":
    main("The optimizer's step on 8 to 4,096 chips", rows)
