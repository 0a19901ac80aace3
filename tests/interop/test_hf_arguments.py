"""`recipe_from_transformers`: conversion of TrainingArguments, and refusals."""

import dataclasses
import enum
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

DATA = pathlib.Path(__file__).parents[1] / "files"
OLD = json.loads((DATA / "training_arguments_4.46.json").read_text())
SINCE_4_53 = {"hub_revision": None, "liger_kernel_config": None}


# Fields that came with a version, among those of 4.46.
SINCE = {
    "4.40": "eval_do_concat_batches eval_strategy eval_on_start batch_eval_metrics "
    "eval_use_gather_object use_liger_kernel average_tokens_across_devices "
    "include_for_metrics restore_callback_states_from_checkpoint "
    "torch_empty_cache_steps",
    "4.33": "accelerator_config dataloader_prefetch_factor optim_target_modules "
    "lr_scheduler_kwargs neftune_noise_alpha save_only_model split_batches "
    "gradient_checkpointing_kwargs include_tokens_per_second dispatch_batches",
    "4.18": "optim optim_args data_seed eval_delay tf32 torch_compile fsdp_config",
    "4.4": "warmup_ratio logging_strategy save_strategy skip_memory_metrics",
}
WAS_NOT_BEFORE = list(SINCE)


def before(version, **fields):
    """The fields that a version before this one wrote."""
    later = WAS_NOT_BEFORE[: WAS_NOT_BEFORE.index(version) + 1]
    gone = {name for v in later for name in SINCE[v].split()}
    return {n: v for n, v in OLD.items() if n not in gone} | fields


class Kind(enum.Enum):
    """A kind of loss, as a subclass may have one."""

    REVERSE = "reverse_kl"


@dataclasses.dataclass
class OwnArguments(TrainingArguments):
    """Fields of one's own, as TRL and training scripts have them."""

    packing: bool = False
    loss_kind: Kind = Kind.REVERSE
    dataset_kwargs: dict | None = None
    vision_lr: float | None = None


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
        assert {"optim_args", "warmup_steps", "learning_rate"} <= set(found.mapped)


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


def test_update_includes_the_batches_of_all_devices():
    given = {
        "max_steps": 5,
        "gradient_accumulation_steps": 2,
        "average_tokens_across_devices": False,
    }
    alone = recipe_from_transformers(given)
    assert alone.recipe.gradient_accumulation_steps == 2
    assert alone.ignored == ("average_tokens_across_devices",)
    found = recipe_from_transformers(given, num_devices=4)
    assert found.recipe.gradient_accumulation_steps == 8
    assert found.non_optimizer == ("average_tokens_across_devices",)
    assert "the run used 4 devices" in found.notes[0]


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
def test_recipe_matches_trainer(fields, expected):
    found = recipe_from_transformers({"max_steps": 50, **fields})
    assert {name: getattr(found.recipe, name) for name in expected} == expected


def test_report_lists_non_optimizer_and_ignored_fields(tmp_path):
    given = arguments(
        tmp_path, bf16=True, max_steps=5, data_seed=3, run_name="x", optim="adafactor"
    )
    found = recipe_from_transformers(given)
    assert set(found.non_optimizer) == {"bf16", "data_seed"}
    assert {"run_name", "use_cpu"} <= set(found.ignored)
    assert found.notes == ()


def test_the_report_names_tf32_where_it_is_asked_for():
    for given, elsewhere in ((None, ()), (False, ()), (True, ("tf32",))):
        found = recipe_from_transformers({"max_steps": 5, "tf32": given})
        assert found.non_optimizer == elsewhere


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
def test_epochs_are_used_if_max_steps_is_not_set(fields, options, decides):
    found = recipe_from_transformers({"num_train_epochs": 2.0, **fields}, **options)
    assert ("num_train_epochs" in found.mapped) == decides
    assert ("num_train_epochs" in found.ignored) == (not decides)


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
        ({"max_steps": 0}, "`max_steps` must be from 1"),
        ({"max_steps": "many"}, "`max_steps` must be a whole number"),
        ({"max_steps": -1, "num_train_epochs": 0.0}, "`num_train_epochs` must be"),
        ({"accelerator_config": {"split_batches": True}}, "`accelerator_config`"),
        ({"deepspeed": "ds.json"}, "`deepspeed`"),
        ({"warmup_ratio": 5.0}, "`warmup_ratio` must be from 0 to 1, got 5.0"),
        ({"warmup_ratio": 5.0, "warmup_steps": 5}, "`warmup_ratio` must be from 0 to"),
        ({"warmup_ratio": "50"}, "`warmup_ratio` must be from 0 to 1, got 50"),
        ({"warmup_ratio": -0.1}, "`warmup_ratio` must be from 0 to 1, got -0.1"),
        ({"warmup_ratio": "a"}, "`warmup_ratio` must be a real number, got 'a'"),
        (
            {"warmup_ratio": 0.0, "warmup_steps": 0.1},
            "`warmup_steps` 0.1: must be a whole number",
        ),
        ({"warmup_steps": -3}, "`warmup_steps` must be from 0"),
        ({"adafactor": 1}, "`adafactor` must be true or false, got 1"),
        ({"adafactor": "maybe"}, "`adafactor` must be true or false, got 'maybe'"),
        ({"seed": 2**32}, "`seed` must be from 0 to 2^32 - 1"),
        ({"learning_rat": 1}, "add 'learning_rat' to `ignore_fields`"),
        ({"sharded_ddp": "simple"}, "`optim` must be given with `sharded_ddp`"),
    ],
    ids=str,
)
def test_rejects_unsupported_settings(fields, part):
    assert part in refused({"max_steps": 50, **fields})


def test_epochs_of_too_many_steps_are_named():
    told = refused({"num_train_epochs": 1e9}, num_examples=10**6)
    assert (
        "`num_train_epochs` must lead to at most 2^31 - 1 steps, got 1000000000.0"
        in told
    )


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
    with pytest.raises(
        TypeError, match="`source` must be a TrainingArguments.*got int"
    ):
        recipe_from_transformers(3)


def test_a_rule_by_types_wants_the_layers_named():
    plan = recipe_from_transformers({**OLD, "max_steps": 5, "weight_decay": 0.1}).recipe
    with pytest.raises(ValueError, match="`layer_norms` must be given"):
        build_optimizer(plan)
    build_optimizer(plan, layer_norms=[])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"learning_rate": "1e-4"}, {"learning_rate": 1e-4}),
        ({"warmup_steps": "0.1", "seed": "7"}, {"warmup_steps": 0.1, "seed": 7}),
        ({"warmup_ratio": "0.1"}, {"warmup_steps": 0.1}),
        ({"max_steps": "1e2"}, {"max_steps": 100}),
        ({"adafactor": "false"}, {"optim": "adamw_torch"}),
        ({"adafactor": "True"}, {"optim": "adafactor"}),
        ({"seed": 2**32 - 1}, {"seed": 2**32 - 1}),
        ({"max_grad_norm": "None"}, {"max_grad_norm": 0.0}),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": "2.0"}},
         {"lr_scheduler_kwargs": (("power", 2.0),)}),
        ({"fp16": "false", "optim": "sgd", "optim_args": '{"momentum": 0.5}'},
         {"optim_args": (("momentum", 0.5),)}),
        ({"accelerator_config": '{"split_batches": "false"}'}, {"max_steps": 50}),
    ],
    ids=str,
)  # fmt: skip
def test_a_value_is_read_by_the_kind_of_its_field(fields, expected):
    found = recipe_from_transformers({"max_steps": 50, **fields})
    assert {name: getattr(found.recipe, name) for name in expected} == expected
    assert found.non_optimizer == ()


def test_a_switch_that_is_off_in_words_is_off():
    given = {
        "max_steps": 5,
        "bf16": "false",
        "tf32": "False",
        "group_by_length": "false",
    }
    found = recipe_from_transformers({**given, "load_best_model_at_end": "false"})
    assert (found.non_optimizer, found.ignored) == ((), ())
    last = {"dataloader_drop_last": "true"}
    assert recipe_from_transformers(last, num_examples=15).recipe.max_steps == 3
    assert "`dataloader_drop_last` must be" in refused(
        {"dataloader_drop_last": 1}, num_examples=15
    )


def test_a_ratio_that_gives_way_is_listed():
    found = recipe_from_transformers(
        {"max_steps": 50, "warmup_ratio": 0.1, "warmup_steps": 3}
    )
    assert found.ignored == ("warmup_ratio",)
    assert "warmup_ratio" not in found.mapped
    driven = {"max_steps": 50, "lr_scheduler_type": "greedy", "warmup_ratio": 0.1}
    assert recipe_from_transformers(driven).notes == (
        "`warmup_ratio`: Trainer has no warmup for 'greedy' either",
    )


@pytest.mark.parametrize(
    ("source", "versions", "optim"),
    [
        (before("4.40", sharded_ddp=""), "4, before 4.40", "adamw_torch"),
        (before("4.40"), "4, before 4.40", "adamw_torch"),
        (before("4.33", sharded_ddp="", xpu_backend=None, optim="adamw_hf"),
         "4, before 4.40", "adamw_hf"),
        (before("4.18", sharded_ddp=""), "4, before 4.40", "adamw_hf"),
        (before("4.4", sharded_ddp="", weight_decay=0.0), "4, before 4.4", "adamw_hf"),
        (OLD, "4.46 to 4.49", "adamw_torch"),
    ],
    ids=["4.34", "4.39", "4.30", "4.17", "4.3", "4.46"],
)  # fmt: skip
def test_arguments_of_old_versions_are_read(source, versions, optim):
    found = recipe_from_transformers(source, max_steps=9)
    assert found.versions == versions
    assert found.recipe.optim == optim


def test_what_old_versions_did_otherwise_is_refused_by_version():
    told = refused(before("4.4", weight_decay=0.1), max_steps=9)
    assert (
        "`weight_decay` 0.1: the fields are those of Transformers 4, before 4.4" in told
    )
    assert "`model_parallel` True" in refused(
        before("4.4", model_parallel=True), max_steps=9
    )


def test_the_fields_of_a_subclass_are_ignored_and_listed(tmp_path):
    given = arguments(tmp_path, OwnArguments, max_steps=5, packing=True)
    given.dataset_kwargs = {"a": 1}
    torch.save(given, tmp_path / "training_args.bin")
    whole = given.to_dict() | {"loss_kind": "reverse_kl"}
    own = ("dataset_kwargs", "loss_kind", "packing", "vision_lr")
    sources = [given, whole, json.dumps(whole), tmp_path / "training_args.bin"]
    for source in sources:
        found = recipe_from_transformers(source)
        assert found.recipe.max_steps == 5
        assert found.versions == ("5.23.0" if source is given else "5")
        assert found.unread == own


def test_a_field_of_a_subclass_that_names_a_rate_is_refused(tmp_path):
    given = arguments(tmp_path, OwnArguments, max_steps=5, vision_lr=1e-6)
    told = refused(given)
    assert (
        "`vision_lr` 1e-06: this field of a subclass may change the optimizer" in told
    )
    assert "'vision_lr' to `ignore_fields`" in told
    found = recipe_from_transformers(given, ignore_fields=["vision_lr"])
    assert "vision_lr" in found.unread


def test_fields_can_be_left_out_by_name():
    given = {"max_steps": 5, "fp16": True, "mine": 3}
    found = recipe_from_transformers(given, ignore_fields=("fp16", "mine"))
    assert found.unread == ("fp16", "mine")
    assert "Did you mean 'fp16'" in refused(given, ignore_fields=["fp61"])
    with pytest.raises(
        TypeError, match="`ignore_fields` must be a list of field names"
    ):
        recipe_from_transformers(given, ignore_fields="fp16")


def test_an_unknown_field_of_transformers_itself_is_not_ignored(tmp_path):
    given = arguments(tmp_path, max_steps=5)
    given.new_number = 3.0
    torch.save(given, tmp_path / "training_args.bin")
    assert "`new_number` must be a field of Training" in refused(
        tmp_path / "training_args.bin"
    )


@pytest.mark.parametrize(
    ("fields", "decides"),
    [
        ({"lr_scheduler_type": "greedy"}, True),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, True),
        ({"load_best_model_at_end": True}, True),
        ({}, False),
    ],
    ids=str,
)
def test_eval_interval_is_mapped_if_it_drives_the_schedule(fields, decides):
    evaluation = {"eval_strategy": "steps", "eval_steps": 2, "logging_steps": 3}
    found = recipe_from_transformers({"max_steps": 9, **fields, **evaluation})
    assert ("eval_steps" in found.ignored) != decides
    assert ({"eval_steps", "eval_strategy"} <= set(found.non_optimizer)) == decides
    assert "logging_steps" not in found.non_optimizer
    del evaluation["eval_steps"]
    found = recipe_from_transformers({"max_steps": 9, **fields, **evaluation})
    assert ("logging_steps" in found.non_optimizer) == decides


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
    assert "must not have a `min_lr_ratio` for 'warmup_stable_decay'" in message
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
