"""`resumable`: interruption and resumption of a run."""

import hashlib
import itertools
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_tf.checkpoints import find_checkpoints
from jaxopt_tf.optimizers import adamw_tf, get_learning_rate
from jaxopt_tf.schedules import greedy, reduce_lr_on_plateau
from jaxopt_tf.training import (
    Progress,
    RunState,
    Selection,
    init_train_state,
    make_train_step,
    restore_run_state,
    resumable,
    save_run_state,
    train,
)

pytestmark = [
    pytest.mark.promotion_of_others,  # optax.apply_updates
    pytest.mark.usefixtures("compiled_once", "compiled_quickly"),
]

OPTIMIZER = adamw_tf(0.1)


def begin(size=3):
    return init_train_state(jnp.ones(size), OPTIMIZER, rng=5)


def noisy_loss(params, batch, rng):
    return jnp.sum((params - batch + jax.random.normal(rng, params.shape)) ** 2), 3


def batches(step, signal_at=None):
    for n in itertools.count(step):
        if n == signal_at:
            os.kill(os.getpid(), signal.SIGTERM)
        yield np.float32(n)


def run_in(folder, signal_at=None, losses=(5.0, 4.0, 4.5), **options):
    losses = itertools.chain(losses, itertools.repeat(5.0))
    schedule = options.get("metric_schedule")
    with resumable(
        folder, begin(), save_total_limit=2, metric_schedule=schedule
    ) as run:
        return train(
            make_train_step(noisy_loss, OPTIMIZER),
            run.start,
            batches(run.step, signal_at),
            max_steps=12,
            evaluate=lambda params: {"loss": next(losses)},
            eval_steps=3,
            save=run.save,
            save_steps=5,
            should_stop=run.should_stop,
            **options,
        )


def test_interrupted_run_ends_with_equal_bits(tmp_path):
    unbroken = run_in(tmp_path / "unbroken")
    first = run_in(tmp_path / "broken", signal_at=7)
    assert (first.stop_reason, int(first.state.step)) == ("should_stop", 8)
    second = run_in(tmp_path / "broken")
    assert second.stop_reason == "max_steps"
    leaves = [jax.tree.leaves(t.state.replace(rng=None)) for t in (unbroken, second)]
    for left, right in zip(*leaves, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.fixture
def hashed(monkeypatch):
    """Paths of the files whose checksums are computed."""
    paths, file_digest = [], hashlib.file_digest

    def recorded(file, *arguments):
        paths.append(Path(file.name))
        return file_digest(file, *arguments)

    monkeypatch.setattr(hashlib, "file_digest", recorded)
    return paths


def test_reads_every_file_of_the_checkpoint_once_to_verify_it(tmp_path, hashed):
    run_in(tmp_path, signal_at=7)
    hashed.clear()
    with resumable(tmp_path, begin()) as run:
        assert run.step == 8
    (checkpoint,) = find_checkpoints(tmp_path)[-1:]
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    expected = [path for path in files if path.name != "SHA256SUMS"]
    assert sorted(hashed) == sorted(expected)


def test_remembers_the_best_evaluation_and_the_patience(tmp_path):
    first = run_in(tmp_path, signal_at=9)
    expected = Progress(best_metric=4.0, best_step=3, num_worse_in_a_row=2)
    assert first.run_state.progress == expected
    second = run_in(tmp_path, selection=Selection(early_stopping_patience=2))
    assert (second.stop_reason, int(second.state.step)) == ("early_stopping", 10)


def test_keeps_the_best_checkpoint_whatever_the_limit(tmp_path):
    run_in(tmp_path, save_best=True)
    names = [path.name for path in find_checkpoints(tmp_path)]
    assert names == ["checkpoint-3", "checkpoint-12"]


def test_a_rate_that_a_metric_drives_is_resumed(tmp_path):
    options = {"metric_schedule": reduce_lr_on_plateau(0.1, factor=0.3, patience=0)}
    unbroken = run_in(tmp_path / "unbroken", **options)
    run_in(tmp_path / "broken", signal_at=10, **options)
    # Its evaluations are those after the interruption: 5.0 is before the first step.
    resumed = run_in(tmp_path / "broken", losses=[5.0], **options)
    assert resumed.run_state.schedule_state == unbroken.run_state.schedule_state
    rates = [get_learning_rate(t.state.opt_state) for t in (unbroken, resumed)]
    assert rates[0] == rates[1] == np.float32(0.1 * 0.3**3)
    with (
        pytest.raises(ValueError, match="`like` must have the same leaves"),
        resumable(tmp_path / "broken", begin(), metric_schedule=greedy(0.1)),
    ):
        pass


def test_refuses_the_checkpoint_of_another_model(tmp_path):
    run_in(tmp_path)
    with (
        pytest.raises(ValueError, match="`like` must have the same leaves"),
        resumable(tmp_path, begin(size=4)),
    ):
        pass


def test_run_state_is_restored_without_other_metadata(tmp_path):
    from jaxopt_tf.checkpoints import lock_folder, open_checkpoints, read_metadata

    run_state = RunState(begin(), Progress(0.5, 3, 1), {"rate": jnp.ones(2)})
    with lock_folder(tmp_path) as lock, open_checkpoints(lock) as checkpoints:
        path = save_run_state(checkpoints, run_state, {"settings": {"seed": 1}})
    restored = restore_run_state(path, run_state)
    assert restored.progress == run_state.progress
    np.testing.assert_array_equal(restored.schedule_state["rate"], np.ones(2))
    assert read_metadata(path)["settings"] == {"seed": 1}
    assert restore_run_state(None, run_state) is run_state
