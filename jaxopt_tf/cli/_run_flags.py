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
from ..jobs import RunConfig, settings_from_transformers
from ..models import GPT2_PRESETS, DecoderConfig
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
        run: the recipe, the model and the job.
    """

    prog: ClassVar[str]
    unused: ClassVar[frozenset[str]] = frozenset()

    config: Path | None = None
    preset: Literal["nano", "micro", "mini", "midi", "gpt2"] = "nano"
    ignore_fields: tuple[str, ...] = ()
    run: RunConfig


_Form = TypeVar("_Form", bound=RunFlags)


def parse(form: type[_Form], args: Sequence[str]) -> _Form:
    """Reads a command line and the file of its `--config`.

    Fields of the file that have no effect are reported on stderr.

    Args:
        form: dataclass of the command's flags.
        args: command line after the name of the command.

    Raises:
        ValueError: if settings are invalid or conflict. The message lists all problems.
        SystemExit: after `--help`.
    """
    typed = read_typed(form, args)
    return build(form, typed, run=run_config(typed))


def read_typed(form: type[RunFlags], args: Sequence[str]) -> dict[str, Any]:
    """Reads the flags that were typed, and no file.

    Raises:
        ValueError: if flags are unknown or values cannot be read. The message lists all
            of them.
        SystemExit: after `--help`.
    """
    return read_flags(form, args, _RECIPE)


def run_config(
    typed: Mapping[str, Any], found: Mapping[str, Any] = MappingProxyType({})
) -> RunConfig:
    """Builds the configuration of a run from all sources of settings.

    Args:
        typed: settings on the command line, including the path of the JSON file.
        found: settings of the run's folder, which have lower precedence.

    Raises:
        ValueError: if settings are invalid or conflict. The message lists all problems.
    """
    settings, defaults = merged_settings(typed, found), dict(_RECIPE)
    if settings.get("lr_scheduler_type") in METRIC_DRIVEN:
        del defaults["warmup_steps"]  # metric-driven schedules have no warmup
    return RunConfig.from_dict({**defaults, **settings})


def merged_settings(
    typed: Mapping[str, Any], found: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Returns the settings of all sources, without the defaults of the command.

    Args:
        typed: settings on the command line, including the path of the JSON file.
        found: settings of the run's folder, which have lower precedence.

    Raises:
        ValueError: if the file has invalid settings. The message lists all of them.
    """
    flags = {**flag_kinds(RunConfig), "preset": flag_kinds(RunFlags)["preset"]}
    kinds = {**kinds_of(DecoderConfig), **flags}
    of_run = {name: value for name, value in typed.items() if name in kinds}
    ignored = typed.get("ignore_fields", ())
    file: dict[str, Any] = {}
    if typed.get("config") is not None:
        file = _read_file(typed["config"], of_run, kinds, ignored)
    elif ignored:
        raise ValueError(
            "`ignore_fields` must be given with `config`, the file that contains the "
            f"fields, got {list(ignored)} alone. Leave it out."
        )
    # Increasing precedence: preset, run's folder, file, command line. A preset on the
    # command line also overrides sizes in the folder and in the file.
    below = {**found, **file}
    if "preset" in of_run:
        below = {name: value for name, value in below.items() if name not in _SIZES}
    settings = {**below, **of_run}
    if "preset" in settings:
        preset = settings.pop("preset")
        _checks.one_of("preset", preset, GPT2_PRESETS)
        sizes = {name: getattr(GPT2_PRESETS[preset], name) for name in _SIZES}
        settings = {**sizes, **settings}
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
        inside = path / "settings.json"
        hint = f" Did you mean {str(inside)!r}?" if inside.exists() else ""
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
