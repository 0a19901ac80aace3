"""Training of a language model from a configuration to the last checkpoint."""

import functools
import itertools
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from .. import training
from .._typing import PyTree
from ..models import Model
from ..sharding import batch_sharding, num_batch_shards
from ._base_weights import read_frozen
from ._config import RunConfig
from ._epochs import check_resolved
from ._final_folder import write_adapter_folder, write_transformers_folder
from ._generate import with_samples
from ._intervals import num_steps_per_epoch
from ._job import Job
from ._model_folder import existing_folder, read_folder_params
from ._report import RunResult, build_monitors, header
from ._run_core import (
    RunPlan,
    block_on_cpu_collectives,
    run_mesh,
    run_plan,
    stopwatch,
)
from ._run_data import (
    TrainingBatches,
    evaluation_batches,
    slice_reader,
    training_batches,
)
from ._run_folder import OpenRun, open_run
from ._setup import Setup, build_setup


def pretrain(config: RunConfig, *, command_line: Sequence[str] = ()) -> RunResult:
    """Trains a model, and reports on the console and in the run's folder.

    If the folder contains a run, training resumes from its newest valid checkpoint.
    Losses, parameters and the log are equal to those of an uninterrupted run, bit for
    bit on the same machine. A finished run is left unchanged. After SIGTERM or SIGINT
    the run ends after the current step, with a checkpoint. The checkpoint of the best
    evaluation is kept.

    With several processes, all processes must call `jax.distributed.initialize` and
    then this function with the same arguments. Each process reads and writes its shards
    of batches and checkpoints; process 0 prints and logs. A signal to one process ends
    the run in all processes. A run can be resumed on any mesh and any number of
    processes that divide its batch.

    Args:
        config: all settings of the run.
        command_line: command line that is recorded in starts.jsonl. If it is given,
            `seconds_to_first_step` in this file is counted from the start of the
            process, otherwise from this call.

    Returns:
        The evaluation losses, the final parameters and the folder of the run.

    Raises:
        ValueError: if the data do not fit the model, the folder contains another run or
            is in use, no checkpoint in it is valid, or `eval_strategy` or
            `save_strategy` is 'epoch' (apply `resolve_epochs` to the settings first).
        OSError: if a checkpoint or the log cannot be written.
        FloatingPointError: if the loss is not finite, unless `on_non_finite` allows it.
    """
    check_resolved(config)
    seconds_since_start = stopwatch(has_command_line=bool(command_line))
    with training.stop_on_signals() as should_stop, open_run(config) as run:
        return run_plan(
            _plan(config, run),
            run,
            should_stop=should_stop,
            command_line=command_line,
            seconds_since_start=seconds_since_start,
        )


def _plan(config: RunConfig, run: OpenRun) -> RunPlan:
    recipe, model, job = config.recipe, config.model, config.job
    setup = build_setup(config, run_mesh(job), num_sequences=run.num_sequences)
    setup = setup.with_frozen(read_frozen(setup.model, setup.frozen, config))
    batches = training_batches(
        run.corpus,
        job,
        block_size=model.block_size,
        batch_size=run.num_sequences,
        seed=recipe.seed,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
    )
    evaluate = _make_evaluate(setup, run, job, model.block_size)
    steps_per_epoch = num_steps_per_epoch(
        batches.num_windows,
        batch_size=run.num_sequences,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
    )
    return RunPlan(
        recipe=recipe,
        job=job,
        setup=setup,
        initial_params=functools.partial(_read_params, setup, job),
        batches=lambda step: _sharded(batches, step, setup.batch),
        evaluate=evaluate,
        evaluate_in_loop=with_samples(evaluate, config, setup, run.folder),
        monitors=lambda: build_monitors(
            job,
            run,
            max_steps=recipe.max_steps,
            steps_per_epoch=steps_per_epoch,
            unit=run.corpus.unit,
            flops_per_item=setup.model.flops_per_token,
        ),
        header=header(config, setup, run, batches),
        has_final_model=run.has_final_model,
        final_params=functools.partial(_final_params, setup, job),
        write_model=functools.partial(_write_model, run.folder, setup.model, job),
        loss_unit=f"nats per {run.corpus.unit.removesuffix('s')}",
        how_to_resume=shlex.join(
            ["jaxopt-tf", "train", "--output_dir", str(run.folder)]
        ),
    )


def _read_params(setup: Setup, job: Job) -> PyTree | None:
    """Reads the parameters of the model folder; None without one."""
    folder = None if job.from_scratch else job.model_name_or_path
    # An adapter is drawn from the seed; the folder contains its base model.
    if folder is None or job.lora_r is not None:
        return None
    like = setup.run_state.state.params
    return read_folder_params(folder, like, setup.model.names)


def _final_params(setup: Setup, job: Job, params: PyTree) -> PyTree:
    """Returns all parameters of the model; only those of an adapter if there is one."""
    return params if job.lora_r else training.merge_params(params, setup.frozen)


def _write_model(folder: Path, model: Model, job: Job, params: PyTree) -> None:
    if job.lora_r is not None:
        write_adapter_folder(
            folder, model, params, base=existing_folder(job), tokenizer=job.tokenizer
        )
        return
    write_transformers_folder(
        folder,
        model,
        params,
        like=existing_folder(job),
        has_new_weights=job.from_scratch,
        tokenizer=job.tokenizer,
        chat_template=job.chat_template,
    )


def _make_evaluate(
    setup: Setup, run: OpenRun, job: Job, block_size: int
) -> Callable[[PyTree], dict[str, float]]:
    """Returns a function from params to the mean metrics over the evaluation data."""

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
    eval_step = block_on_cpu_collectives(setup.eval_step, setup.mesh)
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
        read_slice = slice_reader(batches, n)
        if isinstance(like, dict):
            yield {
                key: array(shape, functools.partial(read_slice, key=key))
                for key, shape in like.items()
            }
        else:
            yield array(like, read_slice)
