"""Optimizers by Trainer's names: their functions, fields and states."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_tf.interop import recipe_from_transformers
from jaxopt_tf.optimizers import is_compensated, kahan_summation, stable_adamw_tf
from jaxopt_tf.recipes import (
    Recipe,
    build_optimizer,
    doctor,
    explain,
    stack_recipes,
)
from jaxopt_tf.recipes._optimizers import ALGORITHMS
from tests.optimizers import recorded_runs

PARAMS = {"kernel": jnp.ones((64, 256)), "bias": jnp.ones(256)}


def recipe(optim, **options):
    return Recipe(max_steps=10, optim=optim, learning_rate=1e-2, **options)


@pytest.mark.parametrize("name", ["lomo", "adalomo"])
def test_lomo_has_the_parameters_of_its_package(name):
    # Neither clipping nor decay, whatever the recipe has.
    def build(rate, *, weight_decay, decay_mask):
        options = {"weight_decay": weight_decay, "max_grad_norm": 0.01}
        return build_optimizer(recipe(name, **options), schedule=rate)

    ours, _ = recorded_runs.trained(build)
    assert recorded_runs.distance(ours, name) < 3e-6


@pytest.mark.parametrize("name", ["lomo", "adalomo"])
def test_lomo_is_refused_with_accumulation(name):
    with pytest.raises(
        ValueError, match="`gradient_accumulation_steps` must be 1 with"
    ):
        recipe(name, gradient_accumulation_steps=2)


@pytest.mark.parametrize("name", ["lomo", "adalomo"])
def test_ignored_fields_are_listed_and_defaults_are_not(name):
    fields = {"optim": name, "max_steps": 10}
    assert recipe_from_transformers(fields).ignored == ()
    fields |= {"max_grad_norm": 0.5, "weight_decay": 0.1}
    found = recipe_from_transformers(fields)
    assert {"max_grad_norm", "weight_decay"} <= set(found.ignored)
    problems = [str(finding) for finding in doctor(found.recipe, params=PARAMS)]
    assert sum("ignores it" in problem for problem in problems) == 2
    explained = explain(found.recipe, PARAMS)
    assert explained.num_decayed == 0
    assert f"{name} ignores it" in str(explained)


def test_an_ignored_field_does_not_enter_a_stack_of_recipes():
    recipes = [recipe("lomo", max_grad_norm=norm) for norm in (0.1, 1.0)]
    varied = stack_recipes(recipes)
    values = {name: value[0] for name, value in varied.values.items()}
    optimizer = build_optimizer(recipes[0], varied=varied._replace(values=values))
    assert "grad_norm" not in str(jax.eval_shape(optimizer.init, PARAMS))


def test_the_peak_rate_is_the_max_lr_of_each_run():
    args = {"decouple_lr": True}
    recipes = [
        Recipe(max_steps=4, optim="stable_adamw", learning_rate=r, optim_args=args)
        for r in (1e-2, 2e-2)
    ]
    varied = stack_recipes(recipes)
    assert varied.values["learning_rate"].tolist() == [
        np.float32(1e-2),
        np.float32(2e-2),
    ]


def test_a_false_word_is_refused_where_trainer_reads_it_as_true():
    fields = {"optim": "stable_adamw", "max_steps": 10}
    assert recipe("stable_adamw", optim_args="kahan_sum=False").optim_args == (
        ("kahan_sum", False),
    )
    for name in ("kahan_sum", "decouple_lr"):
        with pytest.raises(ValueError, match=f"Trainer reads `{name}` as True"):
            recipe_from_transformers(fields | {"optim_args": f"{name}=False"})
        args = {"optim_args": f"{name}=True"}
        assert recipe_from_transformers(fields | args).recipe.optim_args == (
            (name, True),
        )


@pytest.mark.parametrize("name", sorted(set(ALGORITHMS)))
def test_every_name_is_built_and_explained(name):
    explained = explain(recipe(name), PARAMS)
    per_param = explained.state_bytes / explained.num_params
    limits = {"8bit": 2.2, "4bit": 1.2, "ademamix": 12.1, "ademamix_8bit": 3.3}
    limit = next((v for k, v in limits.items() if name.endswith(k)), 8.1)
    limit = limits["ademamix_8bit"] if "ademamix_8bit" in name else limit
    limit = 12.1 if name == "paged_ademamix_32bit" else limit
    assert per_param <= limit


def test_moments_have_their_own_dtypes():
    args = "mu_dtype=bfloat16"
    for name in ("adamw_torch", "ademamix", "stable_adamw"):
        explained = explain(recipe(name, optim_args=args), PARAMS)
        full = explain(recipe(name), PARAMS)
        saved = full.state_bytes - explained.state_bytes
        num_means = 2 if name == "ademamix" else 1
        assert saved == 2 * num_means * full.num_params


def test_doctor_accepts_bfloat16_parameters_that_are_compensated():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    low = functools.partial(Recipe, max_steps=10, learning_rate=1e-5)

    def is_found(recipe, optimizer=None):
        problems = [str(f) for f in doctor(recipe, optimizer, params)]
        return any("leaves are bfloat16" in problem for problem in problems)

    assert is_found(low())
    assert not is_found(low(), kahan_summation(build_optimizer(low())))
    assert not is_found(low(optim="stable_adamw"))
    assert is_found(low(optim="stable_adamw", optim_args={"kahan_sum": False}))
    state = jax.eval_shape(stable_adamw_tf(1e-5).init, params)
    assert is_compensated(state)
    assert not is_compensated(jax.eval_shape(stable_adamw_tf(1e-5).init, PARAMS))
