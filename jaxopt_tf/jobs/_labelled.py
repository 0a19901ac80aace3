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
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from .. import training
from .._io import is_primary_process
from .._typing import PyTree
from ..models import NUM_ITEMS, TorchaxModel, make_greedy
from ._example_data import DeviceBatches
from ._example_evaluation import EvalPrediction, MetricsFn, PredictFn
from ._example_plan import example_plan
from ._final_folder import write_transformers_folder
from ._labelled_data import TaskExamples
from ._labelled_job import LabelledJob
from ._labelled_predictions import write_predictions
from ._labelled_setup import LabelledRun, part_source, prepare
from ._metrics import perplexity, task_metrics, text_metrics
from ._model_folder import existing_folder
from ._report import RunResult
from ._run_core import RunPlan, run_mesh, run_plan, stopwatch
from ._run_folder import OpenRun, open_run
from ._setup import Setup
from ._trainer_run import import_into


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
    prepared = prepare(settings)
    summary = prepared.data_summary()
    config: Any = import_into(prepared.config, prepared.model, summary)
    prepared = dataclasses.replace(prepared, config=config)
    with (
        training.stop_on_signals() as should_stop,
        open_run(config, lambda folder: summary) as run,
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


def _plan(prepared: LabelledRun, run: OpenRun) -> tuple[RunPlan, PredictFn]:
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
    folder: Path,
    model: TorchaxModel,
    job: LabelledJob,
    params: PyTree,
    frozen: PyTree,
) -> None:
    """Writes the final model, its tokenizer and the names of its classes."""
    write_transformers_folder(
        folder,
        model,
        training.merge_params(params, frozen),
        like=existing_folder(job),
        # The head is that of the run, and the parameters are float32.
        has_new_weights=True,
        tokenizer=job.tokenizer,
    )


def _predict(
    prepared: LabelledRun,
    setup: Setup,
    folder: Path,
    params: PyTree,
    predict: PredictFn,
) -> None:
    """Writes predictions.jsonl for the test file."""
    job, config = prepared.config.job, prepared.config
    source = part_source(
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
        place=on_devices.evaluation_batch,
        batch_size=prepared.eval_batch_size,
        seed=config.recipe.seed,
        compute_dtype=jnp.bfloat16 if job.bf16 else None,
    )
    if is_primary_process():
        print(f"test    {path}")
