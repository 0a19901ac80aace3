"""The optimizer of a recipe against the one that Trainer builds from the same."""

import numpy as np
import pytest

from jaxopt_tf.interop import recipe_from_transformers
from tests import twins
from tests.twins import adafactor, trainer

# Of the distance moved, as for Adafactor: what its parameters keep in the worst case.
LIMIT = 2e-5

pytestmark = [twins.needs_transformers, pytest.mark.promotion_of_others]


@pytest.mark.parametrize("seed", range(24))
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
