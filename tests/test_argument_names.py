"""Suggestions for argument names of optax, torch and Transformers."""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import optax
import pytest
import torch
import transformers.optimization

from jaxopt_tf import optimizers, schedules
from jaxopt_tf._argument_names import NO_COUNTERPART, OTHER_NAMES
from jaxopt_tf.optimizers import (
    adafactor_tf,
    adafactor_trainer,
    adagrad_tf,
    adamw_hf_v4,
    adamw_tf,
    clip,
    decay_mask,
    lion_tf,
    rmsprop_tf,
    sgd_tf,
)
from jaxopt_tf.recipes import Recipe, build_optimizer
from jaxopt_tf.schedules import (
    get_cosine_schedule_with_warmup,
    get_scheduler,
    get_wsd_schedule,
    greedy,
    reduce_lr_on_plateau,
)

pytestmark = pytest.mark.usefixtures("compiled_quickly")

REFERENCES = {
    adamw_tf: (optax.adamw, optax.adam, torch.optim.AdamW),
    adamw_hf_v4: (optax.adamw,),
    adafactor_tf: (
        optax.adafactor,
        torch.optim.Adafactor,
        transformers.optimization.Adafactor,
    ),
    adafactor_trainer: (optax.adafactor, torch.optim.Adafactor),
    sgd_tf: (optax.sgd, torch.optim.SGD),
    adagrad_tf: (optax.adagrad, torch.optim.Adagrad),
    rmsprop_tf: (optax.rmsprop, torch.optim.RMSprop),
    lion_tf: (optax.lion,),
    clip: (optax.clip, optax.clip_by_global_norm, torch.nn.utils.clip_grad_norm_),
    reduce_lr_on_plateau: (
        optax.contrib.reduce_on_plateau,
        torch.optim.lr_scheduler.ReduceLROnPlateau,
    ),
    greedy: (transformers.optimization.GreedyLR,),
    get_scheduler: (transformers.get_scheduler,),
    **{
        getattr(schedules, name): (getattr(transformers.optimization, name),)
        for name in vars(schedules)
        if name.startswith("get_") and name != "get_scheduler"
    },
}


def with_unknown(function, **kwargs):
    """The error of a call that has all required arguments and others."""
    required = {
        p.name: 1
        for p in inspect.signature(function).parameters.values()
        if p.default is p.empty and p.kind is not p.VAR_KEYWORD
    }
    with pytest.raises(TypeError, match="with its own argument names") as error:
        function(**required, **kwargs)
    return str(error.value)


@pytest.mark.parametrize("ours", REFERENCES, ids=lambda function: function.__name__)
def test_every_argument_of_the_references_is_ours_or_named(ours):
    known = inspect.signature(ours).parameters
    for reference in REFERENCES[ours]:
        for name in inspect.signature(reference).parameters:
            if name in known or name == "self":
                continue
            message = with_unknown(ours, **{name: 1})
            assert f"instead of `{name}`" in message or f"`{name}`: " in message


def test_every_suggested_name_is_one_of_ours():
    known = {
        name
        for module in (optimizers, schedules)
        for function in vars(module).values()
        if inspect.isfunction(function)
        for name in inspect.signature(function).parameters
    } | {field.name for field in dataclasses.fields(Recipe)}
    known |= inspect.signature(build_optimizer).parameters.keys()
    suggested = {f.partition("=")[0] for forms in OTHER_NAMES.values() for f in forms}
    assert suggested <= known
    options = {f.partition("'")[2] for f in OTHER_NAMES["num_cycles"]}
    assert options == {"num_cycles': ...}"}


@pytest.mark.parametrize(
    "function",
    [f for f in REFERENCES if f.__module__.startswith(schedules.__name__)],
    ids=lambda function: function.__name__,
)
def test_every_option_of_a_schedule_is_named_by_get_scheduler(function):
    counts = inspect.signature(get_scheduler).parameters
    for option in inspect.signature(function).parameters:
        if option not in counts:
            message = with_unknown(get_scheduler, **{option: 1})
            assert f"`scheduler_specific_kwargs={{'{option}': ...}}`" in message


@pytest.mark.parametrize(
    ("function", "name", "expected"),
    [
        (adamw_tf, "b1", "Pass `betas=(b1, b2)` instead of `b1`"),
        (adamw_tf, "mask", "Pass `decay_mask=...` instead of `mask`"),
        (adamw_tf, "lr", "Pass `learning_rate=...` instead of `lr`"),
        (adamw_tf, "state_dtype", "Pass `moment_dtype=...` instead of `state_d"),
        (lion_tf, "mu_dtype", "Leave out `mu_dtype`: "),
        (adamw_tf, "nesterov", "Leave out `nesterov`: only `sgd_tf`"),
        (adafactor_tf, "momentum", "Pass `beta1=...` instead of `momentum`"),
        (adafactor_tf, "b1", "Pass `beta1=...` instead of `b1`"),
        (adamw_tf, "momentum", "Pass `betas=(momentum, ...)`"),
        (rmsprop_tf, "decay", "Pass `alpha=...` instead of `decay`"),
        (adamw_tf, "weight_decya", "Did you mean `weight_decay`?"),
        (adamw_tf, "zzz", "It accepts `learning_rate`, `betas`, `eps`"),
        (clip, "max_grad_norm", "Pass `max_norm=...` instead of `max_grad_norm`"),
        (get_cosine_schedule_with_warmup, "warmup_steps", "`num_warmup_steps=...`"),
        (get_wsd_schedule, "num_trainig_steps", "Did you mean `num_training_steps`?"),
    ],
)
def test_an_unknown_name_is_answered_by_ours(function, name, expected):
    assert expected in with_unknown(function, **{name: 1})


def test_all_unknown_names_are_in_one_message():
    message = with_unknown(adamw_tf, b1=0.9, amsgrad=True, zzz=1)
    assert "got `b1`, `amsgrad` and `zzz`" in message
    assert message.count("instead of") == message.count("Leave out") == 1


@pytest.mark.parametrize(
    "call", [lambda: adamw_tf(1e-3, 0.9, 0.999), lambda: clip(1.0, 2.0)]
)
def test_values_by_position_must_have_a_name(call):
    with pytest.raises(TypeError, match="only `(learning_rate|max_norm)` by position"):
        call()


@pytest.mark.parametrize("ours", REFERENCES, ids=lambda function: function.__name__)
def test_signatures_stay_visible(ours):
    parameters = inspect.signature(ours).parameters
    assert "args" not in parameters
    assert "kwargs" not in parameters
    assert parameters == inspect.signature(ours.__wrapped__).parameters


PARAMS = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
MASKS = {
    "ours": decay_mask,
    "ranks": lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
    "paths": lambda params: jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key != "bias", params
    ),
    "keys": lambda params: {"dense": {"kernel": True, "bias": False}},
}


@pytest.mark.promotion_of_others
@pytest.mark.parametrize("name", MASKS)
def test_a_callable_mask_must_be_static_under_inject_hyperparams(name):
    options = {"weight_decay": 0.5, "decay_mask": MASKS[name]}
    with pytest.raises(TypeError, match='static_args="decay_mask"'):
        optax.inject_hyperparams(adamw_tf)(1e-3, **options).init(PARAMS)
    partial = functools.partial(adamw_tf, **options)
    with pytest.raises(TypeError, match='static_args="decay_mask"'):
        optax.inject_hyperparams(partial)(1e-3).init(PARAMS)
    static = optax.inject_hyperparams(adamw_tf, static_args="decay_mask")
    plain, injected = adamw_tf(1e-3, **options), static(1e-3, **options)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, expected = (
        jax.jit(lambda tx=tx: tx.update(zeros, tx.init(PARAMS), PARAMS)[0])()
        for tx in (injected, plain)
    )
    assert jax.tree.all(jax.tree.map(jnp.array_equal, updates, expected))
    assert (
        float(updates["dense"]["bias"][0])
        == 0
        > float(updates["dense"]["kernel"][0, 0])
    )


@pytest.mark.promotion_of_others
def test_a_mask_for_one_array_must_be_static_too():
    # Evaluated at the step, it would leave the matrix out.
    optimizer = optax.inject_hyperparams(adamw_tf)(
        1e-3, weight_decay=0.5, decay_mask=lambda p: p.ndim > 1
    )
    with pytest.raises(TypeError, match='static_args="decay_mask"'):
        optimizer.init(jnp.ones((2, 3)))


@pytest.mark.promotion_of_others
def test_a_dtype_that_is_callable_must_be_static_under_inject_hyperparams():
    with pytest.raises(TypeError, match='static_args="moment_dtype"'):
        optax.inject_hyperparams(adamw_tf)(1e-3, moment_dtype=jnp.bfloat16).init(PARAMS)
    optax.inject_hyperparams(adamw_tf)(1e-3, moment_dtype="bfloat16").init(PARAMS)


def test_reasons_are_parts_of_a_sentence():
    assert not any(reason.endswith(".") for reason in NO_COUNTERPART.values())
