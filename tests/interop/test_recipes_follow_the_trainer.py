"""Optimizer of a recipe against the optimizer that Trainer builds."""

import numpy as np
import pytest

from jaxopt_tf.interop import recipe_from_transformers
from tests import references
from tests.references import adafactor, trainer

# Of the distance moved, as for Adafactor: what its parameters keep in the worst case.
LIMIT = 2e-5

# The benchmark of this name draws 200.
SEEDS = (0, 2, 6, 8, 9, 10, 13, 16, 25, 27, 28, 32, 54, 74, 78)

pytestmark = [references.needs_transformers, pytest.mark.promotion_of_others]


def test_what_200_draw_is_drawn_by_few():
    def drawn_by(seeds):
        runs = [trainer.draw(np.random.default_rng(seed)).arguments for seed in seeds]
        optimizers = {(run["optim"], run["optim_args"]) for run in runs}
        warm_ups = {type(run.get("warmup_steps")) for run in runs}
        return optimizers, {run["lr_scheduler_type"] for run in runs}, warm_ups

    assert drawn_by(SEEDS) == drawn_by(range(200))


@pytest.mark.parametrize("seed", SEEDS)
def test_follows_the_trainer(seed, tmp_path):
    rng = np.random.default_rng(seed)
    drawn = trainer.draw(rng)
    params, grads, metrics = trainer.random_run(rng, drawn.scale)
    theirs, exact = (
        trainer.trainer_run(
            drawn, params, grads, metrics, dtype=dtype, folder=str(tmp_path)
        )
        for dtype in ("float32", "float64")
    )
    arguments = trainer.arguments_of(drawn, str(tmp_path))
    found = recipe_from_transformers(arguments, num_examples=drawn.num_examples)
    assert found.recipe.max_steps == drawn.max_steps
    ours = trainer.our_run(found.recipe, params, grads, metrics)
    distances = adafactor.distances(ours, theirs, exact, params)
    far = {n: d for n, d in distances.items() if not d.reaches(LIMIT)}
    assert far == {}, drawn
