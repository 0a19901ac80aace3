"""Arguments of `train` as a recipe, a job and notes.

`TrainingArguments` are translated field by field: a field that changes numbers and has
no equivalent is refused by name, and a field that is ignored is listed.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .. import _checks, interop
from .._io import is_set
from ..recipes import Recipe
from ._example_job import OF_TEXT, ExampleJob
from ._intervals import steps_of_fraction
from ._job import Job

_MAX_STEPS = 2**31 - 1
_LOGGING_STEPS = 500  # Transformers' default, which also replaces `eval_steps`
_FIELDS = {field.name for field in dataclasses.fields(ExampleJob)}
# Fields with the name and the meaning of a setting of the job.
_SAME = (
    *("output_dir", "per_device_eval_batch_size", "save_total_limit"),
    *("load_best_model_at_end", "logging_first_step", "bf16", "tf32", "data_seed"),
    *("metric_for_best_model", "greater_is_better", "dataloader_drop_last"),
    *("remove_unused_columns", "label_names", "train_sampling_strategy"),
)
# Fields that are applied in another form.
_APPLIED = (
    *("eval_strategy", "eval_steps", "save_strategy", "save_steps"),
    *("logging_strategy", "logging_steps", "num_train_epochs", "report_to"),
    *("gradient_checkpointing", "eval_on_start", "resume_from_checkpoint"),
    *("prediction_loss_only", "do_train", "do_eval"),
)
# Fields that change numbers other than the updates, with the reason of the refusal.
_DEFERRED = "metrics are computed from all predictions at once"
_REFUSED: Mapping[str, str] = {
    "eval_delay": "evaluations start before the first step; leave it out",
    "group_by_length": "use `train_sampling_strategy='random'`",
    "ignore_data_skip": "a resumed run continues with the next batch; leave it out",
    "past_index": "the model keeps no state between batches; leave it out",
    "sortish_sampler": "examples are shuffled as by Trainer; leave it out",
    "fsdp": "pass `mesh`, such as 'fsdp=4', to `train`",
    "sharded_ddp": "pass `mesh`, such as 'fsdp=4', to `train`",
    "predict_with_generate": "evaluations use the logits of the labels; leave it out, "
    "and generate text with Transformers from the folder of the run",
    "batch_eval_metrics": f"{_DEFERRED}; leave it out",
    "include_for_metrics": f"{_DEFERRED}, without inputs and losses; leave it out",
    "include_inputs_for_metrics": f"{_DEFERRED}, without inputs; leave it out",
}
# Arguments of Trainer that `train` does not have, with what serves instead.
_OF_TRAINER: Mapping[str, str] = {
    "args": "pass the TrainingArguments as second argument",
    "model_init": "pass the module that it returns as `model`",
    "compute_loss_func": "pass `models.from_torch(module, loss_fn)` as `model`",
    "optimizers": "the `Recipe` or the TrainingArguments choose the optimizer",
    "optimizer_cls_and_kwargs": "the `Recipe` chooses the optimizer",
    "preprocess_logits_for_metrics": "reduce the logits in `compute_metrics`",
    "tokenizer": "its name is `processing_class`",
}


@dataclass(frozen=True, kw_only=True)
class TrainArguments:
    """Arguments of a run that do not depend on the number of its steps.

    Attributes:
        options: settings of the job by name.
        per_device_train_batch_size: number of examples per device in a micro-batch.
        gradient_accumulation_steps: maximum number of micro-batches in an update.
        seed: seed of the order of the data.
        has_gradient_checkpointing: whether activations are recomputed.
        computes_metrics: whether evaluations compute predictions.
        finish: function (steps per epoch or None) -> recipe, job and notes.
    """

    options: Mapping[str, Any]
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    seed: int
    has_gradient_checkpointing: bool
    computes_metrics: bool
    finish: Callable[[int | None], tuple[Recipe, ExampleJob, list[str]]]


def read_train_arguments(
    arguments: Any, job: Job | None, options: Mapping[str, Any]
) -> TrainArguments:
    """Reads the arguments of `train`; see there.

    Raises:
        TypeError: if `arguments` is neither a recipe nor TrainingArguments.
        ValueError: if an option is unknown, or a field has no equivalent.
    """
    _check_options(options)
    given = {**_job_options(job), **options}
    given["report_to"] = _report_to(given.get("report_to", "tensorboard"))
    if isinstance(arguments, Recipe):
        recipe: Recipe = arguments

        def finish(
            steps_per_epoch: int | None,
        ) -> tuple[Recipe, ExampleJob, list[str]]:
            settings = {"output_dir": None, **given}
            for name in ("eval", "save"):
                if settings.get(f"{name}_strategy") == "epoch":
                    settings |= _every_epoch(name, steps_per_epoch)
            return recipe, ExampleJob(**settings), []

        return TrainArguments(
            options=given,
            per_device_train_batch_size=recipe.per_device_train_batch_size,
            gradient_accumulation_steps=recipe.gradient_accumulation_steps,
            seed=recipe.seed if given.get("data_seed") is None else given["data_seed"],
            has_gradient_checkpointing=False,
            computes_metrics=True,
            finish=finish,
        )
    classes = [kind.__name__ for kind in type(arguments).__mro__]
    if "TrainingArguments" not in classes:
        raise TypeError(
            "`arguments` must be a TrainingArguments of Transformers or a `Recipe`, "
            f"got {type(arguments).__name__}."
        )
    return _from_training_arguments(arguments, job, given, dict(options))


def _from_training_arguments(
    arguments: Any, job: Job | None, given: dict[str, Any], options: dict[str, Any]
) -> TrainArguments:
    if job is not None:
        raise ValueError(
            "`job` must be left out with TrainingArguments, got both. Pass further "
            "settings as keyword arguments, such as `mesh='data=2'`."
        )
    # Placeholders: the number of steps is not known yet, and devices are those here.
    first = interop.recipe_from_transformers(
        arguments, max_steps=_MAX_STEPS, num_devices=1
    )
    values = dict(first.values)
    if "report_to" not in options:
        given["report_to"] = _report_to(values.get("report_to"))
    _refuse(values, first)

    def finish(steps_per_epoch: int | None) -> tuple[Recipe, ExampleJob, list[str]]:
        max_steps = _num_steps(values, steps_per_epoch)
        found = interop.recipe_from_transformers(
            arguments, max_steps=max_steps, num_devices=1
        )
        settings = {n: values[n] for n in _SAME if is_set(values.get(n))}
        settings |= dict(_intervals(values, max_steps, steps_per_epoch))
        limit = values.get("save_total_limit")
        settings["save_total_limit"] = limit if limit and limit > 0 else None
        settings["label_names"] = (
            tuple(values["label_names"]) if is_set(values.get("label_names")) else None
        )
        if "eval_steps" in options:
            settings.pop("eval_strategy", None)
        if "save_steps" in options:
            settings.pop("save_strategy", None)
        return found.recipe, ExampleJob(**{**settings, **given}), _notes(found)

    resumed = values.get("resume_from_checkpoint")
    if isinstance(resumed, str) and is_set(resumed):
        given.setdefault("resume_from_checkpoint", resumed)
    if is_set(values.get("output_dir")):
        given.setdefault("output_dir", values["output_dir"])
    data_seed, recipe = values.get("data_seed"), first.recipe
    return TrainArguments(
        options={**{n: values[n] for n in _SAME if is_set(values.get(n))}, **given},
        per_device_train_batch_size=recipe.per_device_train_batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        seed=recipe.seed if data_seed is None else data_seed,
        has_gradient_checkpointing=bool(values.get("gradient_checkpointing")),
        computes_metrics=not values.get("prediction_loss_only"),
        finish=finish,
    )


def _intervals(
    values: Mapping[str, Any], max_steps: int, steps_per_epoch: int | None
) -> Iterator[tuple[str, Any]]:
    """Yields the settings of evaluations, checkpoints and logs."""
    logging_steps = values.get("logging_steps") or _LOGGING_STEPS
    every = {
        "eval": values.get("eval_steps") or logging_steps,
        "save": values.get("save_steps") or 500,
        "logging": logging_steps,
    }
    default = {"eval": "no", "save": "steps", "logging": "steps"}
    for name in every:
        strategy = values.get(f"{name}_strategy") or default[name]
        if strategy == "epoch" and name != "logging":
            yield from _every_epoch(name, steps_per_epoch).items()
        elif name == "logging":
            steps = {"epoch": steps_per_epoch, "no": max_steps}.get(strategy)
            steps = steps or steps_of_fraction(every[name], max_steps)
            yield "logging_steps", max(1, int(steps))
        elif strategy == "steps":
            yield f"{name}_strategy", "steps"
            yield f"{name}_steps", int(steps_of_fraction(every[name], max_steps))
        else:  # "best": the checkpoint of the best evaluation is always saved
            yield f"{name}_strategy", "no"


def _every_epoch(name: str, steps_per_epoch: int | None) -> dict[str, Any]:
    if steps_per_epoch is None:
        raise ValueError(
            f"`{name}_strategy` must be 'steps' or 'no' for examples without a length, "
            "got 'epoch'. Give a number of steps."
        )
    return {f"{name}_strategy": "steps", f"{name}_steps": steps_per_epoch}


def _num_steps(values: Mapping[str, Any], steps_per_epoch: int | None) -> int:
    """Returns the number of updates, as Trainer counts them.

    Source: transformers 5.23 `trainer.py`, `set_initial_training_values`.
    """
    steps: Any = values.get("max_steps")
    if is_set(steps) and steps > 0:
        return int(steps)
    epochs = values.get("num_train_epochs", 3.0)
    _checks.positive("num_train_epochs", epochs)
    if steps_per_epoch is None:
        raise ValueError(
            "`max_steps` must be given for examples without a length, got "
            f"`num_train_epochs` {epochs!r} alone."
        )
    return math.ceil(epochs * steps_per_epoch)


def _refuse(values: Mapping[str, Any], found: interop.FromTransformers) -> None:
    """Raises if fields change numbers and have no equivalent; names all of them."""
    table = interop.TRAINING_ARGUMENTS
    refused = {
        name: reason
        for name, reason in _REFUSED.items()
        if name in values and not table[name].is_default(values[name])
    }
    for name in found.non_optimizer:
        is_set_otherwise = name in table and not table[name].is_default(values[name])
        is_handled = name in (*_SAME, *_APPLIED) or name.endswith("_full_eval")
        if is_set_otherwise and not is_handled:
            refused.setdefault(name, table[name].reason)
    strategy = values.get("train_sampling_strategy") or "random"
    if strategy not in ("random", "sequential"):
        refused["train_sampling_strategy"] = "use 'random' or 'sequential'"
    if values.get("eval_do_concat_batches") is False:
        refused["eval_do_concat_batches"] = f"{_DEFERRED}; leave it out"
    if refused:
        raise ValueError(
            "\n  ".join(
                f"`{name}` {values.get(name)!r}: {reason}."
                for name, reason in refused.items()
            )
        )


def _notes(found: interop.FromTransformers) -> list[str]:
    listed = [n for n in found.ignored if n not in (*_SAME, *_APPLIED)]
    listed += [n for n in found.non_optimizer if n.endswith("_full_eval")]
    notes = [note for note in found.notes if not note.startswith("`decay_rule`")]
    if listed:
        notes.append(f"without effect here: {', '.join(listed)}")
    if found.unread:
        notes.append(f"fields of a subclass, not read: {', '.join(found.unread)}")
    if found.values.get("bf16"):
        notes.append("`bf16`: parameters are cast for the loss; Trainer uses autocast")
    return notes


def _job_options(job: Job | None) -> dict[str, Any]:
    """Returns the settings of a job that differ from the defaults."""
    if job is None:
        return {}
    if not isinstance(job, Job):
        raise TypeError(f"`job` must be a `Job`, got {type(job).__name__}.")
    default = Job()
    given = {n: x for n, x in vars(job).items() if x != getattr(default, n, x)}
    _check_options(given)
    return given


def _check_options(options: Mapping[str, Any]) -> None:
    for name in options:
        if name in _OF_TRAINER:
            raise TypeError(
                f"`{name}` must be left out: `train` does not take it; "
                f"{_OF_TRAINER[name]}."
            )
        if name in OF_TEXT:
            raise ValueError(
                f"`{name}` must be left out, got {options[name]!r}: `model`, "
                "`train_dataset` and `arguments` take its place."
            )
        if name not in _FIELDS:
            raise TypeError(
                f"`{name}` must be a setting of a job.{_checks.suggest(name, _FIELDS)} "
                "Hyperparameters are given in `arguments`."
            )


def _report_to(value: Any) -> str:
    """Returns "tensorboard" or "none"; raises for other integrations."""
    names = [value] if isinstance(value, str) else list(value or ())
    others = [name for name in names if name not in ("tensorboard", "none")]
    if others:
        raise ValueError(
            f"`report_to` must be 'tensorboard' or 'none', got {others[0]!r}. Pass a "
            "`training.Monitor` in `monitors`, whose functions send `window.metrics` "
            f"and `evaluation.metrics` to {others[0]}."
        )
    return "tensorboard" if "tensorboard" in names else "none"
