"""Conversion of epochs and ratios to steps, as in Trainer."""

import json

import pytest

from jaxopt_tf.jobs import (
    Job,
    RunConfig,
    _pretrain,
    check_before_reading,
    merge_settings,
    pretrain,
    resolve_epochs,
)
from jaxopt_tf.jobs._config import changed_settings
from jaxopt_tf.models import GPT2Config
from jaxopt_tf.recipes import Recipe

from ..references import needs_transformers

pytestmark = [
    pytest.mark.promotion_of_others,  # flax's layers
    pytest.mark.usefixtures("compiled_quickly", "compiled_once"),
]

SIZES = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 8}


def settings_of(folder, num_rows, **settings):
    """Settings of a tiny run on so many rows."""
    text, held_out = folder / "text.txt", folder / "held_out.txt"
    # The last row needs one more byte as its last target.
    text.write_bytes(b"abcdefgh" * num_rows + b"i")
    held_out.write_bytes(b"abcdefgh" * 4)
    files = {"train_file": (text,), "validation_file": (held_out,)}
    common = {"optim": "sgd", "learning_rate": 1e-2, "output_dir": folder / "run"}
    return {**SIZES, **files, **common, **settings}


def trainer_run(folder, num_rows, *, batch, accumulation=1, **arguments):
    """`state` of a Trainer after a run on so many rows, and the saved steps."""
    import torch
    from transformers import Trainer, TrainingArguments

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def forward(self, x, labels=None):
            return {"loss": self.layer(x).square().mean(), "logits": x}

    rows = [{"x": torch.ones(1), "labels": torch.ones(1)}] * num_rows
    trainer = Trainer(
        Model(),
        TrainingArguments(
            str(folder),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            save_only_model=True,
            **arguments,
        ),
        train_dataset=rows,
        eval_dataset=rows[:2],
    )
    trainer.train()
    saved = sorted(int(p.name.split("-")[1]) for p in folder.glob("checkpoint-*"))
    return trainer.state, saved


def steps_of(log, key):
    return [entry["step"] for entry in log if key in entry and entry["step"] > 0]


@needs_transformers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("num_rows", "batch", "accumulation", "epochs"),
    [
        (24, 4, 1, 2.0),  # whole batches
        (25, 4, 1, 3.0),  # one row in the last batch
        (25, 4, 2, 2.0),  # an odd number of micro-batches
        (25, 4, 2, 1.3),  # a part of an epoch
        (30, 4, 3, 0.7),
        (3, 8, 4, 3.0),  # less than a batch
    ],
)
def test_steps_are_those_of_trainer(tmp_path, num_rows, batch, accumulation, epochs):
    state, saved = trainer_run(
        tmp_path / "theirs",
        num_rows,
        batch=batch,
        accumulation=accumulation,
        num_train_epochs=epochs,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_steps=0.3,
    )
    settings = settings_of(
        tmp_path,
        num_rows,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=epochs,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_steps=0.3,
    )
    config = RunConfig.from_dict(resolve_epochs(settings))
    steps, job = config.recipe.max_steps, config.job
    assert steps == state.max_steps
    assert job.logging_steps == state.logging_steps
    due = {*range(job.eval_interval, steps + 1, job.eval_interval), steps}
    assert sorted(due) == steps_of(state.log_history, "eval_loss") == saved
    assert job.save_interval == job.eval_interval


@needs_transformers
@pytest.mark.filterwarnings("ignore")
def test_a_run_evaluates_saves_and_logs_where_trainer_does(tmp_path):
    arguments = {
        "num_train_epochs": 2.5,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "logging_steps": 4,
        "logging_first_step": True,
    }
    state, saved = trainer_run(tmp_path / "theirs", 25, batch=4, **arguments)
    settings = settings_of(tmp_path, 25, per_device_train_batch_size=4, **arguments)
    config = RunConfig.from_dict(resolve_epochs(settings))
    pretrain(config)
    ours = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    for key in ("loss", "eval_loss"):
        theirs = steps_of(state.log_history, key)
        assert steps_of(ours["log_history"], key) == theirs
    assert ours["max_steps"] == ours["global_step"] == state.max_steps
    assert ours["num_train_epochs"] == state.num_train_epochs
    assert ours["epoch"] == pytest.approx(state.epoch)
    assert {f"checkpoint-{step}" for step in saved} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }
    # The numbers of steps are recorded: resuming does not count them.
    recorded = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert (recorded["max_steps"], recorded["eval_steps"]) == (18, 7)
    assert (recorded["num_train_epochs"], recorded["eval_strategy"]) == (2.5, "steps")
    assert resolve_epochs(recorded) == recorded
    assert RunConfig.from_dict(recorded) == config


def test_the_sequences_of_all_devices_count(tmp_path):
    settings = settings_of(
        tmp_path, 64, per_device_train_batch_size=2, num_train_epochs=1
    )
    assert resolve_epochs(settings)["max_steps"] == 32
    assert resolve_epochs({**settings, "mesh": "data=4,tensor=2"})["max_steps"] == 8


def test_an_interval_is_an_epoch_of_a_run_in_steps(tmp_path):
    settings = settings_of(tmp_path, 64, max_steps=100, save_strategy="epoch")
    resolved = resolve_epochs({**settings, "num_train_epochs": 1})
    assert (resolved["max_steps"], resolved["save_steps"]) == (100, 8)
    assert resolved["save_strategy"] == "steps"


def test_a_patient_run_by_epochs_ends_and_loads_its_best(tmp_path):
    settings = settings_of(
        tmp_path,
        16,
        num_train_epochs=4,
        eval_strategy="epoch",
        early_stopping_patience=1,
        learning_rate=0.0,  # the second evaluation is not better
        load_best_model_at_end=True,
        per_device_eval_batch_size=1,
    )
    config = RunConfig.from_dict(resolve_epochs(settings))
    pretrain(config)
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert steps_of(state["log_history"], "eval_loss") == [2, 4]
    assert state["best_global_step"] == 2


@pytest.mark.parametrize("strategies", [("no", "steps"), ("steps", "no")])
def test_without_a_strategy_only_the_end_is_evaluated_or_saved(tmp_path, strategies):
    evaluation, saving = strategies
    settings = settings_of(
        tmp_path,
        16,
        max_steps=5,
        eval_steps=2,
        save_steps=2,
        eval_strategy=evaluation,
        save_strategy=saving,
        # A rate of 0: no evaluation after the first one is the best.
        learning_rate=0.0,
        save_total_limit=None,
    )
    config = RunConfig.from_dict(settings)
    pretrain(config)
    run = tmp_path / "run"
    state = json.loads((run / "trainer_state.json").read_text())
    by_steps = [2, 4, 5]
    found = steps_of(state["log_history"], "eval_loss")
    assert found == (by_steps if evaluation == "steps" else [5])
    saved = sorted(int(p.name.split("-")[1]) for p in run.glob("checkpoint-*"))
    assert saved == (by_steps if saving == "steps" else [2, 5])


def test_the_batch_size_of_evaluation_changes_no_training_loss(tmp_path):
    losses = []
    for size in (None, 1):
        folder = tmp_path / str(size)
        folder.mkdir()
        settings = settings_of(
            folder, 16, max_steps=3, per_device_eval_batch_size=size, eval_steps=2
        )
        pretrain(RunConfig.from_dict(settings))
        lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
        records = list(map(json.loads, lines))
        losses.append([r["loss"] for r in records if "loss" in r])
    assert losses[0] == losses[1]


def test_evaluation_batches_have_the_size_of_all_devices(tmp_path, monkeypatch):
    class SeenError(Exception):
        """Ends the run before anything is compiled."""

    def batches(*_, batch_size, **__):
        raise SeenError(batch_size)

    monkeypatch.setattr(_pretrain, "evaluation_batches", batches)
    settings = settings_of(tmp_path, 16, max_steps=1, mesh="data=8")
    for size, expected in ((None, 64), (2, 16)):
        settings["per_device_eval_batch_size"] = size
        with pytest.raises(SeenError, match=f"^{expected}$"):
            pretrain(RunConfig.from_dict(settings))


@pytest.mark.parametrize(
    ("share", "steps"), [(0.1, 11), (0.25, 26), (0.001, 1), (5, 5), (1.0, 1)]
)
def test_a_share_is_rounded_up(share, steps):
    settings = {"max_steps": 101, "eval_steps": share, "save_steps": share}
    job = RunConfig.from_dict({**settings, "logging_steps": share}).job
    assert (job.eval_steps, job.save_steps, job.logging_steps) == (steps,) * 3


def test_a_source_of_higher_precedence_replaces_length_and_intervals():
    folder = {"max_steps": 375, "num_train_epochs": 3.0, "eval_strategy": "no"}
    assert merge_settings(folder, {}) == folder
    assert merge_settings(folder, {"max_steps": 7, "eval_steps": 2}) == {
        "max_steps": 7,
        "eval_steps": 2,
    }
    assert merge_settings(folder, {"num_train_epochs": 5.0}) == {
        "num_train_epochs": 5.0,
        "eval_strategy": "no",
    }
    assert merge_settings(folder, {"num_train_epochs": None})["max_steps"] == 375


def test_a_run_of_an_earlier_version_is_the_same_run():
    now = RunConfig(
        recipe=Recipe(max_steps=10),
        model=GPT2Config(),
        job=Job(eval_steps=5, load_best_model_at_end=True),
    ).to_dict()
    new = ("num_train_epochs", "eval_strategy", "per_device_eval_batch_size")
    new += ("save_strategy", "logging_first_step")
    former = {name: value for name, value in now.items() if name not in new}
    assert changed_settings(former, now) == {}
    # The loss that selects the model depends on the rows that are evaluated.
    changed = changed_settings(former, {**now, "per_device_eval_batch_size": 2})
    assert [*changed] == ["per_device_eval_batch_size"]


def refused(settings):
    with pytest.raises((ValueError, TypeError)) as error:
        resolve_epochs(settings)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_train_epochs": 0}, "`num_train_epochs` must be finite and greater than"),
        ({"num_train_epochs": "three"}, "`num_train_epochs` must be a real number"),
        ({"eval_strategy": "epochs"}, "`eval_strategy` must be one of 'no', 'steps'"),
        ({"save_strategy": "best"}, "`save_strategy` must be one of 'no', 'steps'"),
        ({"per_device_eval_batch_size": 0}, "`per_device_eval_batch_size` must be"),
        (
            {"num_train_epochs": 1e9},
            "`num_train_epochs` must lead to at most 2^31 - 1 steps, got 1000000000.0: "
            "an epoch has 8",
        ),
        (
            {"num_train_epochs": 1, "load_best_model_at_end": True},
            "`eval_strategy` must be 'steps' for a run of at most one epoch if the "
            "evaluation loss drives the schedule, ends the run or selects its model, "
            "got 'epoch' with 8 steps",
        ),
    ],
)
def test_refuses_in_one_sentence(tmp_path, changes, words):
    epochs = {"num_train_epochs": 2, "eval_strategy": "epoch"}
    settings = settings_of(tmp_path, 64, **{**epochs, **changes})
    sentence = refused(settings)
    assert sentence.startswith(words)
    assert "\n" not in sentence


def test_all_problems_are_listed_before_data_are_read(tmp_path):
    settings = settings_of(tmp_path, 64, num_train_epochs=2, n_embd=7, weight_decay=-1)
    settings["train_file"] = (tmp_path / "missing.txt",)
    with pytest.raises(ValueError, match="`weight_decay`") as error:
        check_before_reading(settings)
    assert "`n_embd`" in str(error.value)
    assert not (tmp_path / "run").exists()


def test_epochs_must_be_counted_before_a_run_is_built_or_trained(tmp_path):
    with pytest.raises(ValueError, match="`max_steps` must be given with `num_train_"):
        RunConfig.from_dict({"num_train_epochs": 3})
    settings = settings_of(tmp_path, 16, max_steps=5, save_strategy="epoch")
    with pytest.raises(ValueError, match="`save_strategy` must be 'steps' or 'no' in"):
        pretrain(RunConfig.from_dict(settings))


def test_a_run_that_evaluations_decide_must_be_evaluated():
    settings = {"max_steps": 1_000, "load_best_model_at_end": True}
    with pytest.raises(ValueError, match="`eval_strategy` must be 'steps' or 'epoch'"):
        RunConfig.from_dict({**settings, "eval_strategy": "no"})
