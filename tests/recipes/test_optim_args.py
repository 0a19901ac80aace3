"""`optim` and `optim_args`: conversion by type, or an error with the reason."""

import dataclasses
import re

import pytest

from jaxopt_tf.recipes import Recipe, optimizer_refusal
from jaxopt_tf.recipes._optimizers import ALGORITHMS
from tests import references


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
        ("schedule_free_sgd", "r=0.5", (("r", 0.5),)),
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
        ("sgd", {"weight_decay": 0.1}, ValueError, "must not contain `weight_decay`"),
        ("sgd", "momentum=big", TypeError, "a number for `momentum`, got 'big'"),
        ("sgd", {"momentum": True}, TypeError, "a number for `momentum`, got True"),
        ("sgd", {"momentum": None}, TypeError, "a number for `momentum`, got None"),
        ("sgd", "nesterov=perhaps", TypeError, "true or false for `nesterov`"),
        ("sgd", {"nesterov": 1}, TypeError, "true or false for `nesterov`, got 1"),
        ("sgd", 3, TypeError, "`optim_args` must be a mapping"),
        ("sgd", "momentum=-1", ValueError, "'sgd' with `optim_args`.*`momentum`"),
        ("sgd", "nesterov=1", ValueError, "'sgd' with `optim_args`.*requires"),
        ("rmsprop", "alpha=nan", ValueError, "`alpha` must be"),
        ("schedule_free_sgd", "momentum=0.9", ValueError, "'r'.*, got 'momentum'"),
        ("schedule_free_adamw", "r=-1", ValueError, "`r` must be .*at least 0"),
    ],
)
def test_refuses_what_is_no_argument(optim, given, error, match):
    with pytest.raises(error, match=match):
        made(optim, given)


@references.needs_transformers
def test_every_name_of_transformers_is_here_or_refused_with_a_way_out():
    from transformers.training_args import OptimizerNames

    names = {name.value for name in OptimizerNames}
    of_version_4 = {"adamw_hf", "adamw_apex_fused"}
    assert ALGORITHMS.keys() - names == {*of_version_4, "muon"}
    for name in names - ALGORITHMS.keys():
        refusal = optimizer_refusal(name)
        assert re.fullmatch(f"`optim` .*, got '{name}': .*(use|see).*", refusal), name
        with pytest.raises(ValueError, match=re.escape(refusal)):
            Recipe(max_steps=10, optim=name)


@references.needs_transformers
def test_takes_the_enums_of_transformers():
    from transformers import SchedulerType
    from transformers.training_args import OptimizerNames

    enums = {"optim": OptimizerNames.SGD, "lr_scheduler_type": SchedulerType.COSINE}
    names = {"optim": "sgd", "lr_scheduler_type": "cosine"}
    made = [
        Recipe(max_steps=10, optim_args="momentum=0.9", **x) for x in (enums, names)
    ]
    assert made[0] == made[1]
    assert hash(made[0]) == hash(made[1])


@pytest.mark.parametrize("optim", [None, 3, ["sgd"]])
def test_refuses_what_is_no_name(optim):
    with pytest.raises(ValueError, match="`optim` must be one of 'adamw_torch'"):
        Recipe(max_steps=10, optim=optim)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("galore_adamw_8bit_layerwise", "low-rank"),
        ("apollo_adamw", "low-rank"),
        ("paged_ademamix_8bit", "or use 'adamw_torch' or 'adamw_8bit'"),
        ("lomo", "during the backward pass"),
        ("ademamix", "`optax.contrib.ademamix`"),
        ("rmsprop_bnb_8bit", "use 'rmsprop_bnb'"),
        ("stable_adamw", "use 'adamw_torch' with `max_grad_norm`"),
    ],
)
def test_a_refusal_has_its_reason(name, reason):
    assert reason in optimizer_refusal(name)


def test_a_name_that_there_is_is_not_refused():
    assert {optimizer_refusal(name) for name in ALGORITHMS} == {None}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("adam", "adamw_torch"),
        ("adamw", "adamw_torch"),
        ("AdamW", "adamw_torch"),
        ("adam_w", "adamw_torch"),
        ("adam_torch", "adamw_torch"),
        ("adamw_torch_fuse", "adamw_torch_fused"),
        ("adamw_hf4", "adamw_hf"),
        ("SGD", "sgd"),
        ("lion", "lion_32bit"),
    ],
)
def test_a_common_name_is_answered_by_the_one_here(name, meant):
    with pytest.raises(ValueError, match=f"got '{name}'. Did you mean '{meant}'"):
        Recipe(max_steps=10, optim=name)
