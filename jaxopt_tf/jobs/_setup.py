"""Setup of a run: schedule, optimizer, shardings and compiled functions."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from .. import sharding, training
from .._checks import pluralize
from .._typing import PyTree, Schedule
from ..data import min_token_dtype
from ..models import Model
from ..recipes import Recipe, build_optimizer, build_schedule
from ..schedules import MetricDrivenSchedule
from ..sharding import BATCH_AXES, batch_sharding, num_batch_shards
from ._base_weights import run_model
from ._config import RunConfig
from ._job import Job
from ._run_data import KEYS, has_packed_batches

Mesh = Any  # `Mesh` or `AbstractMesh`; they have no common base class to annotate


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Functions, shapes and shardings of a run, without arrays.

    Attributes:
        model: the model of the configuration.
        mesh: `jax.sharding.Mesh` or `AbstractMesh`.
        schedule: function step -> learning rate, or a metric-driven schedule.
        optimizer: optimizer of the recipe, for the model's parameters.
        loss_fn: (params, batch, rng=None) -> (summed loss, number of tokens), with
            activations sharded over the mesh.
        run_state: state of the run before the first step, as `jax.ShapeDtypeStruct`s
            with shardings.
        batch: [B, T + 1], or [k, B, T + 1] with k micro-batches; a
            `jax.ShapeDtypeStruct` with its sharding, or a dict of them; None if the
            shapes are not known before the run.
        train_step: one update; `train_step.lower(setup.run_state.state, setup.batch)`
            lowers it without arrays.
        eval_step: (params, batch) -> (summed loss, number of tokens).
        init: function that returns the sharded state before the first step. It donates
            the parameters that it receives; without an argument it draws them.
        frozen: parameters that the steps take besides those of the state:
            `jax.ShapeDtypeStruct`s with shardings; arrays after `with_frozen`. {} if
            all are trained.
    """

    model: Model
    mesh: Mesh
    schedule: Schedule | MetricDrivenSchedule
    optimizer: optax.GradientTransformationExtraArgs
    loss_fn: training.LossFn
    run_state: training.RunState
    batch: Any
    train_step: training.TrainStep
    eval_step: training.EvalStep
    init: Callable[..., training.RunState]
    frozen: PyTree

    def with_frozen(self, frozen: PyTree) -> "Setup":
        """Returns the setup with steps that take these frozen parameters."""
        if not jax.tree.leaves(frozen):
            return self
        steps: Any = (self.train_step, self.eval_step)
        train_step, eval_step = (step.with_frozen(frozen) for step in steps)
        return dataclasses.replace(
            self, train_step=train_step, eval_step=eval_step, frozen=frozen
        )

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
    return setup_of(
        run_model(config.model, config.job),
        config.recipe,
        config.job,
        mesh,
        batch=_abstract_batch(config, mesh, num_sequences),
    )


def setup_of(
    model: Model, recipe: Recipe, job: Job, mesh: Mesh, *, batch: Any = None
) -> Setup:
    """Builds the setup of a run of a model; arguments as for `build_setup`.

    Args:
        model: the model.
        recipe: hyperparameters.
        job: all other settings.
        mesh: mesh of the run.
        batch: shapes of a batch; None if they are not known before the run.
    """
    params, of_frozen = _param_shardings(model, mesh)
    schedule, optimizer = schedule_and_optimizer(recipe, model, shardings=params)
    schedule_state = init_schedule(schedule)

    def init_state(params: PyTree | None = None) -> training.TrainState:
        params = model.init(recipe.seed) if params is None else params
        rng = recipe.seed if model.has_dropout else None
        return training.init_train_state(params, optimizer, rng=rng)

    # Only shapes and dtypes are traced: no array of the model's size is allocated.
    shapes = jax.eval_shape(init_state, model.shapes)
    shardings = _state_shardings(shapes, params, mesh, zero_1=job.zero_1)
    frozen = jax.tree.map(_with_sharding, model.frozen_shapes, of_frozen)
    state = jax.tree.map(_with_sharding, shapes, shardings)

    def init(params: PyTree | None = None) -> training.RunState:
        # On several devices, parameters are drawn in the jitted function, so that each
        # draws and stores its shards only. This compiles a draw for every leaf, and
        # outside of the function it is one for every shape.
        if params is None and (model.draws_on_host or mesh.size == 1):
            params = jax.device_put(model.init(recipe.seed), shardings.params)
        make = jax.jit(init_state, out_shardings=shardings, donate_argnums=0)
        arrays = make(params)
        return training.RunState(arrays, schedule_state=schedule_state)

    loss_fn = model.make_loss(
        mesh=mesh,
        label_smoothing_factor=recipe.label_smoothing_factor,
        matmul_precision=job.matmul_precision,
    )
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
        frozen=frozen,
    )
    return Setup(
        model=model,
        mesh=mesh,
        schedule=schedule,
        optimizer=optimizer,
        loss_fn=loss_fn,
        run_state=training.RunState(state, schedule_state=schedule_state),
        batch=batch,
        train_step=train_step,
        eval_step=training.make_eval_step(loss_fn, compute_dtype=dtype, frozen=frozen),
        init=init,
        frozen=frozen,
    )


def schedule_and_optimizer(
    recipe: Recipe, model: Model, *, shardings: PyTree | None = None
) -> tuple[Schedule | MetricDrivenSchedule, optax.GradientTransformationExtraArgs]:
    """Builds the schedule and the optimizer of a recipe for the model's parameters.

    Args:
        recipe: hyperparameters.
        model: the model.
        shardings: shardings of its parameters; None if they are on one device.
    """
    schedule = build_schedule(recipe)
    optimizer = build_optimizer(
        recipe,
        schedule=schedule,
        layouts=model.layouts,
        layer_norms=model.layer_norms,
        shardings=shardings,
    )
    return schedule, optimizer


def init_schedule(schedule: Schedule | MetricDrivenSchedule) -> Any:
    """Returns the initial state of a metric-driven schedule; None for others."""
    return schedule.init() if isinstance(schedule, MetricDrivenSchedule) else None


def _with_sharding(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _param_shardings(model: Model, mesh: Mesh) -> tuple[PyTree, PyTree]:
    """Returns the shardings of the trainable and of the frozen parameters."""
    # Rules of a Flax model match leaves of both trees.
    merged = training.merge_params(model.shapes, model.frozen_shapes)
    found = sharding.param_shardings(merged, mesh, model.all_sharding_rules(mesh))
    return _subtree(found, model.shapes), _subtree(found, model.frozen_shapes)


def _subtree(tree: PyTree, like: PyTree) -> PyTree:
    """Returns the leaves of nested dicts that `like` has, too."""
    if not isinstance(like, Mapping):
        return tree
    return {key: _subtree(tree[key], value) for key, value in like.items()}


def _state_shardings(
    state: training.TrainState, params: PyTree, mesh: Mesh, *, zero_1: bool
) -> training.TrainState:
    opt_state = sharding.state_shardings(
        state.opt_state,
        state.params,
        params,
        zero_axis="data" if zero_1 else None,
    )
    # Counters, flags and keys are replicated.
    replicated = NamedSharding(mesh, PartitionSpec())
    shardings = jax.tree.map(lambda _: replicated, state)
    return shardings.replace(params=params, opt_state=opt_state)


def _abstract_batch(
    config: RunConfig, mesh: Mesh, num_sequences: int | None
) -> jax.ShapeDtypeStruct | dict[str, jax.ShapeDtypeStruct]:
    num_shards = num_batch_shards(mesh.shape)
    if num_sequences is None:
        num_sequences = config.recipe.per_device_train_batch_size * num_shards
    if num_sequences % num_shards:
        axes = [name for name in BATCH_AXES if name in mesh.shape]
        listed = ", ".join(f"{name}={mesh.shape[name]}" for name in axes)
        fit = [n for n in range(1, num_sequences + 1) if num_sequences % n == 0]
        what = f"size of {axes[0]}"
        if len(axes) > 1:
            what = f"product of {' and '.join(axes)}"
        raise ValueError(
            f"`mesh` must divide the {pluralize(num_sequences, 'sequence')} of a "
            f"micro-batch evenly, got {listed}, {num_shards} parts. The {what} "
            f"may be {', '.join(map(str, fit))}; assign the remaining devices to "
            "tensor."
        )
    num_micro = config.recipe.gradient_accumulation_steps
    micro_axis = () if num_micro == 1 else (num_micro,)
    shape = (*micro_axis, num_sequences, config.model.block_size + 1)
    sharding = batch_sharding(shape, mesh, axis=len(micro_axis))
    if has_packed_batches(config.job):
        array = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)
        return dict.fromkeys(KEYS, array)
    dtype = min_token_dtype(config.model.vocab_size)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
