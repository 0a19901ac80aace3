"""Collators of language-model tasks: masked tokens, and pairs of texts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .. import _checks
from ._examples import Arrays
from ._padding import CollateRows, Side, pad_rows
from ._text_encoder import IGNORED


class MaskedTokens:
    """Collator that masks tokens, which the model predicts.

    Each token that is not special is chosen with the probability `mlm_probability`. A
    chosen token is replaced by the mask token in 80 % of the cases and by a random
    token in 10 %; in 10 % it is left unchanged. Labels of other tokens are -100.

    Random numbers are drawn from NumPy's global generator, which `ExampleBatches` seeds
    for each micro-batch: they do not depend on the number of processes.

    Source: transformers 5.23 `data/data_collator.py`,
        `DataCollatorForLanguageModeling.numpy_mask_tokens`, with equal numbers for an
        equal state of the generator.
    """

    def __init__(
        self,
        pad: CollateRows,
        *,
        mask_token_id: int | None,
        vocab_size: int,
        special_token_ids: Iterable[int],
        mlm_probability: float = 0.15,
        mask_replace_prob: float = 0.8,
        random_replace_prob: float = 0.1,
    ):
        """Stores the settings.

        Args:
            pad: collator that pads the examples, such as `PadToBuckets`.
            mask_token_id: token that replaces masked tokens.
            vocab_size: V; random tokens are from 0 to V - 1.
            special_token_ids: tokens that are never masked, including the padding
                token.
            mlm_probability: probability with which a token is chosen.
            mask_replace_prob: fraction of the chosen tokens that are replaced by the
                mask token.
            random_replace_prob: fraction of the chosen tokens that are replaced by a
                random token.

        Raises:
            ValueError: if there is no mask token, or a fraction is out of its range.
        """
        if mask_token_id is None:
            raise ValueError(
                "`mask_token_id` must be a token, got None: the tokenizer has no mask "
                "token. Use the tokenizer of a model for masked-lm, or train a causal "
                "model."
            )
        for name, value in (
            ("mlm_probability", mlm_probability),
            ("mask_replace_prob", mask_replace_prob),
            ("random_replace_prob", random_replace_prob),
            ("mask_replace_prob + random_replace_prob", mask_replace_prob
             + random_replace_prob),
        ):  # fmt: skip
            _checks.fraction(name, value)
        self._pad, self._vocab_size = pad, vocab_size
        self._mask_token_id = mask_token_id
        self._special = np.asarray(sorted(special_token_ids), np.int32)
        self._choice_probability = mlm_probability
        self._mask_fraction = mask_replace_prob
        self._random_fraction = random_replace_prob

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> Arrays:
        """Returns a padded micro-batch with masked `input_ids` and with `labels`."""
        arrays = self._pad(examples)
        tokens = arrays["input_ids"]
        is_special = np.isin(tokens, self._special)
        chosen = _draw(np.where(is_special, 0.0, self._choice_probability))
        labels = np.where(chosen, tokens, np.int32(IGNORED))
        masked = _draw(np.full(tokens.shape, self._mask_fraction)) & chosen
        inputs = np.where(masked, np.int32(self._mask_token_id), tokens)
        if self._mask_fraction < 1 and self._random_fraction > 0:
            share = self._random_fraction / (1 - self._mask_fraction)
            is_random = _draw(np.full(tokens.shape, share)) & chosen & ~masked
            inputs[is_random] = np.random.randint(
                0, self._vocab_size, size=np.count_nonzero(is_random), dtype=np.int64
            )
        return {**arrays, "input_ids": inputs, "labels": labels}


class Seq2SeqBatch:
    """Collator of inputs and targets of a model with an encoder and a decoder.

    `decoder_input_ids` are the labels, shifted by one to the right, as T5 and BART
    shift them.

    Source: transformers 5.23 `data/data_collator.py`, `DataCollatorForSeq2Seq`;
        `models/t5/modeling_t5.py`, `_shift_right`; `models/bart/modeling_bart.py`,
        `shift_tokens_right`.
    """

    def __init__(
        self,
        lengths: Iterable[tuple[int, int]],
        *,
        pad_token_id: int,
        decoder_start_token_id: int | None,
        ignore_pad_token_for_loss: bool = True,
        padding_side: Side = "right",
    ):
        """Stores the settings.

        Args:
            lengths: pairs of a length of padded inputs and one of padded labels, such
                as those of `choose_length_pairs`. A micro-batch is padded to the pair
                with the smallest sum among those that its rows fit into.
            pad_token_id: token that pads inputs and the inputs of the decoder.
            decoder_start_token_id: first input of the decoder.
            ignore_pad_token_for_loss: whether labels are padded by -100, which the loss
                ignores, instead of `pad_token_id`.
            padding_side: side on which rows are padded.

        Raises:
            ValueError: if there is no first input of the decoder.
        """
        if decoder_start_token_id is None:
            raise ValueError(
                "`decoder_start_token_id` must be a token, got None. Set it in the "
                "config.json of the model."
            )
        self.lengths = tuple(sorted(set(lengths), key=lambda pair: (sum(pair), pair)))
        self._pad, self._start = pad_token_id, decoder_start_token_id
        self._label_pad = IGNORED if ignore_pad_token_for_loss else pad_token_id
        self._side = padding_side

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> Arrays:
        """Returns the arrays of a micro-batch.

        Args:
            examples: B examples with the lists `input_ids` [up to S] and, except for
                prediction, `labels` [up to T].

        Returns:
            int32 arrays `input_ids` and `attention_mask` [B, S], `labels` and
            `decoder_input_ids` [B, T].

        Raises:
            ValueError: if a row is longer than all lengths.
        """
        inputs = [list(example["input_ids"]) for example in examples]
        targets = [list(example.get("labels") or ()) for example in examples]
        num_inputs, num_labels = self._lengths(inputs, targets)
        ones = [[1] * len(row) for row in inputs]
        arrays = {
            "input_ids": pad_rows(inputs, num_inputs, self._pad, self._side),
            "attention_mask": pad_rows(ones, num_inputs, 0, self._side),
        }
        if "labels" not in examples[0]:
            return arrays
        labels = pad_rows(targets, num_labels, self._label_pad, self._side)
        arrays["labels"] = labels
        arrays["decoder_input_ids"] = shift_right(
            labels, start=self._start, pad_token_id=self._pad
        )
        return arrays

    def _lengths(
        self, inputs: list[list[int]], targets: list[list[int]]
    ) -> tuple[int, int]:
        longest = max(map(len, inputs)), max(map(len, targets))
        for pair in self.lengths:
            if pair[0] >= longest[0] and pair[1] >= longest[1]:
                return pair
        raise ValueError(
            f"`lengths` must contain a pair of at least {longest}, the lengths of rows "
            f"and labels, got {self.lengths}. Choose them for all data of the run."
        )


def shift_right(labels: np.ndarray, *, start: int, pad_token_id: int) -> np.ndarray:
    """Returns the inputs of a decoder: labels [B, T] after a first token.

    Args:
        labels: labels; -100 becomes `pad_token_id`.
        start: the first token.
        pad_token_id: token that pads rows.
    """
    first = np.full((len(labels), 1), start, labels.dtype)
    shifted = np.concatenate([first, labels[:, :-1]], axis=1)
    return np.where(shifted == IGNORED, labels.dtype.type(pad_token_id), shifted)


def _draw(probability: np.ndarray) -> np.ndarray:
    """Returns which elements are chosen, each with its probability."""
    return np.random.binomial(1, probability).astype(bool)
