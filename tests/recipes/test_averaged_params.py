"""Recipes whose optimizers average the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_tf.optimizers import (
    adamw_tf,
    averaging_states,
    eval_params,
    schedule_free_adamw_tf,
)
from jaxopt_tf.recipes import (
    Recipe,
    build_optimizer,
    compile_key,
    doctor,
    explain,
)

pytestmark = pytest.mark.usefixtures("compiled_quickly")

PARAMS = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
NAMES = ["schedule_free_adamw", "schedule_free_radam", "schedule_free_sgd"]
BASE = {"max_steps": 40, "learning_rate": 1e-3, "lr_scheduler_type": "constant"}


def trained(optimizer, num_steps):
    step, params = jax.jit(optimizer.update), PARAMS
    state = optimizer.init(params)
    for _ in range(num_steps):
        updates, state = step(PARAMS, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_a_fraction_is_the_same_number_of_warmup_steps_for_the_optimizer():
    recipe = Recipe(
        **BASE, optim="schedule_free_adamw", warmup_steps=0.1, max_grad_norm=0
    )
    expected = schedule_free_adamw_tf(1e-3, warmup_steps=4)
    ours, theirs = (
        jax.tree.leaves([params, eval_params(params, state)])
        for params, state in (
            trained(optimizer, 5) for optimizer in (build_optimizer(recipe), expected)
        )
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_runs_with_another_warmup_have_another_program():
    # The warmup of the optimizer is a constant of its program.
    def key(optim, warmup_steps):
        recipe = Recipe(**BASE, optim=optim, warmup_steps=warmup_steps)
        return compile_key(recipe)

    assert key("schedule_free_adamw", 0.1) == key("schedule_free_adamw", 4)
    assert key("schedule_free_adamw", 5) != key("schedule_free_adamw", 4)
    assert key("adamw_torch", 5) == key("adamw_torch", 4)


def test_a_rate_group_has_its_own_warmup():
    group = {"pattern": "bias", "warmup_steps": 10}
    recipe = Recipe(**BASE, optim="schedule_free_sgd", rate_groups=[group])
    _, state = trained(build_optimizer(recipe), 1)
    rates = [float(s.lr_max.high) for s in averaging_states(state)]
    np.testing.assert_allclose(sorted(rates), [1e-4, 1e-3], rtol=1e-6)


def test_the_mean_is_the_last_link_and_its_bytes_are_explained():
    recipe = Recipe(**BASE, ema_decay=0.5)
    params, state = trained(build_optimizer(recipe), 2)
    assert jax.tree.structure(eval_params(params, state)) == jax.tree.structure(PARAMS)
    # Two moments and a mean; a moment and z.
    bytes_of = {
        "ema": explain(recipe, PARAMS).leaves[0].state_bytes,
        **{n: explain(Recipe(**BASE, optim=n), PARAMS) for n in NAMES},
    }
    assert bytes_of.pop("ema") == 3 * 4 * 3
    found = [each.leaves[1].state_bytes // 4 / 6 for each in bytes_of.values()]
    assert found == [2, 2, 1]


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"ema_decay": 1}, ValueError, "`ema_decay` must be at least 0 and less than"),
        ({"ema_decay": -0.1}, ValueError, "`ema_decay`"),
        ({"ema_decay": "half"}, TypeError, "`ema_decay`"),
        (
            {"ema_decay": 0.9, "optim": "schedule_free_sgd"},
            ValueError,
            "`ema_decay` must be left out with the `optim` 'schedule_free_sgd'",
        ),
        (
            {"optim": "schedule_free_adamw", "adam_beta1": 0.0},
            ValueError,
            r"'schedule_free_adamw'.*`betas\[0\]` must be .*greater than 0",
        ),
    ],
)
def test_refuses_settings_of_averages(settings, error, match):
    with pytest.raises(error, match=match):
        Recipe(max_steps=10, **settings)


@pytest.mark.parametrize("settings", [{"optim": n} for n in NAMES] + [{"ema_decay": 0}])
def test_doctor_finds_nothing_in_an_optimizer_with_averages(settings):
    recipe = Recipe(**BASE, **settings, weight_decay=0.1)
    assert not doctor(recipe, build_optimizer(recipe), PARAMS).findings


def test_doctor_reports_a_schedule_beside_an_average():
    settings = BASE | {"lr_scheduler_type": "linear", "optim": "schedule_free_adamw"}
    (finding,) = doctor(Recipe(**settings)).findings
    assert "'linear' with 'schedule_free_adamw'" in finding.problem
    assert "Use 'constant', with which `warmup_steps` apply once." in str(finding)


def test_doctor_reports_a_mean_over_more_steps_than_the_run_has():
    (finding,) = doctor(Recipe(**BASE, ema_decay=0.999)).findings
    assert "96% of the mean" in str(finding)


def test_doctor_reports_an_optimizer_without_the_mean():
    recipe = Recipe(**BASE, ema_decay=0.5, max_grad_norm=0)
    (finding,) = doctor(recipe, optax.chain(adamw_tf(1e-3)), PARAMS).findings
    assert "no average of the parameters" in finding.problem
