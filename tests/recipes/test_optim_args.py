"""`optim` and `optim_args`: read by their types, or refused with the reason."""

import dataclasses

import pytest

from jaxopt_tf.recipes import OPTIMIZERS, REFUSED_OPTIMIZERS, Recipe, optimizer_refusal
from tests import twins


def made(optim, args):
    return Recipe(max_steps=10, optim=optim, optim_args=args).optim_args


@pytest.mark.parametrize(
    ("optim", "given", "read"),
    [
        (
            "sgd",
            "momentum=0.9, nesterov=True",
            (("momentum", 0.9), ("nesterov", True)),
        ),
        (
            "sgd",
            "momentum=0.9,nesterov=False",
            (("momentum", 0.9), ("nesterov", False)),
        ),
        ("rmsprop", {"centered": "False"}, (("centered", False),)),
        ("rmsprop", {"alpha": "0.9"}, (("alpha", 0.9),)),
        ("rmsprop", {"centered": True}, (("centered", True),)),
        ("adagrad", (("lr_decay", 1),), (("lr_decay", 1.0),)),
        ("sgd", "", ()),
        ("sgd", None, ()),
        ("adamw_torch", {}, ()),
    ],
)  # fmt: skip
def test_reads_each_by_its_type(optim, given, read):
    assert made(optim, given) == read
    recipe = Recipe(max_steps=10, optim=optim, optim_args=given)
    assert dataclasses.replace(recipe, seed=1).optim_args == read
    hash(recipe)


@pytest.mark.parametrize(
    ("optim", "given", "error", "match"),
    [
        ("sgd", "momentun=0.9", ValueError, "got 'momentun'. Did you mean 'momentum'"),
        ("adamw_torch", "momentum=0.9", ValueError, "which are none, got 'momentum'"),
        ("sgd", "momentum", ValueError, "must be of the form"),
        ("sgd", "momentum=0.9=1", ValueError, "must be of the form"),
        ("sgd", "momentum=0.9,momentum=0.8", ValueError, "'momentum' twice"),
        ("sgd", {"weight_decay": 0.1}, ValueError, "must not hold `weight_decay`"),
        ("sgd", "momentum=big", TypeError, "a number for `momentum`, got 'big'"),
        ("sgd", {"momentum": True}, TypeError, "a number for `momentum`, got True"),
        ("sgd", {"momentum": None}, TypeError, "a number for `momentum`, got None"),
        ("sgd", "nesterov=perhaps", TypeError, "true or false for `nesterov`"),
        ("sgd", {"nesterov": 1}, TypeError, "true or false for `nesterov`, got 1"),
        ("sgd", 3, TypeError, "`optim_args` must be a mapping"),
        ("sgd", "momentum=-1", ValueError, "'sgd' with `optim_args`.*`momentum`"),
        ("sgd", "nesterov=1", ValueError, "'sgd' with `optim_args`.*requires"),
        ("rmsprop", "alpha=nan", ValueError, "`alpha` must be"),
    ],
)
def test_refuses_what_is_no_argument(optim, given, error, match):
    with pytest.raises(error, match=match):
        made(optim, given)


@twins.needs_transformers
def test_every_name_of_transformers_is_here_or_refused_with_a_reason():
    from transformers.training_args import OptimizerNames

    names = {name.value for name in OptimizerNames}
    assert names <= set(OPTIMIZERS) | set(REFUSED_OPTIMIZERS)
    assert not set(OPTIMIZERS) & set(REFUSED_OPTIMIZERS)
    assert set(OPTIMIZERS) - names == {"adamw_hf", "adamw_apex_fused"}  # of version 4


@pytest.mark.parametrize("name", REFUSED_OPTIMIZERS)
def test_a_refusal_says_what_to_do(name):
    with pytest.raises(ValueError, match=f"got '{name}': .*(take|see)"):
        Recipe(max_steps=10, optim=name)


@pytest.mark.parametrize(
    ("name", "distance"),
    [("schedule_free_adamw", "4e-5"), ("schedule_free_sgd", "4e-6")],
)
def test_says_how_near_optax_comes_to_schedule_free(name, distance):
    words = f"averaged parameters.*over 50 steps is within {distance}.*1.4.1"
    with pytest.raises(ValueError, match=words):
        Recipe(max_steps=10, optim=name)


def test_a_name_that_there_is_is_not_refused():
    assert [optimizer_refusal(name) for name in OPTIMIZERS] == [None] * len(OPTIMIZERS)
