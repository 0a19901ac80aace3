"""Presets of GPT-2, their sizes, and errors."""

import functools
import re

import jax
import pytest

from jaxopt_tf._pytrees import _tree
from jaxopt_tf.models import (
    GPT2_PRESETS,
    GPT2Config,
    flops_per_token,
    gpt2_layer_norms,
    gpt2_layout,
    gpt2_preset,
    make_loss_fn,
)
from jaxopt_tf.optimizers import adafactor_trainer, decay_mask

pytestmark = pytest.mark.promotion_of_others  # flax's layers


@functools.cache
def num_params(config):
    shapes = jax.eval_shape(lambda: make_loss_fn(config, seed=0)[0])
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_gpt2_has_the_size_of_gpt2(scan_layers):
    config = gpt2_preset("gpt2", scan_layers=scan_layers)
    assert num_params(config) == 124_439_808


def test_the_default_is_the_smallest_preset_and_gpt2_the_largest():
    sizes = [num_params(config) for config in GPT2_PRESETS.values()]
    assert gpt2_preset("nano") == GPT2Config()
    assert sizes == sorted(sizes)
    assert [round(size / 1e6, 1) for size in sizes] == [0.6, 3.3, 10.8, 39.9, 124.4]


def test_a_preset_is_changed_by_name():
    changed = gpt2_preset("mini", vocab_size=32_000, resid_pdrop=0.1)
    assert changed.vocab_size == 32_000
    assert changed.has_dropout
    assert (changed.n_layer, changed.n_embd) == (6, 384)
    assert not gpt2_preset("mini").has_dropout


@pytest.mark.parametrize("config", [GPT2Config(), gpt2_preset("gpt2")])
def test_flops_are_six_per_parameter_and_twelve_per_pair_of_attention(config):
    of_positions = config.block_size * config.n_embd
    attention = 12 * config.n_layer * config.n_embd * config.block_size
    expected = 6 * (num_params(config) - of_positions) + attention
    assert flops_per_token(config) == expected


def test_adafactor_sees_each_stacked_layer_as_a_parameter():
    def moments(config):
        params = jax.eval_shape(lambda: make_loss_fn(config, seed=0)[0])
        optimizer = adafactor_trainer(0.1, layouts=gpt2_layout(config))
        state = jax.eval_shape(optimizer.init, params)
        return {
            f"{moment}.{name}": leaf.shape
            for moment in ("nu_row", "nu_col", "nu")
            for name, leaf in _tree.named_leaves(getattr(state, moment))
        }

    sizes = {"n_layer": 3, "n_head": 2, "n_embd": 8}
    one_by_one = moments(GPT2Config(**sizes))
    expected = {
        name.replace(".h.0.", ".h."): (3, *shape) if ".h.0." in name else shape
        for name, shape in one_by_one.items()
        if not re.search(r"\.h\.[12]\.", name)
    }
    assert moments(GPT2Config(**sizes, scan_layers=True)) == expected


def test_layers_that_are_not_stacked_need_no_layout():
    assert gpt2_layout(GPT2Config()) is None


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("rule", ["transformers_v5", "transformers_4_46"])
def test_the_job_leaves_layer_norms_out_by_their_type(rule, scan_layers):
    config = GPT2Config(n_layer=2, n_head=2, n_embd=8, scan_layers=scan_layers)
    params = jax.eval_shape(lambda: make_loss_fn(config, seed=0)[0])
    mask = decay_mask(params, rule=rule, layer_norms=gpt2_layer_norms(config))
    assert jax.tree.leaves(mask) == jax.tree.leaves(decay_mask(params))


def test_takes_a_whole_float_for_a_size():
    config = GPT2Config(n_layer=2.0)
    assert isinstance(config.n_layer, int)
    assert config == GPT2Config(n_layer=2)


SIZES = ["n_layer", "n_head", "n_embd", "block_size", "vocab_size"]


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [0, -1])
def test_refuses_a_size_below_1(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        GPT2Config(**{name: value})


@pytest.mark.parametrize("name", SIZES)
def test_refuses_half_a_layer(name):
    with pytest.raises(TypeError, match=f"`{name}` must be a whole number"):
        GPT2Config(**{name: 1.5})


def test_refuses_heads_that_do_not_divide_the_width():
    with pytest.raises(ValueError, match=r"`n_embd` must be a multiple .* got 30"):
        GPT2Config(n_embd=30, n_head=4)


@pytest.mark.parametrize("name", ["resid_pdrop", "embd_pdrop"])
@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_refuses_to_drop_all_or_less_than_nothing(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 0"):
        GPT2Config(**{name: value})


@pytest.mark.parametrize("name", ["gradient_checkpointing", "scan_layers"])
@pytest.mark.parametrize("value", [1, "yes", None])
def test_refuses_a_switch_that_is_no_bool(name, value):
    with pytest.raises(TypeError, match=f"`{name}` must be True or False"):
        GPT2Config(**{name: value})


def test_names_the_nearest_preset_and_field():
    with pytest.raises(ValueError, match="`name` must be one of .* mean 'mini'"):
        gpt2_preset("mnii")
    with pytest.raises(ValueError, match="`changes` must be one of .* mean 'n_layer'"):
        gpt2_preset("mini", n_layers=3)
