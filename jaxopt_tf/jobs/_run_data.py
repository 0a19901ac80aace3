"""Data of a run: the corpus, training batches and evaluation batches.

A batch is an array of tokens, [B, T + 1], or, for packed documents and for rows that
are predicted in part, a dict of arrays [B, T + 1]: `input_ids`, `labels`,
`segment_ids` and `position_ids`.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from .. import data
from ..models import ModelConfig
from ._job import Job

KEYS = ("input_ids", "labels", "segment_ids", "position_ids")
TrainingBatches: TypeAlias = data.Batches | data.PackedBatches


def read_corpus(job: Job, model: ModelConfig, folder: Path) -> data.Corpus:
    """Reads the data of a job: files, text, tokens, or the standard library.

    Args:
        job: settings of the data: `train_file`, `text`, `tokenizer`, and others.
        model: configuration of the model. `vocab_size` may be larger than the number
            of tokens.
        folder: folder of the run, in which the tokenized text is stored.

    Raises:
        ValueError: if the text cannot be read, or `vocab_size` is too small for it.
    """
    if any(map(data.is_pretokenized, job.text)):
        return data.read_tokens(
            job.text, vocab_size=model.vocab_size, eos_token_id=job.eos_token_id
        )
    if job.model_name_or_path is not None and not job.text and not job.train_file:
        raise ValueError(
            "`text` or `train_file` must be given with `model_name_or_path`, got "
            f"{str(job.model_name_or_path)!r} and no text. Name files or folders."
        )
    if job.train_file:
        corpus = _read_files(job, folder)
    elif job.tokenizer is None:
        corpus = data.read_text(job.text) if job.text else data.standard_library()
    else:
        corpus = data.tokenize_text(job.text, job.tokenizer, cache_dir=folder)
    if model.vocab_size < corpus.vocab_size:
        vocabulary = "of bytes" if job.tokenizer is None else "of the tokenizer"
        remedy = "Increase it"
        if job.model_name_or_path is not None and not job.from_scratch:
            remedy = "Enlarge the model with `resize_token_embeddings` of Transformers"
        raise ValueError(
            f"`vocab_size` must be at least {corpus.vocab_size}, the vocabulary size "
            f"{vocabulary}, got {model.vocab_size!r}. {remedy}, or give the tokenizer "
            "that the model was made for."
        )
    return corpus


def _read_files(job: Job, folder: Path) -> data.Corpus:
    if not has_masked_rows(job):
        return data.read_documents(
            job.train_file,
            cache_dir=folder,
            validation_files=job.validation_file,
            text_column=job.text_column,
            tokenizer=job.tokenizer,
        )
    if job.tokenizer is None:
        raise ValueError(
            "`tokenizer` must be given for rows with `messages` or `prompt` and "
            f"`completion`, got none for {str(job.train_file[0])!r}. Name a "
            "tokenizer.json, or a `model_name_or_path` that contains it."
        )
    return data.read_conversations(
        job.train_file,
        tokenizer=job.tokenizer,
        cache_dir=folder,
        validation_files=job.validation_file,
        completion_only_loss=job.completion_only_loss,
        chat_template=job.chat_template,
    )


def has_masked_rows(job: Job) -> bool:
    """Returns True if `train_file` contains rows for fine-tuning.

    The result depends on the first row: it must have a column `messages` or `prompt`,
    and no column `text_column`.
    """
    if not job.train_file or job.train_file[0].suffix == ".txt":
        return False
    rows = data.read_rows(job.train_file[:1], argument="train_file")
    columns = next(iter(rows)).values
    return job.text_column not in columns and not {"messages", "prompt"}.isdisjoint(
        columns
    )


def has_packed_batches(job: Job) -> bool:
    """Returns True if the batches of a job are dicts of arrays."""
    return job.packing or has_masked_rows(job)


def training_batches(
    corpus: data.Corpus,
    job: Job,
    *,
    block_size: int,
    batch_size: int,
    seed: int,
    gradient_accumulation_steps: int,
) -> TrainingBatches:
    """Returns the batches to train on, an infinite sequence.

    Args:
        corpus: result of `read_corpus`.
        job: settings of the data.
        block_size: T, number of predicted tokens per row.
        batch_size: B, number of rows in a micro-batch on all devices.
        seed: seed of the order.
        gradient_accumulation_steps: number of micro-batches in a batch.
    """
    sizes = {
        "batch_size": batch_size,
        "seed": seed,
        "gradient_accumulation_steps": gradient_accumulation_steps,
    }
    if not (job.packing or corpus.is_masked):
        return data.Batches(corpus, block_size=block_size, **sizes)
    return data.PackedBatches(_rows(corpus, "training", job, block_size), **sizes)


def evaluation_batches(
    corpus: data.Corpus,
    job: Job,
    *,
    block_size: int,
    batch_size: int,
    num_tokens: int = 2**16,
) -> list[Any]:
    """Returns the batches to evaluate on.

    Args:
        corpus: result of `read_corpus`.
        job: settings of the data.
        block_size: T, number of predicted tokens per row.
        batch_size: B, number of rows in a batch on all devices.
        num_tokens: approximate number of tokens in all batches.
    """
    sizes = {"batch_size": batch_size, "num_tokens": num_tokens}
    if not (job.packing or corpus.is_masked):
        return list(data.evaluation_batches(corpus, block_size=block_size, **sizes))
    rows = _rows(corpus, "evaluation", job, block_size)
    return data.packed_evaluation_batches(rows, **sizes)


def slice_reader(batches: TrainingBatches, n: int) -> Any:
    """Returns a function (index, key) -> the slices of an array of batch `n`.

    The rows of an index are read once for all arrays of a dict; `key` is None for a
    batch that is an array.
    """
    slices_by_index: dict[str, Mapping[str, np.ndarray]] = {}

    def read_slice(index: tuple[slice, ...], key: str | None = None) -> np.ndarray:
        if isinstance(batches, data.Batches):
            return batches.read_slice(n, index)
        index_key = repr(index)  # slices have no hash before Python 3.12
        if index_key not in slices_by_index:
            slices_by_index[index_key] = batches.read_slice(n, index)
        return slices_by_index[index_key][key or KEYS[0]]

    return read_slice


def data_notes(corpus: data.Corpus, batches: TrainingBatches) -> list[str]:
    """Returns sentences about rows that were skipped, truncated or dropped."""
    skipped = [str(corpus.skipped_files)] if corpus.skipped_files.num_files else []
    rows = getattr(batches, "notes", ())
    return list(itertools.chain(skipped, corpus.notes, rows))


def _rows(corpus: data.Corpus, part: Any, job: Job, block_size: int) -> data.PackedRows:
    packing = "bfd" if job.packing else "none"
    try:
        return data.PackedRows(corpus, part, block_size=block_size, packing=packing)
    except ValueError as error:
        argument = "train_file" if job.train_file else "text"
        message = str(error).replace("`corpus`", f"`{argument}`", 1)
        raise ValueError(message) from error
