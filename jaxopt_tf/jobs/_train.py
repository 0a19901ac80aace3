"""Training of a module on examples, for users of Transformers' Trainer.

result = train(module, arguments, train_dataset=rows, eval_dataset=others)
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .. import _io, interop, training
from .._typing import PyTree
from ..models import Model, TorchaxModel, from_transformers
from ..recipes import Recipe
from ._callbacks import checked_monitors
from ._example_data import (
    DatasetSummary,
    ExampleSource,
    collator_of_run,
    training_examples,
)
from ._example_evaluation import MetricsFn
from ._example_job import ExampleConfig, model_identity
from ._example_plan import (
    check_evaluation,
    example_plan,
    held_out_data,
    num_examples_of_start,
    size_in_words,
)
from ._final_folder import write_adapter_folder, write_transformers_folder
from ._job import Job
from ._report import RunResult
from ._run_core import run_plan, stopwatch
from ._run_folder import open_run
from ._train_arguments import TrainArguments, read_train_arguments
from ._trainer_run import import_into


def train(
    model: Any,
    arguments: Any,
    *,
    train_dataset: Any,
    eval_dataset: Any = None,
    data_collator: Callable[[list[Any]], Any] | None = None,
    processing_class: Any = None,
    compute_metrics: MetricsFn | None = None,
    monitors: Sequence[training.Monitor] = (),
    callbacks: Sequence[Any] = (),
    job: Job | None = None,
    **options: Any,
) -> RunResult:
    """Trains a module on examples, as Trainer does, in JAX and in a run folder.

        result = train(module, TrainingArguments("runs/mine"), train_dataset=rows)
        module = type(module).from_pretrained(result.folder)

    The losses are those of Trainer for the same arguments, if no dropout is drawn: the
    order of the examples, the short last batch of an epoch, its short last update and
    the number of items of an update are Trainer's. The order for a seed is that of
    torch's `RandomSampler` as accelerate seeds it; torch is not needed for it. Numbers
    that a collator draws at random depend on the seed and the micro-batch only, and are
    not those of Trainer.

    If `output_dir` contains a run, training resumes from its newest valid checkpoint,
    bit for bit on the same machine: call the function again with the same arguments.
    After SIGTERM or SIGINT the run ends after the current step, with a checkpoint. The
    checkpoint of the best evaluation is kept. With several processes, all must call
    `jax.distributed.initialize` and then this function with the same arguments.

    Each shape of a batch is compiled once. Rows that are padded to one length need one
    program, and one more for each shorter last batch and update.

    Args:
        model: a module of Transformers, which torchax runs, or a `models.Model`. The
            module is not changed, except that gradient checkpointing is enabled if the
            arguments say so.
        arguments: `TrainingArguments`, or a `Recipe`.
        train_dataset: a `datasets.Dataset`, a sequence of examples (an object with
            `len` and numbers in brackets, such as a list of dictionaries or a
            `grain.MapDataset`), or an iterable that can be read again, such as a
            `grain.IterDataset`, whose order is kept.
        eval_dataset: the same, to evaluate on; None for no evaluations.
        data_collator: function from a list of examples to a dict of arrays or tensors;
            None stacks the columns as `default_data_collator`, or pads them with
            `processing_class`.
        processing_class: tokenizer of Transformers, which is saved with the model, or
            another object with `save_pretrained`.
        compute_metrics: function from `predictions` and `label_ids` (attributes of its
            argument, NumPy arrays) to metrics by name.
        monitors: further monitors, beside console, log, figures and TensorBoard.
        callbacks: must be empty. Each callback of Trainer is refused with what serves
            instead.
        job: settings of the run for a `Recipe`, such as `Job(output_dir=...)`.
        options: settings of `Job`, which take precedence, such as `mesh="data=2"` or
            `early_stopping_patience=3`; and `metric_for_best_model`,
            `greater_is_better`, `data_seed`, `dataloader_drop_last`,
            `train_sampling_strategy`, `remove_unused_columns`, `label_names` and
            `report_to`. `resume_from_checkpoint` may also name a checkpoint of Trainer,
            from which a new run starts.

    Returns:
        The losses and metrics of evaluations, the final parameters, and the folder,
        which `from_pretrained` of the module's class loads.

    Raises:
        TypeError: if an argument is of another type, among them callbacks of Trainer
            and torch modules of other kinds.
        ValueError: if a dataset is empty, a column cannot be stacked or a batch has a
            key that the module does not take, if arguments change numbers and have no
            equivalent, or if the folder contains another run.
        FloatingPointError: if the loss is not finite, unless `on_non_finite` allows it.

    Source: transformers 5.23 `trainer.py`.
    Differs: evaluations also take place before the first step and after the last one.
        Dropout draws from JAX. The module keeps its weights.
    """
    seconds_since_start = stopwatch(has_command_line=False)
    added = checked_monitors(monitors, callbacks)
    read = read_train_arguments(arguments, job, options)
    built = _built(model, read)
    collator = collator_of_run(data_collator, processing_class)
    make_source = functools.partial(
        ExampleSource, model=built, collator=collator, settings=read.options
    )
    source = make_source(train_dataset, argument="train_dataset")
    held_out, fingerprint = None, None
    if eval_dataset is not None:
        held_out = make_source(eval_dataset, argument="eval_dataset")
        fingerprint = held_out.fingerprint
    batch_size = num_examples_of_start(
        read.options.get("output_dir"),
        read.options.get("mesh"),
        read.per_device_train_batch_size,
    )
    batches = training_examples(
        source,
        batch_size=batch_size,
        gradient_accumulation_steps=read.gradient_accumulation_steps,
        seed=read.seed,
        settings=read.options,
    )
    recipe, example_job, notes = read.finish(batches.steps_per_epoch)
    recipe = _for_model(recipe, built)
    check_evaluation(recipe, example_job, held_out)
    config = ExampleConfig(
        recipe=recipe,
        job=example_job,
        model=model_identity(built),
        data=held_out_data(recipe, example_job, fingerprint),
    )
    summary = DatasetSummary(
        fingerprint=source.fingerprint(), size=size_in_words(source.num_examples)
    )
    config = import_into(config, built, summary)
    with (
        training.stop_on_signals() as should_stop,
        open_run(config, lambda folder: summary) as run,
    ):
        plan = example_plan(
            config,
            built,
            run,
            source=source,
            held_out=held_out,
            batches=batches,
            compute_metrics=compute_metrics if read.computes_metrics else None,
            monitors=added,
            notes=notes,
            write_model=functools.partial(
                _write_model, run.folder, built, processing_class
            ),
        )
        return run_plan(
            plan,
            run,
            should_stop=should_stop,
            command_line=(),
            seconds_since_start=seconds_since_start,
        )


def _write_model(
    folder: Path, model: Model, processing_class: Any, params: PyTree, frozen: PyTree
) -> None:
    """Writes the final parameters as the module's class loads them."""
    is_torchax = isinstance(model, TorchaxModel)
    has_adapter = isinstance(model, TorchaxModel) and model.adapter_names is not None
    values = params
    if not has_adapter:
        values = training.merge_params(params, frozen)

    def save_others() -> None:
        if hasattr(processing_class, "save_pretrained"):
            processing_class.save_pretrained(folder)
        generation = getattr(
            model.module if isinstance(model, TorchaxModel) else None,
            "generation_config",
            None,
        )
        if generation is not None and not has_adapter:
            generation.save_pretrained(folder)

    _io.run_on_process_0(save_others)
    if has_adapter:
        write_adapter_folder(folder, model, values)
        return
    if is_torchax and not model.transformers_config:
        # A torch module of one's own has no config.json.
        interop.write_weights(folder, values, model.names)
        return
    write_transformers_folder(folder, model, values)


def _built(model: Any, read: TrainArguments) -> Model:
    """Returns the model of a module; raises for modules without a loss."""
    if isinstance(model, Model):
        if read.has_gradient_checkpointing:
            raise ValueError(
                "`gradient_checkpointing` must be set where the model is built, got "
                "TrainingArguments with it and a `Model`. Set it there: in the "
                "configuration, or by `gradient_checkpointing_enable` of the module."
            )
        return model
    classes = [kind.__name__ for kind in type(model).__mro__]
    if not {"PreTrainedModel", "PeftModel"} & {*classes}:
        is_module = "Module" in classes
        raise TypeError(
            "`model` must be a module of Transformers or a `models.Model`, got "
            f"{type(model).__name__}. "
            + (
                "Pass `models.from_torch(module, loss_fn)`, with a function that "
                "computes its loss."
                if is_module
                else "Load the module with `from_pretrained`."
            )
        )
    if read.has_gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return from_transformers(model)


def _for_model(recipe: Recipe, model: Model) -> Recipe:
    """Returns the recipe with a decay rule that knows the names of the model."""
    is_of_trainer = str(recipe.decay_rule).startswith("transformers")
    if isinstance(model, TorchaxModel) or not is_of_trainer:
        return recipe
    # For models of `models` the default rule excludes the same parameters.
    return dataclasses.replace(recipe, decay_rule="default")
