"""Conversion of TrainingArguments to a configuration, and refusals."""

import dataclasses
import json
from pathlib import Path

import pytest

from jaxopt_tf.interop import TRAINING_ARGUMENTS
from jaxopt_tf.jobs import Job, RunConfig, settings_from_transformers
from jaxopt_tf.models import GPT2Config
from jaxopt_tf.recipes import Recipe

from ..references import needs_transformers

# transformers 4.46.3: TrainingArguments("x", use_cpu=True).to_json_string(), in which
# the machine's name was taken out of `logging_dir`. 4.40 and 4.57 have no field more.
OLD = json.loads(
    (Path(__file__).parents[1] / "files/training_arguments_4.46.json").read_text()
)


OURS = {
    field.name
    for record in (Recipe, GPT2Config, Job)
    for field in dataclasses.fields(record)
}


def with_effect(*effects):
    return {
        name: field
        for name, field in TRAINING_ARGUMENTS.items()
        if field.effect in effects and name not in OURS
    }


IGNORED, TRANSLATED = with_effect("ignored"), with_effect("translated")
REFUSED = with_effect("refused", "non_optimizer", "devices")


def taken(raw, **typed):
    """Returns what a dict becomes: the records of a run, and the notes."""
    found = settings_from_transformers(raw, typed)
    config = RunConfig.from_dict({"max_steps": 2_000, **found.settings, **typed})
    return config.recipe, config.model, config.job, "; ".join(found.notes)


def refused(raw, **typed):
    """Returns the sentences that a dict is refused with."""
    with pytest.raises(ValueError, match="^`") as error:
        settings_from_transformers(raw, typed)
    return str(error.value).split("\n  ")


@pytest.fixture
def new():
    """Arguments that the installed version writes by default."""
    training_arguments = pytest.importorskip("transformers").TrainingArguments
    # Without its checks, which want a package that trains.
    arguments = object.__new__(training_arguments)
    for field in dataclasses.fields(training_arguments):
        factory = field.default_factory
        has_factory = factory is not dataclasses.MISSING
        setattr(arguments, field.name, factory() if has_factory else field.default)
    return json.loads(arguments.to_json_string())


@needs_transformers
def test_every_field_of_transformers_is_in_one_place(new):
    places = [OURS, set(IGNORED), set(REFUSED), set(TRANSLATED)]
    assert set().union(*places) >= set(new) | set(OLD) | {"_n_gpu"}
    assert sum(map(len, places)) == len(set().union(*places))
    others = {"_n_gpu", "tp_size", "sharded_ddp", "xpu_backend", "model_parallel"}
    others |= {name for name in TRAINING_ARGUMENTS if name.startswith("generation_")}
    others |= {"predict_with_generate", "sortish_sampler"}
    assert set().union(*places[1:]) <= set(new) | set(OLD) | others


@needs_transformers
def test_what_transformers_5_writes_is_taken_as_it_is(new):
    recipe, model, job, notes = taken(new, max_steps=1_000)
    assert recipe == Recipe(max_steps=1_000, optim="adamw_torch_fused")
    assert model == GPT2Config()
    assert job == Job(
        eval_steps=1_000,
        per_device_eval_batch_size=8,
        save_steps=500,
        logging_steps=500,
        save_total_limit=None,
    )
    assert "without effect" not in notes
    assert "`optim` 'adamw_torch_fused' has the same updates as 'adamw_torch'" in notes


def test_what_transformers_4_writes_is_taken_as_it_is():
    recipe, model, job, notes = taken(OLD, max_steps=1_000)
    assert recipe == Recipe(max_steps=1_000)
    assert model == GPT2Config()
    assert job == Job(
        output_dir="x",
        eval_steps=1_000,
        per_device_eval_batch_size=8,
        save_steps=500,
        logging_steps=500,
        save_total_limit=None,
    )
    # What 4.x sets itself, from the machine, and its one other default.
    told = notes.partition("without effect: ")[2].partition(";")[0]
    assert set(told.split(", ")) == {
        "average_tokens_across_devices",
        "dataloader_pin_memory",
        "logging_dir",
        "report_to",
        "run_name",
        "use_cpu",
    }


def test_every_number_arrives():
    numbers = {
        "max_steps": 300,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "polynomial",
        "lr_scheduler_kwargs": {"power": 2.0},
        "warmup_steps": 30,
        "optim": "adafactor",
        "weight_decay": 0.2,
        "adam_beta1": 0.8,
        "adam_beta2": 0.95,
        "adam_epsilon": 1e-6,
        "max_grad_norm": 0.5,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "label_smoothing_factor": 0.1,
        "seed": 7,
    }
    recipe, _, job, _ = taken({**OLD, **numbers, "bf16": True, "save_total_limit": 2})
    assert recipe == Recipe(**numbers)
    assert job.bf16
    assert job.save_total_limit == 2


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_would_change_the_numbers_is_refused(name):
    (sentence,) = refused({**OLD, "max_steps": 10, name: "another"})
    assert sentence.startswith(f"`{name}` 'another': ")
    assert sentence.endswith(".")


def test_all_that_would_change_the_numbers_is_refused_at_once():
    several = {"fp16": True, "optim": "galore_adamw", "data_seed": 1, "deepspeed": "d"}
    found = refused({**OLD, **several, "neftune_noise_alpha": 5.0})
    named = {sentence.split("`")[1] for sentence in found}
    assert named == {*several, "neftune_noise_alpha"}


def test_what_changes_no_number_is_named_in_one_note_without_its_value():
    others = dict.fromkeys(IGNORED, "another")
    plain = taken(OLD, max_steps=10)
    *records, notes = taken({**OLD, **others}, max_steps=10)
    assert records == list(plain[:-1])
    told = notes.partition("without effect: ")[2].partition(";")[0]
    assert set(told.split(", ")) == set(IGNORED)
    assert "another" not in notes  # it may be a token


@pytest.mark.parametrize("unset", [None, "", "None", [], {}])
def test_what_is_not_set_is_not_refused(unset):
    names = [*REFUSED, *IGNORED, *TRANSLATED]
    *_, notes = taken({"max_steps": 10, **dict.fromkeys(names, unset)})
    assert notes == ""


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("adamw_torch_fused", "adamw_torch_fused"),
        ("adamw_torch_xla", "adamw_torch_xla"),
        ("adamw_torch_npu_fused", "adamw_torch_npu_fused"),
        ("adamw_apex_fused", "adamw_torch"),
    ],
)
def test_another_kernel_for_adamw_keeps_its_name_for_the_way_back(name, kept):
    recipe, *_, notes = taken({"optim": name})
    assert recipe.optim == kept
    assert f"{name!r}" in notes
    assert "has the same updates" in notes


def test_adafactor_flag_of_old_versions_is_read():
    assert taken({"optim": "adamw_torch", "adafactor": True})[0].optim == "adafactor"


def test_no_clipping_is_a_limit_of_0():
    assert taken({"max_grad_norm": None})[0].max_grad_norm == 0.0


def test_epochs_are_the_length_unless_the_steps_are_given():
    def length(raw, **typed):
        found = settings_from_transformers(raw, typed).settings | typed
        return {n: found[n] for n in ("num_train_epochs", "max_steps") if n in found}

    epochs = {"num_train_epochs": 3.0}
    assert length({**OLD, "num_train_epochs": 3}) == epochs
    assert length({"num_train_epochs": "3", "max_steps": -1}) == epochs
    assert length({**epochs, "max_steps": 7}) == {"max_steps": 7}
    assert length({**epochs, "max_steps": 7}, num_train_epochs=2.0) == {
        "num_train_epochs": 2.0
    }
    assert taken({"num_train_epochs": 3.0, "max_steps": 7})[0].max_steps == 7
    assert taken({"num_train_epochs": 3.0}, max_steps=7)[0].max_steps == 7


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"warmup_ratio": 0.1}, 11),  # of 101, rounded up
        ({"warmup_ratio": 1.0}, 101),
        ({"warmup_ratio": 0.1, "warmup_steps": 0}, 11),
        ({"warmup_ratio": 0.1, "warmup_steps": 5}, 5),
        ({"warmup_ratio": 0.0, "warmup_steps": 0}, 0),
        ({"warmup_ratio": 0.0}, 0),
        ({"warmup_ratio": "0.1"}, 11),
    ],
)
def test_the_warm_up_of_4_is_rounded_up_and_gives_way_to_steps(settings, expected):
    assert taken({"max_steps": 101, **settings})[0].num_warmup_steps == expected


def test_the_warm_up_of_the_command_line_wins_over_a_ratio():
    recipe, *_ = taken({"max_steps": 101, "warmup_ratio": 0.1}, warmup_steps=3)
    assert recipe.num_warmup_steps == 3


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"eval_strategy": "steps", "eval_steps": 7}, 7),
        ({"evaluation_strategy": "steps", "eval_steps": 7}, 7),
        ({"eval_strategy": "steps", "eval_steps": 0.1}, 11),  # a fraction of 101
        ({"eval_strategy": "steps", "eval_steps": None, "logging_steps": 5}, 5),
        ({"eval_strategy": "steps", "eval_steps": 0, "logging_steps": 0.1}, 11),
        ({"eval_strategy": "steps", "eval_steps": "0.1"}, 11),
        ({"eval_strategy": "steps"}, 500),  # Transformers' default of logging_steps
        ({"eval_strategy": "no", "eval_steps": 7}, 101),
        ({"eval_steps": 7}, 7),
    ],
)
def test_evaluation_strategy_is_translated(settings, expected):
    *_, job, _ = taken({"max_steps": 101, **settings})
    assert job.eval_steps == expected


@pytest.mark.parametrize("name", ["eval_strategy", "evaluation_strategy"])
def test_an_epoch_is_counted_later(name):
    given = {"max_steps": 101, name: "epoch", "save_strategy": "epoch", "eval_steps": 7}
    *_, job, _ = taken({**given, "load_best_model_at_end": True})
    assert (job.eval_strategy, job.save_strategy) == ("epoch", "epoch")
    # The command line counts, by either of the names that determine the interval.
    *_, job, _ = taken(given, eval_steps=5, save_steps=3)
    assert (job.eval_strategy, job.eval_steps) == ("steps", 5)
    assert (job.save_strategy, job.save_steps) == ("steps", 3)
    *_, job, _ = taken(given, eval_strategy="steps")
    assert (job.eval_strategy, job.eval_steps) == ("steps", 7)


def test_strategies_without_an_interval_are_kept_if_the_steps_are_unknown():
    given = {"num_train_epochs": 3.0, "eval_strategy": "no", "save_strategy": "no"}
    found = settings_from_transformers({**given, "logging_steps": 0.1}).settings
    assert found == {**given, "logging_steps": 0.1}


@pytest.mark.parametrize(
    "settings",
    [
        {"lr_scheduler_type": "reduce_lr_on_plateau"},
        {"load_best_model_at_end": True},
        {"early_stopping_patience": 2},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_evaluation_that_decides_must_be_made(settings):
    settings = {"max_steps": 101, "eval_strategy": "no", **settings}
    (sentence,) = refused(settings)
    assert "`eval_strategy` 'no'" in sentence
    steps = {"eval_steps": 10, "save_steps": 10}
    assert taken(settings, **steps)[2].eval_steps == 10


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"save_strategy": "steps", "save_steps": 7}, 7),
        ({"save_strategy": "steps", "save_steps": 0.1}, 11),
        ({"save_strategy": "no", "save_steps": 7}, 101),
        ({"save_strategy": "best", "save_steps": 7, "eval_steps": 3}, 3),
    ],
)
def test_save_strategy_is_translated(settings, expected):
    *_, job, _ = taken({"max_steps": 101, **settings})
    assert job.save_steps == expected


def test_the_best_is_saved_as_often_as_the_command_line_evaluates():
    settings = {"max_steps": 101, "save_strategy": "best", "eval_steps": 3}
    assert taken(settings, eval_steps=5)[2].save_steps == 5


@pytest.mark.parametrize(
    "name", ["eval_strategy", "evaluation_strategy", "save_strategy"]
)
def test_an_unknown_strategy_is_refused(name):
    (sentence,) = refused({name: "sometimes"})
    assert f"`{name}` 'sometimes': give one of 'no', 'steps', 'epoch'" in sentence


def test_both_names_of_recomputation_are_one():
    assert taken({"activation_checkpointing": True})[1].gradient_checkpointing
    both = {"activation_checkpointing": True, "gradient_checkpointing": True}
    assert not taken(both, gradient_checkpointing=False)[1].gradient_checkpointing


def test_a_switch_that_is_neither_on_nor_off_is_refused():
    for name in ("activation_checkpointing", "adafactor", "bf16"):
        (sentence,) = refused({name: "maybe"})
        assert f"`{name}` must be true or false, got 'maybe'" in sentence


@pytest.mark.parametrize("resume", [True, False, "True", "false"])
def test_resume_from_checkpoint_may_be_a_boolean(resume):
    assert taken({"resume_from_checkpoint": resume})[2].resume_from_checkpoint is None


def test_a_limit_of_no_checkpoints_is_no_limit():
    assert taken({"save_total_limit": 0})[2].save_total_limit is None


def test_the_order_of_the_text_has_the_one_seed():
    assert taken({"seed": 3, "data_seed": 3})[0].seed == 3
    assert taken({"data_seed": 3}, seed=3)[0].seed == 3
    (sentence,) = refused({"seed": 3, "data_seed": 4})
    assert "`data_seed` 4: the text is shuffled with `seed`, which is 3" in sentence


def test_how_batches_are_cut_is_refused_where_it_is_otherwise():
    usual = OLD["accelerator_config"]
    taken({"accelerator_config": usual})
    for other in (
        {**usual, "split_batches": True},
        {**usual, "gradient_accumulation_kwargs": {"num_steps": 4}},
        "accelerate.json",
    ):
        (sentence,) = refused({"accelerator_config": other})
        assert sentence.startswith("`accelerator_config`")


def test_the_command_line_says_what_the_file_may_not():
    recipe, *_ = taken({"optim": "galore_adamw"}, optim="adamw_torch")
    assert recipe.optim == "adamw_torch"


def test_a_ratio_of_the_warm_up_is_checked_under_its_own_name():
    for ratio in (5.0, -0.1):
        (sentence,) = refused({"max_steps": 101, "warmup_ratio": ratio})
        assert f"`warmup_ratio` must be from 0 to 1, got {ratio}" in sentence
    (sentence,) = refused({"warmup_ratio": 1.0})
    assert "the number of steps is not known; set `max_steps`" in sentence


def test_a_share_of_steps_that_another_source_gives_is_kept():
    assert taken({"eval_steps": 0.1})[2].eval_steps == 200


def test_numbers_and_switches_are_read_as_everywhere():
    words = {"max_steps": "1e2", "learning_rate": "1e-4", "adafactor": "True"}
    words |= {"bf16": "false", "load_best_model_at_end": "False", "eval_steps": "7"}
    words |= {"activation_checkpointing": "true", "max_grad_norm": "None"}
    recipe, model, job, _ = taken(words)
    assert (recipe.max_steps, recipe.learning_rate, recipe.optim, job.eval_steps) == (
        100,
        1e-4,
        "adafactor",
        7,
    )
    assert model.gradient_checkpointing
    assert recipe.max_grad_norm == 0.0


def test_what_trainer_does_not_hand_to_the_schedule_is_noted():
    given = {"max_steps": 50, "eval_steps": 5, "warmup_ratio": 0.1}
    recipe, *_, notes = taken({**given, "lr_scheduler_type": "greedy"})
    assert recipe.warmup_steps == 0
    assert "`warmup_ratio`: Trainer has no warmup for 'greedy' either" in notes
    # The schedule of the command line counts.
    recipe, *_, notes = taken(given, lr_scheduler_type="reduce_lr_on_plateau")
    assert "`warmup_ratio`: Trainer has no warmup for 'reduce_lr_on_plateau'" in notes


def test_the_fields_of_a_subclass_are_listed_and_those_of_its_optimizer_refused():
    whole = {**OLD, "max_steps": 10, "dataset_num_proc": 2, "vision_lr": None}
    recipe, *_, notes = taken(whole)
    assert recipe == Recipe(max_steps=10)
    assert "ignored: dataset_num_proc, vision_lr;" in notes
    (sentence,) = refused({**whole, "vision_lr": 1e-5})
    assert "`vision_lr` 1e-05: this field of a subclass may change" in sentence


def test_fields_can_be_left_out_on_the_command_line():
    given = {"max_steps": 10, "fp16": True, "mine": 1}
    assert len(refused(given)) == 2
    found = settings_from_transformers(given, ignore_fields=["fp16", "mine"])
    assert "ignored: fp16, mine" in found.notes
    with pytest.raises(ValueError, match="Did you mean 'fp16'"):
        settings_from_transformers(given, ignore_fields=["fp61"])


def test_where_evaluations_decide_the_data_are_named():
    given = {"max_steps": 50, "eval_strategy": "steps", "eval_steps": 5}
    assert "eval_dataset" not in taken(given)[-1]
    best = {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 10}
    notes = taken({**given, **best})[-1]
    assert "not Trainer's `eval_dataset`" in notes
    assert "the best of all evaluations, every 5 steps, is loaded; Trainer" in notes
