"""Runs with a deliberate problem, and the word that describes it."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import _runs_at_too_high_a_rate
from benchmarks._small_runs import (
    NUM_INPUTS,
    Run,
    character_loss,
    character_model,
    characters,
    classifier_loss,
    dense,
    labelled,
    recurrence,
    recurrence_loss,
    spoilt,
    text,
)
from jaxopt_tf import adamw_tf, clip
from jaxopt_tf.schedules import get_constant_schedule_with_warmup

_MLP = (NUM_INPUTS, 64, 64, 10)


def all_runs() -> Iterator[tuple[Run, str]]:
    """Returns all runs."""
    for runs, words in (
        (_runs_at_too_high_a_rate.diverging, "training diverges"),
        (_runs_at_too_high_a_rate.oscillating, "training oscillates"),
        (_exploding, "gradients explode"),
        (_vanishing, "gradients vanish"),
        (_stuck, "it is stuck"),
        (_overfitting, "the model overfits"),
        (_rounding, "rounds most changes"),
        (_skipping, "steps were skipped"),
        (_not_finite, "all at once"),
    ):
        for run in runs():
            yield run, words


def _exploding() -> Iterator[Run]:
    for gain in (3.0, 5.0):
        yield Run(
            f"a recurrence over 50 steps, weights {gain:g} times too large, clipped",
            recurrence_loss,
            recurrence(gain),
            optax.chain(clip(1.0), adamw_tf(1e-4)),
            labelled(0, 32),
            400,
        )
    yield Run(
        "30 layers of tanh, weights 4 times too large, clipped",
        classifier_loss(jnp.tanh),
        dense((NUM_INPUTS, *30 * [64], 10), gain=4.0),
        optax.chain(clip(1.0), adamw_tf(1e-5)),
        labelled(0, 32),
        400,
    )


def _vanishing() -> Iterator[Run]:
    yield Run(
        "12 layers of sigmoids, norms of each layer known",
        classifier_loss(jax.nn.sigmoid),
        dense((NUM_INPUTS, *12 * [64], 10)),
        adamw_tf(1e-4),
        labelled(0, 32),
        400,
        per_layer=True,
    )
    yield Run(
        "20 layers of tanh, weights 5 times too small, norms of each layer known",
        classifier_loss(jnp.tanh),
        dense((NUM_INPUTS, *20 * [64], 10), gain=0.2),
        optax.sgd(0.1),
        labelled(0, 32),
        400,
        per_layer=True,
    )
    yield Run(
        "a recurrence over 50 steps with hardly any weights",
        recurrence_loss,
        jax.tree.map(lambda x: x * 1e-4, recurrence(1.0)),
        optax.sgd(0.1),
        labelled(0, 64),
        400,
    )


def _stuck() -> Iterator[Run]:
    yield Run(
        "a rate of 1e-7",
        character_loss,
        character_model(),
        adamw_tf(1e-7),
        characters(0, 256, text()),
        1000,
    )
    yield Run(
        "labels that have nothing to do with inputs",
        classifier_loss(),
        dense(_MLP, gain=0.5),
        adamw_tf(1e-3),
        _unrelated(labelled(0, 64)),
        1000,
    )
    dead = dense(_MLP, gain=0.5)
    dead["layer_1"]["bias"] -= 100.0
    yield Run(
        "units that are always off",
        classifier_loss(),
        dead,
        adamw_tf(1e-3),
        labelled(0, 64),
        1000,
    )


def _overfitting() -> Iterator[Run]:
    for num_examples in (50, 200):
        yield Run(
            f"a classifier on {num_examples} examples",
            classifier_loss(),
            dense(_MLP),
            adamw_tf(1e-3),
            labelled(0, 32, num_examples, noise=0.2),
            1000,
            eval_batch=next(labelled(1, 1000, noise=0.2)),
        )
    source = text()
    yield Run(
        "a model of characters on a page of text",
        character_loss,
        character_model(width=256),
        adamw_tf(2e-3),
        characters(0, 64, source[:2000]),
        1000,
        eval_batch=next(characters(1, 1000, source[50_000:])),
    )


def _rounding() -> Iterator[Run]:
    source = text()
    for rate in (1e-4, 1e-5):
        yield Run(
            f"bfloat16 parameters, rate {rate:g}",
            character_loss,
            character_model(dtype=jnp.bfloat16),
            adamw_tf(get_constant_schedule_with_warmup(rate, 100)),
            characters(0, 64, source),
            400,
        )
    yield Run(
        "bfloat16 parameters, rate 1e-5, optax's Adam",
        character_loss,
        character_model(dtype=jnp.bfloat16),
        optax.adam(1e-5),
        characters(0, 64, source),
        400,
    )


def _skipping() -> Iterator[Run]:
    yield Run(
        "one batch in five with a NaN, skipped",
        classifier_loss(),
        dense(_MLP),
        adamw_tf(1e-3),
        spoilt(labelled(0, 32), 5),
        400,
        on_non_finite="skip",
    )


def _not_finite() -> Iterator[Run]:
    yield Run(
        "a batch with a NaN",
        classifier_loss(),
        dense(_MLP),
        adamw_tf(1e-3),
        spoilt(labelled(0, 32), 150),
        400,
    )


def _unrelated(batches):
    rng = np.random.default_rng(7)
    for x, labels in batches:
        yield x, rng.integers(0, 10, len(labels)).astype(np.int32)
