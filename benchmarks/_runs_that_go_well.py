"""Healthy runs of many kinds."""

import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax

from benchmarks._small_runs import (
    NUM_INPUTS,
    Run,
    character_loss,
    character_model,
    characters,
    classifier_loss,
    dense,
    dropout_loss,
    labelled,
    measured,
    recurrence,
    recurrence_loss,
    spoilt,
    squared_loss,
    text,
    trained,
)
from jaxopt_tf import adafactor_tf, adamw_tf, clip
from jaxopt_tf.schedules import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_cosine_with_hard_restarts_schedule_with_warmup,
    get_inverse_sqrt_schedule,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)

_MLP = (NUM_INPUTS, 64, 64, 10)


def all_runs() -> Iterator[Run]:
    """Returns all runs."""
    for runs in (
        _schedules,
        _sizes,
        _optimizers,
        _noise,
        _tails,
        _near_optimum,
        _units,
    ):
        yield from runs()


def _schedules() -> Iterator[Run]:
    source = text()
    eval_batch = next(characters(1, 1000, source[90_000:]))
    restarts = get_cosine_with_hard_restarts_schedule_with_warmup
    schedules = {
        "constant, long warmup": get_constant_schedule_with_warmup(3e-3, 800),
        "linear to 0": get_linear_schedule_with_warmup(3e-3, 50, 1000),
        "linear to 0, no warmup": get_linear_schedule_with_warmup(3e-3, 0, 1000),
        "cosine to 0": get_cosine_schedule_with_warmup(3e-3, 100, 1000),
        "four restarts": restarts(1e-2, 0, 1000, num_cycles=4),
        "inverse root": get_inverse_sqrt_schedule(5e-3, 50),
        "warmup, stable, decay": get_wsd_schedule(
            3e-3, 50, 200, num_training_steps=1000
        ),
        "0 for the last half": get_linear_schedule_with_warmup(3e-3, 50, 500),
    }
    for seed, (name, schedule) in enumerate(schedules.items()):
        yield Run(
            f"characters, {name}",
            character_loss,
            character_model(seed=seed),
            optax.chain(clip(1.0), adamw_tf(schedule, weight_decay=0.1)),
            characters(seed, 64, source[:90_000]),
            1000,
            eval_batch=eval_batch,
        )


def _sizes() -> Iterator[Run]:
    source = text()
    for width, size, seed in ((16, 16, 1), (256, 64, 2), (64, 1, 3), (64, 512, 4)):
        yield Run(
            f"characters, width {width}, batches of {size}",
            character_loss,
            character_model(width, seed),
            adamw_tf(get_linear_schedule_with_warmup(2e-3, 20, 800)),
            characters(seed, size, source),
            800,
        )
    for depth, per_layer in ((2, True), (8, True), (8, False)):
        yield Run(
            f"classifier of {depth} layers, norms of each layer {per_layer}",
            classifier_loss(),
            dense((NUM_INPUTS, *depth * [64], 10), depth, gain=1.4),
            adamw_tf(1e-3),
            labelled(depth, 32),
            800,
            per_layer=per_layer,
        )
    yield Run(
        "a recurrence with weights that keep gradients alike",
        recurrence_loss,
        recurrence(1.0),
        optax.chain(clip(1.0), adamw_tf(1e-3)),
        labelled(0, 32),
        600,
    )


def _optimizers() -> Iterator[Run]:
    optimizers = {
        "gradient descent": optax.sgd(0.1),
        "momentum": optax.sgd(0.05, momentum=0.9),
        "optax's Adam, cosine to 0": optax.adam(optax.cosine_decay_schedule(3e-3, 800)),
        "Adafactor": adafactor_tf(3e-3, scale_parameter=False, relative_step=False),
        "Adafactor with its own rate": adafactor_tf(),
        "a rate at the edge": adamw_tf(3e-2),
    }
    for seed, (name, optimizer) in enumerate(optimizers.items()):
        yield Run(
            f"classifier, {name}",
            classifier_loss(),
            dense(_MLP, seed),
            optimizer,
            labelled(seed, 64),
            800,
            eval_batch=next(labelled(seed + 50, 1000)),
        )
    for rate in (3e-2, 1e-2):
        yield Run(
            f"characters, bfloat16 parameters, rate {rate:g} to 0",
            character_loss,
            character_model(dtype=jnp.bfloat16),
            adamw_tf(get_linear_schedule_with_warmup(rate, 100, 800)),
            characters(0, 64, text()),
            800,
        )


def _noise() -> Iterator[Run]:
    for size in (1, 4):
        yield Run(
            f"classifier, batches of {size}, one label in five wrong",
            classifier_loss(),
            dense(_MLP, size),
            adamw_tf(get_linear_schedule_with_warmup(1e-3, 50, 2000)),
            labelled(size, size, noise=0.2),
            2000,
        )
    yield Run(
        "classifier with dropout, three epochs of 2,000 examples",
        dropout_loss,
        dense((NUM_INPUTS, 128, 128, 10)),
        adamw_tf(get_linear_schedule_with_warmup(1e-3, 20, 600)),
        labelled(0, 10, 2000),
        600,
        eval_batch=next(labelled(50, 1000)),
        rng=0,
    )
    yield Run(
        "one batch in fifty with a NaN, skipped",
        classifier_loss(),
        dense(_MLP),
        adamw_tf(1e-3),
        spoilt(labelled(0, 32), 50),
        800,
        on_non_finite="skip",
    )


def _tails() -> Iterator[Run]:
    yield Run(
        "classifier, four fifths of the run flat",
        classifier_loss(),
        dense(_MLP),
        adamw_tf(1e-2),
        labelled(0, 64, noise=0.1),
        4000,
    )
    yield Run(
        "regression to the noise, flat after a tenth",
        squared_loss,
        dense((NUM_INPUTS, 32, 1)),
        adamw_tf(get_cosine_schedule_with_warmup(1e-2, 100, 4000)),
        measured(0, 64, 0.1),
        4000,
        eval_batch=next(measured(1, 1000, 0.1)),
        eval_steps=200,
    )
    one = next(measured(0, 64, 0.0))
    yield Run(
        "regression of one batch, to a loss of almost 0",
        squared_loss,
        dense((NUM_INPUTS, 64, 1)),
        adamw_tf(get_linear_schedule_with_warmup(3e-3, 0, 3000)),
        itertools.repeat(one),
        3000,
    )
    few = next(labelled(0, 256))
    yield Run(
        "all examples in each batch, to a loss of almost 0",
        classifier_loss(),
        dense(_MLP),
        adamw_tf(1e-3),
        itertools.repeat(few),
        2000,
    )


def _near_optimum() -> Iterator[Run]:
    source = text()
    model = trained(
        Run(
            "",
            character_loss,
            character_model(),
            adamw_tf(get_linear_schedule_with_warmup(3e-3, 50, 1500)),
            characters(0, 64, source),
            1500,
        )
    )
    for rate, warmup in ((1e-4, 100), (1e-3, 0), (3e-3, 100)):
        yield Run(
            f"characters again, from a trained model, rate {rate:g}",
            character_loss,
            model,
            adamw_tf(get_linear_schedule_with_warmup(rate, warmup, 1000)),
            characters(7, 64, source),
            1000,
        )
    yield Run(
        "other characters, from a trained model",
        character_loss,
        model,
        adamw_tf(get_linear_schedule_with_warmup(1e-3, 50, 600)),
        characters(7, 16, source[::-1].copy()),
        600,
    )
    classifier = trained(
        Run(
            "",
            classifier_loss(),
            dense(_MLP),
            adamw_tf(3e-3),
            labelled(0, 64, noise=0.1),
            1000,
        )
    )
    yield Run(
        "classifier again, from a trained one",
        classifier_loss(),
        classifier,
        adamw_tf(get_linear_schedule_with_warmup(1e-4, 50, 1000)),
        labelled(5, 32, noise=0.1),
        1000,
    )


def _units() -> Iterator[Run]:
    def scaled(factor):
        def loss_fn(params, batch):
            total, count = squared_loss(params, batch)
            return factor * total, count

        return loss_fn

    def log_density(params, batch):
        x, y = batch
        log_std = params["log_std"]
        error = (x @ params["kernel"] - y) / jnp.exp(log_std)
        return jnp.sum(0.5 * error**2 + log_std), len(y)

    for factor in (1e-6, 1e6):
        yield Run(
            f"regression, loss times {factor:g}",
            scaled(factor),
            dense((NUM_INPUTS, 32, 1)),
            adamw_tf(3e-3, eps=1e-16),
            measured(0, 32, 0.1),
            800,
        )
    yield Run(
        "negative log density, which ends below 0",
        log_density,
        {"kernel": jnp.zeros(NUM_INPUTS), "log_std": jnp.zeros(())},
        adamw_tf(1e-2),
        measured(0, 32, 0.05),
        1000,
    )
    yield Run(
        "all parameters 0 at first",
        classifier_loss(),
        jax.tree.map(jnp.zeros_like, dense((NUM_INPUTS, 10))),
        adamw_tf(1e-2),
        labelled(0, 64),
        600,
    )
