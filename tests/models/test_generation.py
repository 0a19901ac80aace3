"""Generation: greedy tokens of Transformers, distribution of samples, errors."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_tf import sharding
from jaxopt_tf.interop import read_params
from jaxopt_tf.models import GPT2Config, build_model
from jaxopt_tf.models import _generation as generation
from jaxopt_tf.models._decoder import make_decoder_logits
from jaxopt_tf.models._decoding import make_decoding_fns
from jaxopt_tf.models._gpt2_from_transformers import gpt2_settings_from_transformers
from jaxopt_tf.models._transformers_decoder_config import (
    decoder_config_from_transformers,
)
from tests import references
from tests.references import decoders as reference

pytestmark = [
    pytest.mark.promotion_of_others,  # flax's variables
    pytest.mark.usefixtures("compiled_quickly"),
]

GPT2_CASE = {
    "model_type": "gpt2",
    **{"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 64, "vocab_size": 96},
    **dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.0),
}
# Settings of Transformers, and whether our layers are stacked.
CASES = {
    # The frequencies change at 16 tokens.
    "llama": (reference.CASES["llama, longrope"], False),
    "mistral": (reference.CASES["mistral"], True),
    "qwen2": (reference.CASES["qwen2"], False),
    "qwen3": (reference.CASES["qwen3"], True),
    "smollm3": (reference.CASES["smollm3"], True),
    "gpt2": (GPT2_CASE, False),
}
TINY = GPT2Config(n_layer=1, n_head=2, n_embd=8, block_size=32, vocab_size=40)
NUM_NEW = 30


class Tiny(NamedTuple):
    params: Any
    generate: Any
    traces: list  # one entry per compilation


@pytest.fixture(scope="module")
def tiny(compiled_quickly):
    """A model whose texts end at token 5."""
    model, traces, traced = build_model(TINY), [], generation._generate

    def counted(*args):
        traces.append(args)
        return traced(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "_generate", counted)
        generate = model.make_generate(eos_token_ids=(39_000, 5))
        yield Tiny(model.init(0), generate, traces)


def saved_model(case, folder, scan_layers):
    """Returns a model of Transformers, ours, and its parameters."""
    theirs = reference.save(case, folder)
    if case["model_type"] == "gpt2":
        config = GPT2Config(**gpt2_settings_from_transformers(folder))
    else:
        config = decoder_config_from_transformers(folder)
    model = build_model(dataclasses.replace(config, scan_layers=scan_layers))
    return theirs, model, read_params(folder, model.shapes, model.names)


def greedy_of_transformers(model, prompt):
    """Returns new tokens, and the smallest margin of a largest logit."""
    import torch

    tokens = torch.tensor(prompt)[None]
    out = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        do_sample=False,
        max_new_tokens=NUM_NEW,
        eos_token_id=None,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    best = torch.stack(out.scores)[:, 0].topk(2).values
    margin = float((best[:, 0] - best[:, 1]).min())
    return out.sequences[0, len(prompt) :].tolist(), margin


@references.needs_transformers
@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_are_those_of_transformers(case, tmp_path, rng):
    theirs, model, params = saved_model(CASES[case][0], tmp_path, CASES[case][1])
    # Rows of different lengths: the second one is padded.
    prompts = [rng.integers(3, 96, size=n).tolist() for n in (12, 9)]
    ours = model.make_generate()(params, prompts, max_new_tokens=NUM_NEW)
    for prompt, new in zip(prompts, ours, strict=True):
        expected, margin = greedy_of_transformers(theirs, prompt)
        assert margin > 1e-4  # far above rounding
        assert new == expected
        assert len(set(new)) > 3
    if case == "mistral":
        assert_same_without_cache(model, params, prompts, ours)
    if case == "qwen3":
        assert_same_on_a_mesh(model, params, prompts, ours)


def assert_same_without_cache(model, params, prompts, new):
    logits_fn = jax.jit(make_decoder_logits(model.config))
    text = np.asarray([prompts[0] + new[0]], np.int32)
    best = np.argmax(logits_fn(params, text)[0], axis=-1)
    start = len(prompts[0])
    assert new[0] == best[start - 1 : -1].tolist()


def assert_same_on_a_mesh(model, params, prompts, new):
    mesh = sharding.make_mesh("data=2,fsdp=2,tensor=2", jax.devices()[:8])
    rules = model.sharding_rules(mesh)
    sharded = jax.device_put(params, sharding.param_shardings(params, mesh, rules))
    generate = model.make_generate(mesh=mesh)
    assert generate(sharded, prompts, max_new_tokens=NUM_NEW) == new


def test_is_compiled_once_for_prompts_and_settings(tiny):
    def generate(prompt, num_new, **settings):
        (new,) = tiny.generate(
            tiny.params, [prompt], max_new_tokens=num_new, **settings
        )
        return new

    before = len(tiny.traces)
    greedy = [generate([1] * length, 9) for length in (1, 7, 20)]
    sampled = [
        generate([1], 12, temperature=1.5, top_p=top_p, seed=seed)
        for top_p, seed in ((1.0, 0), (1.0, 0), (1.0, 1), (0.5, 0))
    ]
    # The first tokens do not depend on the number of tokens.
    longer = generate([1], 31, temperature=1.5)
    assert len(tiny.traces) - before <= 1
    assert len(greedy[0]) == 9
    assert sampled[0] == sampled[1]
    assert sampled[2] != sampled[0] != sampled[3]
    assert longer[:12] == sampled[0]
    assert len(longer) == 31  # up to the end of the context


def test_a_text_ends_at_an_end_token(tiny):
    texts = [
        new
        for seed in range(10)
        for new in tiny.generate(
            tiny.params,
            [[3, 5, 7], [11]],
            max_new_tokens=20,
            temperature=2.0,
            seed=seed,
        )
    ]
    stopped = [new for new in texts if 5 in new]
    assert 0 < len(stopped) < len(texts)
    assert all(new.index(5) == len(new) - 1 for new in stopped)
    assert {len(new) for new in texts if 5 not in new} == {20}


def test_the_cache_has_the_dtype_of_the_parameters(tiny):
    halves = jax.tree.map(lambda p: p.astype(jnp.bfloat16), tiny.params)
    tokens, lengths = np.zeros((1, 8), np.int32), np.ones(1, np.int32)
    prefill = make_decoding_fns(TINY).prefill
    logits, cache = jax.eval_shape(lambda p: prefill(p, tokens, lengths, 16), halves)
    assert logits.dtype == jnp.float32
    assert cache.keys.dtype == cache.values.dtype == jnp.bfloat16
    assert cache.keys.shape == (1, 1, 2, 16, 4)


def expected_probabilities(logits, temperature, top_k, top_p):
    """Temperature, top-k and top-p in float64, in the order of Transformers."""
    scores = logits.astype(np.float64) / temperature
    if top_k is not None:
        scores[scores < np.sort(scores)[-top_k]] = -np.inf
    p = np.exp(scores - scores.max())
    p /= p.sum()
    ascending = np.argsort(p)
    is_removed = np.cumsum(p[ascending]) <= 1 - top_p
    is_removed[-1] = False
    p[ascending[is_removed]] = 0
    return p / p.sum()


@pytest.fixture(scope="module")
def frequencies(compiled_quickly):
    num = 20_000

    @jax.jit
    def draw(logits, sampling):
        rows = jnp.broadcast_to(logits, (num, len(logits)))
        tokens = generation.sample(rows, jax.random.key(0), sampling)
        return jnp.bincount(tokens, length=len(logits)) / num

    return draw


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, None, 1.0), (0.7, None, 0.8), (1.5, 3, 1.0), (1.0, 4, 0.6), (1.0, None, 0)],
)
def test_samples_have_the_distribution_of_transformers(
    temperature, top_k, top_p, frequencies
):
    logits = np.asarray([0.3, 2.0, -1.0, 1.5, 1.1, 0.0], np.float32)
    sampling = generation._sampling(temperature, top_k, top_p, len(logits))
    found = np.asarray(frequencies(logits, sampling))
    expected = expected_probabilities(logits, temperature, top_k, top_p)
    assert np.array_equal(found > 0, expected > 0)
    # Four standard deviations of 20,000 draws.
    deviation = np.sqrt(expected * (1 - expected) / 20_000)
    assert np.all(np.abs(found - expected) <= 4 * deviation)


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([[]], {}, "`prompts` must be sequences of at least 1 token, got shape"),
        ([[1.5]], {}, "`prompts` must contain integers, got float64"),
        ([[3, 40]], {}, "`prompt` must have tokens of the vocabulary, from 0 to 39"),
        ([[1] * 32], {}, "`prompt` must have fewer tokens than the context length, "),
        ([[1] * 30], {}, "`max_new_tokens` must be at most 2, the rest of the context"),
        ([[1]], {"max_new_tokens": 0}, "`max_new_tokens` must be from 1"),
        ([[1]], {"temperature": -1.0}, "`temperature` must be finite and at least 0"),
        ([[1]], {"temperature": np.nan}, "`temperature` must be finite and at least"),
        ([[1]], {"top_p": 1.1}, "`top_p` must be from 0 to 1"),
        ([[1]], {"top_k": 0}, "`top_k` must be from 1"),
        ([[1]], {"seed": -1}, "`seed` must be from 0"),
    ],
)
def test_refusals_name_the_argument(tiny, prompts, settings, message):
    with pytest.raises((ValueError, TypeError)) as refusal:
        tiny.generate(tiny.params, prompts, **{"max_new_tokens": 10, **settings})
    assert message in str(refusal.value)


def test_no_prompts_give_no_texts(tiny):
    assert tiny.generate(tiny.params, [], max_new_tokens=1) == []
