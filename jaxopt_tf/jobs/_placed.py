"""Where a run's arrays lie on a mesh: parameters, optimizer, gradients, batches."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from .. import sharding, training
from ..data import narrowest
from ..models import GPT2Config, draw_params, gpt2_layer_norms, gpt2_layout, loss_of
from ..recipes import Recipe, build_optimizer
from ._mesh_setting import BATCH_AXES, num_parts
from ._moved import first_position, first_schedule_state
from ._settings import Job

# For whole names of parameters, which mesh axes divide theirs. Of two layers in a row
# the first is divided by `tensor` along its outputs and the second along its inputs,
# so that sums are sent once for both.
_IN_A_LAYER = {
    r".*(c_attn|c_fc)\.kernel": ("fsdp", "tensor"),
    r".*c_proj\.kernel": ("tensor", "fsdp"),
    r".*(c_attn|c_fc)\.bias": ("tensor",),
}
_ELSEWHERE: Mapping[str, tuple[str | None, ...]] = MappingProxyType(
    {
        r".*wte\.embedding": ("tensor", "fsdp"),
        r".*wpe\.embedding": (),
        r".*(c_proj\.bias|ln_\w+\.(scale|bias))": (),
    }
)


class Placed(NamedTuple):
    """A run as shapes, each with its sharding: nothing is computed or allocated."""

    position: training.Position  # at the first step
    batch: jax.ShapeDtypeStruct  # [B, T + 1], or [k, B, T + 1] with k micro-batches


def gpt2_rules(model: GPT2Config, mesh: jax.sharding.Mesh) -> dict[str, PartitionSpec]:
    """The rules of `param_shardings` for a GPT-2.

    Matrices are divided by `fsdp` along the one axis and by `tensor` along the other;
    norms, and biases that are added to the stream, are repeated.

    Args:
        model: its size; with `scan_layers`, layers are an axis in front.
        mesh: with any of the axes `data`, `fsdp` and `tensor`.
    """
    layers = (None,) if model.scan_layers else ()
    rules = {name: (*layers, *axes) for name, axes in _IN_A_LAYER.items()}
    return {
        name: PartitionSpec(*(axis if axis in mesh.shape else None for axis in axes))
        for name, axes in {**rules, **_ELSEWHERE}.items()
    }


def place(
    recipe: Recipe,
    model: GPT2Config,
    job: Job,
    mesh: jax.sharding.Mesh,
    num_sequences: int | None = None,
) -> Placed:
    """Where everything lies that a step takes.

    Args:
        recipe: the numbers of the updates.
        model: its size.
        job: of which `zero_1` counts: whether the optimizer's state is divided by
            `data`, too.
        mesh: with any of the axes `data`, `fsdp` and `tensor`, over devices that are
            there or only described.
        num_sequences: B, in a micro-batch on all devices together; None for
            `per_device_train_batch_size` in each part of the mesh.

    Raises:
        ValueError: if the mesh does not divide the sequences.
    """
    state = jax.eval_shape(first(recipe, model))
    over = sharding.param_shardings(state.params, mesh, gpt2_rules(model, mesh))
    axis = "data" if job.zero_1 else None
    repeated = NamedSharding(mesh, PartitionSpec())
    shardings = jax.tree.map(lambda _: repeated, state).replace(
        params=over,
        opt_state=sharding.state_shardings(
            state.opt_state, state.params, over, zero_axis=axis
        ),
    )
    position = training.Position(
        jax.tree.map(_placed, state, shardings),
        schedule_state=first_schedule_state(recipe),
    )
    if num_sequences is None:
        num_sequences = recipe.per_device_train_batch_size * num_parts(mesh.shape)
    shape: tuple[int, ...] = (num_sequences, model.block_size + 1)
    if recipe.gradient_accumulation_steps > 1:
        shape = (recipe.gradient_accumulation_steps, *shape)
    _check_divides(mesh, num_sequences)
    batch = jax.ShapeDtypeStruct(
        shape,
        narrowest(model.vocab_size),
        sharding=batch_sharding(shape, mesh, axis=len(shape) - 2),
    )
    return Placed(position, batch)


def batch_sharding(
    shape: tuple[int, ...], mesh: jax.sharding.Mesh, *, axis: int
) -> NamedSharding:
    """The sequences, which are an `axis` of `shape`, divided where they can be."""
    axes = tuple(name for name in BATCH_AXES if name in mesh.shape)
    if shape[axis] % num_parts(mesh.shape):
        return NamedSharding(mesh, PartitionSpec())
    in_front = (None,) * axis
    return NamedSharding(mesh, PartitionSpec(*in_front, axes))


def first(recipe: Recipe, model: GPT2Config) -> Callable[[], training.TrainState]:
    """Returns a function that computes the first state of a run."""

    def arrays() -> training.TrainState:
        params = draw_params(model, recipe.seed)
        return first_position(recipe, model, params).state

    return arrays


def run_steps(
    recipe: Recipe, model: GPT2Config, job: Job, placed: Placed
) -> tuple[training.TrainStep, training.EvalStep]:
    """The compiled functions of a run: of one update, and of the loss alone.

    Args:
        recipe: the numbers of the updates.
        model: its size.
        job: how the model computes, and what becomes of what is not finite.
        placed: from `place`; `step.lower(placed.position.state, placed.batch)` takes
            nothing else.
    """
    mesh = placed.batch.sharding.mesh

    def lying(x: jax.Array) -> jax.Array:
        # Or the compiler, which sees divided weights, would divide activations alike.
        spec = batch_sharding(x.shape, mesh, axis=0)
        return jax.lax.with_sharding_constraint(x, spec)

    loss_of_whole = loss_of(
        model,
        label_smoothing_factor=recipe.label_smoothing_factor,
        lying=lying,
        matmul_precision=job.matmul_precision,
    )
    wte = placed.position.state.params["transformer"]["wte"]["embedding"]
    rows = PartitionSpec(*[a if a == "tensor" else None for a in wte.sharding.spec[:1]])

    def loss_fn(params, batch, *rng):
        # Looked up in part of its columns, a token would be of all devices' columns:
        # the table is gathered first, as the logits need it anyway.
        root = params["transformer"]
        table = jax.lax.with_sharding_constraint(
            root["wte"]["embedding"], NamedSharding(mesh, rows)
        )
        root = {**root, "wte": {"embedding": table}}
        return loss_of_whole({**params, "transformer": root}, batch, *rng)

    compute_dtype = jnp.bfloat16 if job.bf16 else None
    train_step = training.make_train_step(
        loss_fn,
        build_optimizer(
            recipe, layout=gpt2_layout(model), layer_norms=gpt2_layer_norms(model)
        ),
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        compute_dtype=compute_dtype,
        on_non_finite=job.on_non_finite,
        max_skipped_in_a_row=job.max_skipped_in_a_row,
        per_layer=job.log_layers,
        state_shardings=jax.tree.map(lambda x: x.sharding, placed.position.state),
    )
    return train_step, training.make_eval_step(loss_fn, compute_dtype=compute_dtype)


def _check_divides(mesh: jax.sharding.Mesh, num_sequences: int) -> None:
    if num_sequences % num_parts(mesh.shape) == 0:
        return
    sizes = {name: mesh.shape[name] for name in BATCH_AXES if name in mesh.shape}
    listed = ", ".join(f"{name}={size}" for name, size in sizes.items())
    fit = [n for n in range(1, num_sequences + 1) if num_sequences % n == 0]
    raise ValueError(
        f"`mesh` must divide the {num_sequences} sequences of a micro-batch evenly, "
        f"got {listed}, {num_parts(sizes)} parts. The product of "
        f"{' and '.join(sizes)} may be {', '.join(map(str, fit))}; what is left goes "
        "to tensor."
    )


def _placed(
    leaf: jax.ShapeDtypeStruct, sharding: NamedSharding
) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
