"""The job of `jaxopt-tf train` as a task of which many runs are trained at once."""

import dataclasses
import datetime
import sys
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from .._typing import PyTree
from ..data import Batches, Corpus, held_out_batches
from ..jobs import Job, read_corpus
from ..models import GPT2Config, gpt2_layer_norms, gpt2_layout, loss_of, make_loss_fn
from ..recipes import Recipe
from ..tuning import Task

# What would change a run's numbers, and is the loop's or the mesh's of one run.
_OF_ONE_RUN = (
    "early_stopping_patience",
    "load_best_model_at_end",
    "mesh",
    "on_non_finite",
    "resume_from_checkpoint",
)


def job_corpus(model: GPT2Config, job: Job, folder: Path) -> Corpus:
    """The text that `jaxopt-tf train` reads, where many runs are to share it.

    Args:
        model: its vocabulary.
        job: names the text.
        folder: where the tokens that a tokenizer makes are kept.

    Raises:
        ValueError: if the job wants what one run alone can do, the text cannot be read,
            or it does not fit the model.
    """
    _check_job(job)
    corpus = read_corpus(job, model, folder)
    if corpus.left_out.num_files:
        print(f"jaxopt-tf: `text`: {corpus.left_out}.", file=sys.stderr)
    return corpus


def job_task(
    recipe: Recipe,
    model: GPT2Config,
    job: Job,
    corpus: Corpus,
    *,
    num_held_out: int = 2**16,
) -> Task:
    """What `jaxopt-tf train` trains, and the batches that it evaluates on.

    A run of it is the one that the command makes of the same flags on one device.

    Args:
        recipe: whose label smoothing is the loss's, and whose batch size is that of
            held-out batches for all runs.
        model: its size.
        job: names the precision that the model computes in.
        corpus: of `job_corpus`.
        num_held_out: about how many held-out tokens to evaluate on; the command's own
            number if not given, 0 for none.

    Raises:
        ValueError: if the held-out part is shorter than one window.
    """
    loss_fn = loss_of(
        model,
        label_smoothing_factor=recipe.label_smoothing_factor,
        matmul_precision=job.matmul_precision,
    )

    def init(seed: int) -> PyTree:
        return make_loss_fn(model, seed)[0]

    def batches(recipe: Recipe) -> Iterator[np.ndarray]:
        return Batches(
            corpus,
            block_size=model.block_size,
            batch_size=recipe.per_device_train_batch_size,
            seed=recipe.seed,
            gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        ).since(0)

    return Task(
        loss_fn=loss_fn,
        init=init,
        batches=batches,
        held_out=held_out_batches(
            corpus,
            block_size=model.block_size,
            batch_size=recipe.per_device_train_batch_size,
            num_tokens=num_held_out,
        )
        if num_held_out
        else (),
        takes_key=model.has_dropout,
        compute_dtype=jnp.bfloat16 if job.bf16 else None,
        layouts=gpt2_layout(model),
        layer_norms=gpt2_layer_norms(model),
    )


def folder_of(job: Job) -> Path:
    """The job's `output_dir`, or else a new one in runs/, named by the time."""
    return job.output_dir or Path(
        "runs", f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"
    )


def _check_job(job: Job) -> None:
    usual = {field.name: field.default for field in dataclasses.fields(Job)}
    refused = [name for name in _OF_ONE_RUN if getattr(job, name) != usual[name]]
    if refused:
        listed = ", ".join(f"`{name}` {getattr(job, name)!s}" for name in refused)
        raise ValueError(
            f"`{refused[0]}` must be left out where many runs are trained at once, got "
            f"{listed}. Runs go from their first step to their last, each on one "
            "device; give it to `jaxopt-tf train` afterwards."
        )
