"""Messages of the health monitor; the benchmark uses real runs."""

import numpy as np
import pytest

from jaxopt_tf.monitors import health_monitor
from jaxopt_tf.training import Evaluation
from tests.events import metrics_of, part, tell, window_of

STEPS = np.arange(1, 1001)
# FolderLock-out losses by step, 0.2 more at each evaluation from step 150 on.
RISING = {50: 3.0, 100: 2.5} | {
    step: 2.4 + (step - 150) / 250 for step in range(150, 451, 50)
}


def falling(noise=0.05, start=5.0, end=2.0, size=1000, seed=0):
    """A loss that falls fast and then slowly."""
    steps = np.arange(size)
    losses = end + (start - end) * np.exp(-steps / 60)
    return losses + noise * np.random.default_rng(seed).normal(size=size)


def said_of(loss, *, param_dtype="float32", cuts=(), evaluations=None, **numbers):
    sentences = []
    monitor = health_monitor(sentences.append, param_dtype=param_dtype)
    tell(monitor, metrics_of(loss, **numbers), cuts=cuts, evaluations=evaluations)
    monitor.close()
    return sentences


def test_is_silent_on_a_loss_that_falls():
    evaluation = {step: float(falling(0.0)[step - 1]) for step in range(50, 1001, 50)}
    assert said_of(falling(), evaluations=evaluation) == []


def diverging(to=4.0, since=400):
    losses = falling()
    losses[since:] += np.minimum((STEPS[since:] - since) / 50, 1.0) * (to - 2.0)
    return losses


def test_reports_that_a_run_diverges_and_in_which_steps():
    (sentence,) = said_of(diverging())
    assert sentence.startswith("steps 421 to 500: the loss has risen to 3.")
    assert "training diverges" in sentence
    assert "lower `learning_rate`" in sentence


def test_a_loss_that_rises_from_the_first_step_diverges():
    losses = 35.0 - 30 * np.exp(-(STEPS - 1) / 5)
    (sentence,) = said_of(losses)
    assert sentence.startswith("steps 1 to 80: ")
    assert "from 5" in sentence
    assert "training diverges" in sentence


@pytest.mark.parametrize("to", [2.2, 2.4])
def test_a_loss_that_rises_a_little_does_not_diverge(to):
    assert said_of(diverging(to)) == []


def test_a_little_less_than_its_best_is_no_divergence_near_an_optimum():
    losses = falling(0.005, 1.0, 0.98) + np.where(STEPS > 400, 0.12, 0.0)
    assert said_of(losses) == []


def test_a_spike_is_no_divergence():
    losses = falling()
    losses[500:550] += 3.0
    assert said_of(losses) == []


def test_a_rise_after_a_restart_of_the_rate_is_no_divergence():
    losses = diverging(2.9)
    rate = np.where(STEPS <= 400, 1e-3 * (1 - STEPS / 400) + 1e-6, 1e-3)
    assert said_of(losses, rate=rate) == []
    # At an even rate it would be one.
    assert len(said_of(losses)) == 1


@pytest.mark.parametrize("seed", range(5))
def test_noise_of_small_batches_is_no_divergence(seed):
    # Near its optimum, so that the best of many blocks is far below the others.
    assert said_of(falling(1.5, 2.6, 2.2, seed=seed)) == []


@pytest.mark.parametrize("start", [1e-3, 1e3, -4.0])
def test_the_unit_of_the_loss_does_not_matter(start):
    size = abs(start)
    losses = falling(0.02 * size, start, start - 0.6 * size)
    assert said_of(losses, grads=size) == []
    rising = losses + np.where(STEPS > 500, 1.5 * size, 0.0)
    (sentence,) = said_of(rising, grads=size)
    assert "training diverges" in sentence


def test_reports_at_once_that_a_loss_is_not_finite():
    losses = falling()[:125]
    losses[114] = np.nan
    (sentence,) = said_of(losses)
    assert sentence.startswith("step 115: the loss is nan and the gradient norm 1, all")
    assert "look at the batch" in sentence


def test_a_loss_that_rose_before_it_was_infinite_has_diverged():
    losses = np.array([2.0, 3.0, 50.0, 4e4, np.inf])
    (sentence,) = said_of(losses, grads=[1, 1, 50, 1e6, np.inf])
    assert sentence.startswith("step 5: the loss is inf and the gradient norm inf")
    assert "after a rise from 2 to 4e+04, training diverges" in sentence


def test_reports_the_step_that_stops_a_run():
    (sentence,) = said_of([2.0, np.nan], skipped=[0, 1], stopped=[0, 1])
    assert sentence.startswith("step 2: the loss is nan")


def test_reports_that_gradients_explode_where_no_step_can_follow_them():
    (sentence,) = said_of(np.full(100, 3.0), grads=1e6)
    assert sentence.startswith("steps 1 to 60: the gradient norm is 1e+06, ")
    assert "gradients explode; clip" in sentence


def test_reports_that_gradients_explode_where_they_have_grown_for_nothing():
    grads = np.where(STEPS > 500, 50.0, 1.0)
    (sentence,) = said_of(falling() + (STEPS > 500) * 0.2, grads=grads)
    assert sentence.startswith("steps 501 to 560: the gradient norm is 50; it was 1 at")


def test_gradients_that_grow_while_the_loss_falls_do_not_explode():
    # Out of a plateau.
    losses = 5.0 - 3.0 / (1 + np.exp(-(STEPS - 300) / 40))
    grads = np.where(STEPS > 200, 1.0, 1e-2)
    assert said_of(losses, grads=grads) == []


def test_a_few_large_gradients_are_no_explosion():
    grads = np.where(STEPS % 20 == 0, 1e8, 1.0)
    assert said_of(falling(), grads=grads) == []


def test_reports_that_gradients_vanish():
    (sentence,) = said_of(np.full(100, 2.3), grads=1e-8)
    assert sentence.startswith("steps 1 to 100: the gradient norm is 1.0e-08 while")
    assert "gradients vanish" in sentence


def test_reports_which_layers_gradients_vanish():
    layers = {
        "h.0": (1e-9, 1e-3, 3.0),
        "h.1": (1e-8, 1e-3, 3.0),
        "head": (0.3, 1e-3, 3.0),
    }
    (sentence,) = said_of(np.full(100, 2.3), layers=layers)
    assert "the gradient of `h.0` and 1 more is below 1e-06 of" in sentence


def test_frozen_layer_is_not_reported():
    layers = {"frozen": (0.0, 0.0, 3.0), "head": (0.3, 1e-3, 3.0)}
    assert said_of(falling(), layers=layers) == []


def test_gradients_may_vanish_where_all_is_learnt():
    grads = np.maximum(np.exp(-STEPS / 30), 1e-12)
    assert said_of(falling(0.0, end=1e-4), grads=grads) == []


def test_reports_that_a_loss_is_stuck():
    losses = np.log(10) + 0.01 * np.random.default_rng(0).normal(size=1000)
    (sentence,) = said_of(losses)
    assert sentence.startswith("steps 121 to 520: the loss is 2.30")
    assert (
        "stuck while parameters change by 1e-03 a step; check that labels" in sentence
    )
    (sentence,) = said_of(losses, updates=1e-6)
    assert "change by 1e-07 a step; raise `learning_rate`" in sentence


def test_a_warm_up_is_not_stuck():
    losses = np.full(1000, 5.0)
    assert said_of(losses, rate=STEPS * 1e-6) == []


def test_a_run_that_begins_near_its_optimum_is_not_stuck():
    rng = np.random.default_rng(0)
    losses = 2.0 - 0.01 * (1 - np.exp(-STEPS / 200)) + 0.2 * rng.normal(size=1000)
    assert said_of(losses) == []


def test_a_slow_but_steady_fall_is_not_stuck():
    assert said_of(5.0 - 4e-5 * STEPS + 1e-3 * np.sin(STEPS)) == []


def test_a_flat_end_is_not_stuck():
    assert said_of(falling(0.01, 5.0, 4.0, size=6000)) == []


def test_reports_that_updates_are_rounded_away():
    losses = falling()
    (sentence,) = said_of(losses, updates=1e-3, param_dtype="bfloat16")
    assert sentence.startswith("steps 21 to 120: updates are 1e-04 of the parameters, ")
    assert "bfloat16 rounds most changes below 2e-03 away; keep parameters" in sentence
    assert said_of(losses, updates=1e-3) == []
    assert said_of(losses, updates=3e-2, param_dtype="bfloat16") == []


def test_float32_rounds_as_well():
    (sentence,) = said_of(falling(), updates=1e-8)
    assert "float32 rounds most changes below 3e-08 away; raise `learn" in sentence


@pytest.mark.parametrize("rate_is_known", [True, False])
def test_a_rate_that_rises_from_0_and_ends_at_0_is_not_rounded_away(rate_is_known):
    share = np.minimum(STEPS / 300, (1000 - STEPS) / 700)
    rate = 1e-3 * share if rate_is_known else np.nan
    sentences = said_of(
        falling(), rate=rate, updates=0.04 * share, param_dtype="bfloat16"
    )
    assert sentences == []


def test_an_unknown_rate_does_not_hide_what_is_rounded_away():
    updates = 1e-4 * (1 + 0.05 * np.random.default_rng(0).normal(size=1000))
    (sentence,) = said_of(
        falling(), rate=np.nan, updates=updates, param_dtype="bfloat16"
    )
    assert "bfloat16 rounds most changes" in sentence


def test_reports_that_the_model_overfits():
    losses = falling(end=0.1)
    (sentence,) = said_of(losses, evaluations=RISING)
    assert sentence.startswith(
        "steps 300 to 400: the evaluation loss has risen to 3.4 "
    )
    assert "from 2.4 (step 150) while the training loss fell to 0.1" in sentence
    assert "the model overfits; take the checkpoint of step 150, stop" in sentence


def of_evaluations(losses, trainings, noise=0.05, seed=0, steps=60):
    """Returns the messages for a run with few evaluations, given both losses."""
    rng = np.random.default_rng(seed)
    training = np.interp(
        np.arange(steps * len(losses)), steps * np.arange(len(trainings)), trainings
    )
    evaluations = {steps * (i + 1): loss for i, loss in enumerate(losses)}
    noisy = training + noise * rng.normal(size=len(training))
    return said_of(noisy, evaluations=evaluations)


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("steps", [5, 60])
def test_overfitting_is_noticed_with_few_evaluations(unit, steps):
    trainings = [unit * loss for loss in (5.0, 2.5, 1.6, 0.9, 0.5)]
    losses = [unit * loss for loss in (2.97, 3.34, 4.17, 4.71)]
    sentences = of_evaluations(losses, trainings, 0.05 * unit, steps=steps)
    (sentence,) = [s for s in sentences if "overfits" in s]
    # At the third of them, and the best one is named.
    assert sentence.startswith(f"steps {2 * steps} to {3 * steps}: the evaluation loss")
    assert f"take the checkpoint of step {steps}, stop early" in sentence


def test_a_far_rise_while_the_training_loss_rises_too_is_not_overfitting():
    sentences = of_evaluations([2.97, 3.34, 4.17, 4.71], [2.0, 2.4, 2.8, 3.2, 3.6])
    assert not any("overfits" in sentence for sentence in sentences)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["falls", "plateau", "late rise", "noise"])
def test_a_healthy_run_with_four_evaluations_is_not_overfitting(kind, seed):
    rng = np.random.default_rng(seed)
    trainings = np.array([5.0, 2.8, 2.3, 2.0, 1.8])
    # What the evaluation loss is above the training loss by.
    gap = {
        "falls": [0.1, 0.2, 0.3, 0.35],
        "plateau": [0.1, 0.3, 0.6, 0.8],  # the evaluation loss stays at 2.6 to 2.9
        "late rise": [0.1, 0.25, 0.6, 1.0],  # by up to a tenth of the best one
        "noise": [0.1, 0.2, 0.3, 0.35],
    }[kind]
    noise = 0.15 if kind == "noise" else 0.03
    losses = trainings[1:] + gap + noise * rng.normal(size=4)
    assert of_evaluations(losses.tolist(), trainings, noise=0.2, seed=seed) == []


@pytest.mark.parametrize("rise", [0.005, -0.005])
def test_an_evaluation_loss_that_creeps_is_not_overfitting(rise):
    evaluation = {step: 2.4 + rise * step / 50 for step in range(50, 1001, 50)}
    assert said_of(falling(end=0.1), evaluations=evaluation) == []


def test_an_evaluation_loss_that_goes_up_and_down_is_not_overfitting():
    rng = np.random.default_rng(0)
    evaluation = {
        step: 2.4 + 0.3 * abs(float(rng.normal())) for step in range(25, 1001, 25)
    }
    assert said_of(falling(end=0.1), evaluations=evaluation) == []


def test_where_the_training_loss_rises_too_it_is_not_overfitting():
    losses = falling() + np.where(STEPS > 150, 0.7, 0.0)
    assert said_of(losses, evaluations=RISING) == []


def test_reports_that_many_steps_are_skipped():
    skipped = STEPS % 8 == 0
    losses = np.where(skipped, np.nan, falling())
    sentences = said_of(losses, skipped=skipped, updates=np.where(skipped, 0, 1e-2))
    (sentence,) = sentences
    assert sentence.startswith("steps 1 to 80: 10 steps were skipped")


def test_occasional_skipped_steps_are_not_reported():
    skipped = STEPS % 20 == 0
    assert said_of(np.where(skipped, np.nan, falling()), skipped=skipped) == []


def skipping_between(first, last, size):
    steps = np.arange(1, size + 1)
    return (steps % 4 == 0) & (steps > first) & (steps <= last)


def test_repeats_a_message_only_after_the_problem_has_ended():
    size = 3000
    once = skipping_between(0, 2000, size)
    twice = skipping_between(0, 500, size) | skipping_between(1500, 2000, size)
    losses = falling(size=size)
    assert len(said_of(losses, skipped=once)) == 1
    assert len(said_of(losses, skipped=twice)) == 2


def test_reports_again_what_does_not_end_after_a_long_time():
    size = 25_000
    losses = falling(size=size)
    sentences = said_of(losses, skipped=skipping_between(0, size, size))
    assert len(sentences) == 2
    assert " to 20040: " in sentences[1]


def test_messages_do_not_depend_on_window_boundaries():
    losses = diverging()
    losses[900] = np.nan
    whole = said_of(losses)
    assert len(whole) == 2
    cuts = np.cumsum(np.random.default_rng(0).integers(1, 9, 300))
    assert said_of(losses, cuts=cuts[cuts < 1000].tolist()) == whole


def test_replayed_run_gives_the_same_messages():
    metrics, sentences = metrics_of(diverging()), []
    monitor = health_monitor(sentences.append)
    tell(monitor, part(metrics, 0, 490))
    assert sentences == []
    tell(monitor, part(metrics, 490, 1000), first_step=491)
    assert sentences == said_of(diverging())


def test_prints_by_default(capsys):
    monitor = health_monitor()
    monitor.window(window_of(1, [2.0, np.nan]))
    assert capsys.readouterr().out.startswith("step 2: the loss is nan")


def test_an_evaluation_without_a_loss_is_passed_over():
    sentences = []
    monitor = health_monitor(sentences.append)
    monitor.evaluation(Evaluation(0, {"accuracy": 0.5}))
    monitor.window(window_of(1, [2.0]))
    monitor.evaluation(Evaluation(1, {"loss": np.nan}))
    assert sentences == []


@pytest.mark.parametrize("param_dtype", ["int32", "float33"])
def test_refuses_a_dtype_that_parameters_cannot_have(param_dtype):
    with pytest.raises(ValueError, match="`param_dtype` must be the name of"):
        health_monitor(param_dtype=param_dtype)
