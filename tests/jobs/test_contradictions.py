"""Settings that do not go together: each named, all in one message."""

import pytest

from jaxopt_tf.jobs import Job, check_settings, contradictions
from jaxopt_tf.models import GPT2Config
from jaxopt_tf.recipes import Recipe

RECIPE = Recipe(max_steps=1_000)
PLATEAU = Recipe(max_steps=1_000, lr_scheduler_type="reduce_lr_on_plateau")
READY = ("tokens.npy",)


def test_the_defaults_go_together():
    assert contradictions(RECIPE, GPT2Config(), Job()) == []
    check_settings(RECIPE, GPT2Config(), Job())


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ({"text": ("a.npy", "b.txt")}, "`text` must be ready tokens or text"),
        ({"text": READY, "tokenizer": "t.json"}, "`tokenizer` must be left out"),
        ({"tokenizer": "t.json"}, "`tokenizer` must be given with `text`"),
        ({"eos_token_id": 0}, "`eos_token_id` must be left out unless"),
        ({"text": READY, "eos_token_id": 256}, "`eos_token_id` must be below"),
        ({"early_stopping_threshold": 0.1}, "`early_stopping_threshold` must be left"),
        (
            {"early_stopping_patience": 2, "eval_steps": 1_000},
            "`eval_steps` must be less than `max_steps`, .* Take 100",
        ),
        ({"max_skipped_in_a_row": 3}, "`max_skipped_in_a_row` must be left out"),
        ({"resume_from_checkpoint": "no"}, "`resume_from_checkpoint` must be"),
        ({"intended_changes": ("sed",)}, "`intended_changes` .* mean 'seed'"),
        ({"intended_changes": ("intended_changes",)}, "`intended_changes` must be"),
    ],
)
def test_names_a_contradiction_with_its_way_out(job, words):
    with pytest.raises(ValueError, match=words):
        check_settings(RECIPE, GPT2Config(), Job(**job))
    assert len(contradictions(RECIPE, GPT2Config(), Job(**job))) == 1


@pytest.mark.parametrize(
    "job",
    [
        {"text": READY, "eos_token_id": 255},
        {"text": ("a.txt", "b"), "tokenizer": "t.json"},
        {"load_best_model_at_end": True, "eval_steps": 200},
        {"early_stopping_threshold": 0.1, "early_stopping_patience": 2},
        {"on_non_finite": "skip", "max_skipped_in_a_row": 3},
        {"intended_changes": ("learning_rate", "vocab_size", "bf16", "data")},
    ],
)
def test_takes_what_goes_together(job):
    assert contradictions(RECIPE, GPT2Config(), Job(**job)) == []


def test_a_schedule_that_follows_the_loss_needs_one_before_the_end():
    assert contradictions(PLATEAU, GPT2Config(), Job()) == []
    (found,) = contradictions(PLATEAU, GPT2Config(), Job(eval_steps=1_000))
    assert "`eval_steps` must be less than `max_steps`" in found


def test_bytes_need_a_vocabulary_of_256():
    (found,) = contradictions(RECIPE, GPT2Config(vocab_size=255), Job())
    assert "`vocab_size` must be at least 256" in found
    job = Job(text=READY)
    assert contradictions(RECIPE, GPT2Config(vocab_size=255), job) == []


def test_names_the_checkpoints_that_there_are(tmp_path):
    (tmp_path / "checkpoint-200").mkdir()
    missing = Job(resume_from_checkpoint=tmp_path / "checkpoint-300")
    (found,) = contradictions(RECIPE, GPT2Config(), missing)
    assert "beside it are checkpoint-200." in found
    there = Job(resume_from_checkpoint=tmp_path / "checkpoint-200")
    assert contradictions(RECIPE, GPT2Config(), there) == []


def test_a_file_is_no_checkpoint(tmp_path):
    (tmp_path / "state").touch()
    job = Job(resume_from_checkpoint=tmp_path / "state")
    (found,) = contradictions(RECIPE, GPT2Config(), job)
    assert "is a file" in found


def test_all_contradictions_stand_in_one_message():
    job = Job(
        text=READY,
        tokenizer="t.json",
        early_stopping_threshold=0.1,
        max_skipped_in_a_row=3,
    )
    with pytest.raises(ValueError, match="3 settings contradict") as refused:
        check_settings(RECIPE, GPT2Config(), job)
    for name in ("tokenizer", "early_stopping_threshold", "max_skipped_in_a_row"):
        assert f"`{name}` must be left out" in str(refused.value)
