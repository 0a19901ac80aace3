"""`Job`: what it refuses and keeps; the flat configuration and how two differ."""

import dataclasses
import json
from pathlib import Path

import pytest

from jaxopt_tf.jobs import Job, flat, held_out_loss_decides
from jaxopt_tf.jobs._settings import differences
from jaxopt_tf.models import GPT2Config
from jaxopt_tf.recipes import Recipe

RECIPE = Recipe(max_steps=1_000)


def flat_with(recipe=RECIPE, model=None, **job):
    return flat(recipe, model or GPT2Config(), Job(**job))


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


def test_tells_the_loop_how_to_compare_evaluations():
    selection = Job(early_stopping_patience=3, early_stopping_threshold=0.1).selection
    assert selection.early_stopping_patience == 3
    assert selection.early_stopping_threshold == 0.1
    assert selection.metric_for_best_model == "loss"


def test_names_the_nearest_policy():
    with pytest.raises(ValueError, match="Did you mean 'skip'"):
        Job(on_non_finite="skp")


def test_records_share_no_name():
    records = (Recipe, GPT2Config, Job)
    names = [field.name for record in records for field in dataclasses.fields(record)]
    assert len(names) == len(set(names))


def test_flat_has_every_setting_but_those_of_one_start():
    settings = flat_with(resume_from_checkpoint="runs/a/checkpoint-2")
    records = (Recipe, GPT2Config, Job)
    names = {field.name for record in records for field in dataclasses.fields(record)}
    assert names - set(settings) == {"resume_from_checkpoint", "intended_changes"}


def test_flat_is_what_json_keeps():
    recipe = Recipe(
        max_steps=10, lr_scheduler_type="polynomial", lr_scheduler_kwargs={"power": 2.0}
    )
    settings = flat_with(recipe, text=["a", "b"], output_dir="runs/a")
    assert json.loads(json.dumps(settings)) == settings
    assert settings["lr_scheduler_kwargs"] == {"power": 2.0}
    assert settings["text"] == ["a", "b"]
    assert settings["output_dir"] == "runs/a"


def test_differences_are_the_settings_that_decide_the_numbers():
    now = dataclasses.replace(RECIPE, learning_rate=1e-3, seed=1)
    assert differences(flat_with(), flat_with(now, bf16=True)) == {
        "learning_rate": "`learning_rate`: 5e-05 was, 0.001 is",
        "seed": "`seed`: 42 was, 1 is",
        "bf16": "`bf16`: False was, True is",
    }


def test_differences_leave_out_where_things_lie_and_how_often_is_written():
    now = flat_with(
        text=["b"],
        tokenizer="tokenizer.json",
        output_dir="runs/b",
        logging_steps=1,
        save_steps=1,
        eval_steps=1,
        save_total_limit=None,
        log_layers=True,
        resume_from_checkpoint="runs/a/checkpoint-2",
        intended_changes=["seed"],
    )
    assert differences(flat_with(), now) == {}


@pytest.mark.parametrize(
    ("recipe", "job"),
    [
        (Recipe(max_steps=1_000, lr_scheduler_type="reduce_lr_on_plateau"), {}),
        (RECIPE, {"early_stopping_patience": 3}),
        (RECIPE, {"load_best_model_at_end": True}),
    ],
    ids=["plateau", "early stopping", "best model"],
)
def test_how_often_is_evaluated_counts_where_the_held_out_loss_decides(recipe, job):
    saved, now = flat_with(recipe, **job), flat_with(recipe, **job, eval_steps=100)
    assert held_out_loss_decides(saved)
    assert differences(saved, now) == {"eval_steps": "`eval_steps`: 400 was, 100 is"}


def test_a_setting_that_one_side_lacks_is_a_difference():
    saved = flat_with()
    del saved["seed"]
    saved["dropout"] = 0.1
    assert differences(saved, flat_with()) == {
        "seed": "`seed`: nothing was, 42 is",
        "dropout": "`dropout`: 0.1 was, nothing is",
    }
