"""Schedules that consist of several phases."""

import inspect
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxopt_tf.schedules import (
    MetricDrivenSchedule,
    Phase,
    constant,
    cosine,
    cycles,
    decay,
    get_constant_schedule_with_warmup,
    get_scheduler,
    hard_restarts,
    join,
    linear,
    one_minus_sqrt,
    polynomial,
    reduce_lr_on_plateau,
    shift,
    sqrt,
    warmup,
)
from jaxopt_tf.schedules._progress import to_double_float, turn_at, turn_per_step

CURVES = {
    "linear": linear,
    "cosine": cosine,
    "sqrt": sqrt,
    "1-sqrt": one_minus_sqrt,
    "squared": polynomial(2),
}
every_curve = pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)


def rates(schedule, steps):
    # The number of steps is constant, so that one compilation is enough.
    padded = jnp.asarray(np.resize(steps, 200), jnp.int32)
    return np.asarray(schedule(padded), np.float64)[: len(steps)]


@every_curve
def test_is_continuous_at_its_joints(curve):
    plan = warmup(curve, 100_000), constant(50), decay(curve, 100_000, floor=0.1)
    around = np.asarray([100_000, 100_050, 200_050])[:, None] + [-1, 0, 1]
    values = rates(join(1.0, *plan), around.ravel()).reshape(around.shape)
    # Near an end a square root changes by sqrt(1e-5), all other curves by far less.
    assert np.abs(np.diff(values)).max() < 3.2e-3
    assert values[0, 1] == 1.0
    assert values[1, 1] == 1.0


@every_curve
def test_holds_the_floor_past_the_end(curve):
    schedule = join(1.0, warmup(curve, 3), decay(curve, 7, floor=0.25))
    assert rates(schedule, [10, 11, 1_000, 2**31 - 1]).tolist() == [0.25] * 4


def test_a_warmup_as_the_last_phase_stays_at_the_peak():
    assert rates(join(2.0, warmup(linear, 3)), [2, 3, 9]).tolist() == [
        pytest.approx(4 / 3),
        2.0,
        2.0,
    ]


def test_a_warmup_begins_where_it_is_told():
    schedule = join(1.0, warmup(linear, 4, start=0.5), constant(0))
    assert rates(schedule, range(6)).tolist() == [0.5, 0.625, 0.75, 0.875, 1.0, 1.0]


def test_phases_of_no_steps_are_passed_over():
    schedule = join(1.0, warmup(linear, 0), constant(0), decay(linear, 2))
    assert rates(schedule, range(4)).tolist() == [1.0, 0.5, 0.0, 0.0]


def test_a_hold_has_its_level():
    schedule = join(2.0, constant(2), constant(0, level=0.5))
    assert rates(schedule, range(4)).tolist() == [2.0, 2.0, 1.0, 1.0]


def test_cycles_go_down_and_up_past_the_end_too():
    schedule = join(1.0, cycles(linear, 4, num_cycles=1, floor=0.5))
    assert rates(schedule, range(8)).tolist() == [1, 0.75, 0.5, 0.75] * 2


def test_hard_restarts_jump_back_and_end_on_the_floor():
    schedule = join(1.0, hard_restarts(linear, 4, num_cycles=2, floor=0.5))
    assert rates(schedule, range(6)).tolist() == [1, 0.75, 1, 0.75, 0.5, 0.5]


def test_ahead_leaves_out_the_first_steps():
    schedule = join(1.0, shift(warmup(linear, 4), 1), decay(linear, 2))
    assert rates(schedule, range(6)).tolist() == [0.25, 0.5, 0.75, 1.0, 0.5, 0.0]


@pytest.mark.parametrize("size", [49, 98, 103, 107, 161, 187])
def test_restarts_fall_on_the_steps_of_the_double(size):
    # In doubles 49 * (1 / 49) is slightly below 1, so this restart is a step late.
    step = np.arange(200)
    turn = (float(size) * (step / float(size))) % 1.0
    expected = np.where(step < size, 1.0 - turn, 0.0)
    assert np.any(turn[:size] > 0.5)
    ours = rates(join(1.0, hard_restarts(linear, size, size)), step)
    np.testing.assert_allclose(ours, expected, atol=1e-6)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**31 - 1),
    st.integers(1, 2**31 - 1),
    st.floats(0.0, 1e4, allow_subnormal=False),
)
def test_the_turn_of_a_step_is_exact(step, num_steps, num_cycles):
    turn = turn_at(jnp.uint32(step), turn_per_step(num_cycles, num_steps))
    exact = Fraction(num_cycles) * step / num_steps
    units = int(turn.high) * 2**64 + int(turn.middle) * 2**32 + int(turn.low)
    # Rounded up, and therefore less than `step` units above; modulo 1.
    above = (units - exact * 2**96) % 2**96
    assert 0 <= above <= step
    high, low = to_double_float(turn)
    close = Fraction(float(high)) + Fraction(float(low))
    assert abs(close - Fraction(units, 2**96)) <= Fraction(units, 2**96) / 2**23
    assert abs(close - Fraction(units, 2**96)) <= Fraction(1, 2**46)


def test_is_traced_once_and_runs_under_jit_vmap_and_scan():
    schedule = join(1e-3, warmup(cosine, 5), constant(3), hard_restarts(sqrt, 49, 49))
    traces = []

    @jax.jit
    def traced(step):
        traces.append(step)
        return schedule(step)

    one_by_one = [float(traced(step)) for step in range(70)]
    assert len(traces) == 1
    steps = jnp.arange(70)
    _, scanned = jax.lax.scan(lambda step, _: (step + 1, schedule(step)), 0, steps)
    for values in (jax.jit(jax.vmap(schedule))(steps), schedule(steps), scanned):
        assert values.dtype == jnp.float32
        np.testing.assert_allclose(values, one_by_one, rtol=5e-7, atol=1e-10)


def test_a_python_int_and_every_integer_dtype_are_the_same_step():
    schedule = join(1.0, decay(cosine, 100))
    kinds = (int, np.int64, jnp.int8, jnp.int32, jnp.uint32)
    values = [schedule(kind(77)) for kind in kinds]
    assert {value.dtype for value in values} == {jnp.dtype("float32")}
    assert {value.shape for value in values} == {()}
    assert len({float(value) for value in values}) == 1


def test_works_with_x64():
    with jax.enable_x64(True):
        schedule = join(jnp.float64(0.1), warmup(sqrt, 3), cycles(cosine, 9))
        values = jax.jit(schedule)(jnp.int64(5)), jax.jit(schedule)(jnp.int32(5))
    assert [value.dtype for value in values] == [jnp.float64, jnp.float32]
    for value, rel in zip(values, (1e-15, 1e-6), strict=True):
        assert value == pytest.approx(0.1 * np.cos(np.pi / 9) ** 2, rel=rel)


def test_the_peak_may_be_traced():
    peaks = jnp.asarray([0.1, 0.2])
    values = jax.vmap(lambda peak: join(peak, decay(linear, 4))(1))(peaks)
    np.testing.assert_allclose(values, [0.075, 0.15], rtol=1e-6)


def test_a_curve_of_ones_own_is_taken():
    schedule = join(1.0, decay(lambda x: x.high**3, 2))
    assert float(schedule(1)) == 0.125


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: warmup(linear, -1), "num_steps"),
        (lambda: warmup(linear, 2**31), "num_steps"),
        (lambda: warmup(linear, 3, start=1.5), "start"),
        (lambda: constant(-1), "num_steps"),
        (lambda: constant(1, level=-0.1), "level"),
        (lambda: decay(linear, -1), "num_steps"),
        (lambda: decay(linear, 3, floor=float("nan")), "floor"),
        (lambda: cycles(linear, 0), "num_steps"),
        (lambda: cycles(linear, 3, num_cycles=-1), "num_cycles"),
        (lambda: cycles(linear, 3, floor=2), "floor"),
        (lambda: hard_restarts(linear, 0), "num_steps"),
        (lambda: hard_restarts(linear, 3, num_cycles=float("inf")), "num_cycles"),
        (lambda: hard_restarts(linear, 3, num_cycles=2e6), "num_cycles"),
        (lambda: hard_restarts(linear, 3, floor=-1), "floor"),
        (lambda: shift(constant(3), -1), "num_steps"),
        (lambda: join(-1.0, constant(3)), "peak"),
        (lambda: join(float("nan"), constant(3)), "peak"),
        (lambda: join(1.0), "phases"),
        (lambda: join(1.0, constant(3))(-1), "step"),
    ],
)
def test_refuses_a_bad_value(make, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        make()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: warmup(linear, 2.5), "num_steps"),
        (lambda: warmup(linear, True), "num_steps"),
        (lambda: join("fast", constant(3)), "peak"),
        (lambda: join(jnp.ones(3), constant(3)), "peak"),
        (lambda: join(1.0, constant(3))(jnp.float32(1)), "step"),
    ],
)
def test_refuses_a_bad_kind(make, name):
    with pytest.raises(TypeError, match=f"`{name}`"):
        make()


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (
            get_scheduler("cosine", 3e-4, num_warmup_steps=5, num_training_steps=90),
            "cosine(learning_rate=0.0003, num_warmup_steps=5, num_training_steps=90)",
        ),
        (
            get_scheduler("polynomial", 0.1, 0, 9, {"power": np.float64(2)}),
            "polynomial(learning_rate=0.1, num_warmup_steps=0, num_training_steps=9, "
            "power=2.0)",
        ),
        (
            get_constant_schedule_with_warmup(jnp.float32(0.5), 3),
            "get_constant_schedule_with_warmup(learning_rate=0.5, num_warmup_steps=3)",
        ),
        (
            join(
                3e-4,
                warmup(linear, 500),
                constant(8),
                decay(polynomial(2.0), 15, floor=0.1),
            ),
            "join(0.0003, warmup(curve=linear, num_steps=500), constant(num_steps=8), "
            "decay(curve=polynomial(power=2.0), num_steps=15, floor=0.1))",
        ),
        (
            get_scheduler("greedy", 0.1, scheduler_specific_kwargs={"mode": "max"}),
            "greedy(learning_rate=0.1, mode='max')",
        ),
        (
            reduce_lr_on_plateau(0.1, patience=2, factor=0.1),
            "reduce_lr_on_plateau(learning_rate=0.1, patience=2)",
        ),
        (MetricDrivenSchedule(len, abs), "MetricDrivenSchedule(len, abs)"),
        (Phase(len, 3), "Phase(len, 3)"),
    ],
)
def test_repr_shows_name_and_numbers(schedule, text):
    assert repr(schedule) == text


def test_a_schedule_with_a_repr_is_a_function(caplog):
    schedule = join(1.0, warmup(linear, 4), constant(0))
    assert list(inspect.signature(schedule).parameters) == ["step"]
    with jax.log_compiles():
        assert jax.jit(schedule)(jnp.int32(1)) == schedule(step=1) == 0.25
    assert any("jit(schedule)" in line for line in caplog.messages)

    @jax.jit
    def traced(peak):
        schedule = join(peak, constant(0))
        assert "join(" in repr(schedule)
        return schedule(0)

    assert traced(0.5) == 0.5
