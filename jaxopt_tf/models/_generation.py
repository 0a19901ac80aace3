"""Generation of text: greedy decoding, and sampling with temperature, top-k and top-p.

generate = make_generate(config, eos_token_ids=(2,))
(new_tokens,) = generate(params, [prompt], max_new_tokens=100, temperature=0.8)
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from .. import _checks
from .._checks import pluralize
from .._typing import PyTree
from ._decoder_config import DecoderConfig
from ._decoding import DecodingFns, make_decoding_fns
from ._gpt2_config import GPT2Config
from ._layers import use_matmul_precision

# Prompts and texts are padded to a power of two, at least this one: programs are
# compiled for few lengths, and most prompts use the same one.
_MIN_LENGTH = 64


class GenerateFn(Protocol):
    """Function that continues prompts."""

    def __call__(
        self,
        params: PyTree,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[list[int]]:
        """Continues each prompt up to an end token or `max_new_tokens`.

        Args:
            params: parameters of the model; they may be sharded.
            prompts: tokens of each prompt; their lengths may differ.
            max_new_tokens: maximum number of tokens after each prompt. A prompt with
                its continuation must fit into the context length.
            temperature: divisor of the logits; 0 for greedy decoding, which takes the
                token with the largest logit.
            top_k: sampling is restricted to the `top_k` tokens with the largest logits;
                None for all.
            top_p: sampling is restricted to the smallest set of most probable tokens
                whose probability is at least `top_p`; from 0 to 1.
            seed: seed of the samples.

        Returns:
            The new tokens of each prompt, with the end token if there is one.

        Raises:
            ValueError: if a prompt is empty, too long or contains a token outside the
                vocabulary, or a setting is out of range.
            TypeError: if a setting has the wrong type.
        """
        ...


class Sampling(NamedTuple):
    """Distribution of the next token; arrays, so that nothing is recompiled."""

    temperature: jax.Array | np.float32  # (), float32; 0 for greedy decoding
    top_k: jax.Array | np.int32  # (), int32
    top_p: jax.Array | np.float32  # (), float32


class _Request(NamedTuple):
    """Prompts and settings of one call."""

    prompts: jax.Array | np.ndarray  # [B, P], int32, padded at the ends of rows
    lengths: jax.Array | np.ndarray  # [B], int32
    max_new_tokens: jax.Array | np.int32  # (), int32
    sampling: Sampling
    seed: jax.Array | np.uint32  # (), uint32


class _Progress(NamedTuple):
    """State of the loop over new tokens."""

    text: jax.Array  # [B, S], int32: prompts and new tokens
    lengths: jax.Array  # [B], int32: number of tokens of each text
    is_done: jax.Array  # [B], bool: the text has an end token
    num_new: jax.Array  # (), int32: number of new tokens of the longest continuation
    logits: jax.Array  # [B, V], float32: of the next token
    cache: Any  # keys and values of all tokens, or the text


def make_generate(
    config: GPT2Config | DecoderConfig,
    *,
    mesh: Any = None,
    compute_dtype: Any = None,
    matmul_precision: str | None = None,
    eos_token_ids: Sequence[int] = (),
) -> GenerateFn:
    """Returns a function that continues prompts with a cache of keys and values.

    Prompts are padded to a power of two of at least 64 tokens, and so are texts. The
    function is compiled once per pair of these lengths and number of prompts; settings
    and seed do not recompile it. On one machine, equal arguments give equal tokens.

    Greedy decoding gives the tokens of forward passes over the whole text, up to
    rounding.

    Args:
        config: configuration of the model.
        mesh: mesh over which the parameters are sharded; None for a single device. In a
            job of several processes, all must call the function.
        compute_dtype: dtype that the parameters are cast to, such as `jnp.bfloat16`;
            None for no cast.
        matmul_precision: precision of matrix products, as for
            `jax.default_matmul_precision`; None for the precision that is configured
            when the function is called.
        eos_token_ids: tokens that end a text.

    Source: transformers 5.23 `generation/utils.py`, `GenerationMixin._sample`;
        `generation/logits_process.py`, for the order temperature, top-k, top-p.
    """
    return generate_with(
        make_decoding_fns(config, mesh=mesh),
        vocab_size=config.vocab_size,
        context=context_length(config),
        mesh=mesh,
        compute_dtype=compute_dtype,
        matmul_precision=matmul_precision,
        eos_token_ids=eos_token_ids,
    )


def generate_with(
    fns: DecodingFns,
    *,
    vocab_size: int,
    context: int,
    mesh: Any = None,
    compute_dtype: Any = None,
    matmul_precision: str | None = None,
    eos_token_ids: Sequence[int] = (),
) -> GenerateFn:
    """Returns a function that continues prompts with the functions of a model.

    Args:
        fns: functions of the model for texts that grow by one token per step.
        vocab_size: number of tokens.
        context: maximum number of tokens in a text.
        mesh: as for `make_generate`.
        compute_dtype: as for `make_generate`.
        matmul_precision: as for `make_generate`.
        eos_token_ids: as for `make_generate`.
    """
    ends = np.asarray(eos_token_ids, np.int32).reshape(-1)

    def run(params, request, size):
        if compute_dtype is not None:
            params = jax.tree.map(lambda p: p.astype(compute_dtype), params)
        with use_matmul_precision(matmul_precision):
            return _generate(fns, params, request, size, ends)

    # Each process reads the whole result.
    result = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    compiled = jax.jit(run, static_argnames="size", out_shardings=result)

    def generate(
        params,
        prompts,
        *,
        max_new_tokens,
        temperature=0.0,
        top_k=None,
        top_p=1.0,
        seed=0,
    ):
        rows = [_as_prompt(prompt, vocab_size) for prompt in prompts]
        longest = max((len(row) for row in rows), default=0)
        max_new_tokens = check_lengths(longest, max_new_tokens, context)
        sampling = _sampling(temperature, top_k, top_p, vocab_size)
        seed = np.uint32(_checks.seed("seed", seed))
        if not rows:
            return []
        padded = np.zeros((len(rows), _padded(longest, context)), np.int32)
        for row, tokens in zip(padded, rows, strict=True):
            row[: len(tokens)] = tokens
        lengths = np.asarray([len(row) for row in rows], np.int32)
        request = _Request(padded, lengths, np.int32(max_new_tokens), sampling, seed)
        size = _padded(longest + max_new_tokens, context)
        text, new_lengths = compiled(params, request, size=size)
        text, new_lengths = np.asarray(text), np.asarray(new_lengths)
        return [
            row[start:end].tolist()
            for row, start, end in zip(text, lengths, new_lengths, strict=True)
        ]

    return generate


def context_length(config: GPT2Config | DecoderConfig) -> int:
    """Returns the maximum number of tokens in a text."""
    if isinstance(config, GPT2Config):
        return config.block_size
    return config.max_position_embeddings


def check_lengths(
    num_tokens: int,
    max_new_tokens: int | None,
    context: int,
    *,
    argument: str = "prompt",
) -> int:
    """Returns the maximum number of new tokens after a prompt.

    Args:
        num_tokens: number of tokens of the prompt.
        max_new_tokens: requested number of new tokens; None for the rest of
            the context.
        context: maximum number of tokens in a text.
        argument: name of the argument that contains the prompt, for messages.

    Raises:
        ValueError: if the text does not fit into the context.
    """
    if num_tokens >= context:
        raise ValueError(
            f"`{argument}` must have fewer tokens than the context length, which is "
            f"{context:,}, got {pluralize(num_tokens, 'token')}. Shorten it."
        )
    remaining = context - num_tokens
    if max_new_tokens is None:
        return remaining
    max_new_tokens = _checks.whole_number("max_new_tokens", max_new_tokens, minimum=1)
    if max_new_tokens > remaining:
        raise ValueError(
            f"`max_new_tokens` must be at most {remaining:,}, the rest of the context "
            f"length of {context:,} after a prompt of "
            f"{pluralize(num_tokens, 'token')}, got {max_new_tokens!r}. Use "
            f"{remaining:,}, or shorten the prompt."
        )
    return max_new_tokens


def sample(logits: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
    """Samples one token per row; greedy if the temperature is 0.

    Args:
        logits: [B, V], float32.
        key: random key.
        sampling: settings of the distribution.

    Returns:
        [B], int32. Of equal logits, those with smaller indices are preferred.

    Source: transformers 5.23 `generation/logits_process.py`,
        `TemperatureLogitsWarper`, `TopKLogitsWarper`, `TopPLogitsWarper`.
    Differs: if logits at the border of `top_k` are equal, exactly `top_k` tokens are
        kept instead of all equal ones.
    """

    def greedy(logits: jax.Array) -> jax.Array:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def draw(logits: jax.Array) -> jax.Array:
        # Tokens by decreasing logit; the sort is stable.
        order = jnp.argsort(-logits, axis=-1)
        scaled = jnp.take_along_axis(logits, order, axis=-1) / sampling.temperature
        rank = jnp.arange(logits.shape[-1], dtype=jnp.int32)[None]
        scaled = jnp.where(rank < sampling.top_k, scaled, -jnp.inf)
        p = jax.nn.softmax(scaled, axis=-1)
        before = jnp.cumsum(p, axis=-1) - p  # probability of all more probable tokens
        # The first token is always included, since `top_p` may be 0.
        is_included = (before < sampling.top_p) | (rank == 0)
        chosen = jax.random.categorical(key, jnp.where(is_included, scaled, -jnp.inf))
        token = jnp.take_along_axis(order, chosen[:, None], axis=-1)[:, 0]
        return token.astype(jnp.int32)

    return jax.lax.cond(sampling.temperature > 0, draw, greedy, logits)


def _generate(
    fns: DecodingFns,
    params: PyTree,
    request: _Request,
    size: int,
    ends: np.ndarray,
) -> tuple[jax.Array, jax.Array]:
    """Returns the texts, [B, size], and their lengths, [B]."""
    prompts, lengths = jnp.asarray(request.prompts), jnp.asarray(request.lengths)
    rows = jnp.arange(prompts.shape[0], dtype=jnp.int32)
    key = jax.random.key(request.seed)

    def is_unfinished(progress: _Progress) -> jax.Array:
        return (progress.num_new < request.max_new_tokens) & ~jnp.all(progress.is_done)

    # The logits after the last token are computed but not used. Sampling outside the
    # loop would avoid that, and would compile the samples twice.
    def append(progress: _Progress) -> _Progress:
        text, lengths, is_done, num_new, logits, cache = progress
        step_key = jax.random.fold_in(key, num_new)
        token = sample(logits, step_key, request.sampling)
        # A finished text keeps its length: its token is written after its end.
        text = text.at[rows, lengths].set(token, mode="drop")
        lengths = lengths + (~is_done).astype(jnp.int32)
        is_done = is_done | jnp.any(token[:, None] == ends[None], axis=1)
        last = lengths - 1
        logits, cache = fns.step(params, text[rows, last], last, cache)
        return _Progress(text, lengths, is_done, num_new + 1, logits, cache)

    padding = ((0, 0), (0, size - prompts.shape[1]))
    logits, cache = fns.prefill(params, prompts, lengths, size)
    start = _Progress(
        text=jnp.pad(prompts, padding),
        lengths=lengths,
        is_done=jnp.zeros(rows.shape, bool),
        num_new=jnp.int32(0),
        logits=logits,
        cache=cache,
    )
    progress = jax.lax.while_loop(is_unfinished, append, start)
    return progress.text, progress.lengths


def _as_prompt(prompt: Sequence[int], vocab_size: int) -> np.ndarray:
    tokens = np.asarray(prompt)
    if tokens.ndim != 1 or not len(tokens):
        raise ValueError(
            "`prompts` must be sequences of at least 1 token, got shape "
            f"{list(tokens.shape)}. Begin an empty text with the token that starts a "
            "document."
        )
    if not np.issubdtype(tokens.dtype, np.integer):
        raise TypeError(
            f"`prompts` must contain integers, got {tokens.dtype}. Pass the indices of "
            "the tokens."
        )
    outside = tokens[(tokens < 0) | (tokens >= vocab_size)]
    if len(outside):
        raise ValueError(
            "`prompt` must have tokens of the vocabulary, from 0 to "
            f"{vocab_size - 1:,}, got {int(outside[0])}. Use the tokenizer that the "
            "model was trained with."
        )
    return tokens.astype(np.int32)


def _sampling(
    temperature: float, top_k: int | None, top_p: float, vocab_size: int
) -> Sampling:
    _checks.non_negative("temperature", temperature)
    _checks.fraction("top_p", top_p)
    if top_k is None:
        top_k = vocab_size
    top_k = _checks.whole_number("top_k", top_k, minimum=1)
    # NumPy scalars are replicated on all devices of a mesh, also in several processes.
    return Sampling(
        np.float32(temperature), np.int32(min(top_k, vocab_size)), np.float32(top_p)
    )


def _padded(length: int, context: int) -> int:
    """Returns the smallest power of two from 64 on that fits, at most the context."""
    power = 1 << max(length - 1, 0).bit_length()
    return min(max(power, _MIN_LENGTH), context)
