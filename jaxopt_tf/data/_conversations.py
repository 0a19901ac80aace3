"""Rows for fine-tuning: prompts and completions, or conversations.

The tokens and labels are those of TRL's `SFTTrainer`.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from .._checks import pluralize
from ._chat_template import ChatTokenizer
from ._corpus import Corpus, make_corpus, tenth_of_rows
from ._row_files import (
    FORMS,
    Row,
    RowForm,
    check_encodable,
    form_of_row,
    read_rows,
    sha256_of,
)
from ._token_cache import write_cached
from ._tokens import Documents, TokenFile, chunks

if TYPE_CHECKING:
    from tokenizers import Encoding

# Version of the algorithm: cached files of other versions are replaced.
_VERSION = 2
# Number of rows that are encoded in parallel.
_BATCH_SIZE = 512
# Separator after each row in the file. It differs from every masked token, which is
# stored as ~token = -token - 1 and is greater than this value.
_END_OF_ROW = np.iinfo(np.int32).min
# Counts of a file of tokens: rows, or 1 for true.
_NOT_PREFIX, _IS_CHAT, _IS_MARKED = "not_prefix", "is_chat", "is_marked"


def read_conversations(
    train_files: Sequence[Path],
    *,
    tokenizer: Path,
    cache_dir: Path,
    validation_files: Sequence[Path] = (),
    completion_only_loss: bool = True,
    chat_template: Path | None = None,
) -> Corpus:
    """Reads rows for fine-tuning; `PackedRows` packs them.

    All rows have the columns of the first one, in one of three forms:

    - `prompt` and `completion` are strings. The text is their concatenation, to which
      the end-of-document token is appended unless the text ends with it. The text is
      encoded with the special tokens that the tokenizer adds, such as one at the start.
    - `prompt` and `completion` are lists of messages, each an object with `role` and
      `content`. The chat template renders them, and adds all special tokens.
    - `messages` is a list of messages, rendered in the same way.

    Columns `tools` (a list of JSON schemas, or a string that contains it) and
    `chat_template_kwargs` (an object) are passed to the template. Other columns are
    ignored.

    The loss is on the completion, which starts at the first token that differs between
    prompt and whole text, or on the answers in `messages`: the text in {% generation %}
    if the template has this tag. Otherwise the messages before an answer are rendered
    with the generation prompt, and the messages up to it without: the answer is what
    the second text adds. The template must then render each of these parts as it does
    in the whole text. The templates of Qwen2.5, Qwen3 and DeepSeek-R1-Distill are
    replaced by versions with the tag, which keep the reasoning in every answer, as in
    TRL.

    The tokens are written to `tokens.bin` in `cache_dir`, those of `validation_files`
    to `validation.bin`, and reused while files and tokenizer are unchanged, so that a
    template that writes the date is rendered once. `notes` of the corpus contains the
    number of rows whose prompt is not a prefix of the whole text.

    Args:
        train_files: .jsonl, .json, .csv or .parquet files, as for `read_rows`.
        tokenizer: path of a `tokenizer.json`; `ChatTokenizer` reads the files beside
            it.
        cache_dir: folder of the tokens. Only one process at a time may use it.
        validation_files: rows to evaluate on; if empty, a tenth of the rows is used.
        completion_only_loss: False for a loss on all tokens.
        chat_template: file of a Jinja template that replaces that of the tokenizer.

    Returns:
        A corpus whose `is_masked` is True.

    Raises:
        ModuleNotFoundError: if pyarrow or jinja2 is needed and not installed.
        ValueError: if a file or the tokenizer cannot be read; if a row has other
            columns or values of another type; if messages cannot be rendered or have
            no answer. The message contains the path and the row.

    Source: TRL 1.16 `trainer/sft_trainer.py`, `SFTTrainer._prepare_dataset`.
    Differs: the loss of `messages` is on the answers by default, as with
        `assistant_only_loss=True`. A template without {% generation %} that TRL does
        not know is used if the answers can be found in its text.
    """
    chat = ChatTokenizer(Path(tokenizer), chat_template=chat_template)
    parts = [_RowEncoder(chat, train_files, "train_file", completion_only_loss)]
    if validation_files:
        parts.append(
            _RowEncoder(chat, validation_files, "validation_file", completion_only_loss)
        )
    paths = [Path(cache_dir, f"{name}.bin") for name in ("tokens", "validation")]
    paths = paths[: len(parts)]
    notes = [
        note
        for path, part in zip(paths, parts, strict=True)
        for note in part.write(path)
    ]
    stored, documents = _documents(paths)
    is_evaluation = documents.file == 1
    if not validation_files:
        is_evaluation = tenth_of_rows(len(documents.length))
    corpus = make_corpus(
        stored,
        documents,
        vocab_size=chat.vocab_size,
        end=None,
        unit="tokens",
        is_evaluation=is_evaluation,
        is_masked=True,
    )
    return corpus._replace(notes=tuple(notes))


def form_of_rows(cache_dir: Path) -> Literal["text", "chat"] | None:
    """Returns the form of the rows whose tokens `read_conversations` has written.

    Returns:
        "text" for prompts and completions that are strings, "chat" for messages; None
        if the folder has no tokens of rows for fine-tuning.
    """
    try:
        metadata = json.loads(Path(cache_dir, "tokens.json").read_bytes())
        return "chat" if metadata["counts"][_IS_CHAT] else "text"
    # The file is missing, damaged, or of another corpus.
    except (OSError, ValueError, KeyError, TypeError):
        return None


class _Text(NamedTuple):
    """Text of a row before it is encoded."""

    location: str  # path and number of the row, for messages
    text: str  # text of the whole row
    prompt: str | None  # text of the prompt alone
    answers: list[tuple[int, int]] | None  # start and end of each answer in `text`
    has_special_tokens: bool  # False if the tokenizer adds them


class _RowEncoder:
    """Encodes rows as int32: token t is t if it is predicted, otherwise ~t."""

    def __init__(
        self,
        chat: ChatTokenizer,
        paths: Sequence[Path],
        argument: str,
        completion_only_loss: bool,
    ):
        if not paths:
            raise ValueError(f"`{argument}` must name at least one file, got none.")
        self._chat, self._paths, self._argument = chat, paths, argument
        self._completion_only_loss = completion_only_loss
        self._num_not_prefix = 0
        self._form: RowForm | None = None

    def write(self, path: Path) -> list[str]:
        """Writes the tokens unless the file contains them; returns notes on rows."""
        cache_key = {
            "version": _VERSION,
            "rows": [sha256_of(Path(path), self._argument) for path in self._paths],
            "tokenizer": self._chat.sha256,
            "completion_only_loss": self._completion_only_loss,
        }
        counts = write_cached(
            path,
            cache_key,
            self._encode,
            {"vocab_size": self._chat.vocab_size},
            counts=lambda: {
                _NOT_PREFIX: self._num_not_prefix,
                _IS_CHAT: int(self._form != "strings"),
                _IS_MARKED: int(self._form == "messages" and self._marks_answers),
            },
        )
        notes = []
        if counts[_IS_MARKED]:
            notes.append(
                f"`{self._argument}`: the chat template is rendered as by TRL for "
                "training, with the reasoning of every answer"
            )
        if not counts[_NOT_PREFIX]:
            return notes
        rows = pluralize(counts[_NOT_PREFIX], "row")
        return [
            *notes,
            f"`{self._argument}`: in {rows} the tokens of the prompt are not the first "
            "ones of the whole text; the completion starts at the first token that "
            "differs",
        ]

    @property
    def _marks_answers(self) -> bool:
        return self._completion_only_loss and self._chat.has_training_template

    def _encode(self) -> Iterator[np.ndarray]:
        texts = self._read_texts()
        while batch := list(itertools.islice(texts, _BATCH_SIZE)):
            encodings = self._encode_texts([row.text for row in batch], batch[0])
            prompts: Iterator[Encoding] = iter(())
            if batch[0].prompt is not None:
                prompts = iter(
                    self._encode_texts([str(r.prompt) for r in batch], batch[0])
                )
            parts: list[np.ndarray] = []
            for row, encoding in zip(batch, encodings, strict=True):
                ids = np.asarray(encoding.ids, np.int32)
                is_predicted = np.ones(len(ids), bool)
                if row.prompt is not None:
                    is_predicted[: self._prompt_length(next(prompts).ids, ids)] = False
                elif row.answers is not None:
                    is_predicted = _is_in_answers(encoding, row.answers)
                if not is_predicted.any():
                    raise ValueError(
                        f"`{self._argument}` must have an answer of the assistant in "
                        f"each row, but {row.location} has none that the chat template "
                        "renders. Remove the row, or set `completion_only_loss` to "
                        "False."
                    )
                parts += [np.where(is_predicted, ids, ~ids), np.asarray([_END_OF_ROW])]
            yield np.concatenate(parts).astype("<i4")

    def _encode_texts(self, texts: list[str], first: _Text) -> "list[Encoding]":
        try:
            return self._chat.tokenizer.encode_batch(
                texts, add_special_tokens=not first.has_special_tokens
            )
        # The library raises plain `Exception`s.
        except Exception as error:
            raise ValueError(
                f"`tokenizer` must fit the rows of `{self._argument}`, but it fails: "
                f"{error}. Give the tokenizer that was made for such text."
            ) from error

    def _prompt_length(self, prompt: list[int], ids: np.ndarray) -> int:
        """Returns the length of the common prefix of the prompt and the whole text."""
        length = min(len(prompt), len(ids))
        differs = np.flatnonzero(ids[:length] != np.asarray(prompt[:length], np.int32))
        length = int(differs[0]) if len(differs) else length
        self._num_not_prefix += length < len(prompt)
        return length

    def _read_texts(self) -> Iterator[_Text]:
        for row in read_rows(self._paths, argument=self._argument):
            form = form_of_row(row, self._argument)
            if self._form is not None and form != self._form:
                raise ValueError(
                    f"`{self._argument}` must contain rows of one form, but "
                    f"{row.location} has {FORMS[form]}, and the rows before it have "
                    f"{FORMS[self._form]}. Train on them separately, or convert them."
                )
            self._form = form
            text = (
                self._concatenate(row) if form == "strings" else self._render(row, form)
            )
            check_encodable(text.text, row.location, self._argument)
            yield text

    def _concatenate(self, row: Row) -> _Text:
        prompt, completion = row.values["prompt"], row.values["completion"]
        if not completion.endswith(self._chat.eos_token):
            completion += self._chat.eos_token
        masked = prompt if self._completion_only_loss else None
        return _Text(row.location, prompt + completion, masked, None, False)

    def _render(self, row: Row, form: RowForm) -> _Text:
        try:
            values = dict(row.values.get("chat_template_kwargs") or {})
            tools = row.values.get("tools")
            values["tools"] = json.loads(tools) if isinstance(tools, str) else tools
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`{self._argument}` must have an object as `chat_template_kwargs` and "
                f"a list, or its JSON, as `tools`, but in {row.location} one of them "
                f"is not: {error}. Correct or remove it."
            ) from error
        try:
            if form == "prompts":
                prompt = row.values["prompt"]
                start = self._chat.render(prompt, add_generation_prompt=True, **values)
                whole = self._chat.render(prompt + row.values["completion"], **values)
                masked = start.text if self._completion_only_loss else None
                return _Text(row.location, whole.text, masked, None, True)
            messages = row.values["messages"]
            needs_answers = self._completion_only_loss
            whole = self._chat.render(messages, is_training=needs_answers, **values)
            answers = None
            if needs_answers:
                answers = whole.generated
                if answers is None:
                    answers = self._find_answers(messages, whole.text, values)
            return _Text(row.location, whole.text, None, answers, True)
        # A TypeError is raised if `chat_template_kwargs` contains an argument of
        # `render`.
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`{self._argument}` must contain messages that the chat template "
                f"renders, but with {row.location} {error}."
            ) from error

    def _find_answers(
        self, messages: list[Any], text: str, values: Mapping[str, Any]
    ) -> list[tuple[int, int]]:
        """Returns start and end of each answer, by rendering the messages up to it."""
        answers = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._chat.render(
                messages[:i], add_generation_prompt=True, **values
            ).text
            up_to = self._chat.render(messages[: i + 1], **values).text
            if not (up_to.startswith(before) and text.startswith(up_to)):
                raise ValueError(
                    f"the template renders the first {i + 1} messages alone in another "
                    "way, so that the answers cannot be found in the text. Give a "
                    "`chat_template` that encloses answers in {% generation %} and "
                    "{% endgeneration %}, or the last answer as `completion` and the "
                    "messages before it as `prompt`, or set `completion_only_loss` to "
                    "False"
                )
            answers.append((len(before), len(up_to)))
        return answers


def _is_in_answers(
    encoding: "Encoding", answers: Sequence[tuple[int, int]]
) -> np.ndarray:
    """Returns [n], bool: True for the tokens of answers.

    Source: Transformers 5.23 `tokenization_utils_base.py`, `apply_chat_template`.
    """
    found = np.zeros(len(encoding.ids), bool)
    for start, end in answers:
        first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1)
        if first is None:
            break
        found[first : last + 1 if last else None] = True
    return found


def _documents(paths: Sequence[Path]) -> tuple[list[TokenFile], Documents]:
    """Returns the files and the positions of their rows."""
    files, columns = [], []
    for number, path in enumerate(paths):
        tokens = np.memmap(path, "<i4", mode="r")
        size = 2**20
        ends = np.concatenate(
            [
                first + np.flatnonzero(tokens[first : first + size] == _END_OF_ROW)
                for first in range(0, len(tokens), size)
            ]
        )
        start = np.concatenate([[0], ends[:-1] + 1])
        columns.append((np.full(len(ends), number), start, ends - start))
        sha256 = hashlib.sha256()
        for chunk in chunks(path):
            sha256.update(chunk)
        files.append(TokenFile(path, tokens.dtype, 0, len(tokens), sha256.hexdigest()))
    file, start, length = (np.concatenate(c) for c in zip(*columns, strict=True))
    return files, Documents(file.astype(np.int32), start, length)
