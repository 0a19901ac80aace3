"""A cohort: runs that are trained side by side, from one evaluation to the next."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import PyTree
from ..recipes import Recipe, Varied
from ..training import Batch
from ._program import Carried, Program, Told
from ._task import Task

# Steps that are computed ahead of the host, which waits for them all at once.
_STEPS_AT_ONCE = 64


@dataclasses.dataclass
class Cohort:
    """Runs side by side, and where they stand."""

    program: Program
    recipes: tuple[Recipe, ...]  # K, those included that only fill up the devices
    carried: Carried  # [K, ...]
    streams: list[Iterator[Batch]]  # S of them, all at the same step
    step: int  # batches taken so far


def begin(
    program: Program,
    recipes: Sequence[Recipe],
    varied: Varied,
    params: PyTree,
    streams: Sequence[Iterator[Batch]],
    stream: Sequence[int],
) -> Cohort:
    """Runs before their first step.

    Args:
        program: of them all.
        recipes: K of them.
        varied: [K, ...], their own numbers.
        params: [K, ...], where they start.
        streams: of batches.
        stream: for each run, which of them.
    """
    carried = program.start(
        params,
        varied,
        jnp.asarray([recipe.seed for recipe in recipes], jnp.uint32),
        jnp.asarray(stream, jnp.int32),
        jnp.asarray([recipe.max_steps for recipe in recipes], jnp.int32),
    )
    return Cohort(program, tuple(recipes), carried, list(streams), 0)


def advance(cohort: Cohort, until: int) -> np.ndarray:
    """Trains on up to step `until`, or until nothing changes any more.

    Returns:
        [K, n], float32: the loss of each step; NaN from the one on that was not finite
        and past the end of a run.

    Raises:
        ValueError: if there are not enough batches.
    """
    parts: list[Told] = []
    losses = [np.empty((len(cohort.recipes), 0), np.float32)]
    while cohort.step < until:
        batches = _stacked_batches(cohort)
        cohort.carried, told = cohort.program.step(cohort.carried, batches)
        cohort.step += 1
        parts.append(told)
        if len(parts) == _STEPS_AT_ONCE or cohort.step == until:
            on_host = jax.device_get(parts)
            losses.append(np.stack([of_step.loss for of_step in on_host], axis=1))
            parts = []
            if on_host[-1].is_stopped.all():
                break
    return _without_what_follows_nan(np.concatenate(losses, axis=1))


def held_out_losses(cohort: Cohort, batches: Sequence[Batch]) -> np.ndarray:
    """The mean loss of each run over all items of `batches`; [K], float64."""
    total, num_items = summed_losses(cohort, batches)
    if not num_items.all():
        raise ValueError(
            "`held_out` must have items to take a mean over, got none. Give more "
            "batches; or are all labels ignored?"
        )
    return total / num_items


def summed_losses(
    cohort: Cohort, batches: Sequence[Batch]
) -> tuple[np.ndarray, np.ndarray]:
    """The summed loss of each run over `batches`, and its items; [K], float64 each."""
    params = cohort.carried.state.params
    total, num_items = np.zeros(len(cohort.recipes)), np.zeros(len(cohort.recipes))
    for batch in batches:
        sums, counts = jax.device_get(cohort.program.evaluate(params, batch))
        total, num_items = total + sums, num_items + counts
    return total, num_items


def seed_streams(
    task: Task, recipes: Sequence[Recipe], skip: int = 0
) -> tuple[list[Iterator[Batch]], list[int]]:
    """Streams of batches, one for each seed, and which of them each run is fed from."""
    seeds = list(dict.fromkeys(recipe.seed for recipe in recipes))
    by_length = sorted(recipes, key=lambda recipe: recipe.max_steps)
    longest = {recipe.seed: recipe for recipe in by_length}
    streams: list[Iterator[Batch]] = [
        itertools.islice(_beyond(task.batches(longest[s]), longest[s]), skip, None)
        for s in seeds
    ]
    return streams, [seeds.index(recipe.seed) for recipe in recipes]


def _beyond(batches: Iterable[Batch], recipe: Recipe) -> Iterator[Batch]:
    """All batches; where they end with the run, its last one again, for others."""
    batch, num_batches = None, 0
    for batch in batches:
        num_batches += 1
        yield batch
    while num_batches >= recipe.max_steps:
        yield batch


def first_params(task: Task, recipes: Sequence[Recipe]) -> PyTree:
    """Where runs start, by their seeds; [K, ...]."""
    init = functools.lru_cache(maxsize=None)(task.init)
    return stacked([init(recipe.seed) for recipe in recipes])


def stacked(trees: Sequence[PyTree]) -> PyTree:
    """Trees of arrays as one, with an axis in front; on the host what was there."""

    def stack(*leaves: Any) -> jax.Array | np.ndarray:
        is_on_device = any(isinstance(leaf, jax.Array) for leaf in leaves)
        return jnp.stack(leaves) if is_on_device else np.stack(leaves)

    return jax.tree.map(stack, *trees)


def unstacked(tree: PyTree, num: int) -> list[PyTree]:
    """The first `num` trees of a stack, on the host: no device keeps them."""

    def on_host(x: jax.Array) -> jax.Array | np.ndarray:
        if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return np.asarray(x)
        # Keys have no form of their own there: new ones, bound to no device.
        data = jax.device_get(jax.random.key_data(x))
        return jax.random.wrap_key_data(jnp.asarray(data))

    tree = jax.tree.map(on_host, tree)
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(num)]


def next_batch(stream: Iterator[Batch], step: int) -> Batch:
    """The batch of a step; raises a ValueError where there is none."""
    batch = next(stream, None)
    if batch is None:
        raise ValueError(
            "`batches` must give at least as many as `max_steps`, but ended after "
            f"{step}. Repeat the data, or take fewer steps."
        )
    return batch


def _stacked_batches(cohort: Cohort) -> Batch:
    batches = [next_batch(stream, cohort.step) for stream in cohort.streams]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


def _without_what_follows_nan(losses: np.ndarray) -> np.ndarray:
    is_bad = np.logical_or.accumulate(~np.isfinite(losses), axis=1)
    return np.where(is_bad, np.float32(np.nan), losses)
