"""Conversion of a job to a task of `tuning`, which trains many runs at once."""

import dataclasses
import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from .._typing import PyTree
from ..data import Corpus
from ..models import Model
from ..recipes import Recipe
from ..tuning import Task
from ._base_weights import on_first_device, read_frozen, run_model
from ._config import RunConfig
from ._job import Job
from ._model_folder import read_folder_params
from ._run_data import evaluation_batches, read_corpus, training_batches

# Settings that change the numbers of a run and that `tuning` does not support.
_NOT_IN_TUNING = (
    "early_stopping_patience",
    "load_best_model_at_end",
    "mesh",
    "on_non_finite",
    "resume_from_checkpoint",
)


def tuning_corpus(config: RunConfig, folder: Path) -> Corpus:
    """Reads the text of a job for runs that are trained at once.

    Args:
        config: settings of the run.
        folder: folder in which the tokenized text is stored.

    Raises:
        ValueError: if the job has settings that `tuning` does not support, the text
            cannot be read, or `vocab_size` is too small for it.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(Job)}
    given = {name: getattr(config.job, name) for name in _NOT_IN_TUNING}
    refused = [name for name in given if given[name] != defaults[name]]
    if refused:
        listed = ", ".join(f"`{name}` {given[name]!s}" for name in refused)
        raise ValueError(
            f"`{refused[0]}` must be left out if many runs are trained at once, got "
            f"{listed}: each run is trained to its last step, on one device. Leave "
            "it out of the file, or name it in `ignore_fields`."
        )
    corpus = read_corpus(config.job, config.model, folder)
    skipped = corpus.skipped_files
    lines = [f"`--text`: {skipped}"] if skipped.num_files else []
    for line in (*lines, *corpus.notes):
        print(f"jaxopt-tf: {line}.", file=sys.stderr)
    return corpus


def tuning_task(
    config: RunConfig, corpus: Corpus, *, num_eval_tokens: int = 2**16
) -> Task:
    """Returns the task of `tuning` that trains and evaluates like `pretrain`.

    A run of the task computes the same numbers as `pretrain` on one device.

    Args:
        config: settings of the run. Its recipe sets the label smoothing of the loss and
            the batch size of the evaluation, for all runs.
        corpus: result of `tuning_corpus`.
        num_eval_tokens: approximate number of tokens to evaluate on; 0 for none.

    Raises:
        ValueError: if a part of the text is shorter than one window, or of the rows is
            empty.
    """
    job = config.job
    model = run_model(config.model, job)
    block_size = config.model.block_size
    loss_fn = model.make_loss(
        label_smoothing_factor=config.recipe.label_smoothing_factor,
        matmul_precision=job.matmul_precision,
    )

    def batches(recipe: Recipe) -> Iterator[Any]:
        return training_batches(
            corpus,
            job,
            block_size=block_size,
            batch_size=recipe.per_device_train_batch_size,
            seed=recipe.seed,
            gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        ).iter_from(0)  # endless

    eval_batches: Sequence[Any] = ()
    if num_eval_tokens:
        eval_batches = evaluation_batches(
            corpus,
            job,
            block_size=block_size,
            batch_size=job.per_device_eval_batch_size
            or config.recipe.per_device_train_batch_size,
            num_tokens=num_eval_tokens,
        )
    return Task(
        loss_fn=loss_fn,
        init=functools.partial(_init, model, config),
        batches=batches,
        eval_batches=eval_batches,
        takes_key=model.has_dropout,
        compute_dtype=jnp.bfloat16 if job.bf16 else None,
        layouts=model.layouts,
        layer_norms=model.layer_norms,
        frozen=_frozen(model, config),
    )


def _frozen(model: Model, config: RunConfig) -> PyTree | None:
    """Returns the frozen parameters of all runs; None if there are none."""
    if not jax.tree.leaves(model.frozen_shapes):
        return None
    return read_frozen(model, on_first_device(model.frozen_shapes), config)


def _init(model: Model, config: RunConfig, seed: int) -> PyTree:
    """Returns the parameters before the first step."""
    job = config.job
    has_weights = job.model_name_or_path is not None and not job.from_scratch
    if job.freeze and not has_weights and seed != config.recipe.seed:
        raise ValueError(
            "`seed` must not vary with `freeze` and without the weights of a folder, "
            f"got {seed} and {config.recipe.seed}: the frozen parameters, which all "
            "runs share, are initialized from it. Name a folder with weights as "
            "`model_name_or_path`, or search for other settings."
        )
    # An adapter is drawn from the seed; the folder contains its base model.
    if not has_weights or job.lora_r is not None:
        return model.init(seed)
    assert job.model_name_or_path is not None
    return read_folder_params(job.model_name_or_path, model.shapes, model.names)
