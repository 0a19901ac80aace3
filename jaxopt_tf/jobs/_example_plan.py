"""Functions and data of a run on examples, for `train` and labelled tasks."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from .. import _io, checkpoints, training
from .._checks import pluralize
from .._typing import PyTree
from ..models import Model
from ..recipes import Recipe
from ..sharding import num_batch_shards
from ._config import SEQUENCES
from ._conflicts import uses_eval_loss
from ._example_data import (
    DeviceBatches,
    ExampleSource,
    evaluation_batches,
    label_names,
)
from ._example_evaluation import MetricsFn, PredictFn, make_example_evaluate
from ._example_job import ExampleConfig, ExampleJob
from ._job import Job
from ._report import build_monitors, model_and_recipe
from ._run_core import RunPlan, run_mesh
from ._run_folder import OpenRun, sequences_of_last_start
from ._setup import Setup, setup_of


def example_plan(
    config: ExampleConfig,
    model: Model,
    run: OpenRun,
    *,
    source: ExampleSource,
    held_out: ExampleSource | None,
    batches: Any,
    compute_metrics: MetricsFn | None,
    notes: Sequence[str],
    write_model: Callable[[PyTree, PyTree], None],
    predict: PredictFn | None = None,
    monitors: Sequence[training.Monitor] = (),
    command: str | None = None,
) -> RunPlan:
    """Returns the functions and data of a run on examples.

    Args:
        config: all settings of the run.
        model: the model.
        run: the open folder.
        source: examples to train on.
        held_out: examples to evaluate on; None for no evaluations.
        batches: updates to train on.
        compute_metrics: metrics of evaluations; None for the loss only.
        notes: sentences for the header.
        write_model: function that writes the final parameters; it also takes those
            that are frozen.
        predict: as for `make_example_evaluate`.
        monitors: further monitors.
        command: command line that resumes the run; None for a call of `train`.
    """
    recipe, job = config.recipe, config.job
    mesh = run_mesh(job)
    setup = _with_frozen(setup_of(model, recipe, job, mesh), model, recipe.seed)
    on_devices = DeviceBatches(model, mesh, recipe.gradient_accumulation_steps)
    evaluate = None
    if held_out is not None:
        size = eval_batch_size(job, run.num_sequences)
        evaluate = make_example_evaluate(
            setup,
            functools.partial(evaluation_batches, held_out, size, recipe.seed),
            on_devices.evaluation_batch,
            compute_metrics=compute_metrics,
            label_names=label_names(model, job),
            compute_dtype=jnp.bfloat16 if job.bf16 else None,
            matmul_precision=job.matmul_precision,
            predict=predict,
        )
    sizes = f"{run.num_sequences}"
    if recipe.gradient_accumulation_steps > 1:
        sizes = f"{recipe.gradient_accumulation_steps} x {sizes}"
    return RunPlan(
        recipe=recipe,
        job=job,
        setup=setup,
        initial_params=lambda: jax.device_put(
            model.init(recipe.seed),
            jax.tree.map(lambda x: x.sharding, setup.run_state.state.params),
        ),
        batches=functools.partial(on_devices.step_batches, batches),
        evaluate=evaluate,
        monitors=lambda: [
            *build_monitors(
                job,
                run,
                max_steps=recipe.max_steps,
                steps_per_epoch=batches.steps_per_epoch,
                unit=run.corpus.unit,
                flops_per_item=None,
                loss_unit="mean",
                has_tensorboard=job.report_to == "tensorboard",
            ),
            *monitors,
        ],
        header=[
            *_data_lines(source, held_out, notes),
            *model_and_recipe(
                setup,
                recipe,
                run,
                f" of {sizes} examples",
                option="`mesh='data={}'`" if command is None else "--mesh data={}",
            ),
        ],
        has_final_model=has_weights(run.folder),
        write_model=lambda params: write_model(params, setup.frozen),
        loss_unit="",
        how_to_resume=command or "call `jobs.train` again with the same arguments",
        num_programs=lambda: on_devices.num_shapes,
    )


def _with_frozen(setup: Setup, model: Model, seed: int) -> Setup:
    """Returns the setup with the values of frozen parameters on the devices."""
    if not jax.tree.leaves(setup.frozen):
        return setup
    shardings = jax.tree.map(lambda x: x.sharding, setup.frozen)
    return setup.with_frozen(jax.device_put(model.init_frozen(seed), shardings))


def _data_lines(
    source: ExampleSource, held_out: ExampleSource | None, notes: Sequence[str]
) -> list[str]:
    """Returns the lines of the header about the data."""
    lengths = [size_in_words(source.num_examples) + " to train on"]
    if held_out is not None:
        lengths.append(size_in_words(held_out.num_examples) + " to evaluate on")
    if source.removed:
        notes = [f"columns that are not used: {', '.join(source.removed)}", *notes]
    return [f"data    {', '.join(lengths)}", *(f"        {note}" for note in notes)]


def has_weights(folder: Path) -> bool:
    """Returns whether a folder contains the final weights of a run."""
    names = [
        *("model.safetensors", "model.safetensors.index.json"),
        "adapter_model.safetensors",
    ]
    return any((folder / name).is_file() for name in names)


def num_examples_of_start(
    folder: Path | str | None, mesh: str | None, per_device: int
) -> int:
    """Returns the number of examples of a micro-batch on all devices.

    Args:
        folder: folder of the run; None for a new one.
        mesh: mesh of the job.
        per_device: number of examples per device.
    """
    # A run that is resumed on another mesh keeps its number of examples.
    if folder is not None:
        found = _io.run_on_process_0(lambda: sequences_of_last_start(Path(folder)))
        if found and checkpoints.find_checkpoints(folder):
            return found[SEQUENCES]
    return per_device * num_batch_shards(run_mesh(Job(mesh=mesh)).shape)


def eval_batch_size(job: ExampleJob, batch_size: int) -> int:
    """Returns the number of examples of an evaluation batch on all devices.

    Args:
        job: settings of the run.
        batch_size: number of examples of a micro-batch, which is the default.
    """
    per_device = job.per_device_eval_batch_size
    if per_device is None:
        return batch_size
    return per_device * num_batch_shards(run_mesh(job).shape)


def check_evaluation(
    recipe: Recipe,
    job: ExampleJob,
    held_out: ExampleSource | None,
    *,
    argument: str = "eval_dataset",
) -> None:
    """Raises if evaluations change the run, and there is nothing to evaluate on."""
    if held_out is None and _evaluations_matter(recipe, job):
        raise ValueError(
            f"`{argument}` must be given if a metric drives the schedule, ends the "
            "run or selects its model, got none. Pass it, or leave out "
            "`load_best_model_at_end` and `early_stopping_patience`."
        )


def held_out_data(
    recipe: Recipe, job: ExampleJob, fingerprint: Callable[[], str] | None
) -> dict[str, Any]:
    """Returns the fingerprint of the data to evaluate on, if evaluations matter.

    Args:
        recipe: hyperparameters of the run.
        job: its other settings.
        fingerprint: function that hashes the data; None without evaluations.
    """
    if fingerprint is None or not _evaluations_matter(recipe, job):
        return {}
    return {"eval_data": fingerprint()}


def _evaluations_matter(recipe: Recipe, job: ExampleJob) -> bool:
    """Returns whether a metric changes the schedule, the end or the result."""
    return uses_eval_loss(vars(job) | {"lr_scheduler_type": recipe.lr_scheduler_type})


def size_in_words(num_examples: int | None) -> str:
    """Returns the number of examples of a dataset, in words."""
    if num_examples is None:
        return "examples without a length"
    return pluralize(num_examples, "example")
