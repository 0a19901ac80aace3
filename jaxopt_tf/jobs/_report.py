"""Reports of a run: monitors, and the header and summary on the console."""

import math
import signal
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import jax

from .. import monitors, plots, training
from .._checks import pluralize
from .._typing import PyTree
from ..recipes import Recipe
from ._config import RunConfig
from ._job import Job
from ._run_data import TrainingBatches, data_notes
from ._run_folder import OpenRun
from ._setup import Setup

_NO_METRICS: Mapping[str, float] = MappingProxyType({})


class RunResult(NamedTuple):
    """Result of a run."""

    # Evaluation losses are NaN without data to evaluate on.
    first_loss: float  # evaluation loss before the first step, in nats per token
    last_loss: float  # evaluation loss of `params`, in nats per token
    params: PyTree  # last parameters, or the best ones with `load_best_model_at_end`
    folder: Path  # settings.json, metrics.jsonl, curves.png, checkpoint-<step>, ...
    stopped_by: int | None  # number of the signal that ended the run early
    metrics: Mapping[str, float] = _NO_METRICS  # evaluation metrics of `params`
    num_programs: int = 1  # number of shapes of training batches, each compiled once


def build_monitors(
    job: Job,
    run: OpenRun,
    *,
    max_steps: int,
    steps_per_epoch: int | None,
    unit: str,
    flops_per_item: float | None,
    loss_unit: str | None = None,
    has_tensorboard: bool = True,
) -> list[training.Monitor]:
    """Builds the monitors of a run.

    The log is truncated to the run's step. Its remaining events are then replayed to
    the monitors with a state: those that draw, count or compare over the whole run.

    Args:
        job: intervals of the logs, and the rule of model selection.
        run: the open folder of the run.
        max_steps: number of steps of the run.
        steps_per_epoch: number of steps in an epoch; None if the data have no length.
        unit: plural of the items that the loss is a mean over.
        flops_per_item: floating-point operations per item; None if unknown.
        loss_unit: unit of the loss; None for nats per item.
        has_tensorboard: whether event files for TensorBoard are written.
    """
    folder = run.folder
    is_replay = True

    def warn(sentence: str) -> None:
        # Warnings about replayed steps were printed by an earlier start.
        if not is_replay:
            print(sentence)

    stateless = [
        monitors.json_lines(run.log, first_step=run.step),
        monitors.console(
            max_steps, first_step=run.step, unit=unit, flops_per_item=flops_per_item
        ),
    ]
    if has_tensorboard:
        stateless += [
            monitors.tensorboard(
                folder / "tensorboard",
                first_step=run.step,
                every=job.logging_steps,
                logging_first_step=job.logging_first_step,
            )
        ]
    loss_unit = loss_unit or f"nats per {unit.removesuffix('s')}"
    stateful = [
        plots.curves(folder / "curves.png", unit=loss_unit),
        monitors.trainer_state(
            folder / "trainer_state.json",
            max_steps=max_steps,
            logging_steps=job.logging_steps,
            logging_first_step=job.logging_first_step,
            eval_steps=job.eval_steps,
            save_steps=job.save_steps,
            train_batch_size=run.num_sequences,
            steps_per_epoch=steps_per_epoch,
            flops_per_item=flops_per_item,
            selection=job.selection,
        ),
        monitors.health_monitor(warn),
    ]
    for event in monitors.read_history(run.log) if run.step else ():
        for monitor in stateful:
            if isinstance(event, training.Window):
                monitor.window(event)
            else:
                monitor.evaluation(event)
    is_replay = False
    return [*stateless, *stateful]


def header(
    config: RunConfig, setup: Setup, run: OpenRun, batches: TrainingBatches
) -> list[str]:
    """Describes the data, the model, the recipe, the devices and the folder of a run.

    Returns:
        The lines; a line that does not apply is empty.
    """
    recipe, corpus = config.recipe, run.corpus
    batch = f"{run.num_sequences} x {config.model.block_size}"
    if recipe.gradient_accumulation_steps > 1:
        batch = f"{recipe.gradient_accumulation_steps} x {batch}"
    length = f"{_epochs(config)} of {batch} {corpus.unit}"
    return [
        f"text    {pluralize(corpus.num_documents, 'document')}: "
        f"{len(corpus.training):,} {corpus.unit} to train on, "
        f"{len(corpus.evaluation):,} to evaluate on",
        *(f"        {note}" for note in data_notes(corpus, batches)),
        *model_and_recipe(setup, recipe, run, length, option="--mesh data={}"),
    ]


def model_and_recipe(
    setup: Setup, recipe: Recipe, run: OpenRun, length: str, *, option: str
) -> list[str]:
    """Describes the model, the recipe, the devices and the folder of a run.

    Args:
        setup: setup of the run.
        recipe: hyperparameters.
        run: the open folder.
        length: phrase that follows the number of steps.
        option: setting of a mesh of all devices, such as "--mesh data=4", as a format
            string.
    """
    leaves = jax.tree.leaves(setup.run_state.state.params)
    num_frozen = sum(leaf.size for leaf in jax.tree.leaves(setup.frozen))
    chosen = [group.optim for group in recipe.rate_groups if group.optim]
    optimizers = " and ".join(dict.fromkeys([recipe.optim, *chosen]))
    return [
        f"model   {setup.model.title}, "
        f"{pluralize(sum(leaf.size for leaf in leaves), 'parameter')}"
        + (f" to train, {num_frozen:,} frozen" if num_frozen else ""),
        f"recipe  {optimizers}, learning rate {recipe.learning_rate:g} "
        f"({recipe.lr_scheduler_type}, "
        f"{pluralize(recipe.num_warmup_steps, 'warmup step')}), "
        f"{pluralize(recipe.max_steps, 'step')}{length}",
        _devices(setup.mesh, option),
        f"folder  {run.folder}"
        + (f", resumed at step {run.step:,}" if run.step else ""),
    ]


def _epochs(config: RunConfig) -> str:
    """Returns the number of epochs that determined the steps, in words, or ""."""
    epochs = config.job.num_train_epochs
    if epochs is None:
        return ""
    return f" ({epochs:g} epoch{'' if epochs == 1 else 's'})"


def _devices(mesh: jax.sharding.Mesh, option: str) -> str:
    """Describes the mesh; "" if there is only one device."""
    num_all = len(jax.devices())
    if num_all == 1:
        return ""
    if mesh.size == 1:
        return f"mesh    1 of {num_all} devices; {option.format(num_all)} uses all"
    axes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
    device_kind = mesh.devices.flat[0].device_kind
    processes = jax.process_count()
    in_processes = f" in {processes} processes" if processes > 1 else ""
    return f"mesh    {axes}: {mesh.size} of {device_kind}{in_processes}"


def print_summary(
    max_steps: int,
    run: OpenRun,
    trained: training.Trained,
    outcome: RunResult,
    first_step: int,
    *,
    unit: str,
    selected: str,
    how_to_resume: str,
) -> None:
    """Prints the reason why the run ended, its files and its evaluation losses.

    Args:
        max_steps: number of steps of the run.
        run: folder and start of the run.
        trained: last state of the run.
        outcome: losses of the run, and the signal that ended it early, if any.
        first_step: step of the first evaluation.
        unit: unit of the losses; "" for none.
        selected: name of the metric that selects the best model.
        how_to_resume: line that resumes a run that a signal has stopped.
    """
    step = int(trained.state.step)
    steps_done = f"after step {step:,} of {max_steps:,}"
    if outcome.stopped_by is not None:
        name, processes = signal.Signals(outcome.stopped_by).name, jax.process_count()
        in_processes = f", in each of {processes} processes" if processes > 1 else ""
        print(f"stopped by {name} {steps_done}; to resume{in_processes}:")
        print(how_to_resume)
        return
    if run.is_finished:
        print(f"this run is finished, {steps_done}: there is nothing left to train")
    elif trained.stop_reason == "early_stopping":
        print(f"ended early, {steps_done}: the evaluation loss no longer improves")
    progress = trained.run_state.progress
    paths = {"metrics": run.log, "curves": run.folder / "curves.png"}
    losses = f"{outcome.first_loss:.2f} "
    losses += f"at step {first_step:,}" if first_step else "before training"
    if progress.best_step is not None:
        paths["best"] = run.folder / f"checkpoint-{progress.best_step}"
        metric = selected.removeprefix("eval_")
        name = "" if metric == "loss" else f"{metric} "
        best = f"best {name}{progress.best_metric:.3f} at step {progress.best_step:,}"
        losses = f"{best}; {losses}"
    for name, path in paths.items():
        if path.exists():  # older versions did not always keep the best checkpoint
            print(f"{name:7} {path}")
    other_metrics = "".join(
        f", {name} {value:.4g}"
        for name, value in outcome.metrics.items()
        if name != "loss"
    )
    if not math.isnan(outcome.last_loss):
        in_unit = f" {unit}" if unit else ""
        loss = f"{outcome.last_loss:.3f}{in_unit}"
        print(f"evaluation loss {loss} ({losses}){other_metrics}")
    if outcome.num_programs > 1:
        shapes = pluralize(outcome.num_programs, "shape")
        print(f"batches of {shapes}, each compiled once")
