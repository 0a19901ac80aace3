"""The training loop: order of events, evaluations, saves and stops."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_tf.optimizers import adamw_tf, get_learning_rate
from jaxopt_tf.schedules import reduce_lr_on_plateau
from jaxopt_tf.training import (
    Metrics,
    Monitor,
    Norms,
    Progress,
    RunState,
    Selection,
    TrainState,
    init_train_state,
    make_evaluate,
    make_train_step,
    train,
)


def start(step=0):
    return TrainState(jnp.asarray(step, jnp.int32), None, None, None, None)


def counting_step(state, batch):
    """Takes a number for a batch, and reports it as the loss."""
    one, no = jnp.ones((), jnp.float32), jnp.asarray(False)
    loss = jnp.asarray(batch, jnp.float32)
    stopped = ~jnp.isfinite(loss)
    norms = Norms(one, one, one)
    metrics = Metrics(loss, one, norms, one, no, stopped, stopped, {})
    return state.replace(step=state.step + 1), metrics


def recorder():
    """A monitor, and the list of what it was told."""
    events = []
    monitor = Monitor(
        lambda window: events.append(
            (window.first_step, np.asarray(window.metrics.loss).tolist())
        ),
        lambda evaluation: events.append(("evaluated", evaluation.step)),
        lambda: events.append("closed"),
    )
    return monitor, events


def run(batches=None, *, events=None, first=0, **options):
    monitor, told = recorder()
    batches = itertools.count() if batches is None else batches
    trained = train(counting_step, start(first), batches, monitors=[monitor], **options)
    return trained, told


def test_monitors_receive_every_step_once_in_order():
    trained, events = run(max_steps=47)
    assert int(trained.state.step) == 47
    assert trained.stop_reason == "max_steps"
    assert events.pop() == "closed"
    assert [loss for _, losses in events for loss in losses] == list(range(47))
    for first_step, losses in events:
        assert first_step == losses[0] + 1


def test_takes_no_batch_more_than_it_needs():
    batches = itertools.count()
    run(batches, max_steps=5)
    assert next(batches) == 5


def test_evaluates_at_both_ends_and_in_between():
    _, events = run(max_steps=12, evaluate=lambda params: {"loss": 1.0}, eval_steps=4)
    assert [event[1] for event in events if event[0] == "evaluated"] == [0, 4, 8, 12]


def test_monitors_receive_all_steps_before_an_evaluation():
    _, events = run(max_steps=6, evaluate=lambda params: {"loss": 1.0}, eval_steps=3)
    told = [(1, [0, 1, 2]), ("evaluated", 3), (4, [3, 4, 5]), ("evaluated", 6)]
    assert events == [("evaluated", 0), *told, "closed"]


def test_monitors_receive_all_steps_and_evaluations_before_a_save():
    monitor, events = recorder()
    train(
        counting_step,
        start(),
        itertools.count(),
        max_steps=5,
        monitors=[monitor],
        evaluate=lambda params: {"loss": 1.0},
        eval_steps=4,
        save=lambda run_state: events.append(("saved", int(run_state.state.step))),
        save_steps=2,
    )
    assert events == [
        ("evaluated", 0),
        (1, [0, 1]),
        ("saved", 2),
        (3, [2, 3]),
        ("evaluated", 4),
        ("saved", 4),
        (5, [4]),
        ("evaluated", 5),
        ("saved", 5),
        "closed",
    ]


def test_does_not_wait_for_the_current_window():
    num_fetched = 0
    ahead = []

    def step(state, batch):
        ahead.append(batch + 1 - num_fetched)
        return counting_step(state, batch)

    def count(window):
        nonlocal num_fetched
        num_fetched += len(window.metrics.loss)

    monitor = Monitor(count, lambda evaluation: None, lambda: None)
    train(step, start(), itertools.count(), max_steps=100, monitors=[monitor])
    # Ahead of what it has looked at, but not without end.
    assert min(ahead[20:]) > 10
    assert max(ahead) <= 20


def test_fetches_one_array_for_ten_steps(monkeypatch):
    num_arrays = 0
    device_get = jax.device_get

    def count(metrics):
        nonlocal num_arrays
        num_arrays += len(jax.tree.leaves(metrics))
        return device_get(metrics)

    monkeypatch.setattr(jax, "device_get", count)
    run(max_steps=100)
    _, metrics = counting_step(start(), 0)
    assert num_arrays == 10 * len(jax.tree.leaves(metrics))


def test_goes_on_where_the_state_stands_without_a_first_evaluation():
    _, events = run(first=7, max_steps=9, evaluate=lambda params: {"loss": 1.0})
    assert events == [(8, [0.0, 1.0]), ("evaluated", 9), "closed"]


def test_has_nothing_to_do_where_the_run_has_ended():
    trained, events = run(first=9, max_steps=9, evaluate=lambda params: {"loss": 1.0})
    assert events == ["closed"]
    assert trained.stop_reason == "max_steps"


def test_stops_after_the_step_of_a_request_and_saves():
    saved, asked = [], iter([False, False, False, True])
    trained, events = run(
        max_steps=50,
        should_stop=lambda: next(asked),
        save=lambda run_state: saved.append(int(run_state.state.step)),
        save_steps=20,
    )
    assert trained.stop_reason == "should_stop"
    assert saved == [3]
    assert events == [(1, [0, 1, 2]), "closed"]


def test_takes_no_step_if_stopped_before_the_first():
    batches = itertools.count()
    trained, _ = run(batches, max_steps=50, should_stop=lambda: True)
    assert (trained.stop_reason, int(trained.state.step)) == ("should_stop", 0)
    assert next(batches) == 0


def losses_by_step(losses, monitor=None):
    """An `evaluate` that gives one loss after the other."""
    losses = iter(losses)
    return lambda params: {"loss": next(losses)}


def test_early_stopping_reports_the_best_evaluation():
    saved = []
    trained, _ = run(
        max_steps=50,
        # The first is before training: for the monitors, not for the patience.
        evaluate=losses_by_step([0.1, 5.0, 4.0, 4.5, 4.4, 3.0]),
        eval_steps=5,
        selection=Selection(early_stopping_patience=2),
        save=lambda run_state: saved.append(
            (int(run_state.state.step), run_state.progress)
        ),
    )
    assert trained.stop_reason == "early_stopping"
    assert trained.run_state.progress == Progress(4.0, 10, 2)
    assert saved == [(20, Progress(4.0, 10, 2))]


def test_saves_the_best_where_no_save_was_due():
    saved = []
    run(
        max_steps=8,
        evaluate=losses_by_step([9.0, 5.0, 6.0, 4.0, 4.0]),
        eval_steps=2,
        save=lambda run_state: saved.append(int(run_state.state.step)),
        save_steps=5,
        save_best=True,
    )
    assert saved == [2, 5, 6, 8]


def test_does_not_resume_after_early_stopping():
    batches = itertools.count()
    trained = train(
        counting_step,
        RunState(start(20), Progress(4.0, 10, 2)),
        batches,
        max_steps=50,
        selection=Selection(early_stopping_patience=2),
    )
    assert trained.stop_reason == "early_stopping"
    assert next(batches) == 0


@pytest.mark.promotion_of_others
def test_a_metric_drives_the_rate_and_its_state_goes_on():
    optimizer = adamw_tf(1.0)
    schedule = reduce_lr_on_plateau(1.0, factor=0.5, patience=0)
    step = make_train_step(lambda p, b: (jnp.sum(p * b), 1), optimizer)
    losses = [9.0, 5.0, 6.0, 4.0, 4.0, 3.0, 3.0]

    def part(start, losses, max_steps):
        return train(
            step,
            start,
            itertools.repeat(np.float32(1)),
            max_steps=max_steps,
            evaluate=losses_by_step(losses),
            eval_steps=1,
            metric_schedule=schedule,
        )

    def begin():
        return init_train_state(jnp.ones(2), optimizer)

    whole = part(begin(), losses, 6)
    assert float(get_learning_rate(whole.state.opt_state)) == 0.125
    first = part(begin(), losses[:4], 3)
    assert float(get_learning_rate(first.state.opt_state)) == 0.5
    second = part(first.run_state, losses[4:], 6)
    jax.tree.map(np.testing.assert_array_equal, second, whole)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_stops_and_names_the_step_that_stopped(bad):
    monitor, events = recorder()
    losses = [*range(13), bad, *range(40)]
    with pytest.raises(FloatingPointError, match=r"`loss` and .* at step 14\. The sta"):
        train(counting_step, start(), losses, max_steps=50, monitors=[monitor])
    # Told of first, up to the step itself: file and picture show what happened.
    *_, (first_step, told), closed = events
    assert (first_step, len(told), closed) == (11, 4, "closed")
    np.testing.assert_equal(told[-1], bad)


@pytest.mark.promotion_of_others
def test_saves_what_was_before_the_step_that_stopped():
    optimizer, saved = adamw_tf(0.1), []
    step = make_train_step(lambda p, b: (jnp.sum(p * b), 1), optimizer)
    with pytest.raises(FloatingPointError):
        train(
            step,
            init_train_state(jnp.ones(2), optimizer),
            [np.float32(loss) for loss in (1, 1, 1, np.nan, 1, 1)],
            max_steps=6,
            save=saved.append,
        )
    (run_state,) = saved
    assert int(run_state.state.step) == 3
    assert int(run_state.state.num_bad_in_a_row) == 0
    assert np.isfinite(run_state.state.params).all()


def test_saves_before_it_says_that_there_are_too_few_batches():
    saved = []
    with pytest.raises(ValueError, match="`batches` must contain"):
        run(
            [0, 1, 2],
            max_steps=4,
            save=lambda run_state: saved.append(int(run_state.state.step)),
        )
    assert saved == [3]


def test_an_error_is_not_hidden_by_a_monitor_that_cannot_be_closed():
    def refuse():
        raise OSError("the disk is full")

    broken = Monitor(lambda window: None, lambda evaluation: None, refuse)
    monitor, events = recorder()
    with pytest.raises(ValueError, match="`batches` must contain"):
        train(counting_step, start(), [0], max_steps=4, monitors=[broken, monitor])
    assert events[-1] == "closed"


def test_a_run_that_is_complete_was_not_asked_to_end():
    asked = iter([False] * 3 + [True])
    trained, _ = run(max_steps=3, should_stop=lambda: next(asked))
    assert trained.stop_reason == "max_steps"


def test_reports_at_the_start_that_the_metric_is_missing():
    batches = itertools.count()
    with pytest.raises(ValueError, match="`metric_for_best_model`"):
        run(
            batches,
            max_steps=9,
            evaluate=lambda params: {"loss": 1.0},
            selection=Selection("accuracy"),
        )
    assert next(batches) == 0


def test_refuses_to_take_a_mean_over_no_items():
    evaluate = make_evaluate(lambda params, batch: (0.0, 0), [None])
    with pytest.raises(ValueError, match="`batches` must contain items"):
        evaluate(None)


def test_refuses_too_few_batches():
    monitor, events = recorder()
    with pytest.raises(ValueError, match="`batches` must contain.* ended after step 3"):
        train(counting_step, start(), [0, 1, 2], max_steps=4, monitors=[monitor])
    assert events == [(1, [0.0, 1.0, 2.0]), "closed"]


@pytest.mark.parametrize("name", ["max_steps", "eval_steps", "save_steps"])
@pytest.mark.parametrize("value", [0, -1])
def test_refuses_a_count_below_1(name, value):
    counts = {"max_steps": 2, name: value}
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        train(counting_step, start(), [0, 1], **counts)


def test_evaluate_weighs_batches_by_their_items():
    eval_step = jax.jit(lambda params, batch: (jnp.sum(batch * params), batch.size))
    batches = [np.full(3, 1.0, np.float32), np.full(1, 5.0, np.float32)]
    assert make_evaluate(eval_step, batches)(np.float32(2.0)) == {"loss": 4.0}


def test_evaluate_takes_several_sums_by_name():
    def eval_step(params, batch):
        return {"loss": batch.sum(), "accuracy": (batch > 2).sum()}, batch.size

    batches = [np.arange(4.0), np.arange(2.0)]
    metrics = make_evaluate(eval_step, batches)(None)
    assert metrics == {"loss": 7 / 6, "accuracy": 1 / 6}


def test_refuses_to_evaluate_on_nothing():
    with pytest.raises(ValueError, match="`batches` must contain at least one"):
        make_evaluate(lambda params, batch: (0.0, 1), [])


def test_optax_needs_no_change_to_be_trained_with():
    optimizer = optax.sgd(0.1)
    step = make_train_step(lambda p, b: (jnp.sum((p - b) ** 2), 2), optimizer)
    trained = train(
        step,
        init_train_state(jnp.ones(2), optimizer),
        itertools.repeat(np.zeros(2, np.float32)),
        max_steps=30,
    )
    assert np.all(np.abs(trained.state.params) < 0.1)


@pytest.mark.parametrize(
    "value", ["0.5", None, True, 0.5j, np.ones(1), [0.5]], ids=repr
)
def test_refuses_a_metric_that_is_not_a_real_number(value):
    # Also one that nothing is compared by: monitors write it.
    with pytest.raises(
        TypeError, match=r"`evaluation.metrics\['accuracy'\]` must be a"
    ):
        run(
            max_steps=2,
            evaluate=lambda params: {"loss": 1.0, "accuracy": value},
            eval_steps=1,
        )


@pytest.mark.parametrize("returned", [None, 0.5, [("loss", 0.5)]])
def test_refuses_an_evaluation_that_is_not_a_mapping(returned):
    message = "`evaluation.metrics` must be a mapping from names to numbers"
    with pytest.raises(TypeError, match=message):
        run(max_steps=2, evaluate=lambda params: returned)


def test_hands_monitors_floats():
    seen = []
    monitor = Monitor(lambda _: None, seen.append, lambda: None)
    metrics = {"loss": jnp.float32(0.5), "accuracy": np.int64(3), "bad": float("nan")}
    train(
        counting_step,
        start(),
        itertools.count(),
        max_steps=1,
        evaluate=lambda params: metrics,
        monitors=[monitor],
    )
    for evaluation in seen:
        assert [type(value) for value in evaluation.metrics.values()] == [float] * 3
        assert evaluation.metrics["accuracy"] == 3.0


@pytest.mark.parametrize("value", ["0.5", None, True, np.complex64(0.5), np.ones(1)])
def test_evaluate_refuses_sums_that_are_not_real_numbers(value):
    for result in (({"loss": 1.0, "right": value}, 2), (value, 2)):
        with pytest.raises(TypeError, match=r"`eval_step\(.*\[0\].*` must be a"):
            make_evaluate(lambda params, batch, result=result: result, [None])(None)
    with pytest.raises(TypeError, match=r"`eval_step\(params, batch\)\[1\]` must be a"):
        make_evaluate(lambda params, batch: (1.0, value), [None])(None)
