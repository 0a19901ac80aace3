"""The run: text, model, recipe, step, checkpoints and monitors tied together."""

import dataclasses
import datetime
import functools
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import checkpoints, training
from .._typing import PyTree
from ..recipes import Recipe, build_optimizer, build_schedule
from ..schedules import MetricDrivenSchedule
from . import _run_folder
from ._batches import Batches, held_out_batches
from ._contradictions import check_settings
from ._corpus import Corpus
from ._data import read_corpus
from ._model import make_loss_fn
from ._monitors import all_monitors
from ._moved import first_position
from ._presets import GPT2Config, gpt2_layout
from ._settings import Job, flat


class Outcome(NamedTuple):
    """What a run leaves behind."""

    first_loss: float  # held-out loss before the first step, in nats per token
    last_loss: float  # and of `params`
    params: PyTree  # the last ones, or the best with `load_best_model_at_end`
    folder: Path  # config.json, metrics.jsonl, curves.png, checkpoint-<step>, ...
    stopped_by: int | None  # number of the signal that ended it before its time


def pretrain(
    recipe: Recipe,
    model: GPT2Config,
    job: Job,
    *,
    command_line: Sequence[str] = (),
) -> Outcome:
    """Trains a GPT-2, and says how it goes on the console.

    A folder that holds a run is gone on with, from its newest good checkpoint: losses,
    parameters and the log come out as if it had never been broken off, bit for bit on
    the same machine. SIGTERM and SIGINT end it after a step, with a checkpoint.

    Args:
        recipe: the numbers of the updates.
        model: the model's size.
        job: all else.
        command_line: noted in starts.jsonl.

    Raises:
        ValueError: if settings contradict each other, the data do not fit, the folder
            holds another run or is in use, or no checkpoint in it is good.
        OSError: if a checkpoint or the log cannot be written.
        FloatingPointError: if the loss is no longer finite, unless told to go on.
    """
    check_settings(recipe, model, job)
    now = f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"
    folder = job.output_dir or Path("runs", now)
    with checkpoints.hold(folder) as held, training.stop_on_signals() as should_stop:
        return _run(recipe, model, job, held, should_stop, command_line)


def _run(
    recipe: Recipe,
    model: GPT2Config,
    job: Job,
    held: checkpoints.Held,
    should_stop: training.StopRequest,
    command_line: Sequence[str],
) -> Outcome:
    folder = held.folder
    corpus = read_corpus(job, model, folder)
    sizes = {
        "block_size": model.block_size,
        "batch_size": recipe.per_device_train_batch_size,
    }
    held_out = held_out_batches(corpus, **sizes)
    config = flat(recipe, model, job)
    settings = config | {_run_folder.DATA: corpus.fingerprint}
    checkpoint = _run_folder.find_start(folder, job, settings)

    params, loss_fn = make_loss_fn(
        model, recipe.seed, label_smoothing_factor=recipe.label_smoothing_factor
    )
    schedule = build_schedule(recipe)
    driven = schedule if isinstance(schedule, MetricDrivenSchedule) else None
    optimizer = build_optimizer(recipe, layout=gpt2_layout(model))
    start = first_position(recipe, model, params)
    start = training.restore_position(checkpoint, start)
    if job.on_non_finite != "skip":  # skipped ones before are no reason to stop now
        state = dataclasses.replace(start.state, num_bad_in_a_row=jnp.int32(0))
        start = start._replace(state=state)
    step = int(start.state.step)
    if checkpoint is not None:
        _run_folder.set_aside(folder, step)
        _run_folder.bring_log(folder, checkpoint)
    _introduce(recipe, model, corpus, params, folder, step)
    del params  # taken over by the first step, or replaced by those of the checkpoint
    # Before the log: one without them belongs to no run.
    _run_folder.write_config(folder, config)
    _run_folder.write_start(folder, step, command_line)

    compute_dtype = jnp.bfloat16 if job.bf16 else None
    train_step = training.make_train_step(
        loss_fn,
        optimizer,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        compute_dtype=compute_dtype,
        on_non_finite=job.on_non_finite,
        max_skipped_in_a_row=job.max_skipped_in_a_row,
        per_layer=job.log_layers,
    )
    evaluate = training.make_evaluate(
        training.make_eval_step(loss_fn, compute_dtype=compute_dtype), held_out
    )
    batches = Batches(
        corpus,
        **sizes,
        seed=recipe.seed,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
    )
    with checkpoints.open_checkpoints(
        held, save_total_limit=job.save_total_limit
    ) as saving:
        monitors, evaluations = all_monitors(
            recipe,
            model,
            job,
            unit=corpus.unit,
            num_windows=batches.num_windows,
            folder=folder,
            step=step,
        )
        trained = training.train(
            train_step,
            start,
            batches.since(step),
            max_steps=recipe.max_steps,
            monitors=monitors,
            evaluate=evaluate,
            eval_steps=job.eval_steps,
            selection=job.selection,
            metric_schedule=driven,
            save=functools.partial(_save, saving, settings, folder),
            save_steps=job.save_steps,
            save_best=job.load_best_model_at_end,
            should_stop=should_stop,
        )
    end = trained.position
    was_asked = trained.ended == "asked"
    if job.load_best_model_at_end and not was_asked:
        end = _best(folder, end)
        evaluations.append(evaluate(end.state.params)["loss"])
    if not evaluations:  # at its end already, without a log
        evaluations.append(evaluate(end.state.params)["loss"])
    outcome = Outcome(
        evaluations[0],
        evaluations[-1],
        end.state.params,
        folder,
        should_stop.signal if was_asked else None,
    )
    _conclude(outcome, trained, recipe.max_steps, corpus.unit)
    return outcome


def _save(
    saving: checkpoints.Checkpoints,
    settings: Mapping[str, Any],
    folder: Path,
    position: training.Position,
) -> None:
    # A checkpoint that outlives a power cut must find its log up to there.
    with (folder / _run_folder.METRICS).open("rb") as log:
        os.fsync(log.fileno())
    training.save_position(saving, position, {"settings": settings})


def _best(folder: Path, last: training.Position) -> training.Position:
    """The position of the lowest held-out loss, or the last one where it is lost."""
    path = folder / f"checkpoint-{last.progress.best_step}"
    try:
        return training.restore_position(path, last)
    except ValueError as error:
        print(f"the best model is lost, these are the last parameters: {error}")
        return last


def _introduce(
    recipe: Recipe,
    model: GPT2Config,
    corpus: Corpus,
    params: PyTree,
    folder: Path,
    step: int,
) -> None:
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    batch = f"{recipe.per_device_train_batch_size} x {model.block_size}"
    if recipe.gradient_accumulation_steps > 1:
        batch = f"{recipe.gradient_accumulation_steps} x {batch}"
    print(
        f"text    {corpus.num_documents:,} documents: {len(corpus.training):,} "
        f"{corpus.unit} to train on, {len(corpus.held_out):,} held out\n"
        f"model   GPT-2: {model.n_layer} layers, width {model.n_embd}, "
        f"{num_params:,} parameters\n"
        f"recipe  {recipe.optim}, learning rate {recipe.learning_rate:g} "
        f"({recipe.lr_scheduler_type}, {recipe.num_warmup_steps} steps of warm-up), "
        f"{recipe.max_steps:,} steps of {batch} {corpus.unit}\n"
        f"folder  {folder}" + (f", from its step {step:,} on" if step else "")
    )


def _conclude(
    outcome: Outcome, trained: training.Trained, max_steps: int, unit: str
) -> None:
    step = int(trained.state.step)
    if outcome.stopped_by is not None:
        name = signal.Signals(outcome.stopped_by).name
        print(
            f"stopped by {name} after step {step:,} of {max_steps:,}; the same command "
            f"with --output_dir {outcome.folder}, and without "
            "--resume_from_checkpoint, goes on"
        )
        return
    if trained.ended == "patience":
        print(f"ended early, after step {step:,}: the held-out loss got no better")
    print(
        f"metrics {outcome.folder / _run_folder.METRICS}\n"
        f"curves  {outcome.folder / 'curves.png'}\n"
        f"held-out loss {outcome.first_loss:.2f} -> {outcome.last_loss:.3f} "
        f"nats per {unit.removesuffix('s')}"
    )
