"""Greedy decoding of encoder-decoder modules under torchax, as one compiled program."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .. import _checks
from .._typing import PyTree
from ._layers import use_matmul_precision
from ._model import Mesh
from ._peft import base_module
from ._torchax import import_package
from ._torchax_model import TorchaxModel

# Fields of a generation configuration that change greedy decoding and are not applied,
# with their values without an effect.
_REFUSED: Mapping[str, tuple[Any, ...]] = {
    "repetition_penalty": (None, 1.0),
    "encoder_repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "bad_words_ids": (None,),
    "min_new_tokens": (None, 0),
    "exponential_decay_length_penalty": (None,),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "sequence_bias": (None,),
    "guidance_scale": (None, 1, 1.0),
}


def make_greedy(
    model: TorchaxModel,
    *,
    max_length: int,
    mesh: Mesh | None = None,
    matmul_precision: str | None = None,
) -> Callable[[PyTree, Mapping[str, Any]], jax.Array]:
    """Returns a function (params, batch) -> tokens, which decodes greedily.

    The tokens are those of `module.generate(num_beams=1, do_sample=False)`, padded at
    the end. The encoder is executed once. The decoder is executed for each token, on
    all positions: its cache has another shape for each architecture.

    Args:
        model: a model of `from_transformers` with an encoder and a decoder.
        max_length: L, length of the result, including the token with which it starts;
            at least 2.
        mesh: mesh over which activations are sharded; None for a single device.
        matmul_precision: as for `Model.make_loss`.

    Returns:
        The function. A batch is a dict of inputs of the encoder, [B, ...]; labels and
        inputs of the decoder in it are left out. The result is [B, L], int32.

    Raises:
        ValueError: if the module has no decoder, no token to start or to pad with, or
            its `generation_config` has a setting that is not supported. The message
            names all of these.

    Source: transformers 5.23 `generation/utils.py`, `_sample`, and
        `generation/logits_process.py`.
    """
    _checks.whole_number("max_length", max_length, minimum=2)
    module = base_module(model.module)
    rules = _Rules(module, max_length)
    outputs = import_package("transformers.modeling_outputs")

    def encode(module: Any, inputs: Mapping[str, Any]) -> Any:
        return module.get_encoder()(**inputs, return_dict=True).last_hidden_state

    def decode(module: Any, inputs: Mapping[str, Any]) -> Any:
        hidden = outputs.BaseModelOutput(last_hidden_state=inputs["encoded"])
        return module(
            encoder_outputs=hidden,
            attention_mask=inputs["attention_mask"],
            decoder_input_ids=inputs["tokens"],
            use_cache=False,
        ).logits

    def generate(params: PyTree, batch: Mapping[str, Any]) -> jax.Array:
        left_out = ("labels", "decoder_input_ids", "decoder_attention_mask")
        inputs = {n: x for n, x in batch.items() if n not in left_out and jnp.ndim(x)}
        num_rows = next(iter(inputs.values())).shape[0]
        with use_matmul_precision(matmul_precision):
            encoded = model.function(encode, params, inputs, mesh=mesh)
            mask = inputs.get("attention_mask")
            if mask is None:
                mask = jnp.ones(encoded.shape[:2], jnp.int32)

            def step(carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
                t, tokens, is_finished = carry
                given = {"encoded": encoded, "attention_mask": mask, "tokens": tokens}
                logits = model.function(decode, params, given, mesh=mesh)
                found = rules.choose(logits[:, t - 1], t)
                found = jnp.where(is_finished, rules.pad, found).astype(jnp.int32)
                return (
                    t + 1,
                    tokens.at[:, t].set(found),
                    is_finished | rules.ends(found),
                )

            def is_running(carry: tuple[Any, Any, Any]) -> jax.Array:
                t, _, is_finished = carry
                return (t < max_length) & ~jnp.all(is_finished)

            tokens = jnp.full((num_rows, max_length), rules.pad, jnp.int32)
            tokens = tokens.at[:, 0].set(rules.start)
            start = (jnp.int32(1), tokens, jnp.zeros(num_rows, bool))
            return jax.lax.while_loop(is_running, step, start)[1]

    return generate


class _Rules:
    """Choice of the next token, by the generation configuration of a module."""

    def __init__(self, module: Any, max_length: int):
        """Reads the tokens; raises for settings that are not supported."""
        config, general = module.generation_config, module.config
        self._length = max_length
        if not getattr(general, "is_encoder_decoder", False):
            raise ValueError(
                "`model` must have an encoder and a decoder, got "
                f"{type(module).__name__}. Use `generate` of Transformers."
            )

        def read(name: str) -> Any:
            found = getattr(config, name, None)
            return getattr(general, name, None) if found is None else found

        unsupported = [
            f"`{name}` {value!r}"
            for name, off in _REFUSED.items()
            if (value := getattr(config, name, None)) not in off
        ]
        if unsupported:
            raise ValueError(
                "`predict_with_generate` must be used with a generation_config.json "
                "without settings that compiled greedy decoding does not have, got "
                f"{', '.join(unsupported)}. Remove them, or generate with Transformers "
                "from the folder of the run."
            )
        self.start, self.pad = read("decoder_start_token_id"), read("pad_token_id")
        ends = read("eos_token_id")
        ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
        self._ends = jnp.array(ends, jnp.int32)
        self.start = read("bos_token_id") if self.start is None else self.start
        self.pad = ends[0] if self.pad is None and ends else self.pad
        if self.start is None or self.pad is None:
            raise ValueError(
                "`model_name_or_path` must contain a config.json with "
                "`decoder_start_token_id` and `pad_token_id`, with which generated "
                f"text starts and ends, got {self.start!r} and {self.pad!r}. Add them."
            )
        self._first = getattr(config, "forced_bos_token_id", None)
        last = getattr(config, "forced_eos_token_id", None)
        self._last = last[0] if isinstance(last, list) else last
        self._min_length = getattr(config, "min_length", None) or 0

    def ends(self, tokens: jax.Array) -> jax.Array:
        """Returns which tokens end their row."""
        return (tokens[:, None] == self._ends[None]).any(-1)

    def choose(self, logits: jax.Array, t: jax.Array) -> jax.Array:
        """Returns the next tokens, [B], of logits [B, V] for position `t`."""
        is_short = t < self._min_length
        ended = logits.at[:, self._ends].set(-jnp.inf)
        tokens = jnp.where(is_short, ended, logits).argmax(-1)
        if self._first is not None:
            tokens = jnp.where(t == 1, self._first, tokens)
        if self._last is not None:
            tokens = jnp.where(t == self._length - 1, self._last, tokens)
        return tokens
