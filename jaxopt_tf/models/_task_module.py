"""Modules of Transformers in folders, with heads for labelled tasks."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import _checks, training
from .._io import read_json_object
from ._torchax import import_package, import_torch


class TaskModule(NamedTuple):
    """A module for a task, and the parameters that its folder does not contain."""

    module: Any
    new_params: tuple[str, ...]  # torch's names of those that were drawn


def load_task_module(
    folder: Path | str,
    auto_class: str,
    *,
    classes: Sequence[str] | None = None,
    problem_type: str | None = None,
    seed: int = 42,
    from_scratch: bool = False,
    ignore_mismatched_sizes: bool = False,
    freeze: Sequence[str] = (),
) -> TaskModule:
    """Reads a model of Transformers, with a head for a task.

    Parameters that the folder does not contain, such as a new head, are drawn as
    Transformers draws them after `set_seed(seed)`. The module is in float32.

    Args:
        folder: folder that `save_pretrained` has written.
        auto_class: class of Transformers that chooses the class of the module, such as
            `AutoModelForSequenceClassification`.
        classes: names of the classes, in the order of the logits, for `id2label` of the
            configuration; None to keep the configuration.
        problem_type: field `problem_type` of the configuration; "regression" for a head
            with one output, a number, instead of `classes`.
        seed: seed of the parameters that are drawn.
        from_scratch: whether all parameters are drawn, and the weights are not read.
        ignore_mismatched_sizes: whether a head of another number of classes is drawn
            again instead of refused.
        freeze: patterns of the names of parameters that are not trained.

    Raises:
        ValueError: if the folder contains no model, one that has no class for the task,
            or a head of another number of classes; or if a pattern matches no parameter
            or all of them.
        ModuleNotFoundError: if torch or Transformers is not installed.

    Source: transformers 5.23, examples/pytorch `run_glue.py`, `main`.
    """
    transformers, torch = import_package("transformers"), import_torch()
    content = read_json_object(Path(folder) / "config.json", "model_name_or_path")
    settings = _settings_of_head(classes, problem_type)
    num_labels = settings.get("num_labels")
    with _quiet(transformers), torch.random.fork_rng(devices=[]):
        config = transformers.AutoConfig.from_pretrained(
            str(folder), local_files_only=True, **settings
        )
        kind = _class_for(transformers, auto_class, config, content)
        is_same = content.get("architectures") == [kind.__name__]
        if is_same and not (from_scratch or ignore_mismatched_sizes or not num_labels):
            _check_head(folder, content, num_labels)
        torch.manual_seed(_checks.seed("seed", seed))
        if from_scratch:
            module, new_params = kind(config), ()
        else:
            module, info = _read(
                kind, folder, config, ignore_mismatched_sizes=ignore_mismatched_sizes
            )
            mismatched = [entry[0] for entry in info.get("mismatched_keys", ())]
            new_params = tuple(sorted({*info.get("missing_keys", ()), *mismatched}))
    freeze_module(module, freeze)
    return TaskModule(module, new_params)


def load_module(folder: str | Path) -> Any:
    """Reads the model of a folder in float32, as the class that config.json names."""
    transformers = import_package("transformers")
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(
            "`source` must be a folder that contains config.json, got "
            f"{str(folder)!r}. Save the model with `save_pretrained`, or download it: "
            "model names of the Hugging Face Hub are not resolved."
        )
    names = read_json_object(path, "source").get("architectures") or ()
    classes = [getattr(transformers, n) for n in names if hasattr(transformers, n)]
    if not classes:
        raise ValueError(
            "`source` must contain a config.json that has a class of Transformers "
            f"under `architectures`, got {list(names)} in {str(path)!r}. Load the "
            "module, and pass it."
        )
    return _from_pretrained(classes[0], folder)


def num_positions(module: Any) -> int | None:
    """Returns the maximum number of tokens of a text; None if there is no limit."""
    found = getattr(module.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(found, int) or found < 1:
        return None
    for path, part in module.named_modules():
        # The positions of RoBERTa start after the index of the padding.
        if path.endswith("position_embeddings"):
            first = getattr(part, "padding_idx", None)
            return found if first is None else found - first - 1
    return found


def freeze_module(module: Any, patterns: Sequence[str]) -> None:
    """Clears `requires_grad` of parameters whose names match a pattern.

    Raises:
        ValueError: if a pattern matches no parameter, or all are frozen. The message
            names the argument `patterns`.
    """
    if not patterns:
        return
    named = dict(module.named_parameters())
    _, frozen = training.split_params(
        {name: np.broadcast_to(0, p.shape) for name, p in named.items()}, patterns
    )
    for name in frozen:
        named[name].requires_grad = False


def _settings_of_head(
    classes: Sequence[str] | None, problem_type: str | None
) -> dict[str, Any]:
    """Returns fields of a configuration; {} to keep those of the folder."""
    settings: dict[str, Any] = {}
    if problem_type == "regression":
        settings = {"num_labels": 1}
    elif classes is not None:
        settings = {
            "num_labels": len(classes),
            "id2label": dict(enumerate(classes)),
            "label2id": {name: i for i, name in enumerate(classes)},
        }
    return settings | ({"problem_type": problem_type} if problem_type else {})


def _class_for(
    transformers: Any, auto_class: str, config: Any, content: Mapping[str, Any]
) -> Any:
    """Returns the class of the module that Transformers chooses for a configuration."""
    factory = import_package("transformers.models.auto.auto_factory")
    mapping = getattr(transformers, auto_class)._model_mapping
    if type(config) not in mapping:
        raise ValueError(
            "`model_name_or_path` must contain a model for which Transformers has a "
            f"class of {auto_class}, got `model_type` {config.model_type!r} with the "
            f"`architectures` {content.get('architectures')}. Give another `task`."
        )
    return factory._get_model_class(config, mapping)


def _check_head(folder: Path | str, content: Mapping[str, Any], number: int) -> None:
    # Transformers writes no `num_labels`; without `id2label` there are two classes.
    found = len(content.get("id2label") or (0, 1))
    if found != number:
        raise ValueError(
            "`model_name_or_path` must contain a head of as many classes as the data "
            f"have, which is {number}, got one of {found} in {str(folder)!r}. Set "
            "`ignore_mismatched_sizes` to draw a new head."
        )


def _read(
    kind: Any,
    folder: Path | str,
    config: Any,
    *,
    ignore_mismatched_sizes: bool,
) -> tuple[Any, Mapping[str, Any]]:
    try:
        return _from_pretrained(
            kind,
            folder,
            config=config,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            output_loading_info=True,
        )
    # Files are missing (OSError), damaged, or of other shapes (RuntimeError).
    except Exception as error:
        raise ValueError(
            "`model_name_or_path` must contain the weights of the model in its "
            f"config.json, but {str(folder)!r} cannot be read as {kind.__name__}: "
            f"{type(error).__name__}: {error} Save the model again, or set "
            "`from_scratch` to draw all parameters."
        ) from error


def _from_pretrained(kind: Any, folder: Path | str, **options: Any) -> Any:
    # Transformers 5 reads weights in the dtype of config.json, often bfloat16, in which
    # a small update is lost.
    return kind.from_pretrained(
        str(folder), dtype=import_torch().float32, local_files_only=True, **options
    )


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Disables the progress bar of Transformers, and its report on a new head."""
    logging = transformers.utils.logging
    level, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if has_bar:
            logging.enable_progress_bar()
