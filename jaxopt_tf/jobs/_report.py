"""Reports of a run: monitors, and the header and summary on the console."""

import shlex
import signal
from pathlib import Path
from typing import NamedTuple

import jax

from .. import monitors, plots, training
from .._checks import pluralize
from .._typing import PyTree
from ..models import Model
from ._config import RunConfig
from ._intervals import num_steps_per_epoch
from ._run_data import TrainingBatches, data_notes
from ._run_folder import OpenRun
from ._setup import Setup


class RunResult(NamedTuple):
    """Result of a run."""

    first_loss: float  # evaluation loss before the first step, in nats per token
    last_loss: float  # evaluation loss of `params`, in nats per token
    params: PyTree  # last parameters, or the best ones with `load_best_model_at_end`
    folder: Path  # settings.json, metrics.jsonl, curves.png, checkpoint-<step>, ...
    stopped_by: int | None  # number of the signal that ended the run early


def build_monitors(
    config: RunConfig, model: Model, run: OpenRun, batches: TrainingBatches
) -> list[training.Monitor]:
    """Builds the monitors of a run.

    The log is truncated to the run's step. Its remaining events are then replayed to
    the monitors with a state: those that draw, count or compare over the whole run.
    """
    job, flops, unit = config.job, model.flops_per_token, run.corpus.unit
    max_steps, folder = config.recipe.max_steps, run.folder
    steps_per_epoch = num_steps_per_epoch(
        batches.num_windows,
        batch_size=run.num_sequences,
        gradient_accumulation_steps=config.recipe.gradient_accumulation_steps,
    )
    is_replay = True

    def warn(sentence: str) -> None:
        # Warnings about replayed steps were printed by an earlier start.
        if not is_replay:
            print(sentence)

    stateless = [
        monitors.json_lines(run.log, first_step=run.step),
        monitors.console(
            max_steps, first_step=run.step, unit=unit, flops_per_item=flops
        ),
        monitors.tensorboard(
            folder / "tensorboard",
            first_step=run.step,
            every=job.logging_steps,
            logging_first_step=job.logging_first_step,
        ),
    ]
    stateful = [
        plots.curves(folder / "curves.png", unit=f"nats per {unit.removesuffix('s')}"),
        monitors.trainer_state(
            folder / "trainer_state.json",
            max_steps=max_steps,
            logging_steps=job.logging_steps,
            logging_first_step=job.logging_first_step,
            eval_steps=job.eval_steps,
            save_steps=job.save_steps,
            train_batch_size=run.num_sequences,
            steps_per_epoch=steps_per_epoch,
            flops_per_item=flops,
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


def print_header(
    config: RunConfig, setup: Setup, run: OpenRun, batches: TrainingBatches
) -> None:
    """Prints the data, the model, the recipe, the devices and the folder of a run."""
    recipe, corpus = config.recipe, run.corpus
    leaves = jax.tree.leaves(setup.run_state.state.params)
    num_frozen = sum(leaf.size for leaf in jax.tree.leaves(setup.frozen))
    batch = f"{run.num_sequences} x {config.model.block_size}"
    if recipe.gradient_accumulation_steps > 1:
        batch = f"{recipe.gradient_accumulation_steps} x {batch}"
    lines = [
        f"text    {pluralize(corpus.num_documents, 'document')}: "
        f"{len(corpus.training):,} {corpus.unit} to train on, "
        f"{len(corpus.evaluation):,} to evaluate on",
        *(f"        {note}" for note in data_notes(corpus, batches)),
        f"model   {setup.model.title}, "
        f"{pluralize(sum(leaf.size for leaf in leaves), 'parameter')}"
        + (f" to train, {num_frozen:,} frozen" if num_frozen else ""),
        f"recipe  {recipe.optim}, learning rate {recipe.learning_rate:g} "
        f"({recipe.lr_scheduler_type}, "
        f"{pluralize(recipe.num_warmup_steps, 'warmup step')}), "
        f"{pluralize(recipe.max_steps, 'step')}{_epochs(config)} of {batch} "
        f"{corpus.unit}",
        _devices(setup.mesh),
        f"folder  {run.folder}"
        + (f", resumed at step {run.step:,}" if run.step else ""),
    ]
    print("\n".join(line for line in lines if line))


def _epochs(config: RunConfig) -> str:
    """Returns the number of epochs that determined the steps, in words, or ""."""
    epochs = config.job.num_train_epochs
    if epochs is None:
        return ""
    return f" ({epochs:g} epoch{'' if epochs == 1 else 's'})"


def _devices(mesh: jax.sharding.Mesh) -> str:
    """Describes the mesh; "" if there is only one device."""
    num_all = len(jax.devices())
    if num_all == 1:
        return ""
    if mesh.size == 1:
        return f"mesh    1 of {num_all} devices; --mesh data={num_all} uses all"
    axes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
    kind = mesh.devices.flat[0].device_kind
    processes = jax.process_count()
    in_processes = f" in {processes} processes" if processes > 1 else ""
    return f"mesh    {axes}: {mesh.size} of {kind}{in_processes}"


def print_summary(
    config: RunConfig,
    run: OpenRun,
    trained: training.Trained,
    outcome: RunResult,
    first_step: int,
) -> None:
    """Prints the reason why the run ended, its files and its evaluation losses.

    Args:
        config: all settings of the run.
        run: folder and start of the run.
        trained: last state of the run.
        outcome: losses of the run, and the signal that ended it early, if any.
        first_step: step of the first evaluation.
    """
    step, max_steps = int(trained.state.step), config.recipe.max_steps
    steps_done = f"after step {step:,} of {max_steps:,}"
    if outcome.stopped_by is not None:
        name, processes = signal.Signals(outcome.stopped_by).name, jax.process_count()
        in_processes = f", in each of {processes} processes" if processes > 1 else ""
        print(f"stopped by {name} {steps_done}; to resume{in_processes}:")
        print(shlex.join(["jaxopt-tf", "train", "--output_dir", str(run.folder)]))
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
        best = f"best {progress.best_metric:.3f} at step {progress.best_step:,}"
        losses = f"{best}; {losses}"
    for name, path in paths.items():
        if path.exists():  # older versions did not always keep the best checkpoint
            print(f"{name:7} {path}")
    unit = run.corpus.unit.removesuffix("s")
    print(f"evaluation loss {outcome.last_loss:.3f} nats per {unit} ({losses})")
