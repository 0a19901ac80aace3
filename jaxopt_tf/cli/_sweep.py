"""`jaxopt-tf sweep`: the job of `train`, with many recipes."""

import dataclasses
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich.console

from .. import tuning
from ..jobs import Job, RunConfig, read_config, write_config
from ..models import GPT2Config
from ..recipes import Recipe, recipe_settings, same_program
from ._flags import flags_of
from ._job_task import folder_of, job_corpus, job_task
from ._over import read_over
from ._train import parse_with

_PROG = "jaxopt-tf sweep"
_DESCRIPTION = (
    "Tries many recipes on the job of `jaxopt-tf train`, side by side, and says which "
    "one trains best. A folder that holds the sweep is gone on with."
)
_CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True)
class _Search:
    """What is tried.

    Attributes:
        over: what to try: learning_rate=1e-4,1e-3 weight_decay=0,0.1 for every
            combination; learning_rate=1e-5:1e-2 for a range on a scale of logarithms,
            weight_decay=0:0.3:linear for an even one, with `num_samples`.
        num_samples: recipes to draw at random, by `seed`; every combination if not
            given.
        halving: train on with the better one in so many only, each time runs have come
            so many times as far; at least 2. All are trained to their end if not given.
        memory_limit: bytes that runs side by side may take on each device; 90 % of what
            it has if not given, and no limit on CPUs.
    """

    over: tuple[str, ...] = ()
    num_samples: int | None = None
    halving: int | None = None
    memory_limit: float | None = None


def sweep(args: Sequence[str]) -> int:
    """Tries many recipes, and says which one trains best.

    Args:
        args: what stands after the command's name.

    Returns:
        The exit status: 0.
    """
    (recipe, model, job), typed = parse_with(
        flags_of(_Search, {}), args, prog=_PROG, description=_DESCRIPTION
    )
    search = _Search(**typed)
    over = read_over(search.over)
    recipes = tuning.recipes_to_try(
        recipe, over, num_samples=search.num_samples, seed=recipe.seed
    )
    folder = folder_of(job)
    task = job_task(recipe, model, job, job_corpus(model, job, folder))
    _keep_config(recipe, model, job, folder)
    try:
        _say(_told(recipes, folder))
        found = tuning.sweep(
            task,
            recipe,
            over,
            num_samples=search.num_samples,
            halving=search.halving,
            folder=folder,
            seed=recipe.seed,
            memory_limit=search.memory_limit,
            report=_say,
        )
    except ValueError as error:  # in the words of the command
        raise ValueError(str(error).replace("`folder`", "`output_dir`")) from error
    except KeyboardInterrupt as error:
        again = shlex.join(["--output_dir", str(folder)])
        raise KeyboardInterrupt(
            f"What is finished is kept: the same command with {again} goes on."
        ) from error
    picture = folder / "sweep.png"
    tuning.plot_sweep(found, picture)
    rich.console.Console().print(found.table())
    print(f"trials  {folder / 'sweep.jsonl'}\npicture {picture}")
    print(f"best    {as_flags(found.best_recipe, found.over)}")
    return 0


def as_flags(recipe: Recipe, names: Sequence[str]) -> str:
    """Fields of a recipe as a shell takes them."""
    settings = recipe_settings(recipe)
    return shlex.join(
        word for name in names for word in (f"--{name}", _in_a_word(settings[name]))
    )


def _in_a_word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _told(recipes: Sequence[Recipe], folder: Path) -> str:
    num_runs, num_programs = len(recipes), len(set(map(same_program, recipes)))
    longest = max(recipe.max_steps for recipe in recipes)
    return (
        f"{_counted(num_runs, 'run')} in {_counted(num_programs, 'program')}, "
        f"{_counted(longest, 'step')} each at most, in {folder}"
    )


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _say(line: str) -> None:
    print(line, flush=True)


def _keep_config(recipe: Recipe, model: GPT2Config, job: Job, folder: Path) -> None:
    """Writes what was not varied; raises if the folder's sweep had another model.

    Recipes and data are compared by the sweep itself.
    """
    path = folder / _CONFIG
    now = RunConfig(recipe=recipe, model=model, job=job).to_dict()
    if path.exists():
        saved = read_config(path)
        decide = [*(field.name for field in dataclasses.fields(model)), "bf16", "tf32"]
        other = [name for name in decide if saved.get(name) != now[name]]
        if other:
            raise ValueError(
                f"`output_dir` must be a new folder or hold this sweep, but in "
                f"{str(path)!r} other {' and '.join(other)} were taken. Name another "
                "folder."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, now)
