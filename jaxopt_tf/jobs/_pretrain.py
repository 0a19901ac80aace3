"""Training of a language model from a configuration to the last checkpoint."""

import dataclasses
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checkpoints, training
from .._io import is_primary_process, run_on_process_0
from .._typing import PyTree
from ..sharding import batch_sharding, make_mesh, num_batch_shards
from ._base_weights import read_frozen
from ._compilation_cache import FirstStep, seconds_since_process_start
from ._config import RunConfig
from ._epochs import check_resolved
from ._final_folder import write_adapter_folder, write_transformers_folder
from ._generate import with_samples
from ._job import Job, mesh_axes
from ._model_folder import existing_folder, read_folder_params
from ._report import RunResult, build_monitors, print_header, print_summary
from ._run_data import (
    TrainingBatches,
    evaluation_batches,
    slice_reader,
    training_batches,
)
from ._run_folder import OpenRun, open_run, read_evaluations
from ._setup import Setup, build_setup


def pretrain(config: RunConfig, *, command_line: Sequence[str] = ()) -> RunResult:
    """Trains a model, and reports on the console and in the run's folder.

    If the folder contains a run, training resumes from its newest valid checkpoint.
    Losses, parameters and the log are equal to those of an uninterrupted run, bit for
    bit on the same machine. A finished run is left unchanged. After SIGTERM or SIGINT
    the run ends after the current step, with a checkpoint. The checkpoint of the best
    evaluation is kept.

    With several processes, all must call `jax.distributed.initialize` and then this
    function with the same arguments. Each process reads and writes its shards of
    batches and checkpoints; process 0 prints and logs. A signal to one process ends the
    run in all. A run can be resumed on any mesh and any number of processes that divide
    its batch.

    Args:
        config: all settings of the run.
        command_line: command line that is recorded in starts.jsonl. With one,
            `seconds_to_first_step` there starts with the process, otherwise with this
            call.

    Returns:
        The evaluation losses, the final parameters and the folder of the run.

    Raises:
        ValueError: if the data do not fit the model, the folder contains another run or
            is in use, no checkpoint in it is valid, or an interval is an epoch, see
            `resolve_epochs`.
        OSError: if a checkpoint or the log cannot be written.
        FloatingPointError: if the loss is not finite, unless `on_non_finite` allows it.
    """
    recipe, model, job = config.recipe, config.model, config.job
    check_resolved(config)
    seconds_since_start = _stopwatch(has_command_line=bool(command_line))
    with training.stop_on_signals() as should_stop, open_run(config) as run:
        is_one_device = job.mesh is None and jax.process_count() == 1
        devices = jax.devices()[:1] if is_one_device else None
        mesh = make_mesh(mesh_axes(job), devices)
        setup = build_setup(config, mesh, num_sequences=run.num_sequences)
        setup = setup.with_frozen(read_frozen(setup.model, setup.frozen, config))
        start = _init_or_restore(setup, run, job)
        batches = training_batches(
            run.corpus,
            job,
            block_size=model.block_size,
            batch_size=run.num_sequences,
            seed=recipe.seed,
            gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        )
        evaluate = _make_evaluate(setup, run, job, model.block_size)
        evaluate_and_sample = with_samples(evaluate, config, setup, run.folder)
        if run.is_finished:
            # Nothing is written to the folder of a finished run.
            trained = training.Trained(start, "max_steps")
        else:
            run_on_process_0(lambda: run.record_start(command_line))
            if is_primary_process():
                print_header(config, setup, run, batches)
            limit = job.save_total_limit
            with checkpoints.open_checkpoints(run.lock, save_total_limit=limit) as save:
                trained = training.train(
                    FirstStep(
                        _block_on_cpu_collectives(setup.train_step, setup.mesh),
                        functools.partial(_report_first_step, run),
                        seconds_since_start,
                    ),
                    start,
                    _sharded(batches, run.step, setup.batch),
                    max_steps=recipe.max_steps,
                    monitors=build_monitors(config, setup.model, run, batches)
                    if is_primary_process()
                    else [],
                    evaluate=evaluate_and_sample,
                    eval_steps=job.eval_interval,
                    selection=job.selection,
                    metric_schedule=setup.metric_schedule,
                    save=_CheckpointSaver(save, run, job),
                    save_steps=job.save_interval,
                    save_best=True,
                    should_stop=should_stop,
                )
        stopped_by = (
            should_stop.signal if trained.stop_reason == "should_stop" else None
        )
        return _finish(config, setup, run, trained, evaluate, stopped_by)


def _stopwatch(*, has_command_line: bool) -> Callable[[], float]:
    if has_command_line:
        return seconds_since_process_start
    begin = time.monotonic()
    return lambda: time.monotonic() - begin


def _report_first_step(run: OpenRun, seconds: float) -> None:
    if is_primary_process():
        run.record_first_step(seconds)
        print(f"start   first step after {seconds:.1f} s", flush=True)


def _init_or_restore(setup: Setup, run: OpenRun, job: Job) -> training.RunState:
    if run.checkpoint is None:
        folder = None if job.from_scratch else job.model_name_or_path
        # An adapter is drawn from the seed; the folder contains its base model.
        if folder is None or job.lora_r is not None:
            return setup.init()
        like = setup.run_state.state.params
        return setup.init(read_folder_params(folder, like, setup.model.names))
    start = training.restore_run_state(run.checkpoint, setup.run_state)
    if job.on_non_finite == "skip":
        return start
    # The counter is reset, because `max_skipped_in_a_row` applies to "skip" only.
    zero = jnp.zeros_like(start.state.num_bad_in_a_row)
    state = dataclasses.replace(start.state, num_bad_in_a_row=zero)
    return start._replace(state=state)


def _make_evaluate(
    setup: Setup, run: OpenRun, job: Job, block_size: int
) -> Callable[[PyTree], dict[str, float]]:
    """Returns a function that computes means over the evaluation data from params."""

    def sharded(batch: np.ndarray) -> jax.Array:
        sharding = batch_sharding(batch.shape, setup.mesh, axis=0)
        return jax.make_array_from_callback(batch.shape, sharding, batch.__getitem__)

    batch_size = run.num_sequences
    if job.per_device_eval_batch_size is not None:
        num_shards = num_batch_shards(setup.mesh.shape)
        batch_size = job.per_device_eval_batch_size * num_shards
    batches = evaluation_batches(
        run.corpus, job, block_size=block_size, batch_size=batch_size
    )
    eval_step = _block_on_cpu_collectives(setup.eval_step, setup.mesh)
    # The batches are transferred to the devices once and kept for all evaluations.
    on_devices = [jax.tree.map(sharded, batch) for batch in batches]
    return training.make_evaluate(eval_step, on_devices)


def _sharded(batches: TrainingBatches, start: int, like: PyTree) -> Iterator[PyTree]:
    """Yields the batches from `start` on; each process reads its own rows only."""

    def array(shape: jax.ShapeDtypeStruct, read: Callable) -> jax.Array:
        # JAX calls `read` with the index of each addressable shard only.
        return jax.make_array_from_callback(
            shape.shape, shape.sharding, read, dtype=shape.dtype
        )

    for n in itertools.count(start):
        part = slice_reader(batches, n)
        if isinstance(like, dict):
            yield {
                key: array(shape, functools.partial(part, key=key))
                for key, shape in like.items()
            }
        else:
            yield array(like, part)


def _block_on_cpu_collectives(function: Callable, mesh: jax.sharding.Mesh) -> Callable:
    """Returns a function that waits for its results, if it runs on several CPU devices.

    XLA runs collectives on CPUs in threads that wait for each other, one per device.
    With two steps in flight, one of them may find no free thread; both then wait
    forever.
    """
    if mesh.size == 1 or mesh.devices.flat[0].platform != "cpu":
        return function

    def blocking(*args: Any) -> Any:
        return jax.block_until_ready(function(*args))

    return blocking


class _CheckpointSaver:
    """Function that saves checkpoints for `training.train`.

    A checkpoint that is saved only because its evaluation is the best so far is
    replaced by the next one of this kind. `save_total_limit` therefore counts the
    checkpoints of `save_steps` only.
    """

    def __init__(self, saving: checkpoints.Checkpoints, run: OpenRun, job: Job):
        self._saving, self._run, self._job = saving, run, job
        self._extra: int | None = None  # step of the checkpoint that `replaces` names

    def __call__(self, run_state: training.RunState) -> None:
        # The log is flushed to disk before the checkpoint is written. Otherwise, after
        # a power failure, a checkpoint could exist whose log lacks its last lines.
        if is_primary_process():
            with self._run.log.open("rb") as log:
                os.fsync(log.fileno())
        step, replaces = int(run_state.state.step), None
        if (
            run_state.progress.best_step == step
            and not self._job.load_best_model_at_end
        ):
            replaces, every = self._extra, self._job.save_interval
            is_regular = every is not None and step % every == 0
            self._extra = None if is_regular else step
        metadata = {"settings": dict(self._run.settings)}
        training.save_run_state(self._saving, run_state, metadata, replaces=replaces)


def _finish(
    config: RunConfig,
    setup: Setup,
    run: OpenRun,
    trained: training.Trained,
    evaluate: Callable[[PyTree], dict[str, float]],
    stopped_by: int | None,
) -> RunResult:
    """Returns the final parameters and losses, and prints the summary."""
    end, loss = trained.run_state, None
    progress = end.progress
    if config.job.load_best_model_at_end and stopped_by is None:
        best = run.folder / f"checkpoint-{progress.best_step}"
        try:
            end, loss = training.restore_run_state(best, end), progress.best_metric
        except ValueError as error:  # damaged or missing
            if is_primary_process():
                print(
                    "the best checkpoint cannot be read, so that the last parameters "
                    f"are used: {error}"
                )
    is_written = run.is_finished and run.has_model
    # A finished run lacks the model if it was killed while the model was written.
    params = end.state.params
    if config.job.lora_r is None:
        params = training.merge_params(params, setup.frozen)
    if stopped_by is None and not is_written and config.job.lora_r is not None:
        write_adapter_folder(
            run.folder,
            setup.model,
            params,
            base=existing_folder(config.job),
            tokenizer=config.job.tokenizer,
        )
    elif stopped_by is None and not is_written:
        write_transformers_folder(
            run.folder,
            setup.model,
            params,
            like=existing_folder(config.job),
            has_new_weights=config.job.from_scratch,
            tokenizer=config.job.tokenizer,
            chat_template=config.job.chat_template,
        )
    # Read from the log, which also covers earlier starts of the run.
    evaluations = run_on_process_0(lambda: read_evaluations(run.log))
    if not evaluations:  # the log was deleted
        evaluations = [(run.step, evaluate(end.state.params)["loss"])]
    (first_step, first_loss), (_, last_loss) = evaluations[0], evaluations[-1]
    loss = last_loss if loss is None else loss
    outcome = RunResult(first_loss, loss, params, run.folder, stopped_by)
    if is_primary_process():
        print_summary(config, run, trained, outcome, first_step)
    return outcome
