"""`RunConfig`: conversion to a dict and back, conflicts and changes."""

import dataclasses
import json

import pytest

from jaxopt_tf.jobs import Job, RunConfig, uses_eval_loss
from jaxopt_tf.jobs._config import changed_settings
from jaxopt_tf.models import GPT2Config
from jaxopt_tf.recipes import ParamGroup, Recipe

RECIPE = Recipe(max_steps=1_000)
PLATEAU = Recipe(max_steps=1_000, lr_scheduler_type="reduce_lr_on_plateau")
READY = ("tokens.npy",)


def config_with(recipe=RECIPE, model=None, **job):
    return RunConfig(recipe=recipe, model=model or GPT2Config(), job=Job(**job))


def settings_with(*args, **job):
    return config_with(*args, **job).to_dict()


def test_records_share_no_name():
    records = (Recipe, GPT2Config, Job)
    names = [field.name for record in records for field in dataclasses.fields(record)]
    assert len(names) == len(set(names))


def test_the_dict_has_every_setting_but_those_of_one_start():
    settings = settings_with(resume_from_checkpoint="tests")
    records = (Recipe, GPT2Config, Job)
    names = {field.name for record in records for field in dataclasses.fields(record)}
    assert names - set(settings) == {"resume_from_checkpoint", "intended_changes"}


def test_the_dict_is_what_json_keeps():
    recipe = Recipe(
        max_steps=10, lr_scheduler_type="polynomial", lr_scheduler_kwargs={"power": 2.0}
    )
    settings = settings_with(recipe, text=["a", "b"], output_dir="runs/a")
    assert json.loads(json.dumps(settings)) == settings
    assert settings["lr_scheduler_kwargs"] == {"power": 2.0}
    assert settings["text"] == ["a", "b"]
    assert settings["output_dir"] == "runs/a"


def test_changes_are_the_settings_that_decide_the_numbers():
    now = dataclasses.replace(RECIPE, learning_rate=1e-3, seed=1)
    assert changed_settings(settings_with(), settings_with(now, bf16=True)) == {
        "learning_rate": "`learning_rate` changed from 5e-05 to 0.001",
        "seed": "`seed` changed from 42 to 1",
        "bf16": "`bf16` changed from False to True",
    }


def test_changes_exclude_paths_and_write_intervals():
    now = settings_with(
        text=["b"],
        tokenizer="tokenizer.json",
        output_dir="runs/b",
        logging_steps=1,
        save_steps=1,
        eval_steps=1,
        save_total_limit=None,
        log_layers=True,
        resume_from_checkpoint="tests",
        intended_changes=["seed"],
    )
    assert changed_settings(settings_with(), now) == {}


@pytest.mark.parametrize(
    ("recipe", "job"),
    [
        (Recipe(max_steps=1_000, lr_scheduler_type="reduce_lr_on_plateau"), {}),
        (RECIPE, {"early_stopping_patience": 3}),
        (RECIPE, {"load_best_model_at_end": True}),
    ],
    ids=["plateau", "early stopping", "best model"],
)
def test_eval_steps_counts_where_the_evaluation_loss_decides(recipe, job):
    saved, now = (
        settings_with(recipe, **job),
        settings_with(recipe, **job, eval_steps=100),
    )
    assert uses_eval_loss(saved)
    assert changed_settings(saved, now) == {
        "eval_steps": "`eval_steps` changed from 400 to 100"
    }


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        (
            {"text": ["a"], "data_size": "1 document, 9 bytes"},
            {"text": ["b", "c"], "data_size": "2 documents, 8 bytes"},
            "changed from 1 document, 9 bytes of 'a' to 2 documents, 8 bytes of 'b', "
            "'c'",
        ),
        (
            {"text": ["a"], "data_size": "1 document, 9 bytes"},
            {"text": ["a"], "data_size": "1 document, 9 bytes"},
            "has changed content: 1 document, 9 bytes of 'a'",
        ),
        (  # of a version that recorded no size
            {"text": []},
            {"text": ["a"], "tokenizer": "t.json", "data_size": "1 document, 9 tokens"},
            "changed from Python's standard library to 1 document, 9 tokens of 'a' "
            "with the tokenizer 't.json'",
        ),
        (
            {"text": list("abcde")},
            {"text": list("abcd")},
            "changed from 'a', 'b', 'c', 2 more to 'a', 'b', 'c', 'd'",
        ),
    ],
    ids=["other files", "other content", "older", "many files"],
)
def test_a_change_of_the_data_is_named_by_paths_and_sizes(before, now, words):
    settings = settings_with()
    changes = changed_settings(
        settings | before | {"data": "0a"}, settings | now | {"data": "1b"}
    )
    assert changes == {"data": f"`data` {words}"}


def test_a_setting_that_one_side_lacks_is_a_difference():
    saved = settings_with()
    del saved["seed"]
    saved["dropout"] = 0.1
    assert changed_settings(saved, settings_with()) == {
        "seed": "`seed` was not set and is now 42",
        "dropout": "`dropout` was 0.1 and is not set now",
    }


@pytest.mark.parametrize(
    "config",
    [
        config_with(),
        config_with(
            Recipe(
                max_steps=10,
                warmup_steps=0.1,
                lr_scheduler_type="polynomial",
                lr_scheduler_kwargs={"power": 2.0},
                rate_groups=(ParamGroup(pattern="wte", factor=0.1),),
                decay_rule=("bias", "ln_f"),
            ),
            GPT2Config(n_layer=2, scan_layers=True),
            text=["a", "b"],
            output_dir="runs/a",
            save_total_limit=None,
            mesh="data=2,fsdp=4",
        ),
    ],
    ids=["defaults", "others"],
)
def test_comes_back_from_its_dict(config):
    settings = json.loads(json.dumps(config.to_dict()))
    assert RunConfig.from_dict(settings) == config


def test_from_a_dict_all_problems_stand_in_one_message():
    settings = {
        "learning_rat": 1.0,
        "n_embd": 15,
        "eval_steps": 0,
        "text": ["a.npy"],
        "early_stopping_threshold": 1.0,
    }
    with pytest.raises(ValueError, match="Did you mean 'learning_rate'") as refused:
        RunConfig.from_dict(settings)
    said = str(refused.value).splitlines()
    assert [line.split("`")[1] for line in said[1:]] == [
        "max_steps",
        "n_embd",
        "eval_steps",
    ]
    del settings["learning_rat"], settings["n_embd"], settings["eval_steps"]
    with pytest.raises(ValueError, match="`max_steps`") as refused:
        RunConfig.from_dict(settings)
    said = str(refused.value).splitlines()
    assert [line.split("`")[1] for line in said] == [
        "max_steps",
        "early_stopping_threshold",
        "vocab_size",
    ]


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (
            {"text": ("a.npy", "b.txt")},
            "`text` must be either pretokenized files or text",
        ),
        ({"text": READY, "tokenizer": "t.json"}, "`tokenizer` must be left out"),
        ({"tokenizer": "t.json"}, "`tokenizer` must be given with `text`"),
        ({"eos_token_id": 0}, "`eos_token_id` must be left out unless"),
        ({"text": READY, "eos_token_id": 256}, "`eos_token_id` must be below"),
        ({"early_stopping_threshold": 0.1}, "`early_stopping_threshold` must be left"),
        (
            {"early_stopping_patience": 2, "eval_steps": 1_000},
            "`eval_steps` must be less than `max_steps`, .* Use 100",
        ),
        ({"max_skipped_in_a_row": 3}, "`max_skipped_in_a_row` must be left out"),
        ({"resume_from_checkpoint": "no"}, "`resume_from_checkpoint` must be"),
        ({"resume_from_checkpoint": __file__}, "is a file. Pass the folder"),
        ({"intended_changes": ("sed",)}, "`intended_changes` .* mean 'seed'"),
        ({"intended_changes": ("intended_changes",)}, "`intended_changes` must be"),
        ({"zero_1": True, "mesh": "fsdp=8"}, "`zero_1` must be left out unless"),
    ],
)
def test_names_a_contradiction_with_its_remedy(job, words):
    with pytest.raises(ValueError, match=words) as refused:
        config_with(**job)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "job",
    [
        {"text": READY, "eos_token_id": 255},
        {"text": ("a.txt", "b"), "tokenizer": "t.json"},
        {"load_best_model_at_end": True, "eval_steps": 200},
        {"early_stopping_threshold": 0.1, "early_stopping_patience": 2},
        {"on_non_finite": "skip", "max_skipped_in_a_row": 3},
        {"intended_changes": ("learning_rate", "vocab_size", "bf16", "data")},
        {"zero_1": True, "mesh": "data=8"},
    ],
)
def test_takes_what_goes_together(job):
    config_with(**job)


def test_a_schedule_that_follows_the_loss_needs_one_before_the_end():
    config_with(PLATEAU)
    with pytest.raises(ValueError, match="`eval_steps` must be less than `max_steps`"):
        config_with(PLATEAU, eval_steps=1_000)


def test_bytes_need_a_vocabulary_of_256():
    with pytest.raises(ValueError, match="`vocab_size` must be at least 256"):
        config_with(model=GPT2Config(vocab_size=255))
    config_with(model=GPT2Config(vocab_size=255), text=READY)


def test_names_the_checkpoints_that_there_are(tmp_path):
    (tmp_path / "checkpoint-200").mkdir()
    with pytest.raises(ValueError, match="contains checkpoint-200."):
        config_with(resume_from_checkpoint=tmp_path / "checkpoint-300")
    config_with(resume_from_checkpoint=tmp_path / "checkpoint-200")


def test_all_conflicts_are_in_one_message():
    with pytest.raises(ValueError, match="`tokenizer`") as refused:
        config_with(
            text=READY,
            tokenizer="t.json",
            early_stopping_threshold=0.1,
            max_skipped_in_a_row=3,
        )
    for name in ("tokenizer", "early_stopping_threshold", "max_skipped_in_a_row"):
        assert f"`{name}` must be left out" in str(refused.value)
