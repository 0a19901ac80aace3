"""Settings of a run on examples, and its record for settings.json and checkpoints."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax

from .. import training
from ..models import Model, TorchaxModel
from ..recipes import Recipe, recipe_settings
from ._config import PER_START_SETTINGS, as_json
from ._conflicts import conflicts_of_evaluation, conflicts_of_resume
from ._job import Job

# Fields of `Job` about text and its model, which examples and a module replace.
OF_TEXT = (
    *("model_name_or_path", "model_implementation", "from_scratch", "text"),
    *("train_file", "validation_file", "text_column", "packing"),
    *("completion_only_loss", "chat_template", "tokenizer", "eos_token_id"),
    *("sample_prompt", "num_train_epochs", "freeze", "lora_r", "lora_alpha"),
    *("lora_dropout", "lora_target_modules"),
)

# Fields of a configuration that do not determine the model, or that its first call
# changes.
_NOT_COMPARED = (
    *("_name_or_path", "transformers_version", "dtype", "torch_dtype"),
    *("problem_type", "use_cache"),
)


@dataclass(frozen=True, kw_only=True)
class ExampleJob(Job):
    """Settings of a run of `train`, in addition to those of `Job`.

    Attributes:
        metric_for_best_model: metric of evaluations that selects the best model, ends
            the run early and drives the schedule.
        greater_is_better: whether a greater metric is better; None for True unless the
            name ends with "loss".
        dataloader_drop_last: whether a last batch of fewer examples is dropped.
        data_seed: seed of the order of the examples; None for that of the recipe.
        train_sampling_strategy: "random" shuffles the examples in each epoch.
        remove_unused_columns: whether columns that the module does not take are removed
            from the examples.
        label_names: names of the labels in a batch; None for those of the module.
        report_to: "tensorboard" writes event files, "none" does not.
    """

    metric_for_best_model: str = "loss"
    greater_is_better: bool | None = None
    dataloader_drop_last: bool = False
    data_seed: int | None = None
    train_sampling_strategy: Literal["random", "sequential"] = "random"
    remove_unused_columns: bool = True
    label_names: tuple[str, ...] | None = None
    report_to: Literal["tensorboard", "none"] = "tensorboard"

    @property
    def selection(self) -> training.Selection:
        """Rule by which `training.train` compares evaluations."""
        return training.Selection(
            metric_for_best_model=self.metric_for_best_model,
            greater_is_better=self.greater_is_better,
            early_stopping_patience=self.early_stopping_patience,
            early_stopping_threshold=self.early_stopping_threshold,
        )


@dataclass(frozen=True, kw_only=True)
class ExampleConfig:
    """All settings of a run of `train`.

    Attributes:
        recipe: hyperparameters of the optimizer and the schedule.
        job: all other settings.
        model: `model_class` and `model_fingerprint` of the module.
        data: fingerprint of the data to evaluate on, if evaluations change the run.

    Raises:
        ValueError: if settings conflict. The message lists all conflicts.
    """

    recipe: Recipe
    job: ExampleJob
    model: Mapping[str, Any]
    data: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Checks the settings against each other."""
        problems = [
            *conflicts_of_evaluation(self.recipe, self.job),
            *conflicts_of_resume(self.job),
        ]
        if problems:
            raise ValueError("\n  ".join(problems))

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as a flat dict: the content of settings.json."""
        left_out = (*PER_START_SETTINGS, *OF_TEXT)
        job = {n: as_json(x) for n, x in vars(self.job).items() if n not in left_out}
        return {**recipe_settings(self.recipe), **job, **self.model, **self.data}


def read_example_settings(settings: Mapping[str, Any]) -> tuple[Recipe, ExampleJob]:
    """Returns the recipe and the job in the settings of a checkpoint of `train`."""
    fields = {
        kind: {f.name for f in dataclasses.fields(kind)}
        for kind in (Recipe, ExampleJob)
    }

    def own(kind: Any) -> dict[str, Any]:
        return {n: x for n, x in settings.items() if n in fields[kind]}

    return Recipe(**own(Recipe)), ExampleJob(**own(ExampleJob))


def model_identity(model: Model) -> dict[str, Any]:
    """Returns the class of a model and a hash of its architecture, for settings."""
    name = model.title
    if isinstance(model, TorchaxModel):
        name = type(model.module).__name__
    config = {
        n: x for n, x in model.transformers_config.items() if n not in _NOT_COMPARED
    }
    leaves = jax.tree_util.tree_leaves_with_path(model.shapes)
    shapes = [(jax.tree_util.keystr(p), x.shape, str(x.dtype)) for p, x in leaves]
    text = json.dumps([config, shapes], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return {"model_class": name, "model_fingerprint": digest}
