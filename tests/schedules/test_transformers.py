"""The named schedules against those of Transformers."""

import enum
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_tf import schedules
from jaxopt_tf.schedules import (
    MetricDrivenSchedule,
    get_constant_schedule,
    get_cosine_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_inverse_sqrt_schedule,
    get_linear_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
    get_scheduler,
    get_wsd_schedule,
)
from tests import references
from tests.references import schedules as theirs

HALF = [0.9619, 0.8536, 0.6913, 0.5, 0.3087, 0.1464, 0.0381, 0.0]
FALL = [0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0]
RESTART = [0.8536, 0.5, 0.1464]
# Rates at steps 0 to 13, with a peak of 1, 2 warmup steps and 10 training steps.
GOLDEN = {
    "constant": ({}, [1.0] * 14),
    "constant_with_warmup": ({}, [0, 0.5] + [1.0] * 12),
    "linear": ({}, [0, 0.5, 1, *FALL, 0, 0, 0]),
    "cosine": ({}, [0, 0.5, 1, *HALF, 0.0381, 0.1464, 0.3087]),
    "cosine_with_restarts": (
        {"num_cycles": 2},
        [0, 0.5, 1, *RESTART, 1, *RESTART, 0, 0, 0, 0],
    ),
    "polynomial": ({"lr_end": 0.0}, [0, 0.5, 1, *FALL, 0, 0, 0]),
    "inverse_sqrt": (
        {},
        [0, 0.5, *np.sqrt(2 / np.arange(2, 14))],
    ),
    "cosine_with_min_lr": (
        {"min_lr_rate": 0.5},
        [0, 0.5, 1, *(0.5 + 0.5 * np.asarray(HALF)), 0.5190, 0.5732, 0.6543],
    ),
    "cosine_warmup_with_min_lr": (
        {"min_lr": 0.1},
        [0.5, 1, *(0.1 + 0.9 * np.asarray(HALF)), 0.1343, 0.2318, 0.3778, 0.55],
    ),
    "warmup_stable_decay": (
        {"num_decay_steps": 3},
        [0, 0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.25, 0, 0, 0, 0],
    ),
}


def by_name(name, learning_rate, settings):
    settings = dict(settings)
    counts = [
        settings.pop(key, None) for key in ("num_warmup_steps", "num_training_steps")
    ]
    return get_scheduler(name, learning_rate, *counts, settings)


@pytest.mark.parametrize("name", GOLDEN)
def test_gives_the_golden_sequence(name):
    options, expected = GOLDEN[name]
    schedule = get_scheduler(name, 1.0, 2, 10, options)
    np.testing.assert_allclose(schedule(jnp.arange(64))[:14], expected, atol=6e-5)


def test_inverse_sqrt_without_warmup_begins_at_the_peak():
    values = get_inverse_sqrt_schedule(1.0, 0)(jnp.asarray([0, 30_000]))
    np.testing.assert_allclose(values, [1.0, 0.5], rtol=1e-6)


@references.needs_transformers
@pytest.mark.parametrize("name", theirs.NAMES)
@pytest.mark.parametrize("most_steps", [40, 1_000_000, 2**31 - 3])
def test_the_numpy_reference_is_transformers(rng, name, most_steps):
    for _ in range(20):
        lr, settings = theirs.random_settings(name, rng, most_steps)
        steps = theirs.telling_steps(rng, settings, count=20)
        real = theirs.transformers_factor(name, steps, lr, **settings)
        reference = theirs.factor(name, steps, lr, **settings)
        apart = np.abs(real - reference.value)
        assert np.all(apart <= 1e-15 + 2 * reference.noise), (lr, settings)


@references.needs_transformers
@pytest.mark.parametrize("name", theirs.NAMES)
def test_equals_transformers_at_every_step(rng, name):
    # Short runs with edge cases: no warmup, warmup longer than training, steps after
    # the end.
    steps = np.arange(64)
    for _ in range(12):
        lr, settings = theirs.random_settings(name, rng, 40)
        real = theirs.transformers_factor(name, steps, lr, **settings)
        ours = by_name(name, lr, settings)(jnp.asarray(steps))
        np.testing.assert_allclose(ours, lr * real, atol=1e-6 * lr, err_msg=settings)


@pytest.mark.parametrize("name", theirs.NAMES)
@pytest.mark.parametrize("most_steps", [1_000_000, 2**31 - 3])
def test_stays_within_a_millionth_in_long_runs(rng, name, most_steps):
    for _ in range(6):
        lr, settings = theirs.random_settings(name, rng, most_steps)
        steps = theirs.telling_steps(rng, settings)
        double = theirs.factor(name, steps, lr, **settings)
        ours = by_name(name, lr, settings)(jnp.asarray(steps, jnp.int32))
        apart = np.abs(np.asarray(ours, np.float64) / lr - double.value)
        # Far past the end the double has too few digits for the phase of its cosine.
        assert np.all(apart <= 1e-6 + double.noise), settings
        good = (double.noise < 1e-7 * double.value) & (double.value * lr > 1e-37)
        assert np.all(apart[good] <= 1e-6 * double.value[good]), settings


def test_a_rate_may_be_traced():
    def rates(lr):
        polynomial = get_polynomial_decay_schedule_with_warmup(lr, 2, 10, 1e-2)
        cosine = get_cosine_with_min_lr_schedule_with_warmup(lr, 2, 10, min_lr=1e-2)
        return jnp.stack([polynomial(8), cosine(10), get_constant_schedule(lr)(3)])

    np.testing.assert_allclose(
        jax.jit(rates)(0.1), [0.01 + 0.09 / 4, 0.01, 0.1], rtol=1e-6
    )


def test_the_names_and_defaults_are_transformers_own():
    expected = {
        "get_cosine_schedule_with_warmup": {"num_cycles": 0.5},
        "get_cosine_with_hard_restarts_schedule_with_warmup": {"num_cycles": 1},
        "get_polynomial_decay_schedule_with_warmup": {"lr_end": 1e-7, "power": 1.0},
        "get_inverse_sqrt_schedule": {"timescale": None},
        "get_wsd_schedule": {
            "num_training_steps": None,
            "num_stable_steps": None,
            "warmup_type": "linear",
            "decay_type": "cosine",
            "min_lr_ratio": 0,
            "num_cycles": 0.5,
        },
    }
    for name, defaults in expected.items():
        parameters = inspect.signature(getattr(schedules, name)).parameters.values()
        ours = {p.name: p.default for p in parameters if p.default is not p.empty}
        assert ours == defaults, name


def test_an_enum_is_taken_for_its_value():
    name = enum.Enum("SchedulerType", {"COSINE": "cosine"}).COSINE
    assert float(get_scheduler(name, 1.0, 0, 2)(1)) == pytest.approx(0.5)


@references.needs_transformers
def test_takes_every_scheduler_type():
    from transformers import SchedulerType

    options = {
        "cosine_with_min_lr": {"min_lr": 0.0},
        "cosine_warmup_with_min_lr": {"min_lr": 0.0},
        "warmup_stable_decay": {"num_decay_steps": 3},
    }
    for name in SchedulerType:
        schedule = get_scheduler(name, 0.1, 2, 10, options.get(name.value))
        assert callable(schedule) or isinstance(schedule, MetricDrivenSchedule)


def test_counts_that_a_schedule_has_no_use_for_are_left_aside():
    assert float(get_scheduler("constant", 0.5, 2, 10)(0)) == 0.5
    assert isinstance(get_scheduler("greedy", 0.5, 2, 10), MetricDrivenSchedule)


def test_stable_steps_win_over_training_steps_with_a_warning():
    with pytest.warns(UserWarning, match="`num_training_steps`"):
        schedule = get_wsd_schedule(1.0, 1, 2, 100, num_stable_steps=1)
    np.testing.assert_allclose(schedule(jnp.arange(5)), [0, 1, 1, 0.5, 0], atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("consine", 0.1, 2, 10), "`name` .* Did you mean 'cosine'"),
        (("linear", 0.1, None, 10), "`num_warmup_steps` must be given for 'linear'"),
        (("linear", 0.1, 2), "`num_training_steps` must be given for 'linear'"),
        (("inverse_sqrt", 0.1), "`num_warmup_steps`"),
        (("constant_with_warmup", 0.1), "`num_warmup_steps`"),
        (("linear", 0.1, -1, 10), "`num_warmup_steps`"),
        (("linear", 0.1, 2, -10), "`num_training_steps`"),
        (("linear", -0.1, 2, 10), "`learning_rate`"),
        (("linear", float("nan"), 2, 10), "`learning_rate`"),
        (("cosine", 0.1, 2, 10, {"num_cycle": 2}), "num_cycle'.* Did you mean 'num_c"),
        (("cosine", 0.1, 2, 10, {"num_cycles": -2}), "`num_cycles`"),
        (("cosine", 0.1, 2, 10, {"last_epoch": 3}), "'last_epoch'"),
        (("linear", 0.1, 2, 10, {"power": 2}), "options of 'linear', got 'power'"),
        (("constant", 0.1, 2, 10, {"power": 2}), "options of 'constant', got 'power'"),
        (("constant_with_warmup", 0.1, 2, 10, {"power": 2}), "got 'power'.*: none"),
        (("greedy", 0.1, 2, 10, {"verbose": True}), "got 'verbose'"),
        (("cosine_with_restarts", 0.1, 2, 10, {"num_cycles": 1e7}), "`num_cycles`"),
        (("polynomial", 0.1, 2, 10, {"lr_end": 0.1}), "`lr_end` must be less"),
        (("polynomial", 0.1, 2, 10, {"lr_end": -1.0}), "`lr_end`"),
        (("polynomial", 0.1, 2, 10, {"power": -1.0}), "`power`"),
        (("polynomial", 0.1, 10, 10), "`num_training_steps` must differ"),
        (("inverse_sqrt", 0.1, 2, 10, {"timescale": 0}), "`timescale`"),
        (("cosine_with_min_lr", 0.1, 2, 10), "`min_lr_rate` must be given, got neith"),
        (
            ("cosine_with_min_lr", 0.1, 2, 10, {"min_lr": 0.01, "min_lr_rate": 0.1}),
            "`min_lr_rate` must be given, got 0.01 and 0.1",
        ),
        (("cosine_with_min_lr", 0.1, 2, 10, {"min_lr": 0.2}), "`min_lr` must be at m"),
        (("cosine_with_min_lr", 0.1, 2, 10, {"min_lr_rate": 2}), "`min_lr_rate`"),
        (("cosine_warmup_with_min_lr", 0.1, 2, 10), "`min_lr_rate` must be given"),
        (
            (
                "cosine_warmup_with_min_lr",
                0.1,
                2,
                10,
                {"min_lr": 0.0, "warmup_lr_rate": 2},
            ),
            "`warmup_lr_rate`",
        ),
        (("warmup_stable_decay", 0.1, 2, 10), "`num_decay_steps` must be given"),
        (
            ("warmup_stable_decay", 0.1, 2, None, {"num_decay_steps": 3}),
            "`num_stable_steps` must be given, got neither",
        ),
        (("warmup_stable_decay", 0.1, 2, 9, {"num_decay_steps": -3}), "`num_decay_st"),
        (
            (
                "warmup_stable_decay",
                0.1,
                2,
                9,
                {"num_decay_steps": 3, "decay_type": "sqrt"},
            ),
            "`decay_type` .* Did you mean '1-sqrt'",
        ),
        (
            (
                "warmup_stable_decay",
                0.1,
                2,
                9,
                {"num_decay_steps": 3, "warmup_type": "cos"},
            ),
            "`warmup_type` .* Did you mean 'cosine'",
        ),
        (
            (
                "warmup_stable_decay",
                0.1,
                2,
                9,
                {"num_decay_steps": 3, "min_lr_ratio": 2},
            ),
            "`min_lr_ratio`",
        ),
        (("greedy", 0.1, None, None, {"factor": 1.0}), "`factor`"),
    ],
)
def test_refuses_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        get_scheduler(*arguments)


def test_refuses_what_is_not_a_number():
    with pytest.raises(TypeError, match="`num_warmup_steps`"):
        get_linear_schedule_with_warmup(0.1, None, 10)
    with pytest.raises(TypeError, match="`learning_rate`"):
        get_cosine_schedule_with_warmup(np.ones(2), 2, 10)
