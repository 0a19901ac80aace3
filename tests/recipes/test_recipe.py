"""`Recipe`: what it refuses, what it keeps, what it costs to compare two."""

import dataclasses

import pytest

from jaxopt_tf.recipes import Recipe


def test_has_the_defaults_of_training_arguments():
    assert dataclasses.asdict(Recipe(max_steps=10)) == {
        "max_steps": 10,
        "learning_rate": 5e-5,
        "lr_scheduler_type": "linear",
        "lr_scheduler_kwargs": (),
        "warmup_steps": 0,
        "optim": "adamw_torch",
        "weight_decay": 0.0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "max_grad_norm": 1.0,
        "seed": 42,
    }


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
    assert Recipe(max_steps=1e6).max_steps == 1_000_000


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
        ("seed", -1),
        ("optim", "adamw_torhc"),
        ("lr_scheduler_type", "cosin"),
    ],
)
def test_refuses_a_bad_value_by_name(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        Recipe(**{"max_steps": 10, name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("max_steps", 1.5), ("warmup_steps", 0.1), ("seed", "1")]
)
def test_refuses_a_count_that_is_no_whole_number(name, value):
    with pytest.raises(TypeError, match=f"`{name}` must be a whole number"):
        Recipe(**{"max_steps": 10, name: value})


def test_names_the_nearest_schedule_and_optimizer():
    with pytest.raises(ValueError, match="Did you mean 'cosine'"):
        Recipe(max_steps=10, lr_scheduler_type="cosin")
    with pytest.raises(ValueError, match="Did you mean 'adafactor'"):
        Recipe(max_steps=10, optim="adafacto")


def test_refuses_a_warmup_longer_than_training():
    with pytest.raises(ValueError, match=r"`warmup_steps` must be at most .* got 11"):
        Recipe(max_steps=10, warmup_steps=11)
    Recipe(max_steps=10, warmup_steps=10)


@pytest.mark.parametrize("name", ["reduce_lr_on_plateau", "greedy"])
def test_refuses_a_schedule_that_follows_a_metric(name):
    with pytest.raises(ValueError, match=f"`lr_scheduler_type`.*{name}.*a metric"):
        Recipe(max_steps=10, lr_scheduler_type=name)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("linear", {"num_cycle": 2}),
        ("cosine_with_min_lr", {}),
        ("cosine_with_min_lr", {"min_lr": 1e-6, "min_lr_rate": 0.1}),
        ("polynomial", {"lr_end": 1.0}),
    ],
)
def test_refuses_options_that_the_schedule_refuses(name, options):
    with pytest.raises(ValueError, match=f"'{name}' with `lr_scheduler_kwargs`"):
        Recipe(max_steps=10, lr_scheduler_type=name, lr_scheduler_kwargs=options)


def test_refuses_options_that_are_no_mapping():
    with pytest.raises(TypeError, match="`lr_scheduler_kwargs` must be a mapping"):
        Recipe(max_steps=10, lr_scheduler_kwargs="power=2")


def test_says_it_in_its_own_words_where_a_schedule_refuses_the_plan():
    with pytest.raises(ValueError, match="`max_steps` must differ from `warmup_steps`"):
        Recipe(max_steps=10, warmup_steps=10, lr_scheduler_type="polynomial")
