"""Settings that are good one by one and do not go together."""

from collections.abc import Iterator
from pathlib import Path

from .. import _checks
from ..data import is_ready_tokens
from ..models import GPT2Config
from ..recipes import Recipe
from ..sharding import axis_sizes
from ._run_folder import DATA
from ._settings import Job, flat, held_out_loss_decides

_BYTES = 256  # what a byte can be: the vocabulary of a text without a tokenizer


def check_settings(recipe: Recipe, model: GPT2Config, job: Job) -> None:
    """Raises unless the settings go together.

    Raises:
        ValueError: with every contradiction, each with its way out.
    """
    found = contradictions(recipe, model, job)
    if len(found) == 1:
        raise ValueError(found[0])
    if found:
        raise ValueError(
            f"{len(found)} settings contradict others:\n  " + "\n  ".join(found)
        )


def contradictions(recipe: Recipe, model: GPT2Config, job: Job) -> list[str]:
    """Every contradiction that shows before the data are read; a sentence or two each.

    Args:
        recipe: the numbers of the updates.
        model: the model's size.
        job: all else.
    """
    settings = flat(recipe, model, job)
    return [
        *_of_the_data(model, job),
        *_of_the_evaluation(recipe, job, held_out_loss_decides(settings)),
        *_of_the_policy(job),
        *_of_the_mesh(job),
        *_of_the_start(job, [*settings, DATA]),
    ]


def _of_the_data(model: GPT2Config, job: Job) -> Iterator[str]:
    ready = [path for path in job.text if is_ready_tokens(path)]
    if ready and len(ready) < len(job.text):
        other = next(path for path in job.text if path not in ready)
        yield (
            f"`text` must be ready tokens or text, got both: {str(ready[0])!r} and "
            f"{str(other)!r}. Turn the text into tokens first, or leave one out."
        )
    if ready and job.tokenizer is not None:
        yield (
            f"`tokenizer` must be left out with ready tokens, got "
            f"{str(job.tokenizer)!r} with {str(ready[0])!r}. Leave it out, or give the "
            "text that the tokens were made from."
        )
    if job.tokenizer is not None and not job.text:
        yield (
            f"`tokenizer` must be given with `text`, got {str(job.tokenizer)!r} and no "
            "text. Name files or folders, or leave it out."
        )
    if job.eos_token_id is not None and not ready:
        yield (
            "`eos_token_id` must be left out unless `text` is ready tokens (.npy, "
            f".bin), got {job.eos_token_id!r}. Leave it out: the ends of documents in "
            "text are its files' ends."
        )
    elif job.eos_token_id is not None and job.eos_token_id >= model.vocab_size:
        yield (
            f"`eos_token_id` must be below `vocab_size`, which is {model.vocab_size}, "
            f"got {job.eos_token_id!r}. Give the `vocab_size` of the tokens."
        )
    if not ready and job.tokenizer is None and model.vocab_size < _BYTES:
        yield (
            f"`vocab_size` must be at least 256 for bytes, got {model.vocab_size!r}. "
            "Leave it out, or give a `tokenizer`."
        )


def _of_the_evaluation(recipe: Recipe, job: Job, decides: bool) -> Iterator[str]:
    every = job.eval_steps
    if job.early_stopping_patience is None and job.early_stopping_threshold > 0:
        yield (
            "`early_stopping_threshold` must be left out without "
            f"`early_stopping_patience`, got {job.early_stopping_threshold!r}. Give "
            "the number of evaluations to wait, too."
        )
    if decides and every >= recipe.max_steps:
        yield (
            f"`eval_steps` must be less than `max_steps`, which is {recipe.max_steps}, "
            "where the held-out loss drives the schedule, ends the run or picks its "
            f"model, got {every}: there would be none before the end. Take "
            f"{max(1, recipe.max_steps // 10)}."
        )


def _of_the_policy(job: Job) -> Iterator[str]:
    default = Job().max_skipped_in_a_row
    if job.on_non_finite != "skip" and job.max_skipped_in_a_row != default:
        yield (
            "`max_skipped_in_a_row` must be left out unless `on_non_finite` is 'skip', "
            f"got {job.max_skipped_in_a_row!r} with {job.on_non_finite!r}. Leave it "
            "out, or skip."
        )


def _of_the_mesh(job: Job) -> Iterator[str]:
    sizes = {} if job.mesh is None else axis_sizes(job.mesh)
    if job.zero_1 and job.mesh is not None and "data" not in sizes:
        yield (
            "`zero_1` must be left out unless `mesh` has the axis data, got "
            f"{job.mesh!r}. The other axes divide the optimizer's state as they are."
        )


def _of_the_start(job: Job, known: list[str]) -> Iterator[str]:
    checkpoint = job.resume_from_checkpoint
    if checkpoint is not None and not checkpoint.is_dir():
        yield (
            "`resume_from_checkpoint` must be the folder of a checkpoint, but "
            f"{str(checkpoint)!r} {_instead(checkpoint)}"
        )
    for name in job.intended_changes:
        if name not in known:
            yield (
                f"`intended_changes` must be names of settings, got {name!r}."
                + _checks.nearest(name, known)
            )


def _instead(checkpoint: Path) -> str:
    if checkpoint.exists():
        return "is a file. Name the folder that it lies in."
    found = sorted(path.name for path in checkpoint.parent.glob("checkpoint-*"))
    there = f"beside it are {', '.join(found)}." if found else "no other is beside it."
    return f"does not exist; {there}"
