"""Time, accuracy and results of many runs as one compiled program.

- 16 parallel runs against 16 sequential ones, including compilation. Sequential runs
  are compiled separately, as in a loop over recipes, or share one program with the rate
  as an argument, which is the minimum for sequential runs.
- Losses of each parallel run against those of the same run alone.
- `find_learning_rate` and `range_test`: final loss with the suggested rate relative to
  that of the best of 20 rates.
- `sweep`, killed by SIGKILL and resumed: number of trials that were repeated.
"""

import argparse
import dataclasses
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import jax
import numpy as np

from jaxopt_tf import tuning
from jaxopt_tf.recipes import Recipe, RunHyperparams, build_optimizer, stack_recipes
from jaxopt_tf.training import init_train_state, make_train_step
from jaxopt_tf.tuning import Task

from . import _report, _tuning_tasks
from ._report import Row

_THIS = "benchmarks.sweeps_as_one_program"


def alone(task: Task, recipes: list[Recipe]) -> np.ndarray:
    """Returns losses of sequential runs, each with its own compiled program."""
    losses = []
    for recipe in recipes:
        optimizer = build_optimizer(recipe)
        step = make_train_step(task.loss_fn, optimizer)
        state = init_train_state(task.init(recipe.seed), optimizer)
        losses.append(_losses(step, state, task, recipe))
    return np.array(losses)


def sharing(task: Task, recipes: list[Recipe]) -> np.ndarray:
    """Returns losses of sequential runs of one program, with rates as arguments."""

    def one(state, batch, varied: RunHyperparams):
        optimizer = build_optimizer(recipes[0], varied=varied)
        return make_train_step(task.loss_fn, optimizer)(state, batch)

    step = jax.jit(one, donate_argnums=0)
    losses = []
    for i, recipe in enumerate(recipes):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], stack_recipes(recipes))
        optimizer = build_optimizer(recipe, varied=own)
        state = init_train_state(task.init(recipe.seed), optimizer)
        losses.append(
            _losses(lambda s, b, own=own: step(s, b, own), state, task, recipe)
        )
    return np.array(losses)


def side_by_side(task: Task, recipes: list[Recipe]) -> np.ndarray:
    """Returns losses of all runs in one program."""
    return tuning.train_many(task, recipes).losses


def _losses(step, state, task: Task, recipe: Recipe) -> list[float]:
    told = []
    for _, batch in zip(range(recipe.max_steps), task.batches(recipe), strict=False):
        state, metrics = step(state, batch)
        told.append(metrics.loss)
    return [float(loss) for loss in jax.device_get(told)]


def _seconds(train, task: Task, recipes: list[Recipe]) -> tuple[float, np.ndarray]:
    jax.clear_caches()
    start = time.perf_counter()
    losses = train(task, recipes)
    return time.perf_counter() - start, losses


def time_rows(smoke: bool) -> Iterator[Row]:
    """Measures time and accuracy."""
    num_steps, num_rounds, num_runs = (60, 1, 4) if smoke else (400, 3, 16)
    tasks = {"a perceptron": (_tuning_tasks.digits(_tuning_tasks.Perceptron()), 1)}
    if not smoke:
        tasks["a GPT-2 of one layer"] = (_tuning_tasks.text(), 2)
    for name, (task, fewer) in tasks.items():
        steps = num_steps // fewer
        recipe = dataclasses.replace(_tuning_tasks.RECIPE, max_steps=steps)
        recipes = [
            dataclasses.replace(recipe, learning_rate=float(rate))
            for rate in np.geomspace(1e-4, 5e-3, num_runs)
        ]
        ratios: dict[str, list[float]] = {"alone": [], "sharing": []}
        worst, shown = 0.0, []
        for _ in range(num_rounds):
            ours, losses = _seconds(side_by_side, task, recipes)
            by_itself, theirs = _seconds(alone, task, recipes)
            shared, _ = _seconds(sharing, task, recipes)
            ratios["alone"].append(ours / by_itself)
            ratios["sharing"].append(ours / shared)
            worst = max(worst, float(np.max(np.abs(losses / theirs - 1))))
            shown.append(f"{ours:.1f} s, {by_itself:.1f} s, {shared:.1f} s")
        of = f"{num_runs} runs of {name}, {steps} steps"
        yield Row(
            claim=f"{of}: one program, over one after the other",
            value=float(np.median(ratios["alone"])),
            unit="of the time",
            limit=float("inf") if smoke else 0.5,  # no claim for so few runs
            detail=f"side by side, alone, sharing a program: {'; '.join(shown)}",
        )
        yield Row(
            claim=f"{of}: one program, over one after the other in one program",
            value=float(np.median(ratios["sharing"])),
            unit="of the time",
            # No claim for a model of which a single run uses both cores.
            limit=0.5 if fewer == 1 and not smoke else float("inf"),
        )
        yield Row(
            claim=f"{of}: largest difference of a loss to the run alone",
            value=worst,
            unit="of the loss",
            limit=1e-5,
        )


def rate_rows(smoke: bool) -> Iterator[Row]:
    """Compares suggested rates with a sweep over 20 rates."""
    recipe = _tuning_tasks.RECIPE
    cases = {
        "a quadratic": (_tuning_tasks.quadratic(), _tuning_tasks.gradient_descent()),
        "digits, convolutions": (
            _tuning_tasks.digits(_tuning_tasks.Convolutions()),
            recipe,
        ),
        "text, GPT-2": (_tuning_tasks.text(), recipe),
    }
    for name, (task, recipe) in list(cases.items())[: 1 if smoke else None]:
        grid = [float(f"{rate:.3g}") for rate in np.geomspace(1e-5, 1.0, 20)]
        found = {
            "find_learning_rate": tuning.find_learning_rate(task, recipe),
            "range_test": tuning.range_test(task, recipe),
        }
        rates = [f.suggestion for f in found.values() if f.suggestion is not None]
        runs = tuning.train_many(
            task,
            [dataclasses.replace(recipe, learning_rate=r) for r in (*grid, *rates)],
        )
        best = runs.final[: len(grid)].min()
        at = dict(zip((*grid, *rates), runs.final, strict=True))
        for function, one in found.items():
            # No suggestion is acceptable, because it misleads nobody.
            value = 1.0 if one.suggestion is None else at[one.suggestion] / best
            yield Row(
                claim=f"{name}: {function}, final loss over the best of 20 rates",
                value=float(value),
                unit="of the loss",
                limit=1.1,
                detail=f"{one.suggestion}: {one.reason} "
                f"The best of 20: {grid[int(np.argmin(runs.final[: len(grid)]))]:.3g}",
            )


def resumed_rows(smoke: bool) -> Iterator[Row]:
    """Kills and resumes a sweep repeatedly."""
    num_kills = 1 if smoke else 8
    with tempfile.TemporaryDirectory() as folder:
        made: list[list[int]] = []
        rng = random.Random(0)
        for kill in range(num_kills + 1):
            child = subprocess.Popen(
                [sys.executable, "-m", _THIS, "--sweep_in", folder],
                stdout=subprocess.PIPE,
                text=True,
            )
            assert child.stdout is not None
            for line in child.stdout:
                made += json.loads(line)
                if kill < num_kills:
                    # At a random later moment, which may be during a write.
                    time.sleep(rng.uniform(0, 3))
                    child.kill()
            child.wait()
        kept = pathlib.Path(folder, "sweep.jsonl").read_text().splitlines()
        repeated = len(made) - len({tuple(trial) for trial in made})
        lost = len(kept) - len(made)
    yield Row(
        claim=f"a halved sweep of 24, killed {num_kills} times: trials made again",
        value=float(repeated),
        unit="trials",
        limit=0.0,
        detail=f"{len(kept)} trials are kept, {lost} of them untold at a kill",
    )


def _sweep_in(folder: str) -> None:
    """Runs a sweep in groups of four, and prints a JSON line for each."""
    kept = pathlib.Path(folder, "sweep.jsonl")
    num_told = len(kept.read_text().splitlines()) if kept.exists() else 0

    def report(_: str) -> None:
        nonlocal num_told
        lines = kept.read_text().splitlines()
        trials = [json.loads(line) for line in lines[num_told:]]
        num_told = len(lines)
        print(json.dumps([[t["run"], t["step"]] for t in trials]), flush=True)

    task = _tuning_tasks.digits(_tuning_tasks.Perceptron())
    over = {
        "learning_rate": list(np.geomspace(1e-4, 1e-2, 6)),
        "adam_beta2": [0.9, 0.99],
        "optim": ["adamw_torch", "adafactor"],
    }
    recipe = dataclasses.replace(_tuning_tasks.RECIPE, max_steps=40)
    tuning.sweep(task, recipe, over, reduction_factor=2, folder=folder, report=report)


def rows(smoke: bool) -> Iterator[Row]:
    """Returns all rows."""
    yield from time_rows(smoke)
    yield from rate_rows(smoke)
    yield from resumed_rows(smoke)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--sweep_in")
    args = parser.parse_args()
    if args.sweep_in is not None:
        _sweep_in(args.sweep_in)
    else:
        _report.main("Many runs as one program", rows)
