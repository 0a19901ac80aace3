"""The run as a whole, tiny: the same again for the same seed, and stopped in time."""

import dataclasses
import json

import pytest

from jaxopt_tf.pretraining import GPT2Config, pretrain, read_text
from jaxopt_tf.recipes import Recipe

pytestmark = pytest.mark.promotion_of_others  # flax's layers

RECIPE = Recipe(max_steps=6, learning_rate=1e-2, warmup_steps=1)
TINY = GPT2Config(n_layer=1, n_head=2, n_embd=8, block_size=8)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog\n" * 20)
    return read_text([path])


@pytest.fixture
def losses(tmp_path, text):
    """Runs a recipe into a folder of this name; the loss of every step."""

    def run(name, recipe):
        outcome = pretrain(
            recipe,
            TINY,
            text,
            per_device_train_batch_size=4,
            eval_steps=3,
            output_dir=tmp_path / name,
        )
        lines = outcome.metrics.read_text().splitlines()
        return [record["loss"] for record in map(json.loads, lines) if "loss" in record]

    return run


def test_one_seed_is_one_run_bit_for_bit(losses):
    first, again = losses("first", RECIPE), losses("again", RECIPE)
    assert first == again
    assert len(first) == 6


def test_stops_where_the_loss_is_no_longer_finite(losses, tmp_path):
    recipe = dataclasses.replace(RECIPE, learning_rate=1e30, max_grad_norm=0)
    with pytest.raises(FloatingPointError, match=r"`loss` must be .* \[1, 3\]"):
        losses("diverged", recipe)
    # What happened until then is written down, the bad steps too.
    lines = (tmp_path / "diverged" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["loss"] is None
    assert (tmp_path / "diverged" / "curves.png").exists()
