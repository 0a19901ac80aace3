"""Setup of a run: schedule, optimizer, shardings and compiled functions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from .. import models, sharding, training
from .._checks import counted
from .._typing import PyTree, Schedule
from ..data import min_token_dtype
from ..models import GPT2Config
from ..recipes import Recipe, build_optimizer, build_schedule
from ..schedules import MetricDrivenSchedule
from ._config import RunConfig
from ._job import BATCH_AXES, num_batch_shards

Mesh = Any  # `Mesh` or `AbstractMesh`; they have no common base class to annotate


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Functions, shapes and shardings of a run, without arrays.

    Attributes:
        mesh: `jax.sharding.Mesh` or `AbstractMesh`.
        schedule: function step -> learning rate, or a metric-driven schedule.
        optimizer: optimizer of the recipe, for the model's parameters.
        loss_fn: (params, batch, rng=None) -> (summed loss, number of tokens), with
            activations sharded over the mesh.
        run_state: state of the run before the first step, as `jax.ShapeDtypeStruct`s
            with shardings.
        batch: [B, T + 1], or [k, B, T + 1] with k micro-batches; a
            `jax.ShapeDtypeStruct` with its sharding.
        train_step: one update; `train_step.lower(setup.position.state, setup.batch)`
            compiles it without arrays.
        eval_step: (params, batch) -> (summed loss, number of tokens).
        init: function that computes the state before the first step, sharded.
    """

    mesh: Mesh
    schedule: Schedule | MetricDrivenSchedule
    optimizer: optax.GradientTransformationExtraArgs
    loss_fn: training.LossFn
    run_state: training.RunState
    batch: jax.ShapeDtypeStruct
    train_step: training.TrainStep
    eval_step: training.EvalStep
    init: Callable[[], training.RunState]

    @property
    def metric_schedule(self) -> MetricDrivenSchedule | None:
        """The schedule if it is metric-driven, else None."""
        schedule = self.schedule
        return schedule if isinstance(schedule, MetricDrivenSchedule) else None


def build_setup(
    config: RunConfig, mesh: Mesh, *, num_sequences: int | None = None
) -> Setup:
    """Builds the schedule, the optimizer, the shardings and the functions of a run.

    Args:
        config: settings of the run.
        mesh: mesh with any of the axes `data`, `fsdp` and `tensor`, of actual devices
            or of topology descriptions. Functions cannot be compiled for an abstract
            mesh.
        num_sequences: B, number of sequences in a micro-batch on all devices; None for
            `per_device_train_batch_size` per batch shard.

    Raises:
        ValueError: if the mesh does not divide the number of sequences evenly.
    """
    recipe, model, job = config.recipe, config.model, config.job
    schedule, optimizer = schedule_and_optimizer(recipe, model)
    schedule_state = init_schedule(schedule)

    def init_state() -> training.TrainState:
        params = models.draw_params(model, recipe.seed)
        rng = recipe.seed if model.has_dropout else None
        return training.init_train_state(params, optimizer, rng=rng)

    # Only shapes and dtypes are traced: no array of the model's size is allocated.
    shapes = jax.eval_shape(init_state)
    shardings = _state_shardings(shapes, config, mesh)
    state = jax.tree.map(_with_sharding, shapes, shardings)

    def init() -> training.RunState:
        if mesh.size == 1:  # not jitted: this saves a compilation
            arrays = jax.device_put(init_state(), shardings)
        else:  # jitted: each device computes and stores its shards only
            arrays = jax.jit(init_state, out_shardings=shardings)()
        return training.RunState(arrays, schedule_state=schedule_state)

    loss_fn = _loss_on_mesh(config, mesh, state.params)
    dtype = jnp.bfloat16 if job.bf16 else None
    train_step = training.make_train_step(
        loss_fn,
        optimizer,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        compute_dtype=dtype,
        on_non_finite=job.on_non_finite,
        max_skipped_in_a_row=job.max_skipped_in_a_row,
        per_layer=job.log_layers,
        state_shardings=shardings,
    )
    return Setup(
        mesh=mesh,
        schedule=schedule,
        optimizer=optimizer,
        loss_fn=loss_fn,
        run_state=training.RunState(state, schedule_state=schedule_state),
        batch=_abstract_batch(config, mesh, num_sequences),
        train_step=train_step,
        eval_step=training.make_eval_step(loss_fn, compute_dtype=dtype),
        init=init,
    )


def schedule_and_optimizer(
    recipe: Recipe, model: GPT2Config
) -> tuple[Schedule | MetricDrivenSchedule, optax.GradientTransformationExtraArgs]:
    """Builds the schedule and the optimizer of a recipe for the model's parameters."""
    schedule = build_schedule(recipe)
    optimizer = build_optimizer(
        recipe,
        schedule=schedule,
        layouts=models.gpt2_layout(model),
        layer_norms=models.gpt2_layer_norms(model),
    )
    return schedule, optimizer


def init_schedule(schedule: Schedule | MetricDrivenSchedule) -> Any:
    """Returns the initial state of a metric-driven schedule; None for others."""
    return schedule.init() if isinstance(schedule, MetricDrivenSchedule) else None


def batch_sharding(shape: tuple[int, ...], mesh: Mesh, *, axis: int) -> NamedSharding:
    """Returns a sharding that divides `axis` of `shape` by the batch axes of the mesh.

    The array is replicated if its size is not divisible.
    """
    if shape[axis] % num_batch_shards(mesh.shape):
        return NamedSharding(mesh, PartitionSpec())
    names = tuple(name for name in BATCH_AXES if name in mesh.shape)
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, names))


def _with_sharding(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _state_shardings(
    state: training.TrainState, config: RunConfig, mesh: Mesh
) -> training.TrainState:
    rules = models.gpt2_rules(config.model, mesh)
    params = sharding.param_shardings(state.params, mesh, rules)
    opt_state = sharding.state_shardings(
        state.opt_state,
        state.params,
        params,
        zero_axis="data" if config.job.zero_1 else None,
    )
    # Counters, flags and keys are replicated.
    replicated = NamedSharding(mesh, PartitionSpec())
    shardings = jax.tree.map(lambda _: replicated, state)
    return shardings.replace(params=params, opt_state=opt_state)


def _abstract_batch(
    config: RunConfig, mesh: Mesh, num_sequences: int | None
) -> jax.ShapeDtypeStruct:
    num_shards = num_batch_shards(mesh.shape)
    if num_sequences is None:
        num_sequences = config.recipe.per_device_train_batch_size * num_shards
    if num_sequences % num_shards:
        axes = [name for name in BATCH_AXES if name in mesh.shape]
        listed = ", ".join(f"{name}={mesh.shape[name]}" for name in axes)
        fit = [n for n in range(1, num_sequences + 1) if num_sequences % n == 0]
        raise ValueError(
            f"`mesh` must divide the {counted(num_sequences, 'sequence')} of a "
            f"micro-batch evenly, got {listed}, {num_shards} parts. The product of "
            f"{' and '.join(axes)} may be {', '.join(map(str, fit))}; assign the "
            "remaining devices to tensor."
        )
    num_micro = config.recipe.gradient_accumulation_steps
    micro_axis = () if num_micro == 1 else (num_micro,)
    shape = (*micro_axis, num_sequences, config.model.block_size + 1)
    return jax.ShapeDtypeStruct(
        shape,
        min_token_dtype(config.model.vocab_size),
        sharding=batch_sharding(shape, mesh, axis=len(micro_axis)),
    )


def _loss_on_mesh(config: RunConfig, mesh: Mesh, params: PyTree) -> training.LossFn:
    """Returns the model's loss with sharding constraints on its activations."""

    def constrain(x: jax.Array) -> jax.Array:
        # Activations are sharded along the batch only. Without the constraint, XLA
        # propagates the shardings of the weights to the activations, and inserts
        # collectives to reshard them.
        by_sequence = batch_sharding(x.shape, mesh, axis=0)
        return jax.lax.with_sharding_constraint(x, by_sequence)

    loss_of_model = models.loss_of(
        config.model,
        label_smoothing_factor=config.recipe.label_smoothing_factor,
        constrain=constrain,
        matmul_precision=config.job.matmul_precision,
    )
    spec = params["transformer"]["wte"]["embedding"].sharding.spec
    by_rows = NamedSharding(
        mesh, PartitionSpec(*[axis if axis == "tensor" else None for axis in spec[:1]])
    )

    def loss_fn(params, batch, *rng):
        # A lookup in a table that is sharded along its columns gives activations that
        # are sharded along their width. The columns are therefore gathered first; the
        # product that computes the logits needs them, too.
        root = params["transformer"]
        table = jax.lax.with_sharding_constraint(root["wte"]["embedding"], by_rows)
        root = {**root, "wte": {"embedding": table}}
        return loss_of_model({**params, "transformer": root}, batch, *rng)

    return loss_fn
