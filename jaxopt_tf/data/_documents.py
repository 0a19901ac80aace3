"""Corpora of texts in a column of rows, and of text files, for training and evaluation.

A document is a row, or a whole .txt file.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from .._checks import pluralize
from ._corpus import Corpus, make_corpus
from ._pretokenized import bin_dtype, token_documents
from ._row_files import check_encodable, read_rows, sha256_of
from ._text import text_files
from ._token_cache import write_cached
from ._tokenize import DocumentEncoder, pieces_of_file, pieces_of_text


def read_documents(
    train_files: Sequence[Path],
    *,
    cache_dir: Path,
    validation_files: Sequence[Path] = (),
    text_column: str = "text",
    tokenizer: Path | None = None,
) -> Corpus:
    """Reads the texts of .txt, .jsonl, .json, .csv and .parquet files.

    The tokens are written to `tokens.bin` in `cache_dir`, those of `validation_files`
    to `validation.bin`, and reused while files, column and tokenizer are unchanged.
    The texts are encoded as by `tokenize_text` and are not kept in memory, except those
    of .json files. Rows with an empty text are skipped; `notes` of the corpus contains
    their number.

    Args:
        train_files: files to train on. `read_rows` describes the formats; a .txt file
            is one document.
        cache_dir: folder of the tokens. Only one process at a time may use it.
        validation_files: files to evaluate on; if empty, about a tenth of the documents
            of `train_files` is used for evaluation, as in `read_text`.
        text_column: column of the texts; not used for .txt files.
        tokenizer: path of a `tokenizer.json`, as for `tokenize_text`; None for bytes, a
            vocabulary of 256, in which 0 ends a document.

    Raises:
        ModuleNotFoundError: if pyarrow is needed and not installed.
        ValueError: if a file cannot be read, or a row has no such column or no string
            in it. The message contains the path and the row, and the columns.
    """
    encoder = ByteEncoder() if tokenizer is None else DocumentEncoder(Path(tokenizer))
    sources = [_TextSource(train_files, text_column, "train_file")]
    if validation_files:
        sources.append(_TextSource(validation_files, text_column, "validation_file"))
    paths = [Path(cache_dir, f"{name}.bin") for name in ("tokens", "validation")]
    paths = paths[: len(sources)]
    notes = [
        note
        for path, source in zip(paths, sources, strict=True)
        for note in source.write(path, encoder)
    ]
    stored, documents = token_documents(paths, encoder.vocab_size, encoder.end)
    corpus = make_corpus(
        stored,
        documents,
        vocab_size=encoder.vocab_size,
        end=encoder.end,
        unit=encoder.unit,
        is_evaluation=documents.file == 1 if validation_files else None,
    )
    return corpus._replace(notes=tuple(notes))


class _TextSource:
    """Reader of the documents in files, which counts empty rows."""

    def __init__(self, files: Sequence[Path], column: str, argument: str):
        if not files:
            raise ValueError(f"`{argument}` must name at least one file, got none.")
        self._files, self._column, self._argument = files, column, argument
        self._num_empty = 0

    def write(self, path: Path, encoder: "ByteEncoder | DocumentEncoder") -> list[str]:
        """Writes the tokens unless the file contains them; returns notes on rows."""
        contents = [
            # `text_files` also checks that the file is UTF-8.
            text_files([file], argument=self._argument)[0][0].sha256
            if file.suffix == ".txt"
            else sha256_of(file, self._argument)
            for file in map(Path, self._files)
        ]
        counts = write_cached(
            path,
            encoder.cache_key | {"text": contents, "text_column": self._column},
            lambda: encoder.encode(self._pieces()),
            encoder.metadata,
            counts=lambda: {"empty": self._num_empty},
        )
        if not counts["empty"]:
            return []
        rows = pluralize(counts["empty"], "row")
        return [f"`{self._argument}`: skipped {rows} with an empty text"]

    def _pieces(self) -> Iterator[str | None]:
        """Yields the documents in pieces; None ends each of them."""
        is_empty = True
        for file in map(Path, self._files):
            if file.suffix == ".txt":
                is_empty = False
                yield from pieces_of_file(file)
                continue
            for row in read_rows([file], argument=self._argument):
                text = row.column(self._column, self._argument, "text_column")
                if not isinstance(text, str):
                    raise ValueError(
                        f"`text_column` must be a column of strings, but "
                        f"{self._column!r} in {row.location} is {text!r}. Give another "
                        "column, or correct the row."
                    )
                check_encodable(text, row.location, self._argument)
                if not text:
                    self._num_empty += 1
                    continue
                is_empty = False
                yield from pieces_of_text([text])
        if is_empty:
            raise ValueError(
                f"`{self._argument}` must contain text in the column "
                f"{self._column!r}, but it is empty in all rows. Give another "
                "`text_column`."
            )


class ByteEncoder:
    """Encoder of documents as UTF-8 bytes; a byte 0 follows each document."""

    unit: Final = "bytes"  # for `Corpus.unit`

    def __init__(self) -> None:
        """Sets the values that `DocumentEncoder` reads from a tokenizer."""
        self.vocab_size, self.end = 256, 0
        self.metadata = {"vocab_size": self.vocab_size, "eos_token_id": self.end}
        self.cache_key = {"version": 1, "text": [], "tokenizer": None}

    def encode(self, pieces: Iterable[str | None]) -> Iterator[np.ndarray]:
        """Yields the bytes of each piece, in the dtype of the file.

        Raises:
            ValueError: if a text contains U+0000.
        """
        for piece in pieces:
            content = b"\0" if piece is None else piece.encode()
            if piece is not None and b"\0" in content:
                raise ValueError(
                    "`text_column` must be text without the character U+0000, which "
                    "ends a document of bytes. Remove it, or give a `tokenizer`."
                )
            yield np.frombuffer(content, np.uint8).astype(bin_dtype(256))
