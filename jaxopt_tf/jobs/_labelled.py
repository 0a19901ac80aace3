"""Training of a model of Transformers on labelled data, from settings to predictions.

result = train_labelled(
    {
        "model_name_or_path": "bert-base",
        "train_file": ["train.jsonl"],
        "validation_file": ["dev.jsonl"],
        "num_train_epochs": 3,
    }
)
"""

import dataclasses
import functools
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from .. import data, training
from .._checks import pluralize
from .._io import is_primary_process
from .._typing import PyTree
from ..models import (
    NUM_ITEMS,
    TorchaxModel,
    from_transformers,
    load_task_module,
    make_greedy,
    num_positions,
    trainer_forward,
)
from ..recipes import Recipe
from ..sharding import num_batch_shards
from ._example_data import DeviceBatches, ExampleCorpus, ExampleSource
from ._example_evaluation import EvalPrediction, MetricsFn, PredictFn
from ._example_job import model_identity
from ._final_folder import write_transformers_folder
from ._intervals import with_whole_intervals
from ._labelled_data import (
    TaskBatches,
    TaskExamples,
    TaskRows,
    encode_rows,
    read_task_rows,
)
from ._labelled_job import (
    CLASSES,
    LabelledConfig,
    LabelledJob,
    labelled_settings,
    records,
)
from ._labelled_predictions import write_predictions
from ._metrics import check_metric, perplexity, task_metrics, text_metrics
from ._model_folder import existing_folder
from ._report import RunResult
from ._run_core import RunPlan, run_mesh, run_plan, stopwatch
from ._run_folder import OpenRun, open_run
from ._setup import Setup
from ._tasks import TASKS
from ._train import (
    check_evaluation,
    example_plan,
    held_out_data,
    num_examples_of_start,
)
from ._trainer_run import import_into

_MAX_STEPS = 2**31 - 1  # stands for a number of steps that is not known yet
# Default of Transformers' example scripts.
_EPOCHS = 3.0
# The defaults of the recipe are those of Trainer, with this rule of weight decay.
_DECAY_RULE = "transformers_v5"
_STRATEGIES = ("eval", "save")


@dataclass(frozen=True, kw_only=True)
class _LabelledRun:
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

    @property
    def corpus(self) -> ExampleCorpus:
        """Record of the data in checkpoints."""
        size = pluralize(self.batches.num_examples, "row")
        return ExampleCorpus(
            fingerprint=self.examples.fingerprint("train_file"), size=size
        )


def train_labelled(
    settings: Mapping[str, Any], *, command_line: Sequence[str] = ()
) -> RunResult:
    """Trains a model of Transformers on labelled data, in a run folder.

    The task is that of the class in the config.json of `model_name_or_path`, or the
    setting `task`. The numbers are those of `train`, and thus those of Trainer. At the
    end the folder contains the model with the names of its classes, the tokenizer, and
    predictions.jsonl for a `test_file`.

    If `output_dir` contains a run, training resumes from its newest valid checkpoint,
    bit for bit on the same machine.

    Args:
        settings: settings of `Recipe` and `LabelledJob` by name. `max_steps` or
            `num_train_epochs` determines the length; 3 epochs without both.
        command_line: command line that is recorded in starts.jsonl.

    Raises:
        ValueError: if a setting or the data are invalid, see `LabelledJob`,
            `data.read_labelled` and `data.find_columns`; if the task has no metric
            `metric_for_best_model`; or if the folder contains another run.
        ModuleNotFoundError: if torchax, Transformers or a package for metrics is not
            installed.
        FloatingPointError: if the loss is not finite, unless `on_non_finite` allows it.

    Source: transformers 5.23, examples/pytorch: `run_glue.py`, `run_ner.py`,
        `run_mlm.py`, `run_summarization.py`, `run_image_classification.py`.
    """
    seconds_since_start = stopwatch(has_command_line=bool(command_line))
    prepared = _prepare(settings)
    config: Any = import_into(prepared.config, prepared.model, prepared.corpus)
    prepared = dataclasses.replace(prepared, config=config)
    with (
        training.stop_on_signals() as should_stop,
        open_run(config, lambda folder: prepared.corpus) as run,
    ):
        plan, predict = _plan(prepared, run)
        result = run_plan(
            plan,
            run,
            should_stop=should_stop,
            command_line=command_line,
            seconds_since_start=seconds_since_start,
        )
        if "test_file" in prepared.rows.parts and result.stopped_by is None:
            _predict(prepared, plan.setup, run.folder, result.params, predict)
        return result


def labelled_model(settings: Mapping[str, Any]) -> TorchaxModel:
    """Returns the model of a labelled run, from the settings in its checkpoint."""
    job = records(settings)[1]
    assert job.task is not None
    classes = settings.get(CLASSES)
    is_regression = classes is None and TASKS[job.task].has_classes
    problem_type = "regression" if is_regression else TASKS[job.task].problem_type
    return _load(job, settings["seed"], classes, problem_type)[0]


def _prepare(settings: Mapping[str, Any]) -> _LabelledRun:
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
    # Settings are checked as far as possible before the data are read.
    early = with_whole_intervals({"max_steps": _MAX_STEPS, **settings})
    recipe, job = records(early)
    rows = read_task_rows(job)
    _check_metric(job, rows)
    if recipe.label_smoothing_factor and rows.is_regression:
        raise ValueError(
            "`label_smoothing_factor` must be 0 for labels that are numbers, got "
            f"{recipe.label_smoothing_factor!r}. Leave it out."
        )
    model, new_params = _load(job, recipe.seed, rows.classes, rows.problem_type)
    examples = encode_rows(
        rows,
        job,
        config=model.transformers_config,
        num_positions=num_positions(model.module),
    )
    batch_size = num_examples_of_start(
        job.output_dir, job.mesh, recipe.per_device_train_batch_size
    )
    num_rows = batch_size * recipe.gradient_accumulation_steps
    make_source = functools.partial(_source, model, job, examples)
    source = make_source("train_file", num_rows)
    batches = _batches(recipe, job, examples, source, batch_size)
    recipe, job = records(_in_steps(settings, rows, batches.steps_per_epoch))
    eval_batch_size, held_out = _eval_batch_size(job, batch_size), None
    if "validation_file" in rows.parts:
        held_out = make_source("validation_file", eval_batch_size)
    check_evaluation(recipe, job, held_out, argument="validation_file")
    of_evaluation = held_out_data(recipe, job, held_out)
    if of_evaluation:
        of_evaluation = {"eval_data": examples.fingerprint("validation_file")}
    return _LabelledRun(
        config=LabelledConfig(
            recipe=recipe,
            job=job,
            model=model_identity(model),
            data=of_evaluation,
            classes=rows.classes,
        ),
        model=model,
        rows=rows,
        examples=examples,
        source=source,
        held_out=held_out,
        batches=batches,
        eval_batch_size=eval_batch_size,
        notes=tuple(_notes(rows, examples, new_params, batches, num_rows)),
    )


def _eval_batch_size(job: LabelledJob, batch_size: int) -> int:
    per_device = job.per_device_eval_batch_size
    if per_device is None:
        return batch_size
    return per_device * num_batch_shards(run_mesh(job).shape)


def _load(
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
    forward = trainer_forward(model)
    assert forward is not None
    return forward.columns


def _source(
    model: TorchaxModel,
    job: LabelledJob,
    examples: TaskExamples,
    part: str,
    batch_size: int,
) -> ExampleSource:
    forward_takes = set(_columns(model))
    collate = examples.collator(batch_size)

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
        job={**vars(job), "remove_unused_columns": False},
    )


def _batches(
    recipe: Recipe,
    job: LabelledJob,
    examples: TaskExamples,
    source: ExampleSource,
    batch_size: int,
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
        rows, source.examples, source.collate, batch_size=batch_size, seed=seed
    )


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


def _check_metric(job: LabelledJob, rows: TaskRows) -> None:
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
    batches: TaskBatches,
    num_rows: int,
) -> Any:
    """Yields sentences for the header of the run."""
    columns = rows.columns["train_file"]
    used = [name for name in columns if name is not None]
    sentence = f"{rows.task.name} of the columns {', '.join(used)}"
    if rows.classes is not None:
        shown = [*rows.classes[:8], *(["..."] if len(rows.classes) > 8 else [])]
        sentence += f"; classes {', '.join(shown)}"
    yield sentence
    yield from examples.notes
    number = max(1, len(examples.lengths))
    has_rest = batches.num_examples % num_rows > 0
    programs = number + has_rest if batches.num_examples >= num_rows else 1
    yield f"at most {pluralize(programs, 'program')} of the training step"
    if new_params:
        yield f"parameters drawn from the seed: {', '.join(new_params)}"


def _plan(prepared: _LabelledRun, run: OpenRun) -> tuple[RunPlan, PredictFn]:
    config, model = prepared.config, prepared.model
    job, rows, examples = config.job, prepared.rows, prepared.examples
    predict = _predict_fn(model, job, examples)
    compute: MetricsFn | None = None
    if rows.task.name != "seq2seq":
        compute = task_metrics(rows.task.name, rows.classes, glue_task=job.task_name)
    elif job.predict_with_generate:
        compute = functools.partial(_text_metrics, examples)
    plan = example_plan(
        config,
        model,
        run,
        source=prepared.source,
        held_out=prepared.held_out,
        batches=prepared.batches,
        compute_metrics=compute,
        notes=prepared.notes,
        write_model=functools.partial(_write_model, run.folder, model, job),
        predict=predict,
        command=shlex.join(["jaxopt-tf", "train", "--output_dir", str(run.folder)]),
    )
    if rows.task.name == "masked-lm" and plan.evaluate is not None:
        plan = dataclasses.replace(plan, evaluate=_with_perplexity(plan.evaluate))
    return plan, predict


def _predict_fn(
    model: TorchaxModel, job: LabelledJob, examples: TaskExamples
) -> PredictFn:
    """Returns the function (params, batch) -> predictions of a run."""
    mesh, precision = run_mesh(job), job.matmul_precision
    if job.task == "seq2seq":
        return make_greedy(
            model,
            max_length=examples.max_target_length,
            mesh=mesh,
            matmul_precision=precision,
        )
    logits_of = model.make_logits(mesh=mesh, matmul_precision=precision)

    def predict(params: PyTree, batch: Mapping[str, Any]) -> Any:
        inputs = {n: x for n, x in batch.items() if n not in ("labels", NUM_ITEMS)}
        logits = logits_of(params, inputs)
        # Logits of all tokens would take much memory; metrics need the classes only.
        is_of_tokens = job.task in ("masked-lm", "token-classification")
        return jnp.argmax(logits, axis=-1) if is_of_tokens else logits

    return predict


def _text_metrics(
    examples: TaskExamples, prediction: EvalPrediction
) -> dict[str, float]:
    decode = examples.decode
    assert decode is not None
    predictions, references = (
        [decode(tokens).strip() for tokens in rows]
        for rows in (prediction.predictions, prediction.label_ids)
    )
    return text_metrics(predictions, references)


def _with_perplexity(evaluate: Callable) -> Callable[[PyTree], dict[str, float]]:
    def with_perplexity(params: PyTree) -> dict[str, float]:
        metrics = dict(evaluate(params))
        return {**metrics, "perplexity": perplexity(metrics["loss"])}

    return with_perplexity


def _write_model(
    folder: Path, model: TorchaxModel, job: LabelledJob, params: PyTree
) -> None:
    """Writes the final model, its tokenizer and the names of its classes."""
    write_transformers_folder(
        folder,
        model,
        model.all_params(params),
        like=existing_folder(job),
        # The head is that of the run, and the parameters are float32.
        has_new_weights=True,
        tokenizer=job.tokenizer,
    )


def _predict(
    prepared: _LabelledRun,
    setup: Setup,
    folder: Path,
    params: PyTree,
    predict: PredictFn,
) -> None:
    """Writes predictions.jsonl for the test file."""
    job, config = prepared.config.job, prepared.config
    source = _source(
        prepared.model, job, prepared.examples, "test_file", prepared.eval_batch_size
    )
    on_devices = DeviceBatches(prepared.model, setup.mesh, 1)
    path = write_predictions(
        folder,
        prepared.rows,
        prepared.examples,
        source,
        setup=setup,
        params=params,
        predict=predict,
        place=on_devices.evaluation,
        batch_size=prepared.eval_batch_size,
        seed=config.recipe.seed,
        compute_dtype=jnp.bfloat16 if job.bf16 else None,
    )
    if is_primary_process():
        print(f"test    {path}")
