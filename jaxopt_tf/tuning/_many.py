"""train_many: runs of one task, side by side, as many as fit at once."""

from collections.abc import Sequence

import jax
import numpy as np

from ..recipes import Recipe
from ._groups import train_to
from ._runs import Runs
from ._task import Task


def train_many(
    task: Task,
    recipes: Sequence[Recipe],
    *,
    memory_limit: float | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Runs:
    """Trains one run for each recipe, many at once in one compiled program.

    Recipes may differ in everything that decides the rate, in decay, betas, epsilon,
    clipping and seed without another program: these numbers are handed to it. What
    differs in another field, the optimizer or the batch size, is a program of its own,
    and these follow one after the other. Each run is what `make_train_step` would have
    made of it alone, but for the roundings of a batched product; runs of one seed see
    the same batches. One that is no longer finite stays as it was and stops nobody.

    Args:
        task: what is trained, and on which data.
        recipes: K of them.
        memory_limit: bytes that the runs may take on each device, see below; None for
            90 % of what a device says that it has. CPUs do not say: there is no limit
            then. Runs that do not fit side by side follow in groups of one size.
        devices: that the runs are divided among; None for all that this process has.

    Returns:
        Losses by run and step, and what they come to.

    Raises:
        ValueError, TypeError: if there are no recipes, a metric drives a schedule,
            batches end too early, or not even one run fits into the memory.
    """
    recipes = checked(recipes)
    num_steps = max(recipe.max_steps for recipe in recipes)
    losses = np.full((len(recipes), num_steps), np.nan, np.float32)
    held_out = np.full(len(recipes), np.nan) if task.held_out else None
    everyone = range(len(recipes))
    for group in train_to(
        task, recipes, everyone, num_steps, {}, memory_limit, devices
    ):
        for row, i in enumerate(group.runs):
            of_run = group.losses[row, : recipes[i].max_steps]
            losses[i, : len(of_run)] = of_run
            if held_out is not None:
                held_out[i] = group.held_out[row]
    return Runs(recipes, losses, held_out)


def checked(recipes: Sequence[Recipe]) -> tuple[Recipe, ...]:
    """The recipes as a tuple; raises unless there are some, and nothing else."""
    recipes = tuple(recipes)
    if not recipes:
        raise ValueError(
            "`recipes` must hold at least one recipe, got none. Give one for each run."
        )
    for recipe in recipes:
        if not isinstance(recipe, Recipe):
            raise TypeError(f"`recipes` must hold `Recipe`s, got {recipe!r}.")
    return recipes
