"""`jaxopt-tf train`: pretrain a GPT-2."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ..jobs import Job, RunConfig, pretrain
from ..models import GPT2_PRESETS, GPT2Config, gpt2_preset
from ..recipes import Recipe
from ._command_line import typed_settings
from ._config import read_config
from ._flags import Flag, flags_of
from ._launch import Launch, launched

Records = tuple[Recipe, GPT2Config, Job]
PROG = "jaxopt-tf train"
_DESCRIPTION = "Pretrains a GPT-2 on text. A folder that holds a run is resumed."

# Found by trying, for the default model on the default text.
_RECIPE = {
    "max_steps": 2_000,
    "learning_rate": 3e-3,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.05,
    "weight_decay": 0.1,
    "adam_beta2": 0.97,
}
# A preset on the command line says these in the place of the file.
_SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")

_CONFIG = Flag(
    "config",
    "PATH",
    is_several=False,
    is_optional=False,
    help="JSON of settings, as config.json of a run, or of Transformers' "
    "TrainingArguments; flags on the command line win over it.",
    default=None,
)
_IGNORE_FIELDS = Flag(
    "ignore_fields",
    "NAME",
    is_several=True,
    is_optional=False,
    help="names in the file of TrainingArguments that are not read.",
    default=(),
)
PRESET = Flag(
    "preset",
    "{" + ",".join(GPT2_PRESETS) + "}",
    is_several=False,
    is_optional=False,
    help="the model's sizes, by a name; the flags below change them one by one.",
    default="nano",
)


def train(args: Sequence[str]) -> int:
    """Runs `jaxopt-tf train`.

    Args:
        args: what stands after the command's name.

    Returns:
        The exit status: 0, or 128 and the signal's number if one ended the run.
    """
    (recipe, model, job), typed = parse_with(flags_of(Launch, {}), args)
    config = RunConfig(recipe=recipe, model=model, job=job)
    with launched(Launch(**typed)):
        outcome = pretrain(config, command_line=[*PROG.split(), *args])
    return 0 if outcome.stopped_by is None else 128 + outcome.stopped_by


def parse(
    args: Sequence[str],
    *,
    prog: str = PROG,
    description: str = _DESCRIPTION,
    found: Mapping[str, Any] = MappingProxyType({}),
) -> Records:
    """The records of a run, from the command line, the file it names, and defaults.

    What the file has that is otherwise here is noted on stderr.

    Args:
        args: what stands after the command's name.
        prog: that name, for the help.
        description: the help's first lines.
        found: settings that are known from elsewhere; the file and flags win over them.

    Raises:
        ValueError: naming what is refused, and all that contradicts itself at once.
        SystemExit: after `--help`.
    """
    records, _ = parse_with({}, args, prog=prog, description=description, found=found)
    return records


class Typed(NamedTuple):
    """Settings of a command line, apart from those of its file."""

    settings: dict[str, Any]  # of the records
    own: dict[str, Any]  # of the command's own flags
    config: Path | None
    ignore_fields: tuple[str, ...]
    flags: dict[str, Flag]  # that a file may set


def parse_with(
    more: Mapping[str, Flag],
    args: Sequence[str],
    *,
    prog: str = PROG,
    description: str = _DESCRIPTION,
    found: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Records, dict[str, Any]]:
    """What `parse` gives, and the settings of a command's own flags that were typed.

    Args:
        more: the command's own flags.
        args: what stands after the command's name.
        prog: that name, for the help.
        description: the help's first lines.
        found: settings that are known from elsewhere; the file and flags win over them.

    Raises:
        ValueError: naming what is refused, and all that contradicts itself at once.
        SystemExit: after `--help`.
    """
    typed = read_command_line(more, args, prog=prog, description=description)
    if typed.ignore_fields and typed.config is None:
        raise ValueError(
            "`ignore_fields` must be given with `config`, the file that has them, got "
            f"{list(typed.ignore_fields)} alone. Leave it out."
        )
    return records_of(typed, found), typed.own


def read_command_line(
    more: Mapping[str, Flag], args: Sequence[str], *, prog: str, description: str
) -> Typed:
    """Reads the flags that were typed, and no file.

    Raises:
        ValueError: naming what is no flag and what cannot be read.
        SystemExit: after `--help`.
    """
    recipe_flags = flags_of(Recipe, _RECIPE)
    model_flags = {"preset": PRESET, **flags_of(GPT2Config, {})}
    job_flags = flags_of(Job, {})
    of_files = {"config": _CONFIG, "ignore_fields": _IGNORE_FIELDS}
    groups = {
        "recipe": recipe_flags,
        "model": model_flags,
        "job": {**of_files, **job_flags},
    }
    if more:
        groups[prog.rpartition(" ")[2]] = dict(more)
    typed = typed_settings(
        {title: list(flags.values()) for title, flags in groups.items()},
        args,
        prog=prog,
        description=description,
    )
    own = {name: typed.pop(name) for name in more if name in typed}
    config, ignored = typed.pop("config", None), typed.pop("ignore_fields", ())
    # One file does not name another.
    flags = {**recipe_flags, **model_flags, **job_flags}
    return Typed(typed, own, config, ignored, flags)


def records_of(typed: Typed, found: Mapping[str, Any]) -> Records:
    """Returns the records of a run: of the command line, its file and what was found.

    Raises:
        ValueError: naming what is refused, and all that contradicts itself at once.
    """
    settings = typed.settings
    if "preset" in settings:
        found = {name: value for name, value in found.items() if name not in _SIZES}
    if typed.config is None:
        return _records({**found, **settings})
    file, notes = read_config(
        typed.config, typed.flags, settings, ignore_fields=typed.ignore_fields
    )
    if notes:
        print(f"jaxopt-tf: {typed.config}: {'; '.join(notes)}.", file=sys.stderr)
    if "preset" in settings:
        file = {name: value for name, value in file.items() if name not in _SIZES}
    return _records({**found, **file, **settings})


def _records(given: dict[str, Any]) -> Records:
    defaults: dict[str, Any] = dict(_RECIPE)
    if given.get("lr_scheduler_type") in ("reduce_lr_on_plateau", "greedy"):
        del defaults["warmup_steps"]  # neither of them has one
    problems = []
    if "preset" in given:
        try:
            defaults |= dataclasses.asdict(gpt2_preset(given["preset"]))
        except ValueError as error:
            problems.append(str(error).replace("`name`", "`preset`"))
    settings = {name: value for name, value in given.items() if name != "preset"}
    try:
        config = RunConfig.from_dict({**defaults, **settings})
    except ValueError as error:
        problems.append(str(error))
    if problems:
        raise ValueError("\n  ".join(problems))
    return config.recipe, config.model, config.job
