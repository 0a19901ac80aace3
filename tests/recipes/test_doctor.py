"""`doctor` on recipes and optimizers with one problem each, and on valid ones."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxopt_tf import adamw_tf, clip, decay_mask
from jaxopt_tf.recipes import Recipe, build_optimizer, build_schedule, doctor

pytestmark = [
    pytest.mark.promotion_of_others,  # optax's own optimizers
    pytest.mark.usefixtures("compiled_quickly"),
]

PARAMS = jax.eval_shape(
    lambda: {
        "h": {"ln_1": {"scale": jnp.zeros(64), "bias": jnp.zeros(64)}},
        "wte": {"embedding": jnp.zeros((256, 64))},
    }
)
RECIPE = Recipe(
    max_steps=1_000,
    learning_rate=1e-3,
    lr_scheduler_type="cosine",
    warmup_steps=20,
    weight_decay=0.1,
)
RATE = build_schedule(RECIPE)
ADAMW = adamw_tf(RATE, weight_decay=0.1)


def by_rank(params):
    return jax.tree.map(lambda p: "matrix" if p.ndim > 1 else "vector", params)


def everything(params):
    return jax.tree.map(lambda _: True, params)


def said(*args):
    return " | ".join(finding.problem for finding in doctor(*args))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optim": "adafactor"},
        {"optim": "sgd", "optim_args": "momentum=0.9"},
        {"optim": "rmsprop"},
        {"optim": "adagrad"},
        {"optim": "lion_32bit", "learning_rate": 1e-4},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "warmup_steps": 0},
        {"lr_scheduler_type": "linear", "max_grad_norm": 0.0},
        {"lr_scheduler_type": "constant_with_warmup"},
        {"rate_groups": [{"pattern": "wte", "factor": 0.5}]},
        {"gradient_accumulation_steps": 4, "warmup_steps": 0.1},
    ],
    ids=str,
)
def test_doctor_finds_nothing_in_a_healthy_recipe(settings):
    recipe = Recipe(**{**vars(RECIPE), **settings})
    diagnosis = doctor(recipe, build_optimizer(recipe), PARAMS)
    assert not diagnosis
    assert "does not know" not in diagnosis.closing_line


def test_decay_that_float32_would_round_away_is_healthy_for_float64_parameters():
    recipe = dataclasses.replace(RECIPE, learning_rate=1e-7)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda p: p.update(dtype=jnp.dtype("float64")), PARAMS)
        assert not doctor(recipe, build_optimizer(recipe), wide)
        mixed = wide | {"wte": PARAMS["wte"]}
        assert (
            said(recipe, None, mixed)
            == "the product of learning rate and weight decay is at most 1e-08"
        )


def test_doctor_finds_nothing_in_a_healthy_optax_chain():
    adamw = optax.adamw(RATE, weight_decay=0.1, mask=decay_mask)
    chain = optax.chain(optax.clip_by_global_norm(1.0), adamw)
    diagnosis = doctor(RECIPE, chain, PARAMS)
    assert not diagnosis
    assert "does not know" not in diagnosis.closing_line


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (ADAMW, "gradients reach the moments unclipped"),
        (optax.chain(ADAMW, clip(1.0)), "gradients reach the moments unclipped"),
        (optax.chain(optax.clip(1.0), ADAMW), "clipped element by element"),
        (
            optax.chain(optax.clip_by_block_rms(1e-3), ADAMW),
            "a large gradient of one leaf leaves others as they were",
        ),
        (
            optax.multi_transform(
                {name: optax.chain(clip(1.0), ADAMW) for name in ("matrix", "vector")},
                by_rank,
            ),
            "`clip` stands inside `optax.multi_transform`",
        ),
        (
            optax.chain(clip(1.0), optax.add_decayed_weights(0.1), ADAMW),
            "moments are not zero though all gradients were",
        ),
        (
            optax.chain(
                clip(1.0),
                optax.adamw(RATE, weight_decay=0.1, mask=decay_mask),
                optax.add_decayed_weights(-1e-4, decay_mask),
            ),
            "parameters are decayed by 2 times",
        ),
        (
            optax.chain(
                clip(1.0), adamw_tf(RATE, weight_decay=0.1, decay_mask=everything)
            ),
            "2 leaves are decayed that 'default' excludes, the first being "
            "'h.ln_1.bias'",
        ),
        (optax.chain(clip(1.0), adamw_tf(RATE)), "no leaf is decayed, although"),
        (
            optax.chain(
                clip(1.0),
                adamw_tf(lambda step: RATE(4 * step), weight_decay=0.1),
            ),
            "the rate of step 20 is 0.000991, and the recipe's is 0.001",
        ),
        (
            build_optimizer(dataclasses.replace(RECIPE, max_steps=10_000)),
            "the rate of step 750 is 0.000987, and the recipe's is 0.000152",
        ),
        (
            optax.chain(clip(1.0), adamw_tf(1e-3, weight_decay=0.1)),
            "the rate of step 750 is 0.001, and the recipe's is 0.000152",
        ),
        (
            optax.chain(
                clip(1.0), adamw_tf(RATE, weight_decay=0.1, moment_dtype="bfloat16")
            ),
            "3 second moments are bfloat16 with `adam_beta2` 0.999",
        ),
        (
            optax.chain(
                clip(1.0),
                optax.adamw(RATE, eps=0.0, weight_decay=0.1, mask=decay_mask),
            ),
            "updates are not finite where gradients are zero",
        ),
    ],
)
def test_finds_what_is_wrong_with_an_optimizer(optimizer, words):
    assert words in said(RECIPE, optimizer, PARAMS)


@pytest.mark.parametrize(
    "schedule", [RATE, lambda step: RATE(step) * (1 + (step > 500))]
)
def test_a_rate_that_is_injected_is_compared_at_its_own_count(schedule):
    injected = optax.inject_hyperparams(adamw_tf)(schedule, weight_decay=0.1)
    optimizer = optax.chain(clip(RECIPE.max_grad_norm), injected)
    found = [finding.problem for finding in doctor(RECIPE, optimizer, PARAMS)]
    assert len(found) == (schedule is not RATE), found


def test_finds_accumulation_that_is_counted_twice():
    recipe = Recipe(max_steps=100, gradient_accumulation_steps=4)
    optimizer = optax.MultiSteps(adamw_tf(5e-5), 4)
    assert "`optax.MultiSteps`" in said(recipe, optimizer, PARAMS)


def test_finds_optax_defaults_taken_for_those_of_transformers():
    plain = Recipe(max_steps=100, max_grad_norm=0.0)
    adamw = optax.adamw(build_schedule(plain))
    assert "3 leaves are decayed, and `weight_decay` is 0" in said(plain, adamw, PARAMS)
    factored = Recipe(max_steps=100, optim="adafactor", max_grad_norm=0.0)
    adafactor = optax.adafactor(build_schedule(factored))
    assert "`optax.adafactor` is used for" in said(factored, adafactor, PARAMS)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learning_rate": 0.0}, "`learning_rate` is 0"),
        ({"warmup_steps": 600}, "600 of 1000 steps are warmup"),
        ({"lr_scheduler_type": "constant"}, "`warmup_steps` is 20 with 'constant'"),
        (
            {
                "lr_scheduler_type": "warmup_stable_decay",
                "lr_scheduler_kwargs": {"num_decay_steps": 10, "num_stable_steps": 30},
            },
            "the rate is 0 in 94% of the steps",
        ),
        (
            {"lr_scheduler_kwargs": {"num_cycles": 1}},
            "the last rate is 0.001, the highest 0.001",
        ),
        (
            {"learning_rate": 1e-7},
            "the product of learning rate and weight decay is at most 1e-08",
        ),
        (
            {"learning_rate": 5e-6, "weight_decay": 0.01},
            "the product of learning rate and weight decay is at most 5e-08",
        ),
        (
            {"lr_scheduler_type": "greedy", "warmup_steps": 0, "learning_rate": 5e-5},
            "`min_lr` of 'greedy' is 0.001, above `learning_rate` 5e-05",
        ),
        (
            {"lr_scheduler_type": "greedy", "warmup_steps": 0, "learning_rate": 2.0},
            "`max_lr` of 'greedy' is 1, below `learning_rate` 2",
        ),
        (
            {
                "lr_scheduler_type": "reduce_lr_on_plateau",
                "warmup_steps": 0,
                "lr_scheduler_kwargs": {"mode": "max", "min_lr": 0.1},
            },
            "has mode 'max' | `min_lr` of 'reduce_lr_on_plateau' is 0.1",
        ),
    ],
)
def test_finds_what_is_wrong_with_the_numbers(settings, words):
    assert words in said(Recipe(**{**vars(RECIPE), **settings}))


def test_a_greedy_rate_below_the_minimum_is_not_reduced():
    settings = {"lr_scheduler_type": "greedy", "warmup_steps": 0, "learning_rate": 5e-5}
    recipe = dataclasses.replace(RECIPE, **settings)
    (finding,) = doctor(recipe).findings
    assert "only rise: a reduction does not change it" in finding.reason
    schedule = build_schedule(recipe)
    first = state = schedule.init()
    for metric in range(30):
        state = schedule.update(state, float(metric))
    assert state.learning_rate == 5e-5
    assert state.reset_left < first.reset_left


def test_finds_what_the_parameters_are_too_coarse_for():
    low = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.bfloat16), PARAMS)
    recipe = Recipe(max_steps=100, learning_rate=1e-5, weight_decay=0.1)
    told = said(recipe, None, low)
    assert "3 leaves are bfloat16, 'h.ln_1.bias' the first, and the rate is 1e-05" in (
        told
    )
    assert "for bfloat16 leaves" in told


def test_finds_norms_that_a_rule_decays_and_stacks_that_nobody_declared():
    params = jax.eval_shape(
        lambda: {
            "norm1": {"scale": jnp.zeros(4)},
            "h": {"kernel": jnp.zeros((2, 4, 4))},
        }
    )
    rule = Recipe(max_steps=100, weight_decay=0.1, decay_rule="transformers_v5")
    assert "decays 1 biases or norms, 'norm1.scale'" in said(rule, None, params)
    adafactor = Recipe(max_steps=100, optim="adafactor")
    assert "1 kernels have 3 axes, 'h.kernel'" in said(adafactor, None, params)


def test_norms_that_are_named_are_no_accident_and_are_missed_where_they_decay():
    params = {"norm1": {"scale": jnp.ones(4)}, "h": {"kernel": jnp.ones((4, 4))}}
    rule = Recipe(
        max_steps=100,
        learning_rate=1e-3,
        weight_decay=0.1,
        decay_rule="transformers_v5",
    )
    norms = ["norm1"]
    named = build_optimizer(rule, layer_norms=norms)
    assert not doctor(rule, named, params, layer_norms=norms)
    (finding,) = doctor(rule, build_optimizer(rule), params, layer_norms=norms)
    assert finding.problem.endswith("excludes, the first being 'norm1.scale'")


def test_finding_has_problem_reason_and_fix():
    (finding,) = doctor(Recipe(max_steps=100, learning_rate=0.0))
    assert str(finding) == (
        "`learning_rate` is 0: no parameter will ever change. "
        "Set a positive rate, for example 3e-4."
    )


def test_refuses_an_optimizer_without_parameters():
    with pytest.raises(ValueError, match="`params` must be given with an `optimizer`"):
        doctor(RECIPE, ADAMW)


@pytest.mark.parametrize(
    "params",
    [{}, {"steps": jnp.zeros(3, jnp.int32)}, {"w": jnp.zeros((0, 4))}],
    ids=["none", "integers", "empty"],
)
def test_refuses_parameters_on_which_nothing_can_be_tried_out(params):
    with pytest.raises(ValueError, match="`params` must have a floating-point leaf"):
        doctor(RECIPE, ADAMW, params)


def test_reports_what_it_does_not_judge():
    plain = doctor(RECIPE)
    words = str(plain).splitlines()[-1]
    assert words == plain.closing_line
    assert words.startswith("Not judged: ")
    for part in ("learning rate, batch size", "the data", "`params`"):
        assert part in words
    assert "`params`" not in doctor(RECIPE, None, PARAMS).closing_line


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (ADAMW, "betas and the epsilon"),
        (optax.chain(clip(1.0), optax.ema(0.9), ADAMW), "with the states EmaState"),
        (optax.MultiSteps(ADAMW, 4), "inside `optax.MultiSteps`"),
        (optax.sgd(RATE), "the rate, which the optimizer's state does not contain"),
        (
            optax.multi_transform({"matrix": ADAMW, "vector": ADAMW}, by_rank),
            "the rates of groups",
        ),
    ],
    ids=["adamw", "ema", "MultiSteps", "sgd", "groups"],
)
def test_reports_what_it_does_not_judge_of_an_optimizer(optimizer, words):
    assert words in doctor(RECIPE, optimizer, PARAMS).closing_line
