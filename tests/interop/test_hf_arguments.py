"""`recipe_from_transformers`: TrainingArguments kept, or refused all at once."""

import json
import math
import pathlib
import re

import pytest
import torch
import transformers
from transformers import Seq2SeqTrainingArguments, TrainingArguments

from jaxopt_tf.interop import recipe_from_transformers
from jaxopt_tf.recipes import Recipe, build_optimizer

DATA = pathlib.Path(__file__).parents[1] / "data"
OLD = json.loads((DATA / "training_arguments_4.46.json").read_text())
SINCE_4_53 = {"hub_revision": None, "liger_kernel_config": None}


def arguments(tmp_path, kind=TrainingArguments, **fields):
    return kind(str(tmp_path), use_cpu=True, report_to=[], **fields)


def refused(source, **options):
    with pytest.raises(ValueError, match="\\w") as error:
        recipe_from_transformers(source, **options)
    return str(error.value)


def test_object_dict_json_and_files_give_one_recipe(tmp_path):
    given = arguments(
        tmp_path,
        optim="sgd",
        optim_args="momentum=0.9,nesterov=True",
        max_steps=70,
        learning_rate=3e-3,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=0.11,
        weight_decay=0.1,
        label_smoothing_factor=0.1,
        seed=7,
    )
    new, old = tmp_path / "training_args.bin", tmp_path / "legacy.bin"
    torch.save(given, new)
    torch.save(given, old, _use_new_zipfile_serialization=False)
    text = given.to_json_string()
    (tmp_path / "args.json").write_text(text)
    sources = [given, given.to_dict(), text, tmp_path / "args.json", new, str(old)]
    expected = Recipe(
        optim="sgd",
        optim_args={"momentum": 0.9, "nesterov": True},
        max_steps=70,
        learning_rate=3e-3,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=0.11,
        weight_decay=0.1,
        decay_rule="transformers_v5",
        label_smoothing_factor=0.1,
        seed=7,
    )
    for source in sources:
        found = recipe_from_transformers(source)
        assert found.recipe == expected
        assert found.versions in ("5", transformers.__version__)
        assert {"optim_args", "warmup_steps", "learning_rate"} <= set(found.honoured)


def test_a_pickle_of_version_4_is_read(tmp_path):
    given = arguments(tmp_path)
    given.__dict__.clear()
    given.__dict__.update({**OLD, "warmup_ratio": 0.1, "_n_gpu": 1})
    torch.save(given, tmp_path / "training_args.bin")
    found = recipe_from_transformers(tmp_path / "training_args.bin", num_examples=1001)
    assert found.recipe.num_warmup_steps == 38
    assert found.recipe.decay_rule == "transformers_4_49"


@pytest.mark.parametrize(
    ("fields", "num_devices", "steps"),
    [
        ({}, None, 3 * math.ceil(1001 / 8)),
        ({"per_device_train_batch_size": 3}, 2, 3 * 167),
        ({"dataloader_drop_last": True}, None, 3 * 125),
        ({"gradient_accumulation_steps": 4}, None, 3 * 32),
        ({"gradient_accumulation_steps": 1000}, None, 3),
        ({"num_train_epochs": 1.01}, None, 128),
        ({"max_steps": 5}, None, 5),
    ],
)
def test_steps_come_from_epochs(fields, num_devices, steps):
    found = recipe_from_transformers(fields, num_examples=1001, num_devices=num_devices)
    assert found.recipe.max_steps == steps


def test_an_update_is_of_what_all_devices_took():
    given = {
        "max_steps": 5,
        "gradient_accumulation_steps": 2,
        "average_tokens_across_devices": False,
    }
    alone = recipe_from_transformers(given)
    assert alone.recipe.gradient_accumulation_steps == 2
    assert alone.without_effect == ("average_tokens_across_devices",)
    found = recipe_from_transformers(given, num_devices=4)
    assert found.recipe.gradient_accumulation_steps == 8
    assert found.elsewhere == ("average_tokens_across_devices",)
    assert "4 devices took part" in found.notes[0]


GONE_IN_4_51 = ("dispatch_batches", "evaluation_strategy", "split_batches")
LATER = {name: value for name, value in OLD.items() if name not in GONE_IN_4_51}


@pytest.mark.parametrize(
    ("fields", "steps", "rule", "versions"),
    [
        (OLD, 3 * 31, "transformers_4_49", "4.46 to 4.49"),
        ({**OLD, "tp_size": 0}, 3 * 31, "transformers_4_49", "4.50"),
        ({**LATER, "tp_size": 0}, 3 * 31, "transformers_4_49", "4.51"),
        (LATER, 3 * 32, "transformers_4_49", "4.52"),
        ({**LATER, **SINCE_4_53}, 3 * 32, "transformers_4_53", "4.53 to 4.55"),
        ({"evaluation_strategy": "no"}, 3 * 31, "transformers_4_49", "4, up to 4.51"),
        ({"warmup_ratio": 0.0}, 3 * 31, "transformers_v5", "4, up to 4.51"),
        ({"warmup_ratio": 0, **SINCE_4_53}, 3 * 32, "transformers_v5", "4.53 to 5.14"),
        ({}, 3 * 32, "transformers_v5", "5"),
    ],
    ids=["4.46", "4.50", "4.51", "4.52", "4.53", "few", "ratio", "mixed", "5"],
)  # fmt: skip
def test_each_version_has_its_own_rules(fields, steps, rule, versions):
    given = {**fields, "gradient_accumulation_steps": 4}
    found = recipe_from_transformers(given, num_examples=1001)
    assert (found.recipe.max_steps, found.recipe.decay_rule) == (steps, rule)
    assert found.versions == versions


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"adafactor": True}, {"optim": "adafactor"}),
        ({"optim": "adamw_hf"}, {"optim": "adamw_hf"}),
        ({"optim": "adamw_apex_fused"}, {"optim": "adamw_torch"}),
        ({"optim": "adamw_torch_fused"}, {"optim": "adamw_torch_fused"}),
        ({"warmup_ratio": 0.1}, {"warmup_steps": 0.1}),
        ({"warmup_ratio": 1.0}, {"warmup_steps": 50}),
        ({"warmup_ratio": 0.1, "warmup_steps": 3}, {"warmup_steps": 3}),
        ({"warmup_steps": 3.7}, {"warmup_steps": 3}),
        ({"max_grad_norm": None}, {"max_grad_norm": 0.0}),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": '{"power": 2.0}'},
         {"lr_scheduler_kwargs": (("power", 2.0),)}),
        # What Trainer does not hand on.
        ({"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"a": 1}},
         {"lr_scheduler_kwargs": ()}),
        ({"lr_scheduler_type": "greedy", "warmup_steps": 9}, {"warmup_steps": 0}),
        ({"optim": "adamw_torch", "optim_args": "a=1"}, {"optim_args": ()}),
        ({"optim": "sgd", "optim_args": "momentum=0.9", "warmup_ratio": 0.0},
         {"optim_args": ()}),
        ({"optim": "sgd", "optim_args": "momentum=0.9,weight_decay=1"},
         {"optim_args": (("momentum", 0.9),), "weight_decay": 0.0}),
    ],
    ids=str,
)  # fmt: skip
def test_is_what_trainer_makes_of_it(fields, expected):
    found = recipe_from_transformers({"max_steps": 50, **fields})
    assert {name: getattr(found.recipe, name) for name in expected} == expected


def test_the_report_names_what_is_elsewhere_and_what_has_no_effect(tmp_path):
    given = arguments(
        tmp_path, bf16=True, max_steps=5, data_seed=3, run_name="x", optim="adafactor"
    )
    found = recipe_from_transformers(given)
    assert set(found.elsewhere) == {"bf16", "data_seed"}
    assert {"run_name", "use_cpu"} <= set(found.without_effect)
    assert found.notes == ()


def test_the_report_names_tf32_where_it_is_asked_for():
    for given, elsewhere in ((None, ()), (False, ()), (True, ("tf32",))):
        found = recipe_from_transformers({"max_steps": 5, "tf32": given})
        assert found.elsewhere == elsewhere


@pytest.mark.parametrize(
    ("fields", "options", "decides"),
    [
        ({}, {"num_examples": 100}, True),
        ({"max_steps": -1}, {"num_examples": 100}, True),
        ({"max_steps": 5}, {}, False),
        ({}, {"max_steps": 5}, False),
    ],
    ids=str,
)
def test_epochs_are_honoured_where_they_decide(fields, options, decides):
    found = recipe_from_transformers({"num_train_epochs": 2.0, **fields}, **options)
    assert ("num_train_epochs" in found.honoured) == decides
    assert ("num_train_epochs" in found.without_effect) == (not decides)


def test_arguments_for_sequences_are_taken(tmp_path):
    given = arguments(tmp_path, Seq2SeqTrainingArguments, max_steps=5)
    torch.save(given, tmp_path / "training_args.bin")
    for source in (given, tmp_path / "training_args.bin"):
        assert recipe_from_transformers(source).recipe.max_steps == 5


def test_refuses_all_at_once():
    told = refused(
        {
            "num_train_epochs": 3.0,
            "fp16": True,
            "neftune_noise_alpha": 5.0,
            "optim": "galore_adamw",
            "learning_rat": 1e-3,
            "lr_scheduler_type": "cosin",
            "_n_gpu": 4,
        }
    )
    for part in (
        "`num_train_epochs` 3.0: .* pass `num_examples`",
        "`fp16` True",
        "`neftune_noise_alpha` 5.0",
        "got 'galore_adamw'",
        "Did you mean `learning_rate`",
        "Did you mean 'cosine'",
        "`_n_gpu` 4: .* pass `num_devices`",
    ):
        assert re.search(part, told), part
    assert told.count("\n") == 6


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"optim": "adamw_torhc"}, "Did you mean 'adamw_torch'"),
        ({"optim": "sgd", "optim_args": "momentun=1"}, "Did you mean 'momentum'"),
        ({"optim": "sgd", "optim_args": "nesterov=maybe"}, "true or false"),
        ({"optim": "sgd", "optim_args": {"momentum": True}}, "a number for `momentum`"),
        ({"lr_scheduler_kwargs": {"num_cycle": 1}}, "`lr_scheduler_kwargs`"),
        ({"lr_scheduler_kwargs": '{"a"'}, "`lr_scheduler_kwargs` must be JSON"),
        ({"learning_rate": "fast"}, "`learning_rate` must be"),
        ({"max_steps": 0}, "`max_steps` must be at least 1"),
        ({"max_steps": "many"}, "`max_steps` must be a whole number"),
        ({"max_steps": -1, "num_train_epochs": 0.0}, "`num_train_epochs` must be"),
        ({"accelerator_config": {"split_batches": True}}, "`accelerator_config`"),
        ({"deepspeed": "ds.json"}, "`deepspeed`"),
    ],
    ids=str,
)
def test_refuses_what_it_cannot_keep(fields, part):
    assert part in refused({"max_steps": 50, **fields})


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"num_examples": 0}, "`num_examples` must be"),
        ({"num_devices": 0}, "`num_devices` must be"),
    ],
)
def test_refuses_counts_of_nothing(options, part):
    assert part in refused({"max_steps": 50}, **options)


def test_refuses_what_is_no_source():
    with pytest.raises(TypeError, match="`source` must be TrainingArguments.*got int"):
        recipe_from_transformers(3)


def test_a_rule_by_types_wants_the_layers_named():
    plan = recipe_from_transformers({**OLD, "max_steps": 5, "weight_decay": 0.1}).recipe
    with pytest.raises(ValueError, match="`layer_norms` must be given"):
        build_optimizer(plan)
    build_optimizer(plan, layer_norms=[])


@pytest.mark.parametrize(
    ("version", "expected"), [("5.2.0", ()), ("5.3.0", (("momentum", 0.9),))]
)
def test_optim_args_of_sgd_are_read_since_5_3(version, expected):
    given = {"max_steps": 9, "optim": "sgd", "optim_args": "momentum=0.9"}
    found = recipe_from_transformers(given, transformers_version=version)
    assert found.recipe.optim_args == expected


@pytest.mark.parametrize(("version", "steps"), [("4.57.6", 3), ("5.3.0", 5)])
def test_a_ratio_of_version_5_replaces_steps(version, steps):
    given = {"max_steps": 50, "warmup_ratio": 0.1, "warmup_steps": 3}
    found = recipe_from_transformers(given, transformers_version=version)
    assert found.recipe.num_warmup_steps == steps


def test_the_warmup_of_an_old_version_from_0_is_refused():
    given = {
        "max_steps": 50,
        "warmup_steps": 5,
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {
            "num_stable_steps": 30,
            "num_decay_steps": 15,
            "min_lr_ratio": 0.1,
        },
    }
    message = refused(given, transformers_version="4.48.3")
    assert "without a `min_lr_ratio` for 'warmup_stable_decay'" in message
    recipe_from_transformers(given, transformers_version="4.49.0")
    kwargs = {**given["lr_scheduler_kwargs"], "min_lr_ratio": 0.0}
    given = {**given, "lr_scheduler_kwargs": kwargs}
    recipe_from_transformers(given, transformers_version="4.48.3")


def test_steps_of_an_epoch_are_those_of_the_version():
    given = {"gradient_accumulation_steps": 4}
    for version, steps in (("4.51.3", 3 * 31), ("4.52.4", 3 * 32)):
        found = recipe_from_transformers(
            given, num_examples=1001, transformers_version=version
        )
        assert found.recipe.max_steps == steps
