"""Conflicts between the settings of a run that are found before data are read."""

from collections.abc import Iterator, Mapping
from typing import Any

from ..data import is_pretokenized
from ..models import ModelConfig
from ..recipes import METRIC_DRIVEN, Recipe
from ..sharding import axis_sizes
from ._job import Job

# Vocabulary size of text without a tokenizer: one token per byte.
_BYTE_VOCAB_SIZE = 256


def find_conflicts(recipe: Recipe, model: ModelConfig, job: Job) -> list[str]:
    """Returns messages on all conflicts that can be found before data are read.

    Args:
        recipe: hyperparameters of the optimizer and the schedule.
        model: sizes and options of the model.
        job: all other settings.
    """
    return [
        *_conflicts_of_data(model, job),
        *conflicts_of_evaluation(recipe, job),
        *_conflicts_of_folders(model, job),
        *_conflicts_of_lora(job),
    ]


def uses_eval_loss(settings: Mapping[str, Any]) -> bool:
    """Returns True if evaluation losses affect the rate, end or final model of a run.

    Args:
        settings: `RunConfig.to_dict()` or a part of it. Missing settings take their
            defaults.
    """
    return (
        settings.get("lr_scheduler_type") in METRIC_DRIVEN
        or settings.get("early_stopping_patience") is not None
        or settings.get("load_best_model_at_end", False) is True
    )


def _conflicts_of_lora(job: Job) -> Iterator[str]:
    given = {
        "lora_alpha": job.lora_alpha != 8.0,
        "lora_dropout": job.lora_dropout != 0.0,
        "lora_target_modules": job.lora_target_modules is not None,
    }
    if job.lora_r is None and any(given.values()):
        names = [f"`{name}`" for name, is_given in given.items() if is_given]
        yield (
            f"`lora_r` must be given with {' and '.join(names)}, got none. Set it, for "
            "example to 8, or leave them out."
        )
    if job.lora_r is not None and job.freeze:
        yield (
            f"`freeze` must be left out with `lora_r`, got {list(job.freeze)}: all "
            "weights of the base model are frozen."
        )


def _conflicts_of_data(model: ModelConfig, job: Job) -> Iterator[str]:
    pretokenized = [path for path in job.text if is_pretokenized(path)]
    if pretokenized and len(pretokenized) < len(job.text):
        other = next(path for path in job.text if path not in pretokenized)
        yield (
            "`text` must be either pretokenized files or text, got both: "
            f"{str(pretokenized[0])!r} and {str(other)!r}. Tokenize the text "
            "first, or leave one out."
        )
    if pretokenized and job.tokenizer is not None:
        yield (
            f"`tokenizer` must be left out with pretokenized files, got "
            f"{str(job.tokenizer)!r} with {str(pretokenized[0])!r}. Leave it "
            "out, or give text instead of tokens."
        )
    has_text = job.text or job.train_file or job.model_name_or_path
    if job.tokenizer is not None and not has_text:
        yield (
            f"`tokenizer` must be given with `text`, got {str(job.tokenizer)!r} and no "
            "text. Name files or folders, or leave it out."
        )
    yield from _conflicts_of_data_files(job)
    if job.eos_token_id is not None and not pretokenized:
        yield (
            "`eos_token_id` must be left out unless `text` is pretokenized (.npy, "
            f".bin), got {job.eos_token_id!r}. Leave it out: each file of text is one "
            "document."
        )
    elif job.eos_token_id is not None and job.eos_token_id >= model.vocab_size:
        yield (
            f"`eos_token_id` must be below `vocab_size`, which is {model.vocab_size}, "
            f"got {job.eos_token_id!r}. Give the `vocab_size` of the tokens."
        )
    if (
        not pretokenized
        and job.tokenizer is None
        and model.vocab_size < _BYTE_VOCAB_SIZE
    ):
        yield (
            f"`vocab_size` must be at least 256 for bytes, got {model.vocab_size!r}. "
            "Leave it out, or give a `tokenizer`."
        )


def _conflicts_of_data_files(job: Job) -> Iterator[str]:
    if job.text and job.train_file:
        yield (
            "`train_file` must be left out with `text`, got "
            f"{str(job.train_file[0])!r} and {str(job.text[0])!r}. Give all files as "
            "`train_file`."
        )
    if job.validation_file and not job.train_file:
        yield (
            "`validation_file` must be given with `train_file`, got "
            f"{str(job.validation_file[0])!r} alone. Without `train_file` a tenth of "
            "the text is for evaluation."
        )


def conflicts_of_evaluation(recipe: Recipe, job: Job) -> Iterator[str]:
    """Yields messages on settings of evaluations that conflict."""
    if job.early_stopping_patience is None and job.early_stopping_threshold > 0:
        yield (
            "`early_stopping_threshold` must be left out without "
            f"`early_stopping_patience`, got {job.early_stopping_threshold!r}. Give "
            "`early_stopping_patience` as well."
        )
    settings = vars(job) | {"lr_scheduler_type": recipe.lr_scheduler_type}
    if uses_eval_loss(settings) and job.eval_strategy == "no":
        yield (
            "`eval_strategy` must be 'steps' or 'epoch' if the evaluation loss drives "
            "the schedule, ends the run or selects its model, got 'no'. Leave it out, "
            "or use 'epoch'."
        )
    # The number of steps of an epoch is not known here.
    is_by_steps = job.eval_strategy == "steps"
    if uses_eval_loss(settings) and is_by_steps and job.eval_steps >= recipe.max_steps:
        yield (
            f"`eval_steps` must be less than `max_steps`, which is {recipe.max_steps}, "
            "if the evaluation loss drives the schedule, ends the run or selects its "
            f"model, got {job.eval_steps}: the first evaluation would be at the end. "
            f"Use {max(1, recipe.max_steps // 10)}."
        )
    # The default counts as not given: the dataclass does not record what was passed.
    is_default = job.max_skipped_in_a_row == Job.max_skipped_in_a_row
    if job.on_non_finite != "skip" and not is_default:
        yield (
            "`max_skipped_in_a_row` must be left out unless `on_non_finite` is 'skip', "
            f"got {job.max_skipped_in_a_row!r} with {job.on_non_finite!r}. Leave it "
            "out, or set `on_non_finite` to 'skip'."
        )


def _conflicts_of_folders(model: ModelConfig, job: Job) -> Iterator[str]:
    if job.zero_1 and job.mesh is not None and "data" not in axis_sizes(job.mesh):
        yield (
            "`zero_1` must be left out unless `mesh` has the axis data, got "
            f"{job.mesh!r}. Leave it out: the other axes shard the optimizer state "
            "without it."
        )
    folder = job.model_name_or_path
    if folder is not None and job.output_dir == folder:
        yield (
            "`output_dir` must be another folder than `model_name_or_path`, got "
            f"{str(folder)!r} for both: the trained model would overwrite it. Name "
            "another one."
        )
    if job.from_scratch and folder is None:
        yield (
            "`from_scratch` must be given with `model_name_or_path`, got no folder. "
            "Leave it out: without a folder the weights are always initialized."
        )
    yield from conflicts_of_resume(job)


def conflicts_of_resume(job: Job) -> Iterator[str]:
    """Yields a message if `resume_from_checkpoint` is not a folder."""
    checkpoint = job.resume_from_checkpoint
    if checkpoint is not None and not checkpoint.is_dir():
        found = sorted(path.name for path in checkpoint.parent.glob("checkpoint-*"))
        listed = ", ".join(found) or "no checkpoints"
        problem = f"does not exist; {str(checkpoint.parent)!r} contains {listed}."
        if checkpoint.exists():
            problem = "is a file. Pass the folder that contains it."
        yield (
            "`resume_from_checkpoint` must be the folder of a checkpoint, but "
            f"{str(checkpoint)!r} {problem}"
        )
