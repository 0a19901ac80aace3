"""Training step of Llama 3 8B compiled for TPUs and GPUs, beside MaxText.

    python -m benchmarks.compiles_llama_8b            # needs libtpu, the CUDA plugin
    python -m benchmarks.compiles_llama_8b v5p-16     # one of the slices

Sequences have 8,192 tokens, one per device, packed with document borders. Parameters
and moments are float32, computation is bfloat16, all activations of a layer are
recomputed (MaxText's `remat_policy=full`), and AdamW clips by the global norm. Both
programs use JAX's splash attention with tiles of 512.

Figures are those of the compiled programs, per device, with every iteration of loops:
XLA's own `cost_analysis` counts the body of a loop once. FLOPs are those of matrix
products outside of the attention kernel, which is the same in both. Traffic is counted
by `planning`, with the same function for both programs.

The part of the training step beside the model is what the step has in addition to two
things. One is a program that returns the gradients, in the shardings of the parameters;
these count as its temporary memory. The other is the least traffic of AdamW: parameters
and moments are read and written once, and gradients are read once.

MaxText's figures are recorded below. To measure them again, install maxtext 0.2.4 with
jax 0.10.2 and libtpu 0.0.42.1 in an environment of its own, and run

    XLA_FLAGS=--xla_dump_to=FOLDER JAX_PLATFORMS=cpu python -m \\
        maxtext.trainers.pre_train.train_compile model_name=llama3-8b \\
        compile_topology=v5p-16 compile_topology_num_slices=1 \\
        per_device_batch_size=1 max_target_length=8192 remat_policy=full \\
        attention=flash enable_checkpointing=false skip_jax_distributed_system=true

It prints the temporary memory. `maxtext_figures` reads the rest from the text of the
program.
`--smoke` compiles a small model for 8 CPU devices; limits do not apply to it.
"""

import functools
import math
import os
import re
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp

from benchmarks._report import Row, main
from jaxopt_tf import jobs
from jaxopt_tf.planning import (
    CompilerMissingError,
    Cost,
    named_slice,
    program_cost,
    slice_devices,
)
from jaxopt_tf.planning._hlo import Program
from jaxopt_tf.sharding import make_mesh
from jaxopt_tf.training._gradients import MeanLoss, with_float32_outputs

LENGTH = 8192
LLAMA = {
    **{"model_type": "llama", "vocab_size": 128_256, "hidden_size": 4096},
    **{"intermediate_size": 14_336, "num_hidden_layers": 32, "head_dim": 128},
    **{"num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5},
    **{"max_position_embeddings": LENGTH, "block_size": LENGTH, "rope_theta": 5e5},
}
SMALL = {
    **LLAMA,
    **{"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128},
    **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"head_dim": 16, "max_position_embeddings": 64, "block_size": 64},
}
MESHES = {"v5p-16": "fsdp=8", "v5e-256": "fsdp=256", "h100:8": "fsdp=8"}


class Figures(NamedTuple):
    """Figures of a compiled step per device."""

    temporary: float  # bytes
    traffic: float  # bytes to and from main memory
    flops: float  # of matrix products outside of kernels


# maxtext 0.2.4, jax 0.10.2, libtpu 0.0.42.1, by the command above.
MAXTEXT = {
    "v5p-16": Figures(12_591_053_600, 1_070_999_401_381, 452_431_854_960_640),
    "v5e-256": Figures(8_681_654_784, 859_726_064_313, 452_431_854_960_640),
}


def rows(smoke: bool) -> Iterator[Row]:
    chosen = [name for name in sys.argv[1:] if not name.startswith("-")]
    if smoke:
        yield from _rows("cpu:8", "fsdp=8", SMALL, limited=False)
        return
    for name in chosen or MESHES:
        yield from _rows(name, MESHES[name], LLAMA, limited=True)


def _rows(
    name: str, axes: str, model: dict[str, Any], *, limited: bool
) -> Iterator[Row]:
    slice_ = named_slice(name)
    try:
        mesh = make_mesh(axes, slice_devices(slice_))
    except CompilerMissingError as error:
        print(error)
        return
    run = {"bf16": True, "mesh": axes, "packing": slice_.family != "h100"}
    config = jobs.RunConfig.from_dict(
        {
            **model,
            **run,
            **{"gradient_checkpointing": True, "remat_policy": "full"},
            **{"per_device_train_batch_size": 1, "max_steps": 1000},
        }
    )
    setup = jobs.build_setup(config, mesh)
    start = time.perf_counter()
    traced = setup.train_step.trace(setup.run_state.state, setup.batch)
    compiled = traced.lower().compile()
    seconds = time.perf_counter() - start
    text = compiled.as_text()
    cost = program_cost(compiled, slice_.num_devices, traced)
    ours = Figures(cost.temporary, cost.hbm_bytes, matrix_flops(text))
    title = f"{setup.model.title} on {name} ({axes}), a sequence of {LENGTH} per device"

    def row(claim: str, value: float, unit: str, limit: float, detail: str = "") -> Row:
        bound = limit if limited else math.inf
        return Row(
            claim=f"{title}: {claim}",
            value=value,
            unit=unit,
            limit=bound,
            detail=detail,
        )

    memory = slice_.chip.memory
    share = cost.total / memory if memory > 0 else 0.0
    parts = f"{cost.arguments / 1e9:.2f} GB state, {cost.temporary / 1e9:.2f} GB more"
    yield row("memory", share, "of a device", 1.0, f"{parts}, {seconds:.0f} s")
    shapes = setup.run_state.state.params
    gathered, reduced = _communicated(cost.collectives, shapes)
    yield row("gathers of each parameter", gathered, "times", 2.02)
    # The loop in which XLA reduces a gradient permutes each part once more than needed.
    most = 1.02 + 1 / min(8, slice_.num_devices)
    yield row("reductions of each gradient", reduced, "times", most)
    beside = _beside_the_model(cost, _model_cost(setup, slice_.num_devices))
    for what in Beside._fields:
        part, whole = getattr(beside, what), getattr(ours, what)
        detail = f"{part / 1e9:.3g} of {whole / 1e9:.4g} GB"
        share = 100 * part / whole
        yield row(f"{what} beside the model", share, "% of the step", 3.0, detail)
    length = model["block_size"]
    yield row("arrays of T x T", _num_square(text, length), "arrays", 0)
    theirs = MAXTEXT.get(name) if limited else None
    if theirs is None:
        return
    for what, a, b in zip(Figures._fields, ours, theirs, strict=True):
        detail = f"{a:.4g}, MaxText {b:.4g}"
        yield row(f"{what} beside MaxText", a / b, "times", 1.1, detail)


class Beside(NamedTuple):
    """Bytes of a step that belong neither to the model nor to the least of AdamW."""

    temporary: float
    traffic: float


def _model_cost(setup: jobs.Setup, num_devices: int) -> Cost:
    """Returns the cost of the gradients alone, in the shardings of the parameters."""
    params = setup.run_state.state.params
    mean_loss = MeanLoss(with_float32_outputs(setup.loss_fn, jnp.bfloat16), 1)
    shardings = jax.tree.map(lambda x: x.sharding, params)

    @functools.partial(jax.jit, out_shardings=(None, shardings))
    def gradients(params, batch):
        loss, _, grads = mean_loss.gradient(params, batch, None)
        return loss, grads

    return program_cost(gradients.lower(params, setup.batch).compile(), num_devices)


def _beside_the_model(step: Cost, model: Cost) -> Beside:
    least = 2 * step.aliased + model.outputs
    return Beside(
        step.temporary - model.temporary - model.outputs,
        step.hbm_bytes - model.hbm_bytes - least,
    )


def _communicated(collectives: Any, params: Any) -> tuple[float, float]:
    """Returns the bytes of gathers and of reductions relative to the parameters.

    Parameters and their gradients are communicated in bfloat16, the gradient of the
    head in float32. Permutations are those of gradients: XLA reduces them while it
    computes the products.
    """
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    head = params["lm_head"]["kernel"].size
    size = {"gather": 0.0, "reduce": 0.0}
    for each in collectives:
        kind = "gather" if each.kind == "all-gather" else "reduce"
        # Tokens of the embedding's gradient are exchanged, not the table.
        size[kind] += 0 if each.kind == "all-to-all" else each.bytes
    return size["gather"] / (2 * num_params), size["reduce"] / (2 * (num_params + head))


def _num_square(text: str, length: int) -> int:
    """Returns the number of shapes of arrays whose largest axes have T elements.

    XLA views matrices of the optimizer with another shape, which may be T x T.
    """
    lines = [line for line in text.splitlines() if " bitcast(" not in line]
    shapes = set(re.findall(r"[a-z]\w*\[([\d,]+)\]", "\n".join(lines)))
    axes = [[int(n) for n in shape.split(",")] for shape in shapes]
    return sum(sorted(each)[-2:] == [length, length] for each in axes if len(each) > 1)


def matrix_flops(text: str) -> float:
    """Returns the FLOPs of all matrix products of a program, loops included.

    A product of [m, k] and [k, n] has 2 m k n FLOPs, which is twice the root of the
    product of the three sizes. Compilers for TPUs write products as convolutions.
    """
    program, sizes, total, current = Program(text), {}, 0.0, ""
    for line in text.splitlines():
        if head := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
            current = head[1]
        plain = re.sub(r"/\*.*?\*/", "", line)
        found = re.match(
            r"\s+(?:ROOT )?%?([\w.\-]+) = \w+\[([\d,]*)\]\S* ([\w\-]+)\(([^)]*)\)",
            plain,
        )
        if not found:
            continue
        name, dims, op, operands = found.groups()
        sizes[name] = math.prod(int(n) for n in dims.split(",") if n)
        if op in ("convolution", "dot") and current in program.runs:
            names = re.findall(r"%([\w.\-]+)", operands) or operands.split(", ")
            of_factors = math.prod(sizes[n] for n in names[:2])
            rounds = program.runs[current].num_runs
            total += 2.0 * math.sqrt(of_factors * sizes[name]) * rounds
    return total


def maxtext_figures(text: str, temporary: int) -> Figures:
    """Returns the figures of MaxText's program from its optimized HLO text."""
    return Figures(temporary, Program(text).traffic()[1], matrix_flops(text))


if __name__ == "__main__":
    main("Llama 3 8B, compiled", rows)
