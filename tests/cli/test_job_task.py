"""The job of `jaxopt-tf train` as a task, against the command itself."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_tf import tuning
from jaxopt_tf.cli import main
from jaxopt_tf.cli._job_task import folder_of, job_corpus, job_task
from jaxopt_tf.cli._train import parse

pytestmark = [
    pytest.mark.promotion_of_others,  # flax's layers
    pytest.mark.usefixtures("compiled_quickly"),
]


def task_of(flags, folder, **more):
    recipe, model, job = parse(flags.split())
    corpus = job_corpus(model, job, folder)
    return recipe, job_task(recipe, model, job, corpus, **more)


def column(folder, name):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record[name] for record in map(json.loads, lines) if name in record]


def test_a_run_is_the_one_that_train_makes_of_the_same_flags(small, tmp_path):
    flags = (
        f"{small} --resid_pdrop 0.1 --label_smoothing_factor 0.1 --seed 7 "
        "--gradient_accumulation_steps 2 --per_device_train_batch_size 4 --scan_layers"
    )
    folder = tmp_path / "run"
    assert main(["train", *flags.split(), "--output_dir", str(folder)]) == 0
    recipe, task = task_of(flags, tmp_path)
    runs = tuning.train_many(task, [recipe], devices=jax.devices()[:1])
    np.testing.assert_allclose(runs.losses[0], column(folder, "loss"), rtol=1e-5)
    held_out = column(folder, "eval_loss")[-1]
    np.testing.assert_allclose(runs.held_out[0], held_out, rtol=1e-5)


def test_the_batch_size_is_each_recipes_and_the_held_out_batches_are_alike(
    small, tmp_path
):
    flags = f"{small} --bf16"
    _, task = task_of(flags, tmp_path)
    larger, _ = task_of(f"{flags} --per_device_train_batch_size 32", tmp_path)
    assert next(iter(task.batches(larger))).shape == (32, 17)
    assert task.held_out[0].shape == (8, 17)
    assert task.compute_dtype == jnp.bfloat16
    assert not task.takes_key


def test_fewer_held_out_tokens_are_fewer_batches(small, tmp_path):
    _, all_of_them = task_of(small, tmp_path)
    assert len(all_of_them.held_out) == 2  # all that this text has
    _, few = task_of(small, tmp_path, num_held_out=128)
    assert [batch.shape for batch in few.held_out] == [(8, 17)]
    _, none = task_of(small, tmp_path, num_held_out=0)
    assert none.held_out == ()


def test_a_new_folder_is_named_by_the_time(tmp_path):
    _, _, job = parse([])
    assert folder_of(job).parts[0] == "runs"
    _, _, job = parse(["--output_dir", str(tmp_path)])
    assert folder_of(job) == tmp_path


def test_refuses_what_is_of_one_run(small, tmp_path):
    flags = f"{small} --mesh data=2 --early_stopping_patience 3 --eval_steps 5"
    with pytest.raises(ValueError, match="must be left out where many runs") as refusal:
        task_of(flags, tmp_path)
    told = "`early_stopping_patience` 3, `mesh` data=2"
    assert told in str(refusal.value)
