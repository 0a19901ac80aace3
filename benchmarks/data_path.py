"""Speed of the data path: tokens per second, time to the first batch, and memory.

    python -m benchmarks.data_path

Batches are read beside training steps of the default job, in turns, at its sizes: 8
rows of 64 tokens. Files are written into a temporary folder (see `TMPDIR`) and deleted:
1 GB of text, 0.5 GB of tokens, and 10 GB of tokens in a sparse file, of which the disk
stores nothing. All files but the last are in the page cache. Times to a first batch are
those of fresh processes, without their imports. Rates of one process without a training
step beside it are per second of CPU time, so that other processes change them little.
"""

import functools
import multiprocessing
import os
import resource
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks._fresh_processes import in_fresh_process
from benchmarks._report import Row, main
from jaxopt_tf import Recipe, build_optimizer, init_train_state, make_train_step
from jaxopt_tf.data import (
    Batches,
    PackedBatches,
    PackedRows,
    read_text,
    read_tokens,
    tokenize_text,
)
from jaxopt_tf.models import GPT2Config, make_loss_fn

VOCAB_SIZE = 50_257
SIZES = {"batch_size": 8, "seed": 0}
BLOCK_SIZE = 64  # that of the default job


def rows(smoke: bool) -> Iterator[Row]:
    scale = 100 if smoke else 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = _write_text(folder / "text.txt", 10**9 // scale)
        tokens = _write_tokens(folder / "tokens.bin", 2**28 // scale)
        sparse = folder / "sparse.bin"
        with sparse.open("wb") as file:
            file.truncate(10**10 // scale)
        yield from _rate_rows(text, tokens, num_rounds=3 if smoke else 11)
        yield from _worker_rows(tokens, seconds=0.2 if smoke else 3.0)
        yield from _first_batch_rows(text, sparse, scale)
        yield from _scan_rows(text, tokens, smoke)


def _rate_rows(text: Path, tokens: Path, num_rounds: int) -> Iterator[Row]:
    pretokenized, documents = _tokens_corpus(tokens), _tokens_corpus(tokens, end=0)
    packed = PackedRows(documents, "training", block_size=BLOCK_SIZE, overflow="split")
    sources = {
        "text": Batches(_text_corpus(text), block_size=BLOCK_SIZE, **SIZES),
        "pretokenized files": Batches(pretokenized, block_size=BLOCK_SIZE, **SIZES),
        "pretokenized files, 1,024 tokens a row": Batches(
            pretokenized, block_size=1024, **SIZES
        ),
        "packed documents of pretokenized files": PackedBatches(packed, **SIZES),
    }
    readers = {title: _Reader(batches) for title, batches in sources.items()}
    job = _DefaultJob()
    ratios: dict[str, list[float]] = {title: [] for title in readers}
    for _ in range(num_rounds):
        trained = job.tokens_per_second(20)
        for title, reader in readers.items():
            ratios[title].append(reader.tokens_per_second(0.1) / trained)
    rates = {
        title: max(reader.tokens_per_second(0.1, time.thread_time) for _ in range(5))
        for title, reader in readers.items()
    }
    for title in readers:
        yield Row(
            claim=f"{title}, one process: tokens per second, of those that the default "
            "job trains",
            value=float(np.median(ratios[title])),
            unit="times",
            limit=20.0,
            at_least=True,
            detail=f"{rates[title] / 1e6:.3g} million per second of CPU time",
        )
    yield Row(
        claim="pretokenized files, one process: tokens per second of CPU time",
        value=rates["pretokenized files"],
        unit="a second",
        limit=2e6,
        at_least=True,
    )


def _worker_rows(tokens: Path, seconds: float) -> Iterator[Row]:
    """Yields the rate of processes that read their rows of the same batches."""
    num_processes = max(2, os.cpu_count() or 1)
    spawn = multiprocessing.get_context("spawn")
    with spawn.Manager() as manager, spawn.Pool(num_processes) as pool:
        together = manager.Barrier(num_processes)
        args = [
            (tokens, i, num_processes, together, seconds) for i in range(num_processes)
        ]
        rates = pool.starmap(_rate_of_process, args)
    yield Row(
        claim=f"pretokenized files, {num_processes} processes that each read their "
        "part of the rows: tokens per second of all",
        value=sum(rates),
        unit="a second",
        limit=2e6,
        at_least=True,
        detail=f"the slowest {min(rates) / 1e6:.3g} million",
    )


def _rate_of_process(
    tokens: Path, index: int, num_processes: int, together: Any, seconds: float
) -> float:
    batches = Batches(
        _tokens_corpus(tokens),
        block_size=BLOCK_SIZE,
        batch_size=8 * num_processes,
        seed=0,
    )
    part = (slice(8 * index, 8 * (index + 1)),)
    reader = _Reader(batches, part)
    together.wait()
    return reader.tokens_per_second(seconds)


def _first_batch_rows(text: Path, sparse: Path, scale: int) -> Iterator[Row]:
    cases = [
        (_tokens_corpus, sparse, f"a pretokenized file of {10 / scale:g} GB", 2.0),
        (_text_corpus, text, f"a text of {1 / scale:g} GB", 10.0),
    ]
    for read, path, title, limit in cases:
        found = in_fresh_process(_first_batch, read, path)
        yield Row(
            claim=f"{title}: time to the first batch",
            value=found.seconds,
            unit="s",
            limit=limit,
        )
        yield Row(
            claim=f"{title}: peak memory for it and for 1,000 more batches, beyond "
            "that of the imports",
            value=found.megabytes,
            unit="MB",
            limit=100.0,
        )


class _FirstBatch(NamedTuple):
    """Time to a first batch, and the memory that 1,001 batches need."""

    seconds: float
    megabytes: float


def _first_batch(read: Callable[[Path], Any], path: Path) -> _FirstBatch:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    batches = Batches(read(path), block_size=BLOCK_SIZE, **SIZES).iter_from(0)
    next(batches)
    seconds = time.perf_counter() - start
    for _ in range(1000):
        next(batches)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _FirstBatch(seconds, (after - before) / 1e3)


def _scan_rows(text: Path, tokens: Path, smoke: bool) -> Iterator[Row]:
    """Yields the cost of what reads everything before the first batch."""
    start = time.process_time()
    _tokens_corpus(tokens, end=0)
    seconds = time.process_time() - start
    size = tokens.stat().st_size
    yield Row(
        claim="pretokenized files with `eos_token_id`: rate at which all tokens are "
        "checked, hashed and searched for documents before the first batch, per second "
        "of CPU time",
        value=size / seconds / 1e6,
        unit="MB/s",
        limit=1.0 if smoke else 500.0,  # small files consist of overhead
        at_least=True,
    )
    rate = _encoding_rate(text, 2**18 if smoke else 2**24)
    yield Row(
        claim="text with a tokenizer (BPE of 8,000 tokens): rate at which it is "
        "encoded before the first batch of the first start",
        value=rate / 1e6,
        unit="MB/s",
        limit=0.01 if smoke else 100.0,  # 1 GB in 10 s
        at_least=True,
        detail=f"1 GB takes {1e9 / rate:.0f} s, once",
    )


def _encoding_rate(text: Path, num_bytes: int) -> float:
    """Returns the bytes per second that `tokenize_text` encodes and writes."""
    with text.open("rb") as file:
        content = file.read(num_bytes).decode(errors="ignore")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8_000, special_tokens=["<|endoftext|>"], show_progress=False
    )
    tokenizer.train_from_iterator([content[: 2**20]], trainer)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "part.txt").write_text(content)
        start = time.perf_counter()
        tokenize_text(
            [folder / "part.txt"], folder / "tokenizer.json", cache_dir=folder / "cache"
        )
        return num_bytes / (time.perf_counter() - start)


class _Reader:
    """Reads consecutive batches, or a part of each."""

    def __init__(self, batches: Any, part: tuple[slice, ...] = ()):
        self._read = functools.partial(batches.read_slice, index=part)
        self._next = 0
        first = self.take()
        tokens = first["input_ids"] if isinstance(first, dict) else first
        self.num_tokens = tokens.size - tokens[..., 0].size  # the inputs

    def take(self) -> Any:
        self._next += 1
        return self._read(self._next - 1)

    def tokens_per_second(
        self, seconds: float, clock: Callable[[], float] = time.perf_counter
    ) -> float:
        start, num_batches = clock(), 0
        while (passed := clock() - start) < seconds:
            self.take()
            num_batches += 1
        return num_batches * self.num_tokens / passed


class _DefaultJob:
    """Training steps of the default job."""

    def __init__(self) -> None:
        config = GPT2Config()
        params, loss_fn = make_loss_fn(config, 0)
        recipe = Recipe(learning_rate=1e-3, weight_decay=0.1, max_steps=100_000)
        optimizer = build_optimizer(recipe)
        size = (SIZES["batch_size"], config.block_size + 1)
        self._batch = np.random.default_rng(0).integers(0, 256, size, np.int32)
        self._step = make_train_step(loss_fn, optimizer)
        self._state = init_train_state(params, optimizer)
        self.tokens_per_second(5)  # compiles

    def tokens_per_second(self, num_steps: int) -> float:
        start = time.perf_counter()
        for _ in range(num_steps):
            self._state, _ = self._step(self._state, self._batch)
        jax.block_until_ready(self._state)
        num_tokens = num_steps * self._batch[:, 1:].size
        return num_tokens / (time.perf_counter() - start)


def _tokens_corpus(path: Path, end: int | None = None) -> Any:
    return read_tokens([path], vocab_size=VOCAB_SIZE, eos_token_id=end)


def _text_corpus(path: Path) -> Any:
    return read_text([path])


def _write_text(path: Path, num_bytes: int) -> Path:
    """Writes the sources of the standard library, repeated."""
    library = Path(sysconfig.get_path("stdlib"))
    content = b"".join(file.read_bytes() for file in sorted(library.glob("*.py")))
    with path.open("wb") as file:
        while file.tell() < num_bytes:
            file.write(content)
    return path


def _write_tokens(path: Path, num_tokens: int) -> Path:
    """Writes random tokens, of which one in 500 ends a document."""
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for first in range(0, num_tokens, 2**22):
            size = min(2**22, num_tokens - first)
            part = rng.integers(1, VOCAB_SIZE, size, np.uint16)
            part[rng.integers(0, size, size // 500)] = 0
            part.tofile(file)
    return path


if __name__ == "__main__":
    main("Data path", rows)
