"""Fields of a subclass of TrainingArguments: ignored, or refused by name.

TRL, sentence-transformers and training scripts add fields of the data, the model and
the loss. Those are listed and ignored. A field whose name belongs to the optimizer
(`vision_lr`, `learning_rate_mapping`) is refused unless it is off.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from .. import _checks
from .._io import is_set

# Fields of every version from 4.0 to 5.23 that nobody writes by hand all together: what
# has them is all of a TrainingArguments, so that an unknown name cannot be a misspelt
# one.
_IN_EVERY_FILE = frozenset(
    [
        "adam_epsilon",
        "disable_tqdm",
        "do_predict",
        "eval_accumulation_steps",
        "label_names",
        "logging_first_step",
        "prediction_loss_only",
        "remove_unused_columns",
    ]
)
# Names such as vision_lr, loraplus_lr_ratio, learning_rate_mapping, use_muon_optimizer.
_OF_THE_OPTIMIZER = re.compile(
    r"(?:^|_)(?:lr|lrs|optim|optims|optimizer|optimizers|scheduler|warmup|momentum)"
    r"(?:_|$)|learning_rate|weight_decay"
)
# Others of the optimizer, by name.
_ALSO_OF_THE_OPTIMIZER = frozenset(
    [
        "use_adam_mini",
        "use_apollo",
        "use_badam",
        "use_galore",
        "use_muon",
        "relora_steps",
    ]
)


class Selected(NamedTuple):
    """TrainingArguments without what is not read."""

    given: dict[str, Any]
    ignored: list[str]  # names of fields that are not read
    problems: list[str]


def holds_all_fields(given: Collection[str]) -> bool:
    """Returns True for all fields of a TrainingArguments, False for some of them."""
    return set(given) >= _IN_EVERY_FILE


def select_fields(
    given: Mapping[str, Any],
    known: Collection[str],
    ignore_fields: Collection[str] = (),
    *,
    may_be_subclass: bool = True,
) -> Selected:
    """Takes out the fields of a subclass and those that the user names.

    Args:
        given: names and values.
        known: names of all fields that are not a subclass's.
        ignore_fields: names of fields that are not read.
        may_be_subclass: False where the class is known to be Transformers' own.

    Raises:
        TypeError: if `ignore_fields` is no collection of names.
        ValueError: if one of them is not among the fields.
    """
    names = check_ignore_fields(ignore_fields, given)
    left = {name: value for name, value in given.items() if name not in names}
    ignored, problems = list(names), []
    if may_be_subclass and holds_all_fields(given):
        for name in [name for name in left if name not in known]:
            value = left.pop(name)
            if _changes_the_optimizer(name) and is_set(value) and value is not False:
                problems.append(
                    f"`{name}` {value!r}: this field of a subclass may change the "
                    f"optimizer, which it does not here; if it does not, add {name!r} "
                    "to `ignore_fields`."
                )
            else:
                ignored.append(name)
    return Selected(left, ignored, problems)


def unknown_field(name: str, known: Collection[str], what: str) -> str:
    """Returns the sentence that refuses a name, with the nearest one and the cure."""
    hint = _checks.nearest(name, known, "`{}`")
    return (
        f"`{name}` must be {what}.{hint} A field of your own that changes no number of "
        f"the optimizer: add {name!r} to `ignore_fields`."
    )


def check_ignore_fields(
    ignore_fields: Collection[str], given: Collection[str]
) -> tuple[str, ...]:
    """Returns the names once each; raises unless all are names of given fields."""
    is_list = isinstance(ignore_fields, list | tuple | set | frozenset)
    if not is_list or not all(isinstance(name, str) for name in ignore_fields):
        raise TypeError(
            f"`ignore_fields` must be a list of names of fields, got {ignore_fields!r}."
        )
    for name in ignore_fields:
        if name not in given:
            raise ValueError(
                "`ignore_fields` must name fields of the source, got "
                f"{name!r}, which it does not have.{_checks.nearest(name, given)}"
            )
    return tuple(dict.fromkeys(ignore_fields))


def _changes_the_optimizer(name: str) -> bool:
    return name in _ALSO_OF_THE_OPTIMIZER or bool(_OF_THE_OPTIMIZER.search(name))
