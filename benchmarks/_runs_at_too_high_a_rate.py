"""Runs with too high a learning rate, whose loss increases or oscillates."""

from collections.abc import Iterator

import optax

from benchmarks._small_runs import (
    NUM_INPUTS,
    Run,
    character_loss,
    character_model,
    characters,
    classifier_loss,
    dense,
    labelled,
    measured,
    squared_loss,
    text,
)
from jaxopt_tf import adamw_tf, clip
from jaxopt_tf.schedules import get_constant_schedule_with_warmup


def diverging() -> Iterator[Run]:
    """Returns runs with rates at which the loss increases."""
    source = text()
    for seed in range(2):
        yield Run(
            f"a rate that rises until it is too high, seed {seed}",
            character_loss,
            character_model(seed=seed),
            adamw_tf(get_constant_schedule_with_warmup(2.0, 1000)),
            characters(seed, 64, source),
            1000,
        )
    yield Run(
        "a rate too high from the start",
        character_loss,
        character_model(),
        adamw_tf(1.0),
        characters(0, 64, source),
        400,
    )
    yield Run(
        "gradient descent on a square, rate too high",
        squared_loss,
        dense((NUM_INPUTS, 1)),
        optax.sgd(1.1),
        measured(0, 16, 0.1),
        400,
    )
    yield Run(
        "gradient descent, rate ten times too high, no clipping",
        squared_loss,
        dense((NUM_INPUTS, 64, 1)),
        optax.sgd(2.0),
        measured(0, 64, 0.1),
        400,
        on_non_finite="propagate",
    )


def oscillating() -> Iterator[Run]:
    """Returns runs with oscillating losses, which a tenth of the rate would avoid."""
    yield Run(
        "regression on a line, momentum, rate beyond the edge of stability, clipped",
        squared_loss,
        dense((NUM_INPUTS, 1)),
        optax.chain(clip(1.0), optax.sgd(0.3, momentum=0.9)),
        measured(0, 16, 0.1),
        1000,
    )
    yield Run(
        "classifier, AdamW, rate 0.1",
        classifier_loss(),
        dense((NUM_INPUTS, 64, 64, 10)),
        adamw_tf(0.1),
        labelled(0, 64),
        1000,
    )
    source = text()
    for name, optimizer in (
        ("AdamW, rate 0.1", adamw_tf(0.1)),
        ("AdamW, rate 0.1, clipped", optax.chain(clip(1.0), adamw_tf(0.1))),
        ("momentum, rate 0.5", optax.sgd(0.5, momentum=0.9)),
    ):
        yield Run(
            f"characters, {name}",
            character_loss,
            character_model(),
            optimizer,
            characters(0, 64, source),
            600,
        )
