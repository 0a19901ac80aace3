"""Distance of recipes from Trainer's optimizers, for 200 random TrainingArguments.

All fields of a recipe are random. Both sides apply 20 updates with equal gradients,
which are clipped as in Trainer. Distances are per parameter, relative to the largest
distance that one of its elements moved. If the distance of torch in float32 from torch
in float64 exceeds the limit, a float32 run is only required to be as near to float64 as
torch is.
"""

import tempfile
from collections.abc import Iterator

import numpy as np

from benchmarks._report import Row, main
from jaxopt_tf.interop import recipe_from_transformers
from tests.references import adafactor, trainer

LIMIT = 2e-5


def rows(smoke: bool) -> Iterator[Row]:
    num_runs = 6 if smoke else 200
    found: dict[str, list[adafactor.Distance]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(num_runs):
            drawn, distances = _distances(seed, folder)
            found.setdefault(drawn.arguments["optim"], []).extend(distances)
    for optim, distances in sorted(found.items()):
        near = [d.ours for d in distances if d.ours <= LIMIT or d.reference <= LIMIT]
        yield Row(
            claim=f"recipes of random TrainingArguments, {optim}: distance from "
            f"Trainer's ({len(near)} of {len(distances)} parameters, 20 steps)",
            value=max(near, default=0.0),
            unit="of the distance moved",
            limit=LIMIT,
            torch=max(d.reference for d in distances),
        )
    far = [d for ds in found.values() for d in ds if min(d.ours, d.reference) > LIMIT]
    yield Row(
        claim=f"recipes, the {len(far)} parameters where torch is farther from its "
        "float64 run and from us: our distance from that run",
        value=max((d.exact / d.reference for d in far), default=0.0),
        unit="of torch's own",
        limit=1.0,
    )


def _distances(
    seed: int, folder: str
) -> tuple[trainer.Drawn, list[adafactor.Distance]]:
    rng = np.random.default_rng(seed)
    drawn = trainer.draw(rng)
    params, grads, metrics = trainer.random_run(rng, drawn.scale)
    theirs, exact = (
        trainer.trainer_run(drawn, params, grads, metrics, dtype=dtype, folder=folder)
        for dtype in ("float32", "float64")
    )
    source = trainer.arguments_of(drawn, folder)
    recipe = recipe_from_transformers(source, num_examples=drawn.num_examples).recipe
    if recipe.max_steps != drawn.max_steps:
        raise AssertionError(f"other steps than Trainer's: {recipe}")
    ours = trainer.our_run(recipe, params, grads, metrics)
    return drawn, list(adafactor.distances(ours, theirs, exact, params).values())


if __name__ == "__main__":
    main("Recipes of random TrainingArguments against Trainer", rows)
