"""`trainer_state.json` against Transformers' own class."""

import dataclasses
import json
import math
import sys

import numpy as np
import pytest
from transformers import TrainerState
from transformers.modelcard import parse_log_history
from transformers.trainer_callback import TrainerControl

from jaxopt_tf.monitors import trainer_state
from jaxopt_tf.training import Evaluation, Selection
from tests.events import metrics_of, part, tell, window_of


@pytest.fixture
def path(tmp_path):
    return tmp_path / "trainer_state.json"


def losses_of(num_steps):
    return (np.random.default_rng(0).normal(size=num_steps) + 5).astype(np.float32)


def test_all_fields_are_those_of_transformers(path, tmp_path):
    losses = losses_of(20)
    metrics = metrics_of(losses, rate=np.linspace(0, 1, 20), grads=np.arange(20))
    monitor = trainer_state(
        path,
        max_steps=50,
        logging_steps=5,
        eval_steps=10,
        save_steps=20,
        train_batch_size=8,
        steps_per_epoch=15,
        flops_per_item=2.0,
    )
    (tmp_path / "checkpoint-10").mkdir()
    tell(monitor, metrics, evaluations={0: 6.0, 10: 4.5, 20: 4.75})
    # As after the last evaluation: closing adds an entry.
    ours = dataclasses.asdict(TrainerState.load_from_json(str(path)))

    rate = np.linspace(0, 1, 20).astype(np.float32)
    log = [{"epoch": 0.0, "eval_loss": 6.0, "step": 0}]
    for step in (5, 10, 15, 20):
        log.append(
            {
                "loss": float(np.mean(losses[step - 5 : step], dtype=np.float64)),
                "grad_norm": float(step - 1),
                "learning_rate": float(rate[step - 1]),
                "epoch": step // 15 + (step % 15) / 15,
                "step": step,
            }
        )
        if step % 10 == 0:
            loss = {10: 4.5, 20: 4.75}[step]
            log.append({"eval_loss": loss, "epoch": log[-1]["epoch"], "step": step})
    theirs = TrainerState(
        epoch=1 + 5 / 15,
        global_step=20,
        max_steps=50,
        logging_steps=5,
        eval_steps=10,
        save_steps=20,
        train_batch_size=8,
        num_train_epochs=4,
        num_input_tokens_seen=20 * 64,
        total_flos=20 * 64 * 2.0,
        log_history=log,
        best_metric=4.5,
        best_global_step=10,
        best_model_checkpoint=str(tmp_path / "checkpoint-10"),
        stateful_callbacks=[TrainerControl()],
    )
    found = ours["log_history"]
    assert [sorted(entry) for entry in found] == [sorted(entry) for entry in log]
    for entry, expected in zip(found, log, strict=True):
        assert entry == pytest.approx(expected, rel=1e-12)
    expected = dataclasses.asdict(theirs)
    del ours["log_history"], expected["log_history"]
    assert ours == expected
    assert sorted(json.loads(path.read_text())) == sorted(dataclasses.asdict(theirs))
    monitor.close()


def test_the_file_is_laid_out_as_transformers_lays_it_out(path, tmp_path):
    monitor = trainer_state(path, max_steps=20)
    tell(monitor, metrics_of(losses_of(20)), evaluations={10: 4.0})
    monitor.close()
    again = tmp_path / "again.json"
    TrainerState.load_from_json(str(path)).save_to_json(str(again))
    assert path.read_text() == again.read_text()


def test_transformers_model_card_reads_it(path):
    monitor = trainer_state(path, max_steps=20, logging_steps=5)
    tell(monitor, metrics_of(losses_of(20)), evaluations={10: 4.0, 20: 3.5})
    monitor.close()
    log = TrainerState.load_from_json(str(path)).log_history
    closing, table, last = parse_log_history(log)
    assert closing["train_runtime"] == pytest.approx(0.2)
    assert closing["train_loss"] == pytest.approx(losses_of(20).mean())
    assert closing["train_steps_per_second"] == 100.0
    assert [row["Validation Loss"] for row in table] == [4.0, 3.5]
    assert [row["Step"] for row in table] == [10, 20]
    assert last == {"Loss": 3.5}


def test_data_without_a_length_is_one_epoch_as_with_the_trainer(path):
    monitor = trainer_state(path, max_steps=40)
    tell(monitor, metrics_of(losses_of(10)), evaluations={10: 4.0})
    state = TrainerState.load_from_json(str(path))
    assert (state.epoch, state.num_train_epochs) == (0.25, sys.maxsize)
    assert (state.eval_steps, state.save_steps) == (
        TrainerState().eval_steps,
        TrainerState().save_steps,
    )
    monitor.close()


def test_the_number_of_epochs_counts_the_last_one_that_is_begun(path):
    monitor = trainer_state(path, max_steps=30, steps_per_epoch=15)
    tell(monitor, metrics_of(losses_of(30)), evaluations={30: 4.0})
    state = TrainerState.load_from_json(str(path))
    assert (state.epoch, state.num_train_epochs) == (2.0, 2)
    control = state.stateful_callbacks["TrainerControl"]["args"]
    assert control["should_training_stop"]
    monitor.close()


def test_a_loss_that_is_not_finite_is_replaced_as_the_trainer_does_it(path):
    losses = np.array([4.0, np.nan, 3.0, np.inf], np.float32)
    monitor = trainer_state(path, max_steps=8, logging_steps=4)
    monitor.window(window_of(1, losses))
    monitor.close()
    # transformers 5.23 `trainer.py`, lines 1911 to 1923.
    total, last_logged = 0.0, 0
    for global_step, loss in enumerate(losses.tolist()):
        if math.isfinite(loss):
            total += loss
        else:
            total += total / (1 + global_step - last_logged)
    (entry, _) = TrainerState.load_from_json(str(path)).log_history
    assert entry["loss"] == pytest.approx(total / 4)


def test_nan_is_written_as_pythons_json_writes_it(path):
    monitor = trainer_state(path, max_steps=8)
    monitor.evaluation(Evaluation(4, {"loss": math.nan}))
    monitor.close()
    assert '"eval_loss": NaN' in path.read_text()
    (entry,) = TrainerState.load_from_json(str(path)).log_history
    assert math.isnan(entry["eval_loss"])


def test_the_best_is_that_of_the_selection(path, tmp_path):
    selection = Selection(metric_for_best_model="accuracy")
    monitor = trainer_state(path, max_steps=30, selection=selection)
    accuracies = {0: 0.9, 10: 0.5, 20: 0.7, 30: 0.6}
    for step, accuracy in accuracies.items():
        monitor.evaluation(Evaluation(step, {"loss": 1.0, "accuracy": accuracy}))
    state = TrainerState.load_from_json(str(path))
    # What was there before the first step is no model of this run.
    assert (state.best_metric, state.best_global_step) == (0.7, 20)
    assert state.best_model_checkpoint is None
    (tmp_path / "checkpoint-20").mkdir()
    monitor.close()
    state = TrainerState.load_from_json(str(path))
    assert state.best_model_checkpoint == str(tmp_path / "checkpoint-20")


def test_keeps_the_best_checkpoint_before_where_the_best_was_not_saved(path, tmp_path):
    monitor = trainer_state(path, max_steps=30)
    for step, loss in ((10, 3.0), (20, 2.0)):
        if step == 20:
            (tmp_path / "checkpoint-10").mkdir()
            monitor.evaluation(Evaluation(15, {"loss": 4.0}))
        monitor.evaluation(Evaluation(step, {"loss": loss}))
    state = TrainerState.load_from_json(str(path))
    assert state.best_global_step == 20
    assert state.best_model_checkpoint == str(tmp_path / "checkpoint-10")
    (tmp_path / "checkpoint-10").rmdir()
    monitor.close()
    assert TrainerState.load_from_json(str(path)).best_model_checkpoint is None


def test_replayed_run_writes_the_same_file(path, tmp_path):
    metrics = metrics_of(losses_of(40))
    early, late = {0: 6.0, 10: 5.0, 20: 4.0}, {40: 3.0}
    unbroken = trainer_state(tmp_path / "unbroken.json", max_steps=40, logging_steps=7)
    tell(unbroken, metrics, evaluations=early | late)
    resumed = trainer_state(path, max_steps=40, logging_steps=7)

    def without_time(window):
        resumed.window(window._replace(seconds=math.nan))
        # Nor is it written anew at each of the old evaluations.
        assert TrainerState.load_from_json(str(path)).global_step == 0

    again = resumed._replace(window=without_time)
    tell(again, part(metrics, 0, 20), cuts=(3, 13), evaluations=early)
    tell(resumed, part(metrics, 20, 40), first_step=21, evaluations=late)
    before_closing = path.read_text()
    assert before_closing == (tmp_path / "unbroken.json").read_text()
    resumed.close()
    closing = TrainerState.load_from_json(str(path)).log_history[-1]
    # The Trainer's closing entry is of this start.
    assert closing["train_loss"] == pytest.approx(losses_of(40)[20:].mean())
    assert closing["train_runtime"] == pytest.approx(0.2)


def test_writes_nothing_where_nothing_was_run(path):
    trainer_state(path, max_steps=30).close()
    assert not path.exists()


@pytest.mark.parametrize("name", ["max_steps", "logging_steps", "steps_per_epoch"])
def test_refuses_a_number_of_steps_below_1(path, name):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        trainer_state(path, **{"max_steps": 4, name: 0})


def test_refuses_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="`path` must be in a folder that exists"):
        trainer_state(tmp_path / "nowhere" / "trainer_state.json", max_steps=4)
