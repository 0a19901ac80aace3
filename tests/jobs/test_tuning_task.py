"""Task of a job for `tuning`, against `pretrain`."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_tf import tuning
from jaxopt_tf.jobs import RunConfig, pretrain, tuning_corpus, tuning_task

pytestmark = [
    pytest.mark.promotion_of_others,  # flax's layers
    pytest.mark.usefixtures("compiled_quickly", "compiled_once"),
]


@pytest.fixture
def config(tmp_path):
    """Builds a small run with further settings."""
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog\n" * 60)

    def config(**settings):
        sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16}
        small = {"max_steps": 20, "warmup_steps": 2, "text": [str(path)]}
        return RunConfig.from_dict({**sizes, **small, **settings})

    return config


def task_of(config, folder, **more):
    return tuning_task(config, tuning_corpus(config, folder), **more)


def column(folder, name):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record[name] for record in map(json.loads, lines) if name in record]


def test_a_run_has_the_numbers_of_pretrain_with_equal_settings(config, tmp_path):
    run = config(
        resid_pdrop=0.1,
        label_smoothing_factor=0.1,
        seed=7,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=4,
        scan_layers=True,
        optim="sgd",
        optim_args="momentum=0.9",
        learning_rate=0.1,
        output_dir=str(tmp_path / "run"),
    )
    pretrain(run)
    task = task_of(run, tmp_path)
    runs = tuning.train_many(task, [run.recipe], devices=jax.devices()[:1])
    folder = run.job.output_dir
    np.testing.assert_allclose(runs.losses[0], column(folder, "loss"), rtol=1e-5)
    eval_loss = column(folder, "eval_loss")[-1]
    np.testing.assert_allclose(runs.eval_loss[0], eval_loss, rtol=1e-5)


def test_searches_on_rows_for_fine_tuning(config, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: i for i, word in enumerate(["</s>", "a", "b", "c"])}
    content = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="c"))
    content.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    content.save(str(tmp_path / "tokenizer.json"))
    rows = [{"prompt": "a b", "completion": "b " * (1 + i % 5)} for i in range(60)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    run = config(
        max_steps=4,
        text=[],
        train_file=[str(tmp_path / "rows.json")],
        tokenizer=str(tmp_path / "tokenizer.json"),
        packing=True,
        output_dir=str(tmp_path / "run"),
    )
    pretrain(run)
    runs = tuning.train_many(
        task_of(run, tmp_path), [run.recipe], devices=jax.devices()[:1]
    )
    folder = run.job.output_dir
    np.testing.assert_allclose(runs.losses[0], column(folder, "loss"), rtol=1e-5)
    eval_loss = column(folder, "eval_loss")[-1]
    np.testing.assert_allclose(runs.eval_loss[0], eval_loss, rtol=1e-5)


def test_the_batch_size_is_each_recipes_and_the_evaluation_batches_are_equal(
    config, tmp_path
):
    task = task_of(config(bf16=True), tmp_path)
    larger = config(per_device_train_batch_size=32).recipe
    assert next(iter(task.batches(larger))).shape == (32, 17)
    assert task.eval_batches[0].shape == (8, 17)
    assert task.compute_dtype == jnp.bfloat16
    assert not task.takes_key


def test_fewer_evaluation_tokens_are_fewer_batches(config, tmp_path):
    run = config()
    assert len(task_of(run, tmp_path).eval_batches) == 2  # all that this text has
    few = task_of(run, tmp_path, num_eval_tokens=128)
    assert [batch.shape for batch in few.eval_batches] == [(8, 17)]
    assert task_of(run, tmp_path, num_eval_tokens=0).eval_batches == ()


def test_refuses_settings_that_only_a_single_run_has(config, tmp_path):
    run = config(mesh="data=2", early_stopping_patience=3, eval_steps=5)
    with pytest.raises(ValueError, match="must be left out if many runs") as refusal:
        task_of(run, tmp_path)
    assert "`early_stopping_patience` 3, `mesh` data=2" in str(refusal.value)
