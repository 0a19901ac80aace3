"""`--config FILE`: settings from JSON, ours or Transformers'."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .._io import Kind, parse_json
from ..jobs import settings_from_transformers
from ._flags import Flag


def read_config(
    path: Path,
    flags: Mapping[str, Flag],
    typed: Mapping[str, Any],
    ignore_fields: Collection[str] = (),
) -> tuple[dict[str, Any], list[str]]:
    """The settings of a file that the command line does not have, and notes on them.

    Args:
        path: a JSON object: names of flags and their values, as config.json of a run
            has them, or what `TrainingArguments.to_json_string` gives.
        flags: the flags that there are, by name.
        typed: the settings of the command line, which win over the file.
        ignore_fields: names in the file that are not read.

    Returns:
        Settings by name, without those of `typed`; and a line for what the file has
        that is otherwise here without changing the numbers.

    Raises:
        ValueError: if the file cannot be read or is no JSON object; or naming all
            settings that there are not here and that would change the numbers, and all
            names that are neither ours nor Transformers'.
    """
    kinds = {
        name: Kind(flag.kind, flag.is_several, flag.is_optional)
        for name, flag in flags.items()
    }
    raw = _object(path)
    try:
        found = settings_from_transformers(
            raw, typed, kinds=kinds, ignore_fields=ignore_fields
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return found.settings, found.notes


def _object(path: Path) -> dict[str, Any]:
    try:
        content = path.read_text(encoding="utf-8")
        found = parse_json(content)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"`config` must be JSON, but {path}, line {error.lineno}, column "
            f"{error.colno} is not: {error.msg}."
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"`config` must be JSON in UTF-8, but {path} is not: {error.reason} at "
            f"byte {error.start}."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"`config` must be JSON, but {path} is not: {error}."
        ) from error
    except OSError as error:
        inside = path / "config.json"
        hint = f" Did you mean {str(inside)!r}?" if inside.exists() else ""
        raise ValueError(
            f"`config` must be a file that can be read, got {str(path)!r}: "
            f"{error.strerror}.{hint}"
        ) from error
    if not isinstance(found, dict):
        raise ValueError(
            f"`config` must be a JSON object, names and values in braces, but {path} "
            f"has {json.dumps(found)[:40]}."
        )
    return found
