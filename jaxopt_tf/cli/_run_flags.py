"""Settings of a run from all sources, with increasing precedence.

The sources are the defaults, the run's folder, a JSON file and the command line.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeVar

from .. import _checks
from .._io import Kind, kinds_of, parse_json
from ..jobs import (
    RunConfig,
    TaskSettings,
    labelled_settings,
    merge_settings,
    settings_from_transformers,
)
from ..models import CONFIG_TYPES, GPT2_PRESETS
from ..recipes import METRIC_DRIVEN
from ._flags import build, flag_kinds, read_flags

# Default recipe, tuned for the default model on the default text.
_RECIPE: Mapping[str, Any] = MappingProxyType(
    {
        "max_steps": 2_000,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.05,
        "weight_decay": 0.1,
        "adam_beta2": 0.97,
    }
)
# Settings that `--preset` overrides in the run's folder and the JSON file.
_SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Flags of all commands about a run.

    Attributes:
        config: JSON file of settings: settings.json of a run, or TrainingArguments of
            Transformers. Flags on the command line override them.
        preset: name of a set of model sizes. The flags of the model override single
            sizes.
        ignore_fields: names of TrainingArguments in the file that are not read.
        compilation_cache: keep compiled programs in the user's cache folder, for a fast
            restart.
        warmup_ratio: name of a `warmup_steps` below 1 in Transformers 4.
        run: the recipe, the model and the job.
    """

    prog: ClassVar[str]
    unused: ClassVar[frozenset[str]] = frozenset()

    config: Path | None = None
    preset: Literal["nano", "micro", "mini", "midi", "gpt2"] = "nano"
    ignore_fields: tuple[str, ...] = ()
    compilation_cache: bool = True
    warmup_ratio: float | None = None
    run: RunConfig


_FlagsT = TypeVar("_FlagsT", bound=RunFlags)


def parse(flags_type: type[_FlagsT], args: Sequence[str]) -> _FlagsT:
    """Reads a command line and the file of its `--config`.

    Fields of the file that have no effect are reported on stderr.

    Args:
        flags_type: dataclass of the command's flags.
        args: command line after the name of the command.

    Raises:
        ValueError: if settings are invalid or conflict. The message lists all problems.
        SystemExit: after `--help`.
    """
    typed = read_typed(flags_type, args)
    return build(flags_type, typed, run=run_config(typed))


def read_typed(flags_type: type[RunFlags], args: Sequence[str]) -> dict[str, Any]:
    """Reads the flags that were typed, and no file.

    Raises:
        ValueError: if flags are unknown or values cannot be read. The message lists all
            of them.
        SystemExit: after `--help`.
    """
    return read_flags(flags_type, _joined(args, "freeze"), _RECIPE)


def _joined(args: Sequence[str], name: str) -> list[str]:
    """Moves the values of all repetitions of a flag to its first occurrence.

    Other flags that are repeated take the last value, as in Transformers.
    """
    other_args: list[str] = []
    values: list[str] = []
    first, is_open = None, False
    for arg in args:
        flag, equals, value = arg.partition("=")
        if flag == f"--{name}":
            first = len(other_args) if first is None else first
            is_open = not equals
            values += [value] if equals else []
        elif is_open and not arg.startswith("--"):
            values.append(arg)
        else:
            other_args.append(arg)
            is_open = False
    if first is None:
        return other_args
    return [*other_args[:first], f"--{name}", *values, *other_args[first:]]


def run_config(
    typed: Mapping[str, Any], found: Mapping[str, Any] = MappingProxyType({})
) -> RunConfig:
    """Builds the configuration of a run from all sources of settings.

    Args:
        typed: settings on the command line, including the path of the JSON file.
        found: settings of the run's folder, which have lower precedence.

    Raises:
        ValueError: if settings are invalid or conflict, or the length of the run is a
            number of epochs. The message lists all problems.
    """
    settings = run_settings(typed, found)
    epochs = settings.get("num_train_epochs")
    if epochs is not None and settings.get("max_steps") is None:
        raise ValueError(
            "`num_train_epochs` must be given as `max_steps` to this command, which "
            f"does not count the steps of an epoch, got {epochs!r}. `jaxopt-tf train` "
            "prints their number."
        )
    return RunConfig.from_dict(settings)


def run_settings(
    typed: Mapping[str, Any], found: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Returns the settings of all sources, for `RunConfig.from_dict`.

    `max_steps` is missing if `num_train_epochs` determines it.

    Args:
        typed: settings on the command line, including the path of the JSON file.
        found: settings of the run's folder, which have lower precedence.

    Raises:
        ValueError: if settings are invalid. The message lists all problems.
    """
    settings, defaults = merged_settings(typed, found), dict(_RECIPE)
    if settings.get("lr_scheduler_type") in METRIC_DRIVEN:
        del defaults["warmup_steps"]  # metric-driven schedules have no warmup
    return merge_settings(defaults, settings)


def labelled_run_settings(
    typed: Mapping[str, Any], found: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any] | None:
    """Returns the settings of all sources, for `train_labelled`; None for other runs.

    Args:
        typed: settings on the command line, including the path of the JSON file.
        found: settings of the run's folder, which have lower precedence.

    Raises:
        ValueError: if settings are invalid, or belong to labelled data only and the run
            is one on text.
    """
    file = _raw_settings(typed.get("config"))
    if labelled_settings({**found, **file, **typed}) is None:
        return None
    kinds = kinds_of(TaskSettings)
    return labelled_settings(merged_settings(typed, found, further_kinds=kinds))


def _raw_settings(path: Path | None) -> dict[str, Any]:
    """Returns the settings of labelled data in a JSON file, which is read again."""
    try:
        content = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # refused where it is read
    names = ("task", "task_name", "model_name_or_path")
    is_object = isinstance(content, dict)
    return {n: content[n] for n in names if n in content} if is_object else {}


def merged_settings(
    typed: Mapping[str, Any],
    found: Mapping[str, Any] = MappingProxyType({}),
    *,
    further_kinds: Mapping[str, Kind] = MappingProxyType({}),
) -> dict[str, Any]:
    """Returns the settings of all sources, without the defaults of the command.

    Args:
        typed: settings on the command line, including the path of the JSON file.
        found: settings of the run's folder, which have lower precedence.
        further_kinds: kinds of further settings by name.

    Raises:
        ValueError: if the file has invalid settings. The message lists all of them.
    """
    flags = {**flag_kinds(RunConfig), "preset": flag_kinds(RunFlags)["preset"]}
    kinds_of_other_models = {
        name: kind for t in CONFIG_TYPES[1:] for name, kind in kinds_of(t).items()
    }
    kinds = {**kinds_of_other_models, **flags, **further_kinds}
    run_values = {
        name: value for name, value in _resolved(typed).items() if name in kinds
    }
    ignored = typed.get("ignore_fields", ())
    file: dict[str, Any] = {}
    if typed.get("config") is not None:
        # TrainingArguments have a list of integrations under this name.
        of_file = {name: kind for name, kind in kinds.items() if name != "report_to"}
        file = _read_file(typed["config"], run_values, of_file, ignored)
    elif ignored:
        raise ValueError(
            "`ignore_fields` must be given with `config`, the file that contains the "
            f"fields, got {list(ignored)} alone. Leave it out."
        )
    # Increasing precedence: preset, run's folder, file, command line. A preset on the
    # command line also overrides sizes in the folder and in the file.
    defaults = merge_settings(found, file)
    if "preset" in run_values:
        defaults = {
            name: value for name, value in defaults.items() if name not in _SIZES
        }
    settings = merge_settings(defaults, run_values)
    if "preset" in settings:
        preset = settings.pop("preset")
        _checks.one_of("preset", preset, GPT2_PRESETS)
        sizes = {name: getattr(GPT2_PRESETS[preset], name) for name in _SIZES}
        settings = {**sizes, **settings}
    return settings


def _resolved(typed: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces `warmup_ratio`, and removes flags that other flags take precedence over.

    Raises:
        ValueError: if the ratio is out of range, or `warmup_steps` is given as well.
    """
    settings, ignored = dict(typed), list[tuple[str, str]]()
    ratio = settings.pop("warmup_ratio", None)
    if ratio is not None and settings.get("warmup_steps") is not None:
        raise ValueError(
            f"`warmup_ratio` must be left out with `warmup_steps`, got {ratio!r} and "
            f"{settings['warmup_steps']!r}. Give one of them."
        )
    if ratio is not None:
        _checks.fraction_below_one("warmup_ratio", ratio)
        settings["warmup_steps"] = ratio
    # The first setting of each pair is ignored, as in Transformers.
    if settings.get("max_steps") is not None:
        ignored.append(("num_train_epochs", f"--max_steps {settings['max_steps']}"))
    for name in ("eval", "save"):
        strategy = settings.get(f"{name}_strategy")
        if strategy in ("no", "epoch"):
            ignored.append((f"{name}_steps", f"--{name}_strategy {strategy}"))
    for name, winner in ignored:
        if settings.get(name) is not None:
            print(
                f"jaxopt-tf: `--{name} {settings.pop(name)}` is ignored: `{winner}` "
                "takes precedence, as in Transformers.",
                file=sys.stderr,
            )
    return settings


def _read_file(
    path: Path,
    typed: Mapping[str, Any],
    kinds: Mapping[str, Kind],
    ignore_fields: Sequence[str],
) -> dict[str, Any]:
    """Reads the settings of a JSON file, and prints notes on fields without effect.

    Raises:
        ValueError: if the file is not a JSON object, or contains unknown names or
            unsupported settings that would change the numbers of the run.
    """
    try:
        raw = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSON, UTF-8 or a repeated name
        raise ValueError(
            f"`config` must be JSON, but {path} is not: {str(error).rstrip('.')}."
        ) from error
    except OSError as error:
        settings_file = path / "settings.json"
        hint = (
            f" Did you mean {str(settings_file)!r}?" if settings_file.exists() else ""
        )
        raise ValueError(
            f"`config` must be a file that can be read, got {str(path)!r}: "
            f"{error.strerror}.{hint}"
        ) from error
    if not isinstance(raw, dict):
        raise ValueError(
            f"`config` must be a JSON object, {{name: value, ...}}, but {path} "
            f"contains {json.dumps(raw)[:40]}."
        )
    try:
        found = settings_from_transformers(
            raw, typed, kinds=kinds, ignore_fields=ignore_fields
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if found.notes:
        print(f"jaxopt-tf: {path}: {'; '.join(found.notes)}.", file=sys.stderr)
    return found.settings
