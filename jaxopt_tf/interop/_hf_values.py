"""Values of TrainingArguments, each read by the kind of its field.

An object, a JSON file that a person wrote and a command line hold the same number as
1e-4 and as "1e-4"; all of them are read here, before anything is decided by them.
"""

from collections.abc import Mapping
from typing import Any

from .._io import NUMBER, SWITCH, Kind, is_set, kinds_of, read_value
from ..recipes import Recipe
from ._hf_fields import TRAINING_ARGUMENTS

_SWITCHES = """activation_checkpointing adafactor bf16 gradient_checkpointing
load_best_model_at_end predict_with_generate sortish_sampler tf32"""
_NUMBERS = """data_seed early_stopping_patience early_stopping_threshold eval_delay
eval_steps logging_steps num_train_epochs save_steps save_total_limit warmup_ratio"""


def _kinds() -> dict[str, Kind]:
    kinds: dict[str, Kind] = {"accelerator_config": Kind("JSON|NAME=VALUE,...")}
    for name, field in TRAINING_ARGUMENTS.items():
        if any(isinstance(value, bool) for value in field.usual):
            kinds[name] = SWITCH
        elif any(isinstance(value, int | float) for value in field.usual):
            kinds[name] = NUMBER
    kinds |= dict.fromkeys(_SWITCHES.split(), SWITCH)
    kinds |= dict.fromkeys(_NUMBERS.split(), NUMBER)
    return kinds | kinds_of(Recipe)


# Kinds of the fields whose values are read; those of no kind are left unchanged.
KINDS = _kinds()


def read_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields with numbers, switches and JSON read out of their strings.

    A value that cannot be read is left unchanged: it is refused where it is checked.
    """
    return {name: _read(name, value) for name, value in given.items()}


def _read(name: str, value: Any) -> Any:
    if value in ("None", "none", "null"):
        return None
    if name not in KINDS or not is_set(value):
        return value
    try:
        return read_value(name, KINDS[name], value)
    except TypeError:
        return value
