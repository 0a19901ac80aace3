"""Schedules driven by a metric, against those of torch and Transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_tf import schedules
from jaxopt_tf.schedules import greedy, reduce_lr_on_plateau
from tests import references
from tests.references import schedules as theirs

INF, NAN = float("inf"), float("nan")
MAKE = {"plateau": reduce_lr_on_plateau, "greedy": greedy}
TWIN = {"plateau": theirs.plateau, "greedy": theirs.greedy}
both = pytest.mark.parametrize("which", ["plateau", "greedy"])


def rates(schedule, metrics):
    state, rates = schedule.init(), []
    for metric in metrics:
        state = schedule.update(state, metric)
        rates.append(state.learning_rate)
    return rates


def assert_equals_reference(which, metrics, options):
    """Asserts that rates and decisions are bitwise equal to torch's doubles."""
    ours = rates(MAKE[which](**options), metrics)
    np.testing.assert_array_equal(ours, TWIN[which](metrics, **options), str(options))


@references.needs_transformers
@both
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_reference_on_random_streams(which, seed):
    rng = np.random.default_rng(seed)
    for k in range(16):
        options, shape = theirs.random_options(rng, which)
        # The seeds cover every mode, and smoothing.
        shape["mode"] = ("min", "max")[seed % 2]
        shape["threshold_mode"] = ("rel", "abs")[seed // 2]
        if which == "greedy":
            shape["smooth"] = k % 2 == 0
        assert_equals_reference(which, theirs.random_stream(rng), options | shape)


def test_waits_for_more_than_patience():
    # The schedule of optax reduces the rate one metric earlier.
    schedule = reduce_lr_on_plateau(1.0, patience=2)
    expected = [1, 1, 1, 0.1, 0.1, 0.1, 0.01]
    np.testing.assert_allclose(rates(schedule, [1.0] * 7), expected, rtol=1e-6)


def test_forgives_during_the_cooldown():
    schedule = reduce_lr_on_plateau(1.0, patience=0, cooldown=2, factor=0.5)
    expected = [1, 0.5, 0.5, 0.5, 0.25, 0.25]
    np.testing.assert_allclose(rates(schedule, [1.0] * 6), expected)


@pytest.mark.parametrize(
    ("options", "metrics", "bad"),
    [
        ({"threshold_mode": "rel", "threshold": 0.5}, [4.0, 2.0, 1.9], [0, 1, 0]),
        ({"threshold_mode": "abs", "threshold": 1.0}, [4.0, 3.0, 2.9], [0, 1, 0]),
        ({"mode": "max", "threshold": 0.5}, [2.0, 3.0, 3.1], [0, 1, 0]),
        (
            {"mode": "max", "threshold_mode": "abs", "threshold": 0.5},
            [2.0, 2.5, 2.6],
            [0, 1, 0],
        ),
        ({}, [NAN, 1.0, NAN, 0.5], [1, 0, 1, 0]),
        ({}, [INF, 1.0, -INF, -INF, 0.0], [1, 0, 0, 1, 2]),
        ({"threshold": 1.0}, [1.0, 0.5, -0.5], [1, 2, 3]),  # inf * 0 is NaN
    ],
)
def test_counts_bad_metrics(options, metrics, bad):
    schedule = reduce_lr_on_plateau(1.0, **options)
    state, counted = schedule.init(), []
    for metric in metrics:
        state = schedule.update(state, metric)
        counted.append(int(state.num_bad_updates))
    assert counted == bad


def test_the_rate_stops_at_its_bounds():
    lowest = rates(reduce_lr_on_plateau(1.0, patience=0, min_lr=0.03), [1.0] * 5)
    np.testing.assert_allclose(lowest, [1, 0.1, 0.03, 0.03, 0.03])
    falling = -np.arange(6.0)
    highest = rates(greedy(0.5, factor=0.5, patience=1, max_lr=1.5), falling)
    np.testing.assert_allclose(highest, [0.5, 1, 1, 1.5, 1.5, 1.5])


def test_a_change_of_eps_or_less_is_left_out():
    schedule = reduce_lr_on_plateau(1.0, patience=0, factor=0.5, eps=0.25)
    np.testing.assert_allclose(rates(schedule, [1.0] * 4), [1, 0.5, 0.5, 0.5])


def test_greedy_waits_after_either_change():
    options = {"factor": 0.5, "patience": 0, "cooldown": 2, "warmup": 1, "min_lr": 0.0}
    schedule = greedy(0.25, **options)
    metrics = [3.0, 2.0, 4.0, 1.0, 1.0, 1.0]
    expected = [0.5, 0.5, 0.25, 0.25, 0.25, 0.5]
    np.testing.assert_allclose(rates(schedule, metrics), expected)


def test_greedy_starts_anew_after_enough_reductions_at_the_bottom():
    options = {"factor": 0.5, "patience": 0, "min_lr": 0.25, "max_lr": 1.0}
    schedule = greedy(1.0, reset_start=2, threshold=0.0, **options)
    # Reduced at the 2nd metric, at the minimum from the 3rd on; the 4th is the second.
    expected = [1, 0.5, 0.25, 1, 1, 0.5]
    np.testing.assert_allclose(rates(schedule, [1.0] * 6), expected)
    state = schedule.init()
    for _ in range(4):
        state = schedule.update(state, 1.0)
    assert state == schedule.init()


@references.needs_transformers
def test_a_rate_that_came_back_is_at_its_bound_as_the_double_has_it():
    # Reduced to min_lr, raised once, reduced again: x / factor * factor may be slightly
    # above x. The rate is then never at the bound, and no reset occurs.
    options = {"learning_rate": 0.002, "threshold": 0.0, "patience": 0}
    options |= {"reset_start": 2}
    metrics = [9.0, *[9.0] * 30, 8.0, *[9.0] * 9]
    for factor in (0.95, 0.9, 0.7, 0.3):
        for min_lr in (0.001, 0.0011, 0.0013, 0.0017, 0.0023):
            bounds = {"factor": factor, "min_lr": min_lr}
            assert_equals_reference("greedy", metrics, options | bounds)


@references.needs_transformers
@both
def test_three_hundred_multiplications_stay_exact(which):
    options = {"learning_rate": 0.123, "factor": 0.9773, "patience": 0}
    options |= {"threshold": 0.0, "min_lr": 1e-9}
    metrics = np.ones(300)
    if which == "greedy":
        options |= {"max_lr": 10.0, "eps": 1e-12}
        metrics[150:] = -np.arange(150)  # the same metrics in reverse
    assert_equals_reference(which, metrics, options)


def test_a_metric_of_the_host_is_a_double():
    schedule = reduce_lr_on_plateau(1.0, threshold=0.0)
    state = schedule.update(schedule.init(), 1.0)
    assert schedule.update(state, 1.0 - 1e-12).num_bad_updates == 0
    assert schedule.update(state, 1.0).num_bad_updates == 1


@both
def test_states_hold_python_numbers_and_updates_compile_nothing(which, caplog):
    schedule = MAKE[which](jnp.float32(0.1), patience=0)
    states = [schedule.init()]
    with jax.log_compiles():
        for metric in (3.0, NAN, jnp.float32(2.0), INF, np.float64(1.0)):
            states.append(schedule.update(states[-1], metric))
    assert [line for line in caplog.messages if line.startswith("Compiling")] == []
    for state in states:
        assert {type(x) for x in jax.tree.leaves(state)} == {float, int}
    assert states[0].learning_rate == float(np.float32(0.1))


@both
def test_refuses_to_be_compiled(which):
    schedule = MAKE[which](0.1)
    with pytest.raises(TypeError, match="`metric` must be a number that is known on"):
        jax.jit(lambda metric: schedule.update(schedule.init(), metric))(1.0)
    with pytest.raises(TypeError, match="`state` must contain Python numbers"):
        jax.jit(schedule.update)(schedule.init(), 1.0)
    # A float32 from a compiled program has lost digits of the rate.
    state = jax.jit(lambda state: state)(schedule.init())
    with pytest.raises(TypeError, match="`state` must contain Python numbers"):
        schedule.update(state, 1.0)
    for option in ("learning_rate", "factor", "min_lr", "eps"):
        with pytest.raises(TypeError, match=f"`{option}` must be a number that is kn"):
            jax.jit(
                lambda x, option=option: MAKE[which](**{"learning_rate": 1, option: x})
            )(0.5)


@both
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("mode", "minimum"),
        ("factor", 1.0),
        ("factor", 0.0),
        ("factor", NAN),
        ("patience", -1),
        ("threshold", -0.1),
        ("threshold_mode", "relative"),
        ("cooldown", -1),
        ("min_lr", -1.0),
        ("eps", NAN),
    ],
)
def test_refuses_a_bad_option(which, option, value):
    with pytest.raises(ValueError, match=f"`{option}`"):
        MAKE[which](0.1, **{option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [("warmup", -1), ("max_lr", INF), ("window_size", 0), ("reset_start", -1)],
)
def test_greedy_refuses_a_bad_option(option, value):
    with pytest.raises(ValueError, match=f"`{option}`"):
        greedy(0.1, **{option: value})


def test_greedy_refuses_a_lower_bound_above_the_upper_one():
    message = "`min_lr` must be at most `max_lr`, got min_lr=0.5 with max_lr=0.1"
    with pytest.raises(ValueError, match=message):
        greedy(0.2, min_lr=0.5, max_lr=0.1)
    # The default of one bound against a given value of the other.
    with pytest.raises(ValueError, match="got min_lr=0.001 with max_lr=0.0001"):
        greedy(5e-5, max_lr=1e-4)
    with pytest.raises(ValueError, match="`min_lr` must be at most `max_lr`"):
        schedules.get_scheduler("greedy", 0.2, None, None, {"min_lr": 2.0})
    greedy(0.2, min_lr=0.1, max_lr=0.1)
    # Transformers accepts a rate outside of its bounds, and some runs have one.
    greedy(5e-5)
    greedy(2.0)


@both
@pytest.mark.parametrize("value", ["0.1", None, True, 0.1j, [0.1], jnp.ones(1)])
def test_refuses_options_of_a_bad_kind(which, value):
    numbers = ["factor", "threshold", "min_lr", "eps"]
    counts = ["patience", "cooldown"]
    if which == "greedy":
        numbers += ["max_lr"]
        counts += ["warmup", "window_size", "reset_start"]
    with pytest.raises(TypeError, match="`learning_rate`"):
        MAKE[which](value)
    for option in [*numbers, *counts]:
        with pytest.raises(TypeError, match=f"`{option}`"):
            MAKE[which](0.1, **{option: value})
    for option in ("mode", "threshold_mode"):
        with pytest.raises(ValueError, match=f"`{option}`"):
            MAKE[which](0.1, **{option: value})


@pytest.mark.parametrize("value", ["false", None, 0, 1.0, jnp.asarray(True)])
def test_greedy_refuses_smooth_that_is_not_a_bool(value):
    with pytest.raises(TypeError, match="`smooth` must be a bool"):
        greedy(0.1, smooth=value)


@both
def test_refuses_a_bad_rate(which):
    with pytest.raises(ValueError, match="`learning_rate`"):
        MAKE[which](-0.1)


def test_get_scheduler_gives_the_pair():
    options = {"patience": 0, "factor": 0.5}
    schedule = schedules.get_scheduler(
        "reduce_lr_on_plateau", 1.0, scheduler_specific_kwargs=options
    )
    np.testing.assert_allclose(rates(schedule, [1.0, 1.0]), [1, 0.5])


@both
@pytest.mark.parametrize("metric", [jnp.ones(1), np.ones((1, 1)), jnp.ones((0,))])
def test_refuses_a_metric_that_is_an_array(which, metric):
    schedule = MAKE[which](0.1)
    with pytest.raises(TypeError, match="`metric` must be a single number"):
        schedule.update(schedule.init(), metric)


@both
@pytest.mark.parametrize(
    "metric",
    [
        "0.5",
        b"0.5",
        np.str_("0.5"),
        np.asarray("0.5"),
        None,
        True,
        np.bool_(True),
        jnp.asarray(True),
        0.5j,
        np.complex64(0.5),
        jnp.complex64(0.5),
        [0.5],
        {"loss": 0.5},
    ],
    ids=repr,
)
def test_refuses_a_metric_that_is_not_a_real_number(which, metric):
    schedule = MAKE[which](0.1)
    with pytest.raises(TypeError, match="`metric` must be a real number, got"):
        schedule.update(schedule.init(), metric)


@both
def test_takes_every_kind_of_real_number_as_a_metric(which):
    schedule = MAKE[which](0.1)
    # 2^24 + 1 is not a float32.
    for metric in (2**24 + 1, np.int64(2**24 + 1), jnp.int32(2**24 + 1)):
        assert schedule.update(schedule.init(), metric).best == 2**24 + 1
    for metric in (0.5, np.float32(0.5), jnp.bfloat16(0.5), np.asarray(0.5)):
        assert schedule.update(schedule.init(), metric).best == 0.5


@both
def test_refuses_a_state_of_another_kind(which):
    schedule = MAKE[which](0.1)
    other = greedy if which == "plateau" else reduce_lr_on_plateau
    for state in (other(0.1).init(), 1.0, None, tuple(schedule.init())):
        with pytest.raises(TypeError, match="`state` must be a .*State.* got"):
            schedule.update(state, 1.0)
    with pytest.raises(TypeError, match="`state`"):
        schedule.update(1.0, schedule.init())


def test_greedy_refuses_a_state_with_another_smoothing():
    state = greedy(0.1).init()
    for options in ({"smooth": True}, {"smooth": True, "window_size": 3}):
        with pytest.raises(ValueError, match="`state` must have been created with"):
            greedy(0.1, **options).update(state, 1.0)
        state = greedy(0.1, **options).init()
    with pytest.raises(ValueError, match="`smooth`=False"):
        greedy(0.1).update(state, 1.0)
