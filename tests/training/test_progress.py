"""Best evaluation and patience against Trainer's."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxopt_tf.training import Evaluation, Progress, Selection
from jaxopt_tf.training._evaluation import (
    after_evaluation,
    check_selection,
    is_patience_exhausted,
)
from tests import references

metrics = st.one_of(
    st.integers(0, 6).map(lambda i: i / 4), st.just(math.nan), st.just(math.inf)
)


def of_trainer(values, name, greater, patience, threshold):
    """(best metric, its step, counter, whether to stop) after each evaluation."""
    from transformers import EarlyStoppingCallback, Trainer, TrainerControl
    from transformers import TrainerState as HFState
    from transformers.trainer_utils import SaveStrategy

    class Arguments:
        metric_for_best_model = name
        greater_is_better = greater
        save_strategy = SaveStrategy.STEPS

    class Bare:  # the two fields that the method reads
        args = Arguments
        state = HFState()

    bare, callback = Bare(), EarlyStoppingCallback(patience, threshold)
    bare.state = HFState()
    control = TrainerControl()
    for step, value in enumerate(values, start=1):
        bare.state.global_step = step
        told = {f"eval_{name.removeprefix('eval_')}": value}
        callback.on_evaluate(Arguments, bare.state, control, told)
        Trainer._determine_best_metric(bare, told, None)
        yield (
            bare.state.best_metric,
            bare.state.best_global_step,
            callback.early_stopping_patience_counter,
            control.should_training_stop,
        )


@references.needs_transformers
@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(metrics, min_size=1, max_size=12),
    name=st.sampled_from(["loss", "eval_loss", "accuracy"]),
    patience=st.integers(1, 3),
    threshold=st.sampled_from([0.0, 0.25, 0.3]),
)
def test_best_metric_and_patience_match_trainer(values, name, patience, threshold):
    greater = not name.endswith("loss")
    selection = Selection(name, greater, patience, threshold)
    progress, has_stopped = Progress(), False
    reference = of_trainer(values, name, greater, patience, threshold)
    for step, (value, theirs) in enumerate(
        zip(values, reference, strict=True), start=1
    ):
        told = {name.removeprefix("eval_"): value}
        progress = after_evaluation(progress, selection, Evaluation(step, told))
        has_stopped |= is_patience_exhausted(progress, selection)
        np.testing.assert_equal(progress, Progress(*theirs[:3]))
        assert has_stopped == theirs[3]


def test_what_is_better_follows_from_the_name():
    told = [
        Evaluation(1, {"loss": 1.0, "f1": 1.0}),
        Evaluation(2, {"loss": 2, "f1": 2}),
    ]
    for name, best_step in [("loss", 1), ("f1", 2), ("eval_f1", 2)]:
        progress = Progress()
        for evaluation in told:
            progress = after_evaluation(progress, Selection(name), evaluation)
        assert progress.best_step == best_step


def test_never_stops_early_without_patience():
    assert not is_patience_exhausted(Progress(1.0, 1, 1_000), Selection())


def test_names_the_metrics_that_there_are():
    with pytest.raises(ValueError, match=r"`metric_for_best_model` .* \['loss'\], got"):
        after_evaluation(Progress(), Selection("f1"), Evaluation(1, {"loss": 1.0}))


@pytest.mark.parametrize(
    "selection",
    [
        Selection(early_stopping_patience=0),
        Selection(early_stopping_threshold=-1.0),
        Selection(early_stopping_threshold=math.nan),
    ],
)
def test_refuses_a_patience_of_none_and_a_threshold_below_0(selection):
    with pytest.raises(ValueError, match="`early_stopping_.*` must be"):
        check_selection(selection)
