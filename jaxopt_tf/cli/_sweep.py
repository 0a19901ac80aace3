"""Subcommand `sweep`: compares many recipes on the job of `train`."""

import functools
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import rich.console

from .. import _checks, tuning
from .._checks import pluralize
from .._io import Kind, atomic_write, kinds_of, read_value
from ..jobs import (
    compilation_cache,
    read_settings,
    settings_path,
    write_settings,
)
from ..recipes import Recipe, compile_key, recipe_settings
from ..tuning import Uniform
from ._flags import build, flag_kinds
from ._run_flags import read_typed, run_config
from ._searches import SearchFlags

_SETTINGS, _SEARCH = "settings.json", "search.json"
_EXAMPLE = "An example is --over learning_rate=1e-4,1e-3 weight_decay=0,0.1."


@dataclass(frozen=True, kw_only=True)
class Sweep(SearchFlags):
    """Compares many recipes on the job of `jaxopt-tf train`.

    If --output_dir contains a sweep, that sweep is resumed with its settings.

    Example:
      jaxopt-tf sweep --text books --over learning_rate=1e-4,1e-3 weight_decay=0,0.1

    Attributes:
        over: fields of the recipe and the values to try.
            learning_rate=1e-4,1e-3 weight_decay=0,0.1 tries every combination. With
            `num_samples`, learning_rate=1e-5:1e-2 is a range on a logarithmic scale and
            weight_decay=0:0.3:linear a range on a linear one.
        num_samples: number of recipes to draw at random, with `seed`. Default: every
            combination.
        halving: successive halving: after each round, keep the best 1/N of the runs and
            multiply their steps by N; N is at least 2. Default: train all runs to their
            end.
    """

    prog: ClassVar[str] = "jaxopt-tf sweep"

    over: tuple[str, ...] = ()
    num_samples: int | None = None
    halving: int | None = None


def sweep(args: Sequence[str]) -> int:
    """Runs `jaxopt-tf sweep`.

    Args:
        args: command line after the name of the command.

    Returns:
        The exit status: 0.
    """
    typed = read_typed(Sweep, args)
    saved = _saved_settings(typed.get("output_dir"))
    config = run_config(typed, saved[_SETTINGS])
    search = build(Sweep, {**saved[_SEARCH], **typed}, run=config)
    with compilation_cache(search.compilation_cache):
        return _sweep(search)


def _sweep(search: Sweep) -> int:
    recipe = search.run.recipe
    over = read_over(search.over)
    recipes = tuning.recipes_to_try(
        recipe, over, num_samples=search.num_samples, seed=recipe.seed
    )
    folder, _, task = search.prepare(num_eval_tokens=2**16)
    changes = _write_or_compare_settings(search, folder)
    report = functools.partial(print, flush=True)
    try:
        num_programs = len(set(map(compile_key, recipes)))
        longest = max(recipe.max_steps for recipe in recipes)
        report(
            f"{pluralize(len(recipes), 'run')} in "
            f"{pluralize(num_programs, 'program')}, at most "
            f"{pluralize(longest, 'step')} each, in {folder}"
        )
        found = tuning.sweep(
            task,
            recipe,
            over,
            num_samples=search.num_samples,
            reduction_factor=search.halving,
            folder=folder,
            seed=recipe.seed,
            memory_limit=search.memory_limit,
            report=report,
        )
    # If the folder contains another sweep, the changed settings explain the error.
    except ValueError as error:
        raise ValueError("\n  ".join([str(error), *changes])) from error
    except KeyboardInterrupt as error:
        command = shlex.join([*Sweep.prog.split(), "--output_dir", str(folder)])
        raise KeyboardInterrupt(
            f"Finished runs are kept. To resume:\n  {command}"
        ) from error
    picture = folder / "sweep.png"
    tuning.plot_sweep(found, picture)
    rich.console.Console().print(found.table())
    print(f"trials  {folder / 'sweep.jsonl'}\npicture {picture}")
    print(f"best    {as_flags(found.best_recipe, found.over)}")
    return 0


def read_over(words: Sequence[str]) -> dict[str, list[Any] | Uniform]:
    """Parses the argument `over` of `tuning.sweep` from the words of a command line.

    A word is `field=value,value,...`, `field=low:high` for a range on a logarithmic
    scale, or `field=low:high:linear`. The values of a field of JSON type are JSON,
    separated by commas.

    Args:
        words: one word for each field.

    Raises:
        ValueError: if there are no words, a field is unknown or repeated, or the lower
            bound of a range is not below the upper one.
        TypeError: if a value cannot be read.
    """
    if not words:
        raise ValueError(
            f"`over` must name at least one field and its values, got none. {_EXAMPLE}"
        )
    kinds = kinds_of(Recipe)
    over: dict[str, list[Any] | Uniform] = {}
    for word in words:
        name, equals, values = word.partition("=")
        name = name.replace("-", "_")
        if not equals:
            raise ValueError(f"`over` must be field=values, got {word!r}. {_EXAMPLE}")
        if name not in kinds:
            raise ValueError(
                f"`over` must name fields of a recipe, got {name!r}."
                + _checks.suggest(name, kinds)
            )
        if name in over:
            raise ValueError(
                f"`over` must name a field once, but has {name!r} twice. Separate its "
                "values by commas."
            )
        try:
            over[name] = _read_values(name, kinds[name], values)
        except (TypeError, ValueError) as error:
            raise type(error)(f"`over` with {word!r}: {error}") from error
    return over


def as_flags(recipe: Recipe, names: Sequence[str]) -> str:
    """Returns fields of a recipe as flags, quoted for a shell."""
    settings = recipe_settings(recipe)
    values = {
        name: value if isinstance(value := settings[name], str) else json.dumps(value)
        for name in names
    }
    return shlex.join(word for name in names for word in (f"--{name}", values[name]))


def _read_values(name: str, kind: Kind, text: str) -> list[Any] | Uniform:
    if kind.metavar.startswith("JSON"):  # a comma may be part of a value
        try:
            return list(json.loads(f"[{text}]"))
        except json.JSONDecodeError as error:
            raise TypeError(
                f"`{name}` must be JSON, got {text!r}: {error.msg}. Quote its values, "
                """as in '{"power": 1},{"power": 2}'."""
            ) from error
    if kind.metavar in ("INT", "NUMBER") and ":" in text:
        low, high, *scale = text.split(":", 2)
        bounds = (read_value(name, kind, bound) for bound in (low, high))
        return Uniform(*bounds, *scale)
    return [read_value(name, kind, value) for value in text.split(",")] if text else []


def _saved_settings(folder: Path | None) -> dict[str, dict[str, Any]]:
    """Returns the settings of the sweep in the folder, by file; empty without a sweep.

    Earlier versions did not write search.json; their folders have sweep.jsonl only.
    """
    saved: dict[str, dict[str, Any]] = {_SETTINGS: {}, _SEARCH: {}}
    if folder and any((folder / n).exists() for n in (_SEARCH, "sweep.jsonl")):
        for name in saved:
            path = settings_path(folder) if name == _SETTINGS else folder / name
            saved[name] = read_settings(path) if path.exists() else {}
    return saved


def _write_or_compare_settings(search: Sweep, folder: Path) -> list[str]:
    """Writes the settings of a new sweep, or compares them with those in its folder.

    Returns:
        A message for each setting that differs from the folder's. These differences are
        not errors: `tuning.sweep` compares the recipes and the data, and raises if
        these differ.

    Raises:
        ValueError: if the folder contains runs of another model.
    """
    run = search.run.to_dict()
    search_settings = {
        name: getattr(search, name) for name in ("over", "num_samples", "halving")
    }
    path = settings_path(folder)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_settings(folder, run)
        # The write is atomic, because a later start reads the file.
        with atomic_write(folder / _SEARCH) as temporary:
            temporary.write_text(
                json.dumps(search_settings, indent=2) + "\n", encoding="utf-8"
            )
        return []
    saved = read_settings(path) | _saved_settings(folder)[_SEARCH]
    # The settings are converted to JSON and back, so that tuples compare equal to the
    # lists in the file.
    requested = json.loads(json.dumps(run | search_settings))
    lines = {
        name: f"`{name}` is {saved[name]!r} in the folder, got {requested[name]!r}"
        for name in flag_kinds(Sweep)
        if name in saved and saved[name] != requested.get(name) and name != "output_dir"
    }
    deciding = (*kinds_of(type(search.run.model)), "bf16", "tf32")
    different = [lines[name] for name in deciding if name in lines]
    if different:
        raise ValueError(
            "`output_dir` must be a new folder or contain this sweep, but the model of "
            f"{str(path)!r} is another one. Pass another folder.\n  "
            + "\n  ".join(different)
        )
    return list(lines.values())
