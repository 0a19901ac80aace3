"""Messages and memory of the update of `muon_tf`, compiled for TPU v5e:2x4.

    python -m benchmarks.muon_on_a_slice [--smoke]

Needs the compiler of TPUs (libtpu), no TPU. Kernels are [1024, 4096] in Flax, alone or
in a stack of eight, divided over eight devices in different ways. "Gathered" is the
largest array that an all-gather returns; the detail gives the bytes that a device sends
for one update, and those without `shardings`.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from benchmarks._report import Row, main
from jaxopt_tf.optimizers import TorchLayout, muon_tf
from jaxopt_tf.planning import Cost, named_slice, program_cost, slice_devices
from jaxopt_tf.sharding import make_mesh, param_shardings, state_shardings

DENSE = TorchLayout.dense()
# Shape, layout, mesh and sharding of each case.
CASES: dict[str, tuple[tuple[int, ...], TorchLayout, str, P]] = {
    "a kernel, inputs divided": ((1024, 4096), DENSE, "fsdp=8", P("fsdp")),
    "a kernel, outputs divided": ((1024, 4096), DENSE, "fsdp=8", P(None, "fsdp")),
    "a kernel, both divided": (
        (1024, 4096),
        DENSE,
        "fsdp=4,tensor=2",
        P("fsdp", "tensor"),
    ),
    "eight layers, inputs divided": (
        (8, 1024, 4096),
        DENSE.stacked(),
        "fsdp=8",
        P(None, "fsdp"),
    ),
    "eight layers, both divided": (
        (8, 1024, 4096),
        DENSE.stacked(),
        "fsdp=4,tensor=2",
        P(None, "fsdp", "tensor"),
    ),
    "three layers, inputs divided": (
        (3, 1024, 4096),
        DENSE.stacked(),
        "fsdp=8",
        P(None, "fsdp"),
    ),
}


def cost_of(case: str, *, are_shardings_known: bool) -> Cost:
    """Compiles the update of one leaf and returns its cost."""
    shape, layout, axes, spec = CASES[case]
    mesh = make_mesh(axes, slice_devices(named_slice("v5e:2x4")))
    params = {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}
    shardings = param_shardings(params, mesh, {".*": spec})
    optimizer = muon_tf(
        1e-3,
        layouts={"kernel": layout},
        shardings=shardings if are_shardings_known else None,
    )
    state = jax.eval_shape(optimizer.init, params)
    of_state = state_shardings(state, params, shardings)

    def placed(tree: Any, over: Any) -> Any:
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, over
        )

    given = placed(params, shardings)
    update = jax.jit(optimizer.update, out_shardings=(shardings, of_state))
    return program_cost(
        update.lower(given, placed(state, of_state), given).compile(), mesh.size
    )


def gathered(cost: Cost) -> int:
    """Returns the bytes of the largest array that an all-gather returns."""
    largest = [c.largest for c in cost.collectives if c.kind == "all-gather"]
    return max(largest, default=0)


def sent(cost: Cost) -> float:
    """Returns the bytes that a device sends in one update."""
    return sum(collective.sent for collective in cost.collectives)


def rows(smoke: bool) -> Iterator[Row]:
    """Yields two rows for each case."""
    for case in list(CASES)[:1] if smoke else CASES:
        shape = CASES[case][0]
        known = cost_of(case, are_shardings_known=True)
        unknown = cost_of(case, are_shardings_known=False)
        yield Row(
            claim=f"gathered: {case}",
            value=gathered(known) / 2**20,
            unit="MiB",
            limit=0,
            detail=f"{sent(known) / 2**20:.1f} MiB sent; without `shardings` "
            f"{gathered(unknown) / 2**20:.1f} MiB gathered, "
            f"{sent(unknown) / 2**20:.1f} MiB sent",
        )
        yield Row(
            claim=f"temporary memory over that of a matrix in float32: {case}",
            value=known.temporary / (4 * math.prod(shape[-2:])),
            unit="",
            limit=1.0,
            detail=f"{known.temporary / 2**20:.2f} MiB",
        )


if __name__ == "__main__":
    main("Muon on eight devices", rows)
