"""The corpus that a job asks for."""

from pathlib import Path

from ..data import (
    Corpus,
    is_ready_tokens,
    read_text,
    read_tokens,
    standard_library,
    tokenize_text,
)
from ..models import GPT2Config
from ._job import Job


def read_corpus(job: Job, model: GPT2Config, folder: Path) -> Corpus:
    """Text as bytes or tokens, ready tokens, or Python's standard library.

    Args:
        job: names the text, and the tokenizer or the end of a document.
        model: must have a row for every token; rows to spare are allowed.
        folder: of the run, where the tokens that a tokenizer makes are kept.

    Raises:
        ValueError: if the text cannot be read, or does not fit the model.
    """
    if any(map(is_ready_tokens, job.text)):
        return read_tokens(
            job.text, vocab_size=model.vocab_size, eos_token_id=job.eos_token_id
        )
    if job.tokenizer is None:
        corpus = read_text(job.text) if job.text else standard_library()
    elif job.text:
        corpus = tokenize_text(job.text, job.tokenizer, cache_dir=folder)
    else:
        raise ValueError(
            "`tokenizer` must be given with `text`, got no text. Name files or "
            "folders, or leave it out."
        )
    if model.vocab_size < corpus.vocab_size:
        whose = "bytes have" if job.tokenizer is None else "the tokenizer has"
        raise ValueError(
            f"`vocab_size` must be at least {corpus.vocab_size}, as many tokens as "
            f"{whose}, got {model.vocab_size!r}. Give that many, or the tokenizer that "
            "the model was made for."
        )
    return corpus
