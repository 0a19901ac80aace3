"""Settings, model and data of a labelled run, before its folder is opened."""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import data
from .._checks import pluralize
from ..models import (
    TorchaxModel,
    from_transformers,
    load_task_module,
    num_positions,
    trainer_forward,
)
from ..recipes import Recipe
from ._example_data import DatasetSummary, ExampleSource
from ._example_job import model_identity
from ._example_plan import (
    check_evaluation,
    eval_batch_size,
    held_out_data,
    num_examples_of_start,
)
from ._intervals import with_whole_intervals
from ._labelled_data import TaskBatches, TaskExamples, encode_rows
from ._labelled_job import (
    CLASSES,
    LabelledConfig,
    LabelledJob,
    labelled_settings,
    records,
)
from ._metrics import check_metric
from ._task_rows import TaskRows, read_task_rows
from ._tasks import TASKS

_MAX_STEPS = 2**31 - 1  # stands for a number of steps that is not known yet
# Default of Transformers' example scripts.
_EPOCHS = 3.0
# The defaults of the recipe are those of Trainer, with this rule of weight decay.
_DECAY_RULE = "transformers_v5"
_STRATEGIES = ("eval", "save")


@dataclass(frozen=True, kw_only=True)
class LabelledRun:
    """Settings, model and data of a run, before its folder is opened."""

    config: LabelledConfig
    model: TorchaxModel
    rows: TaskRows
    examples: TaskExamples
    source: ExampleSource
    held_out: ExampleSource | None
    batches: TaskBatches
    eval_batch_size: int
    notes: tuple[str, ...]

    def data_summary(self) -> DatasetSummary:
        """Returns the record of the data in checkpoints, for which they are hashed."""
        size = pluralize(self.batches.num_examples, "row")
        return DatasetSummary(
            fingerprint=self.examples.fingerprint("train_file"), size=size
        )


def prepare(settings: Mapping[str, Any]) -> LabelledRun:
    """Reads the model and the data of a run; arguments as for `train_labelled`."""
    settings = _with_defaults(settings)
    # Settings are checked as far as possible before the data are read.
    early = with_whole_intervals({"max_steps": _MAX_STEPS, **settings})
    recipe, job = records(early)
    rows = read_task_rows(job)
    _check_loss_and_metric(recipe, job, rows)
    model, new_params = load_model(job, recipe.seed, rows.classes, rows.problem_type)
    batch_size = num_examples_of_start(
        job.output_dir, job.mesh, recipe.per_device_train_batch_size
    )
    num_micro = recipe.gradient_accumulation_steps
    has_short_program = _has_short_program(rows, job, batch_size, num_micro)
    examples = encode_rows(
        rows,
        job,
        config=model.transformers_config,
        num_positions=num_positions(model.module),
        has_short_program=has_short_program,
    )
    least = batch_size * num_micro
    if rows.has_filled_batches:
        least -= batch_size - 1  # the last micro-batch has at least one row
    make_source = functools.partial(part_source, model, job, examples)
    source = make_source("train_file", least)
    batches = _batches(
        recipe,
        job,
        examples,
        source,
        batch_size,
        is_filled=rows.has_filled_batches,
    )
    recipe, job = records(_in_steps(settings, rows, batches.steps_per_epoch))
    eval_size = eval_batch_size(job, batch_size)
    held_out, fingerprint = None, None
    if "validation_file" in rows.parts:
        held_out = make_source("validation_file", eval_size)
        fingerprint = functools.partial(examples.fingerprint, "validation_file")
    check_evaluation(recipe, job, held_out, argument="validation_file")
    return LabelledRun(
        config=LabelledConfig(
            recipe=recipe,
            job=job,
            model=model_identity(model),
            data=held_out_data(recipe, job, fingerprint),
            classes=rows.classes,
        ),
        model=model,
        rows=rows,
        examples=examples,
        source=source,
        held_out=held_out,
        batches=batches,
        eval_batch_size=eval_size,
        notes=tuple(_notes(rows, examples, new_params, has_short_program)),
    )


def _with_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings with the task of the model, and with a number of epochs."""
    found = labelled_settings(settings)
    if found is None:
        raise ValueError(
            "`task` must be given for a model of another class in "
            f"`model_name_or_path`, one of {', '.join(TASKS)}."
        )
    settings = {"decay_rule": _DECAY_RULE, **found}
    if settings.get("max_steps") is None:
        settings.pop("max_steps", None)
        settings.setdefault("num_train_epochs", _EPOCHS)
    return settings


def labelled_model(settings: Mapping[str, Any]) -> TorchaxModel:
    """Returns the model of a labelled run, from the settings in its checkpoint."""
    job = records(settings)[1]
    assert job.task is not None
    classes = settings.get(CLASSES)
    is_regression = classes is None and TASKS[job.task].has_classes
    problem_type = "regression" if is_regression else TASKS[job.task].problem_type
    return load_model(job, settings["seed"], classes, problem_type)[0]


def load_model(
    job: LabelledJob,
    seed: int,
    classes: Sequence[str] | None,
    problem_type: str | None,
) -> tuple[TorchaxModel, tuple[str, ...]]:
    """Returns the model, and the names of parameters that the folder lacks."""
    assert job.task is not None
    assert job.model_name_or_path is not None
    try:
        module, new_params = load_task_module(
            job.model_name_or_path,
            TASKS[job.task].auto_class,
            classes=classes,
            problem_type=problem_type,
            seed=seed,
            from_scratch=job.from_scratch,
            ignore_mismatched_sizes=job.ignore_mismatched_sizes,
            freeze=job.freeze,
        )
    except ValueError as error:  # it names the argument of `split_params`
        raise ValueError(str(error).replace("`patterns`", "`freeze`", 1)) from error
    if job.gradient_checkpointing:
        module.gradient_checkpointing_enable()
    return from_transformers(module), new_params


def _columns(model: TorchaxModel) -> tuple[str, ...]:
    call_spec = trainer_forward(model)
    assert call_spec is not None
    return call_spec.columns


def part_source(
    model: TorchaxModel,
    job: LabelledJob,
    examples: TaskExamples,
    part: str,
    least: int,
) -> ExampleSource:
    """Returns the examples of a part, such as "test_file", with their collator.

    Batches of fewer than `least` rows are padded to the longest length.
    """
    forward_takes = set(_columns(model))
    collate = examples.collator(least)

    def collate_used(chosen: list[Any]) -> dict[str, Any]:
        # Collators add an attention mask, which not every model takes.
        arrays = collate(chosen)
        return {name: x for name, x in arrays.items() if name in forward_takes}

    return ExampleSource(
        examples.parts[part],
        argument=part,
        model=model,
        collator=collate_used,
        # Columns are those that the collators take.
        settings={**vars(job), "remove_unused_columns": False},
    )


def _batches(
    recipe: Recipe,
    job: LabelledJob,
    examples: TaskExamples,
    source: ExampleSource,
    batch_size: int,
    *,
    is_filled: bool,
) -> TaskBatches:
    """Returns the updates to train on."""
    seed = recipe.seed if job.data_seed is None else job.data_seed
    num_micro = recipe.gradient_accumulation_steps
    order = None
    if job.is_grouped:
        order = functools.partial(
            data.bucketed_indices,
            examples.row_lengths("train_file"),
            examples.lengths,
            # The micro-batches of an update have one length.
            batch_size * num_micro,
            seed,
        )
    rows = data.ExampleBatches(
        source.examples,
        source.collate,
        batch_size=batch_size,
        gradient_accumulation_steps=num_micro,
        seed=seed,
        is_shuffled=job.train_sampling_strategy != "sequential",
        drop_last=job.dataloader_drop_last,
        order=order,
    )
    return TaskBatches(
        rows,
        source.examples,
        source.collate,
        batch_size=batch_size,
        seed=seed,
        is_filled=is_filled,
    )


def _has_short_program(
    rows: TaskRows, job: LabelledJob, batch_size: int, num_micro: int
) -> bool:
    """Returns whether the last update of an epoch has a shape of its own."""
    num_batches, rest = divmod(rows.parts["train_file"].num_rows, batch_size)
    has_short_batch = rest > 0 and not job.dataloader_drop_last
    has_fewer_batches = (num_batches + has_short_batch) % num_micro > 0
    return has_fewer_batches or (has_short_batch and not rows.has_filled_batches)


def _in_steps(
    settings: Mapping[str, Any], rows: TaskRows, steps_per_epoch: int
) -> dict[str, Any]:
    """Returns the settings with lengths and intervals of epochs as steps.

    Source: transformers 5.23 `trainer.py`, `set_initial_training_values`.
    """
    found = dict(settings)
    if "max_steps" not in found:
        steps = math.ceil(found["num_train_epochs"] * steps_per_epoch)
        found["max_steps"] = min(steps, _MAX_STEPS)
    for name in _STRATEGIES:
        default = "epoch" if found.get(f"{name}_steps") is None else "steps"
        strategy = found.setdefault(f"{name}_strategy", default)
        if strategy == "epoch":
            found |= {f"{name}_strategy": "steps", f"{name}_steps": steps_per_epoch}
    if "validation_file" not in rows.parts:
        found["eval_strategy"] = "no"
        found.pop("eval_steps", None)
    return with_whole_intervals(found)


def _check_loss_and_metric(recipe: Recipe, job: LabelledJob, rows: TaskRows) -> None:
    if recipe.label_smoothing_factor and rows.is_regression:
        raise ValueError(
            "`label_smoothing_factor` must be 0 for labels that are numbers, got "
            f"{recipe.label_smoothing_factor!r}. Leave it out."
        )
    name, task = job.metric_for_best_model, rows.task.name
    if task == "seq2seq" and not job.predict_with_generate:
        if name.removeprefix("eval_") != "loss":
            raise ValueError(
                "`metric_for_best_model` must be 'loss' without "
                f"`predict_with_generate`, got {name!r}. Set `predict_with_generate`, "
                "with which metrics of generated text are computed."
            )
        return
    try:
        check_metric(name, task, rows.classes, glue_task=job.task_name)
    except ValueError as error:
        raise ValueError(str(error).replace("`glue_task`", "`task_name`")) from error


def _notes(
    rows: TaskRows,
    examples: TaskExamples,
    new_params: Sequence[str],
    has_short_program: bool,
) -> Iterator[str]:
    """Yields sentences for the header of the run."""
    columns = rows.columns["train_file"]
    used = [name for name in columns if name is not None]
    sentence = f"{rows.task.name} of the columns {', '.join(used)}"
    if rows.classes is not None:
        shown = [*rows.classes[:8], *(["..."] if len(rows.classes) > 8 else [])]
        sentence += f"; classes {', '.join(shown)}"
    yield sentence
    yield from examples.notes
    programs = max(1, len(examples.lengths)) + has_short_program
    yield f"at most {pluralize(programs, 'program')} of the training step"
    if new_params:
        yield f"parameters drawn from the seed: {', '.join(new_params)}"
