"""The run: text, model, recipe, step, checkpoints and monitors tied together."""

import dataclasses
import datetime
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import checkpoints, training
from .._io import done_by_first, is_first, told_by_first
from .._typing import PyTree
from ..data import Batches, Corpus, held_out_batches
from ..models import GPT2Config
from ..recipes import build_schedule
from ..schedules import MetricDrivenSchedule
from ..sharding import make_mesh
from . import _run_folder
from ._alike import check_alike, versions
from ._config import DATA, SEQUENCES, RunConfig
from ._data import read_corpus
from ._job import Job
from ._monitors import all_monitors
from ._on_devices import (
    batches_on_devices,
    on_devices,
    one_at_a_time,
    position_at_start,
)
from ._placed import place, run_steps
from ._told import conclude, introduce


class Outcome(NamedTuple):
    """What a run leaves behind."""

    first_loss: float  # held-out loss before the first step, in nats per token
    last_loss: float  # and of `params`
    params: PyTree  # the last ones, or the best with `load_best_model_at_end`
    folder: Path  # config.json, metrics.jsonl, curves.png, checkpoint-<step>, ...
    stopped_by: int | None  # number of the signal that ended it before its time


def pretrain(config: RunConfig, *, command_line: Sequence[str] = ()) -> Outcome:
    """Trains a GPT-2, and says how it goes on the console.

    A folder that holds a run is gone on with, from its newest good checkpoint: losses,
    parameters and the log come out as if it had never been broken off, bit for bit on
    the same machine. SIGTERM and SIGINT end it after a step, with a checkpoint.

    After `jax.distributed.initialize` all processes call it alike, and run it together:
    each reads its part of the batches and writes its part of the checkpoints; the first
    one prints and logs. A signal to any of them ends all. A run can be gone on with on
    any mesh and number of processes, whose product divides its batch.

    Args:
        config: all settings of the run.
        command_line: noted in starts.jsonl.

    Raises:
        ValueError: if the data do not fit, the folder holds another run or is in use,
            or no checkpoint in it is good.
        OSError: if a checkpoint or the log cannot be written.
        FloatingPointError: if the loss is no longer finite, unless told to go on.
    """
    now = told_by_first(f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}")
    if config.job.mesh is None and jax.process_count() > 1:
        job = dataclasses.replace(config.job, mesh=f"data={jax.device_count()}")
        config = dataclasses.replace(config, job=job)
    # Where text lies may differ from one machine to the next; not what it says.
    elsewhere = ("text", "tokenizer")
    told = {
        name: value for name, value in config.to_dict().items() if name not in elsewhere
    }
    check_alike(told | versions())
    folder = config.job.output_dir or Path("runs", now)
    with checkpoints.hold(folder) as held, training.stop_on_signals() as should_stop:
        return _run(config, held, should_stop, command_line)


def _run(
    config: RunConfig,
    held: checkpoints.Held,
    should_stop: training.StopRequest,
    command_line: Sequence[str],
) -> Outcome:
    recipe, model, job = config.recipe, config.model, config.job
    folder = held.folder
    corpus = _read_corpus(job, model, folder)
    settings = config.to_dict() | {DATA: corpus.fingerprint}
    check_alike({DATA: corpus.fingerprint})
    checkpoint, num_sequences = _run_folder.find_start(folder, job, settings)
    settings |= {SEQUENCES: num_sequences}

    devices = jax.devices()
    mesh = make_mesh(job.mesh) if job.mesh else make_mesh("data=1", devices[:1])
    placed = place(recipe, model, job, mesh, num_sequences)
    start = position_at_start(recipe, model, placed, checkpoint)
    if job.on_non_finite != "skip":  # skipped ones before are no reason to stop now
        none = jnp.zeros_like(start.state.num_bad_in_a_row)
        state = dataclasses.replace(start.state, num_bad_in_a_row=none)
        start = start._replace(state=state)
    step = int(start.state.step)

    def prepare() -> None:
        if checkpoint is not None:
            _run_folder.set_aside(folder, step)
            _run_folder.bring_log(folder, checkpoint)
        params = placed.position.state.params
        introduce(recipe, model, corpus, params, mesh, num_sequences, folder, step)
        # Before the log: one without them belongs to no run.
        _run_folder.write_config(folder, config.to_dict())
        _run_folder.write_start(folder, step, command_line)

    done_by_first(prepare)
    train_step, eval_step = (
        one_at_a_time(step, mesh) for step in run_steps(recipe, model, job, placed)
    )
    sizes = {"block_size": model.block_size, "batch_size": num_sequences}
    held_out = [on_devices(b, mesh) for b in held_out_batches(corpus, **sizes)]
    evaluate = training.make_evaluate(eval_step, held_out)
    batches = Batches(
        corpus,
        **sizes,
        seed=recipe.seed,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
    )
    schedule = build_schedule(recipe)
    with checkpoints.open_checkpoints(
        held, save_total_limit=job.save_total_limit
    ) as saving:
        monitors, evaluations = all_monitors(
            recipe,
            model,
            job,
            unit=corpus.unit,
            num_sequences=num_sequences * recipe.gradient_accumulation_steps,
            num_windows=batches.num_windows,
            folder=folder,
            step=step,
        )
        trained = training.train(
            train_step,
            start,
            batches_on_devices(batches, step, placed.batch),
            max_steps=recipe.max_steps,
            monitors=monitors,
            evaluate=evaluate,
            eval_steps=job.eval_steps,
            selection=job.selection,
            metric_schedule=(
                schedule if isinstance(schedule, MetricDrivenSchedule) else None
            ),
            save=functools.partial(_save, saving, settings, folder),
            save_steps=job.save_steps,
            save_best=job.load_best_model_at_end,
            should_stop=should_stop,
        )
    end = trained.position
    was_asked = trained.ended == "asked"
    evaluations = told_by_first(evaluations)
    if job.load_best_model_at_end and not was_asked:
        end = _best(folder, end)
        evaluations.append(evaluate(end.state.params)["loss"])
    if not evaluations:  # at its end already, without a log
        evaluations.append(evaluate(end.state.params)["loss"])
    losses = (evaluations[0], evaluations[-1])
    stopped_by = should_stop.signal if was_asked else None
    if is_first():
        log = folder / _run_folder.METRICS
        conclude(
            losses, folder, log, trained, stopped_by, recipe.max_steps, corpus.unit
        )
    return Outcome(*losses, end.state.params, folder, stopped_by)


def _read_corpus(job: Job, model: GPT2Config, folder: Path) -> Corpus:
    # The first process makes the tokens, if they have to be made; the others find them.
    mine: list[Corpus] = []
    done_by_first(lambda: mine.append(read_corpus(job, model, folder)))
    return mine[0] if mine else read_corpus(job, model, folder)


def _save(
    saving: checkpoints.Checkpoints,
    settings: Mapping[str, Any],
    folder: Path,
    position: training.Position,
) -> None:
    # A checkpoint that outlives a power cut must find its log up to there.
    if is_first():
        with (folder / _run_folder.METRICS).open("rb") as log:
            os.fsync(log.fileno())
    training.save_position(saving, position, {"settings": settings})


def _best(folder: Path, last: training.Position) -> training.Position:
    """The position of the lowest held-out loss, or the last one where it is lost."""
    path = folder / f"checkpoint-{last.progress.best_step}"
    try:
        return training.restore_position(path, last)
    except ValueError as error:
        if is_first():
            print(f"the best model is lost, these are the last parameters: {error}")
        return last
