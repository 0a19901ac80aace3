"""Tokens of the texts of labelled tasks, as tokenizers of Transformers make them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import _checks
from ._chat_template import add_special_tokens, read_tokenizer_config
from ._tokenize import load_tokenizer, token_id, vocab_size_of

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

IGNORED = -100  # label that loss functions and metrics ignore
_FILE = "tokenizer.json"


class Encoder:
    """Tokenizer that cuts texts at a length, with the special tokens of its folder.

    Attributes:
        max_length: L, maximum number of tokens of a text with its special tokens; None
            for no limit.
        max_target_length: the same for targets.
        pad_token_id: token that pads rows.
        padding_side: side on which rows are padded.
        mask_token_id: token that replaces masked tokens; None if there is none.
        special_token_ids: all special tokens.
        vocab_size: upper limit of the tokens, exclusive.
        num_cut: number of texts and targets that were cut so far.
        num_empty: number of empty texts so far.
    """

    padding_side: Literal["left", "right"]

    def __init__(
        self,
        tokenizer: "str | Path | Tokenizer",
        *,
        max_length: int | None,
        max_target_length: int | None = None,
        model_max_length: int | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        """Loads the tokenizer.

        Args:
            tokenizer: folder of a model, path of a `tokenizer.json`, or a tokenizer of
                the tokenizers library. Special tokens are read from
                `tokenizer_config.json` and `special_tokens_map.json` beside the file.
            max_length: maximum number of tokens of a text, with its special tokens;
                None for that of the model.
            max_target_length: the same for targets; None for `max_length`.
            model_max_length: number of positions of the model; None if it has no limit.
            config: settings that replace those of the files.

        Raises:
            ValueError: if a file cannot be read, the tokenizer has no padding token, or
                a length is less than 1.
        """
        if isinstance(tokenizer, str | Path):
            path = Path(tokenizer)
            path = path / _FILE if path.is_dir() else path
            self._tokenizer, content = load_tokenizer(path)
            config = read_tokenizer_config(path.parent) | dict(config or {})
            described = repr(str(path))
        else:
            content, described = tokenizer.to_str().encode(), "the tokenizer"
            self._tokenizer = type(tokenizer).from_buffer(content)
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            config = dict(config or {})
        special = add_special_tokens(self._tokenizer, config)
        self._tokenizer.encode_special_tokens = bool(config.get("split_special_tokens"))
        if special.get("pad_token") is None:
            raise ValueError(
                f"`tokenizer` must have a padding token, but {described} has none. Set "
                "`tokenizer.pad_token = tokenizer.eos_token` or another token, and "
                "save it with `tokenizer.save_pretrained`."
            )
        self.pad_token_id = token_id(self._tokenizer, special["pad_token"])
        mask = special.get("mask_token")
        self.mask_token_id = None if mask is None else token_id(self._tokenizer, mask)
        self.special_token_ids = tuple(
            sorted({token_id(self._tokenizer, name) for name in special.values()})
        )
        self.vocab_size = vocab_size_of(self._tokenizer)
        self.padding_side = config.get("padding_side", "right")
        self._truncation_side = config.get("truncation_side", "right")
        self._has_type_ids = _has_type_ids(json.loads(content), config)
        limits = (model_max_length, config.get("model_max_length"))
        self.max_length = _shortest("max_length", max_length, limits)
        self.max_target_length = (
            self.max_length
            if max_target_length is None
            else _shortest("max_target_length", max_target_length, limits)
        )
        self.num_cut = self.num_empty = 0

    @property
    def pad_values(self) -> dict[str, int]:
        """Values that pad the columns of an example."""
        return {
            "input_ids": self.pad_token_id,
            "token_type_ids": 0,
            "attention_mask": 0,
            "labels": IGNORED,
        }

    def texts(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        argument: str = "text_column",
    ) -> list[dict[str, list[int]]]:
        """Returns the tokens of texts, or of pairs of texts, with special tokens.

        They are those of `tokenizer(text, pair, truncation=True, max_length=L)` of
        Transformers. The longer text of a pair is cut first.

        Args:
            texts: N texts.
            pairs: N second texts; None for single texts.
            argument: name of the argument of the texts, for messages.

        Returns:
            N examples with the lists `input_ids` and, if the tokenizer distinguishes
            the texts of a pair, `token_type_ids`.

        Raises:
            ValueError: if a value is not a string, or has no tokens.
        """
        self._check_texts(argument, texts)
        inputs: list[Any] = list(texts)
        if pairs is not None:
            self._check_texts("text_pair_column", pairs)
            inputs = list(zip(texts, pairs, strict=True))
        encodings = self._encode(inputs, self.max_length)
        return [
            self._example(encoding, row, argument)
            for row, encoding in enumerate(encodings, 1)
        ]

    def targets(
        self, texts: Sequence[str], *, argument: str = "target_column"
    ) -> list[list[int]]:
        """Returns the tokens of targets, which `max_target_length` cuts.

        Raises:
            ValueError: if a value is not a string, or has no tokens.
        """
        self._check_texts(argument, texts)
        encodings = self._encode(list(texts), self.max_target_length)
        return [
            self._example(encoding, row, argument)["input_ids"]
            for row, encoding in enumerate(encodings, 1)
        ]

    def words(
        self,
        rows_of_words: Sequence[Sequence[str]],
        rows_of_labels: Sequence[Sequence[int]] | None = None,
        *,
        argument: str = "text_column",
    ) -> list[dict[str, list[int]]]:
        """Returns the tokens of rows of words, with a label for each token.

        The first token of a word has the label of the word, all others -100.

        Args:
            rows_of_words: N lists of words.
            rows_of_labels: N lists of labels, one for each word; None for no labels.
            argument: name of the argument of the words, for messages.

        Returns:
            N examples as those of `texts`, with the list `labels` if labels are given.

        Raises:
            ValueError: if a row is not a list of words, or has too few labels.

        Source: transformers 5.23 `examples/pytorch/token-classification/run_ner.py`.
        """
        for row, words in enumerate(rows_of_words, 1):
            if isinstance(words, str) or not all(isinstance(w, str) for w in words):
                raise ValueError(
                    f"`{argument}` must contain a list of words in each row, but row "
                    f"{row:,} has {words!r}. Split the texts into words."
                )
        self._prefix_words()
        inputs = [list(words) for words in rows_of_words]
        encodings = self._encode(inputs, self.max_length, is_pretokenized=True)
        examples = []
        for row, encoding in enumerate(encodings, 1):
            example = self._example(encoding, row, argument)
            if rows_of_labels is not None:
                labels, number = rows_of_labels[row - 1], len(inputs[row - 1])
                if len(labels) != number:
                    raise ValueError(
                        "`label_column` must contain a label for each word, but row "
                        f"{row:,} has {_checks.pluralize(number, 'word')} and "
                        f"{_checks.pluralize(len(labels), 'label')}. Correct the row."
                    )
                example["labels"] = _labels_of_tokens(encoding.word_ids, labels)
            examples.append(example)
        return examples

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of tokens, without special tokens and without -100."""
        kept = [int(token) for token in tokens if token >= 0]
        return str(self._tokenizer.decode(kept, skip_special_tokens=True))

    def _encode(
        self, inputs: list[Any], length: int | None, *, is_pretokenized: bool = False
    ) -> "list[Encoding]":
        tokenizer = self._tokenizer
        if length is None:
            tokenizer.no_truncation()
        else:
            tokenizer.enable_truncation(
                length, strategy="longest_first", direction=self._truncation_side
            )
        try:
            encodings = tokenizer.encode_batch(inputs, is_pretokenized=is_pretokenized)
        # The library raises plain `Exception`s.
        except Exception as error:
            raise ValueError(
                f"`tokenizer` must fit the text, but it fails: {error}. Give the "
                "tokenizer of the model, or a larger `max_length`."
            ) from error
        self.num_cut += sum(bool(encoding.overflowing) for encoding in encodings)
        return list(encodings)

    def _example(
        self, encoding: "Encoding", row: int, argument: str
    ) -> dict[str, list[int]]:
        if not encoding.ids:
            raise ValueError(
                f"`{argument}` must contain texts with tokens, but the text of row "
                f"{row:,} has none. Remove the row."
            )
        example = {"input_ids": list(encoding.ids)}
        if self._has_type_ids:
            example["token_type_ids"] = list(encoding.type_ids)
        return example

    def _check_texts(self, argument: str, texts: Sequence[Any]) -> None:
        for row, text in enumerate(texts, 1):
            if not isinstance(text, str):
                raise ValueError(
                    f"`{argument}` must contain a string in each row, but row {row:,} "
                    f"has {text!r}. Correct or remove the row, or give another column."
                )
            self.num_empty += not text.strip()

    def _prefix_words(self) -> None:
        """Makes words start with a space where the tokenizer marks them so."""
        pre_tokenizer = self._tokenizer.pre_tokenizer
        # `add_prefix_space=True` of `run_ner.py`, without which words are joined.
        if getattr(pre_tokenizer, "add_prefix_space", True) is False:
            pre_tokenizer.add_prefix_space = True
            self._tokenizer.pre_tokenizer = pre_tokenizer


def _labels_of_tokens(
    word_ids: Sequence[int | None], labels: Sequence[int]
) -> list[int]:
    """Returns a label for each token: that of its word if it is the first of it."""
    previous: list[int | None] = [None, *word_ids[:-1]]
    return [
        IGNORED if word is None or word == before else int(labels[word])
        for word, before in zip(word_ids, previous, strict=True)
    ]


def _shortest(
    name: str, length: int | None, limits: Sequence[float | None]
) -> int | None:
    """Returns the smallest of the lengths; None if there is none."""
    found = [limit for limit in limits if limit is not None]
    if length is not None:
        found.append(_checks.whole_number(name, length, minimum=1))
    shortest = min(found, default=None)
    # A tokenizer without a limit has the number 1e30 in its configuration.
    return None if shortest is None or shortest > 2**31 else int(shortest)


def _has_type_ids(content: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Returns whether the model takes `token_type_ids`, as far as files show it."""
    names = config.get("model_input_names")
    if names is not None:
        return "token_type_ids" in names
    processor = content.get("post_processor") or {}
    parts = processor.get("processors") or [processor]
    # The second text of a pair has the number 1.
    return any(
        part.get("type") == "BertProcessing" or '"type_id": 1' in json.dumps(part)
        for part in parts
    )
