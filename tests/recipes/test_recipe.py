"""`Recipe`: validation, equality and hashing."""

import dataclasses
import types

import pytest

from jaxopt_tf.recipes import Recipe
from tests import references


def test_has_the_defaults_of_training_arguments():
    assert dataclasses.asdict(Recipe(max_steps=10)) == {
        "max_steps": 10,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "learning_rate": 5e-5,
        "lr_scheduler_type": "linear",
        "lr_scheduler_kwargs": (),
        "warmup_steps": 0,
        "optim": "adamw_torch",
        "optim_args": (),
        "weight_decay": 0.0,
        "decay_rule": "default",
        "rate_groups": (),
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "max_grad_norm": 1.0,
        "label_smoothing_factor": 0.0,
        "ema_decay": None,
        "seed": 42,
    }


@references.needs_transformers
def test_has_the_names_and_defaults_of_training_arguments():
    from transformers import TrainingArguments

    theirs = {f.name: f for f in dataclasses.fields(TrainingArguments)}
    ours = {"decay_rule", "rate_groups", "ema_decay"}
    # Theirs is -1 for "as epochs have it", and another AdamW for newer torch.
    others = {"max_steps", "optim", "lr_scheduler_kwargs", "optim_args"}
    for field in dataclasses.fields(Recipe):
        assert field.name in theirs or field.name in ours
        if field.name not in ours | others:
            assert field.default == theirs[field.name].default, field.name


def test_is_hashable_and_equal_whatever_the_order_of_its_options():
    def recipe(options):
        return Recipe(
            max_steps=10, lr_scheduler_type="polynomial", lr_scheduler_kwargs=options
        )

    one = recipe({"power": 2.0, "lr_end": 1e-8})
    other = recipe({"lr_end": 1e-8, "power": 2.0})
    assert one == other
    assert hash(one) == hash(other)
    assert (
        dataclasses.replace(one, seed=1).lr_scheduler_kwargs == one.lr_scheduler_kwargs
    )


def test_takes_a_whole_float_for_a_count():
    recipe = Recipe(max_steps=1e6, warmup_steps=100.0, gradient_accumulation_steps=2.0)
    assert recipe.max_steps == 1_000_000
    assert recipe.warmup_steps == recipe.num_warmup_steps == 100
    assert isinstance(recipe.warmup_steps, int)
    assert isinstance(recipe.gradient_accumulation_steps, int)


@references.needs_transformers
def test_a_warmup_below_1_is_a_share_as_in_version_5():
    from transformers import TrainingArguments

    # 0.07 of 100 is above 7 in doubles, so it is 8.
    for share in (0.0, 0.001, 0.07, 0.1, 1 / 3, 0.5, 0.999):
        # What the method reads; the whole object would want accelerate.
        theirs = types.SimpleNamespace(warmup_steps=share)
        for max_steps in (1, 3, 10, 100, 12_345):
            ours = Recipe(max_steps=max_steps, warmup_steps=share)
            expected = TrainingArguments.get_warmup_steps(theirs, max_steps)
            assert ours.num_warmup_steps == expected
            assert ours.warmup_steps == share
    assert Recipe(max_steps=100, warmup_steps=0.07).num_warmup_steps == 8


def test_a_share_follows_the_number_of_steps():
    recipe = Recipe(max_steps=100, warmup_steps=0.05)
    assert dataclasses.replace(recipe, max_steps=1000).num_warmup_steps == 50
    assert hash(recipe) == hash(Recipe(max_steps=100, warmup_steps=0.05))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_steps", 0),
        ("max_steps", -1),
        ("warmup_steps", -1),
        ("learning_rate", -1e-3),
        ("learning_rate", float("nan")),
        ("weight_decay", -0.1),
        ("adam_beta1", 1.0),
        ("adam_beta2", float("nan")),
        ("adam_epsilon", -1e-8),
        ("max_grad_norm", -1.0),
        ("per_device_train_batch_size", 0),
        ("gradient_accumulation_steps", 0),
        ("label_smoothing_factor", 1.0),
        ("label_smoothing_factor", -0.1),
        ("label_smoothing_factor", float("nan")),
        ("seed", -1),
        ("optim", "adamw_torhc"),
        ("lr_scheduler_type", "cosin"),
    ],
)
def test_refuses_a_bad_value_by_name(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        Recipe(**{"max_steps": 10, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_steps", 1.5),
        ("warmup_steps", 1.5),
        ("warmup_steps", -0.5),
        ("warmup_steps", float("nan")),
        ("warmup_steps", True),
        ("warmup_steps", "3"),
        ("per_device_train_batch_size", 0.5),
        ("gradient_accumulation_steps", 1.5),
        ("seed", "1"),
    ],
)
def test_refuses_a_count_that_is_no_whole_number(name, value):
    with pytest.raises(TypeError, match=f"`{name}` must be a whole number"):
        Recipe(**{"max_steps": 10, name: value})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lr", "Pass `learning_rate=...` instead of `lr`"),
        ("b1", "Pass `adam_beta1=...` instead of `b1`"),
        ("betas", "Pass `adam_beta1=..., adam_beta2=...` instead of `betas`"),
        ("eps", "Pass `adam_epsilon=...` instead of `eps`"),
        ("num_cycles", "Pass `lr_scheduler_kwargs={'num_cycles': ...}`"),
        ("num_training_steps", "Pass `max_steps=...`"),
        ("wieght_decay", "Did you mean `weight_decay`"),
    ],
)
def test_an_unknown_name_is_answered_by_that_of_the_field(name, words):
    with pytest.raises(TypeError, match="`Recipe` must be called .* got ") as error:
        Recipe(max_steps=10, **{name: 1})
    assert words in str(error.value)
    with pytest.raises(TypeError, match="`Recipe` must be called with its own"):
        dataclasses.replace(Recipe(max_steps=10), **{name: 1})


def test_names_the_nearest_schedule_and_optimizer():
    with pytest.raises(ValueError, match="Did you mean 'cosine'"):
        Recipe(max_steps=10, lr_scheduler_type="cosin")
    with pytest.raises(ValueError, match="Did you mean 'adafactor'"):
        Recipe(max_steps=10, optim="adafacto")


def test_refuses_a_warmup_longer_than_training():
    with pytest.raises(ValueError, match=r"`warmup_steps` must be at most .* got 11"):
        Recipe(max_steps=10, warmup_steps=11)
    Recipe(max_steps=10, warmup_steps=10)


@pytest.mark.parametrize("warmup_steps", [1, 0.1])
@pytest.mark.parametrize("name", ["reduce_lr_on_plateau", "greedy"])
def test_refuses_a_warmup_that_a_metric_would_not_wait_for(name, warmup_steps):
    Recipe(max_steps=10, lr_scheduler_type=name)
    with pytest.raises(ValueError, match=f"`warmup_steps` must be 0 with '{name}'"):
        Recipe(max_steps=10, lr_scheduler_type=name, warmup_steps=warmup_steps)


@pytest.mark.parametrize(
    "stable", [{}, {"num_stable_steps": 0}, {"num_stable_steps": 3}]
)
@pytest.mark.parametrize("warmup_steps", [4, 0.4])
def test_refuses_phases_longer_than_training(stable, warmup_steps):
    def recipe(num_decay_steps):
        return Recipe(
            max_steps=10,
            warmup_steps=warmup_steps,
            lr_scheduler_type="warmup_stable_decay",
            lr_scheduler_kwargs={"num_decay_steps": num_decay_steps, **stable},
        )

    rest = 6 - stable.get("num_stable_steps", 0)
    recipe(rest)
    with pytest.raises(ValueError, match=r"must have phases of at most .* 11 in total"):
        recipe(rest + 1)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("linear", {"num_cycle": 2}),
        ("cosine_with_min_lr", {}),
        ("cosine_with_min_lr", {"min_lr": 1e-6, "min_lr_rate": 0.1}),
        ("polynomial", {"lr_end": 1.0}),
        ("linear", {"num_stable_steps": 1}),
        ("warmup_stable_decay", {}),
        ("reduce_lr_on_plateau", {"factor": 2.0}),
        ("greedy", {"patience": -1}),
    ],
)
def test_refuses_options_that_the_schedule_refuses(name, options):
    with pytest.raises(ValueError, match=f"'{name}' with `lr_scheduler_kwargs`"):
        Recipe(max_steps=10, lr_scheduler_type=name, lr_scheduler_kwargs=options)


def test_refuses_options_that_are_no_mapping():
    with pytest.raises(TypeError, match="`lr_scheduler_kwargs` must be a mapping"):
        Recipe(max_steps=10, lr_scheduler_kwargs="power=2")


def test_explains_why_a_schedule_rejects_the_recipe():
    with pytest.raises(ValueError, match="`max_steps` must differ from `warmup_steps`"):
        Recipe(max_steps=10, warmup_steps=10, lr_scheduler_type="polynomial")
