"""Training in a run's folder: the loop, checkpoints, the best model and the summary.

`pretrain` and `train` build a `RunPlan` from their arguments and call `run_plan`.
"""

import dataclasses
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from .. import checkpoints, training
from .._io import is_primary_process, run_on_process_0
from .._typing import PyTree
from ..recipes import Recipe
from ..sharding import make_mesh
from ._first_step import FirstStep, compile_ahead, seconds_since_process_start
from ._job import Job, mesh_axes
from ._report import RunResult, print_summary
from ._run_folder import OpenRun
from ._setup import Setup

EvaluateFn = Callable[[PyTree], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Functions and data of a run.

    Attributes:
        recipe: hyperparameters.
        job: all other settings.
        setup: compiled functions and shardings.
        initial_params: function that reads the parameters before the first step; it
            returns None to draw them from the seed.
        batches: step -> sharded batches from this step on.
        evaluate: params -> metrics; None without evaluation data.
        evaluate_in_loop: the same for evaluations during training, which may print
            more; None for `evaluate`.
        monitors: builds the monitors, in process 0 only.
        header: lines that are printed at the start.
        has_final_model: whether the folder contains the final model.
        final_params: function that adds frozen parameters to trained ones.
        write_model: function that writes the final parameters.
        loss_unit: unit of the evaluation loss, for the summary.
        how_to_resume: line that resumes a run that a signal has stopped.
        num_programs: function that returns the number of shapes of batches so far.
    """

    recipe: Recipe
    job: Job
    setup: Setup
    initial_params: Callable[[], PyTree | None]
    batches: Callable[[int], Iterator[PyTree]]
    evaluate: EvaluateFn | None
    evaluate_in_loop: EvaluateFn | None = None
    monitors: Callable[[], list[training.Monitor]]
    header: Sequence[str]
    has_final_model: bool
    write_model: Callable[[PyTree], None]
    loss_unit: str
    how_to_resume: str
    final_params: Callable[[PyTree], PyTree] = lambda params: params
    num_programs: Callable[[], int] = lambda: 1


def run_mesh(job: Job) -> jax.sharding.Mesh:
    """Returns the mesh of a run: that of the job, one device, or all processes'."""
    is_one_device = job.mesh is None and jax.process_count() == 1
    return make_mesh(mesh_axes(job), jax.devices()[:1] if is_one_device else None)


def stopwatch(*, has_command_line: bool) -> Callable[[], float]:
    """Returns a function that measures the seconds since the process or now began."""
    if has_command_line:
        return seconds_since_process_start
    begin = time.monotonic()
    return lambda: time.monotonic() - begin


def run_plan(
    plan: RunPlan,
    run: OpenRun,
    *,
    should_stop: training.StopRequest,
    command_line: Sequence[str],
    seconds_since_start: Callable[[], float],
) -> RunResult:
    """Trains, or returns the result of a finished run, whose folder is not changed.

    Args:
        plan: functions and data of the run.
        run: its open folder.
        should_stop: from `training.stop_on_signals`.
        command_line: command line that is recorded in starts.jsonl.
        seconds_since_start: clock of `seconds_to_first_step`.
    """
    if run.is_finished:
        trained = training.Trained(_init_or_restore(plan, run, None), "max_steps")
    else:
        trained = _train(plan, run, should_stop, command_line, seconds_since_start)
    stopped_by = should_stop.signal if trained.stop_reason == "should_stop" else None
    return _finish(plan, run, trained, stopped_by)


def _train(
    plan: RunPlan,
    run: OpenRun,
    should_stop: training.StopRequest,
    command_line: Sequence[str],
    seconds_since_start: Callable[[], float],
) -> training.Trained:
    """Trains; arguments as for `run_plan`."""
    setup, job = plan.setup, plan.job
    batches = plan.batches(run.step)
    first = list(itertools.islice(batches, 1))
    params = plan.initial_params() if run.checkpoint is None else None
    limit = job.save_total_limit
    with (
        compile_ahead(setup.train_step, setup.run_state.state, *first) as compilation,
        checkpoints.open_checkpoints(run.lock, save_total_limit=limit) as save,
    ):
        start = _init_or_restore(plan, run, params)
        run_on_process_0(lambda: run.record_start(command_line))
        if is_primary_process():
            print("\n".join(line for line in plan.header if line))

        def report(results: Any, seconds: float) -> None:
            report_first_step(run, seconds)
            # Not before the first step, which needs new memory itself.
            save.reserve(results[0])

        return training.train(
            FirstStep(
                block_on_cpu_collectives(setup.train_step, setup.mesh),
                compilation,
                report,
                seconds_since_start,
            ),
            start,
            itertools.chain(first, batches),
            max_steps=plan.recipe.max_steps,
            monitors=plan.monitors() if is_primary_process() else [],
            evaluate=plan.evaluate_in_loop or plan.evaluate,
            eval_steps=job.eval_interval,
            selection=job.selection,
            metric_schedule=setup.metric_schedule,
            save=_CheckpointSaver(save, run, job),
            save_steps=job.save_interval,
            save_best=True,
            should_stop=should_stop,
        )


def block_on_cpu_collectives(function: Callable, mesh: jax.sharding.Mesh) -> Callable:
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


def report_first_step(run: OpenRun, seconds: float) -> None:
    """Writes the seconds to the first step to starts.jsonl, and prints them."""
    if is_primary_process():
        # Rounded once, so that the printed seconds are those of the file.
        seconds = round(seconds, 3)
        run.record_first_step(seconds)
        print(f"start   first step after {seconds:.1f} s", flush=True)


def _init_or_restore(
    plan: RunPlan, run: OpenRun, params: PyTree | None
) -> training.RunState:
    setup = plan.setup
    if run.checkpoint is None:
        return setup.init() if params is None else setup.init(params)
    # Other checkpoints than this one are the result of `latest_valid`.
    is_named = run.checkpoint == plan.job.resume_from_checkpoint
    start = training.restore_run_state(run.checkpoint, setup.run_state, verify=is_named)
    if plan.job.on_non_finite == "skip":
        return start
    # The counter is reset, because `max_skipped_in_a_row` applies to "skip" only.
    zero = jnp.zeros_like(start.state.num_bad_in_a_row)
    state = dataclasses.replace(start.state, num_bad_in_a_row=zero)
    return start._replace(state=state)


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
    plan: RunPlan, run: OpenRun, trained: training.Trained, stopped_by: int | None
) -> RunResult:
    """Returns the final parameters and metrics, and prints the summary."""
    end, progress, final_step = trained.run_state, trained.run_state.progress, None
    if plan.job.load_best_model_at_end and stopped_by is None:
        best = run.folder / f"checkpoint-{progress.best_step}"
        try:
            end, final_step = training.restore_run_state(best, end), progress.best_step
        except ValueError as error:  # damaged or missing
            if is_primary_process():
                print(
                    "the best checkpoint cannot be read, so that the last parameters "
                    f"are used: {error}"
                )
    averaged = training.evaluation_params(end.state.params, end.state.opt_state)
    params = plan.final_params(averaged)
    if stopped_by is None and not (run.is_finished and plan.has_final_model):
        # A finished run lacks the model if it was killed while the model was written.
        plan.write_model(params)
    # Read from the log, which also covers earlier starts of the run.
    evaluations = run_on_process_0(lambda: _read_metrics(run.log))
    if not evaluations:  # the log was deleted, or there is nothing to evaluate on
        metrics = {"loss": float("nan")}
        if plan.evaluate is not None:
            metrics = dict(plan.evaluate(averaged))
        evaluations = [(run.step, metrics)]
    (first_step, first), (_, last) = evaluations[0], evaluations[-1]
    # A list from the log has each step once, except that a resumed run may repeat one.
    metrics = dict(map(tuple, evaluations)).get(final_step, last)
    selected, best_metric = (
        plan.job.selection.metric_for_best_model,
        progress.best_metric,
    )
    if final_step is not None and best_metric is not None:
        metrics = {**metrics, selected.removeprefix("eval_"): best_metric}
    outcome = RunResult(
        first["loss"],
        metrics["loss"],
        params,
        run.folder,
        stopped_by,
        {} if plan.evaluate is None else metrics,
        plan.num_programs(),
    )
    if is_primary_process():
        print_summary(
            plan.recipe.max_steps,
            run,
            trained,
            outcome,
            first_step,
            unit=plan.loss_unit,
            selected=selected,
            how_to_resume=plan.how_to_resume,
        )
    return outcome


def _read_metrics(log: Path) -> list[tuple[int, dict[str, float]]]:
    """Reads the step and the metrics of each evaluation in metrics.jsonl."""
    if not log.exists():
        return []
    # Lines of steps are not parsed: there may be millions. A last line without "\n" was
    # not written completely.
    with log.open("rb") as file:
        lines = [line for line in file if b'"eval_loss"' in line and line[-1:] == b"\n"]
    return [
        (
            record.pop("step"),
            {
                name.removeprefix("eval_"): float("nan") if value is None else value
                for name, value in record.items()
            },
        )
        for record in map(json.loads, lines)
    ]
