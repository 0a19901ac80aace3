"""Rotary position embeddings against Transformers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_tf.models._rotary import (
    check_rope_scaling,
    inverse_frequencies,
    rotate,
    rotation,
)
from tests import references

# Those of released models: Llama 3.1, Qwen2.5 (yarn), and others.
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0 + 0.01 * i for i in range(64)],
    "long_factor": [1.0 + 0.4 * i for i in range(64)],
    "original_max_position_embeddings": 4096,
}
SCALINGS = {
    "default": None,
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn with its own numbers": {
        **YARN,
        "beta_fast": 16,
        "beta_slow": 2,
        "mscale": 0.7,
        "mscale_all_dim": 1.2,
        "truncate": False,
    },
    "yarn with an attention factor": {**YARN, "attention_factor": 1.5},
    "longrope": {**LONG, "factor": 8.0},
    "longrope by its lengths": LONG,
}
SIZES = {"head_dim": 128, "max_position_embeddings": 32768}


@functools.cache
def llama():
    """Modules of Transformers."""
    from transformers import LlamaConfig
    from transformers.models.llama import modeling_llama

    return LlamaConfig, modeling_llama


def in_transformers(scaling, theta, num_positions):
    """Returns the inverse frequencies and the factor for a text of this length."""
    import torch

    config_class, module = llama()
    config = config_class(
        hidden_size=256,
        num_attention_heads=2,
        max_position_embeddings=SIZES["max_position_embeddings"],
        rope_parameters={**(scaling or {"rope_type": "default"}), "rope_theta": theta},
    )
    embedding = module.LlamaRotaryEmbedding(config)
    # As its parameters: `inv_freq` changes with the length.
    embedding(torch.zeros(()), torch.tensor([[num_positions - 1]]))
    return embedding.inv_freq.numpy(), embedding.attention_scaling


@references.needs_transformers
@pytest.mark.parametrize("num_positions", [100, 50_000], ids=["short", "long"])
@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("theta", [1e4, 5e5], ids="theta={:g}".format)
def test_frequencies_are_those_of_transformers(theta, name, num_positions):
    scaling = check_rope_scaling(SCALINGS[name], **SIZES)
    ours, factor = inverse_frequencies(
        scaling, theta=theta, num_positions=jnp.int32(num_positions), **SIZES
    )
    theirs, their_factor = in_transformers(scaling, theta, num_positions)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=3e-7)
    assert factor == pytest.approx(their_factor, rel=1e-12)


@references.needs_transformers
def test_most_frequencies_are_equal_bit_for_bit():
    # One unit in the last place is an angle of 5e-4 at position 8,192.
    ours, _ = inverse_frequencies(None, theta=5e5, **SIZES)
    theirs, _ = in_transformers(None, 5e5, 1)
    assert np.sum(ours != theirs) <= 1


def test_short_texts_need_no_length():
    for name in ("dynamic", "longrope"):
        scaling = check_rope_scaling(SCALINGS[name], **SIZES)
        of_short = inverse_frequencies(
            scaling, theta=1e4, num_positions=jnp.int32(9), **SIZES
        )
        default = inverse_frequencies(scaling, theta=1e4, **SIZES)
        np.testing.assert_allclose(default[0], of_short[0], rtol=3e-7)


@references.needs_transformers
def test_rotates_as_transformers(rng):
    import torch

    _, module = llama()
    x = rng.normal(size=(2, 5, 3, 128)).astype(np.float32)
    position_ids = np.array([[0, 1, 2, 3, 4], [0, 1, 0, 1, 4000]], np.int32)
    inv_freq, _ = inverse_frequencies(None, theta=1e4, **SIZES)
    ours = rotate(jnp.asarray(x), rotation(jnp.asarray(position_ids), inv_freq, 1.25))
    config_class, _ = llama()
    embedding = module.LlamaRotaryEmbedding(
        config_class(hidden_size=256, num_attention_heads=2)
    )
    cos, sin = embedding(torch.tensor(x), torch.tensor(position_ids))
    theirs, _ = module.apply_rotary_pos_emb(
        torch.tensor(x), torch.tensor(x), cos * 1.25, sin * 1.25, unsqueeze_dim=2
    )
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-5)


def test_rotates_bfloat16_in_float32(rng):
    x = jnp.asarray(rng.normal(size=(1, 7, 2, 16)), jnp.bfloat16)
    inv_freq, factor = inverse_frequencies(
        None, theta=1e4, head_dim=16, max_position_embeddings=64
    )
    by = rotation(jnp.arange(7)[None], inv_freq, factor)
    narrow = rotate(x, by)
    assert narrow.dtype == jnp.bfloat16
    wide = rotate(x.astype(jnp.float32), by)
    np.testing.assert_array_equal(narrow, wide.astype(jnp.bfloat16))


def test_scores_depend_on_distances_only(rng):
    q, k = rng.normal(size=(2, 1, 1, 1, 16)).astype(np.float32)
    inv_freq, _ = inverse_frequencies(
        None, theta=1e4, head_dim=16, max_position_embeddings=64
    )

    @jax.jit
    def score(at_q, at_k):
        by_q, by_k = (
            rotation(jnp.reshape(p, (1, 1)), inv_freq, 1.0) for p in (at_q, at_k)
        )
        return jnp.sum(rotate(jnp.asarray(q), by_q) * rotate(jnp.asarray(k), by_k))

    assert float(score(5, 3)) == pytest.approx(float(score(55, 53)), rel=1e-4)
    assert float(score(5, 3)) != pytest.approx(float(score(5, 4)), rel=1e-2)


# --- what is refused


def test_fills_in_lengths_and_ratios():
    assert check_rope_scaling(None, **SIZES) is None
    assert check_rope_scaling({"rope_type": "default"}, **SIZES) is None
    short = {k: v for k, v in YARN.items() if k == "rope_type"}
    filled = check_rope_scaling({**short, "factor": 2.0}, **SIZES)
    assert filled["original_max_position_embeddings"] == 32768
    assert check_rope_scaling(LONG, **SIZES)["factor"] == 8.0


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "ntk"}, "`rope_scaling.rope_type` must be one of 'default'"),
        ({"rope_type": "linear"}, "`factor` is missing"),
        ({"rope_type": "linear", "factor": 0.5}, "`factor` must be a number of at"),
        ({"rope_type": "linear", "factor": "2"}, "`factor` must be a number of at"),
        ({"rope_type": "default", "factor": 2.0}, "`factor` 2.0 is unknown"),
        ({**LLAMA3, "mscale": 1.0}, "`mscale` 1.0 is unknown"),
        ({**LLAMA3, "high_freq_factor": 1.0}, "`high_freq_factor` must be greater"),
        ({**YARN, "truncate": 1}, "`truncate` must be True or False, got 1"),
        ({**LONG, "long_factor": [1.0]}, "`long_factor` must be a list of 64"),
        ({**LONG, "short_factor": [0.0] * 64}, "`short_factor` must be a list of 64"),
        ({"rope_type": "dynamic", "factor": float("nan")}, "`factor` must be a number"),
    ],
)
def test_refuses_a_scaling(scaling, message):
    with pytest.raises(ValueError, match=message):
        check_rope_scaling(scaling, **SIZES)


def test_names_all_problems_of_a_scaling_at_once():
    scaling = {"rope_type": "llama3", "factor": 0, "speed": 3}
    with pytest.raises(ValueError, match="`low_freq_factor` is missing") as error:
        check_rope_scaling(scaling, **SIZES)
    for name in ("`factor` must be", "`speed` 3 is unknown", "`high_freq_factor` is"):
        assert name in str(error.value)
