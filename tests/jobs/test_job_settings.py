"""Types and ranges of the settings of `Job`."""

import dataclasses
from pathlib import Path

import pytest

from jaxopt_tf.jobs import Job


def test_makes_strings_paths_and_whole_floats_ints():
    job = Job(text=["a.txt"], output_dir="runs/a", eval_steps=1e2, save_total_limit=2.0)
    assert job.text == (Path("a.txt"),)
    assert job.output_dir == Path("runs/a")
    assert (job.eval_steps, job.save_total_limit) == (100, 2)
    assert isinstance(job.eval_steps, int)
    assert isinstance(job.save_total_limit, int)
    assert hash(job) == hash(dataclasses.replace(job))


def test_takes_none_where_none_is_a_choice():
    job = Job(save_total_limit=None, early_stopping_patience=None, eos_token_id=None)
    assert job.save_total_limit is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eval_steps", 0),
        ("save_steps", 0),
        ("logging_steps", 0),
        ("save_total_limit", 0),
        ("early_stopping_patience", 0),
        ("early_stopping_threshold", -1.0),
        ("early_stopping_threshold", float("nan")),
        ("eos_token_id", -1),
        ("max_skipped_in_a_row", 0),
        ("on_non_finite", "skp"),
    ],
)
def test_refuses_a_bad_value_by_name(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        Job(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text", "a.txt"),
        ("text", (1,)),
        ("tokenizer", 1),
        ("output_dir", ""),
        ("resume_from_checkpoint", True),
        ("eval_steps", 1.5),
        ("save_total_limit", True),
        ("save_total_limit", float("nan")),
        ("save_total_limit", float("inf")),
        ("max_skipped_in_a_row", None),
        ("eos_token_id", "0"),
        ("load_best_model_at_end", "True"),
        ("bf16", 1),
        ("log_layers", None),
        ("early_stopping_threshold", "0"),
        ("intended_changes", "seed"),
        ("intended_changes", (1,)),
    ],
)
def test_refuses_another_kind_by_name(name, value):
    with pytest.raises(TypeError, match=f"`{name}` must be"):
        Job(**{name: value})


def test_model_selection_settings_reach_the_loop():
    selection = Job(early_stopping_patience=3, early_stopping_threshold=0.1).selection
    assert selection.early_stopping_patience == 3
    assert selection.early_stopping_threshold == 0.1
    assert selection.metric_for_best_model == "loss"


def test_names_the_nearest_policy():
    with pytest.raises(ValueError, match="Did you mean 'skip'"):
        Job(on_non_finite="skp")
