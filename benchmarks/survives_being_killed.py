"""Kills runs at random moments, and compares the resumed runs bit for bit.

    python -m benchmarks.survives_being_killed            # an hour on 2 cores
    python -m benchmarks.survives_being_killed --smoke    # a few kills, as in CI
    python -m benchmarks.survives_being_killed --labelled # the BERT only, 15 minutes

Small runs of `jaxopt-tf train` in separate processes are killed by SIGKILL at random
moments, some of them during a write of a checkpoint, or stopped by SIGTERM, and resumed
each time. Their results are compared bit for bit with those of an uninterrupted run:
parameters, optimizer state, every line of the log, the last line on the console. The
models are a GPT-2 with dropout, a Llama with packed documents, and a BERT with dropout
that classifies sentences, grouped by length. Other runs of the Llama are resumed on
another mesh each time; their losses are compared with those of one device. In a last
part, bits are flipped in checkpoints and files are truncated.

The processes are forked from one that has imported JAX, and share a compilation cache,
so that process starts are not measured.
"""

import collections
import concurrent.futures
import contextlib
import functools
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import _labelled_runs as labelled
from benchmarks._report import Row, main
from benchmarks._small_llama import write_llama

MAX_STEPS, SAVE_STEPS = 60, 5
NUM_SEQUENCES = 4
_ARGS = (
    *("--max_steps", f"{MAX_STEPS}"),
    *("--save_steps", f"{SAVE_STEPS}", "--eval_steps", "10", "--save_total_limit", "3"),
    *("--gradient_accumulation_steps", "2"),
)
_GPT2 = (
    *("--n_layer", "1", "--n_head", "2", "--n_embd", "16", "--block_size", "16"),
    *("--resid_pdrop", "0.1"),
)
# Number of interruptions, after which the run continues to its end.
BREAKS_PER_RUN = 5
# Meshes on which a start continues a run of another one.
MESHES = (
    *("data=1", "data=2", "fsdp=2", "tensor=2", "data=4", "data=2,tensor=2"),
    *("tensor=4", "fsdp=2,tensor=4", "data=2,fsdp=2,tensor=2", "fsdp=4,tensor=2"),
)
LIMIT = 5e-5  # relative difference of a loss on another mesh


class Count(NamedTuple):
    """Number of trials of each kind."""

    kills: int
    kills_in_a_save: int  # minimum number
    terms: int


class Counts(NamedTuple):
    """Number of trials with each model, and of damaged files."""

    gpt2: Count | None
    llama: Count
    bert: Count | None
    kills_on_meshes: int
    flips: int
    truncations: int


# With `--smoke` the model is the Llama; the tests have a GPT-2 that is killed.
_SMOKE = Counts(
    gpt2=None,
    llama=Count(2, 0, 1),
    bert=None,
    kills_on_meshes=0,
    flips=20,
    truncations=5,
)
_FULL = Counts(
    gpt2=Count(200, 60, 50),
    llama=Count(100, 30, 25),
    bert=Count(20, 4, 4),
    kills_on_meshes=60,
    flips=200,
    truncations=50,
)


class Subject(NamedTuple):
    """Model whose runs are interrupted, and the results of an uninterrupted run."""

    name: str
    flags: tuple[str, ...]
    work: Path  # folder of its runs
    seconds: float  # of the uninterrupted run
    expected: dict


class Attempt(NamedTuple):
    """Start of a run, and its end."""

    exit_status: int
    was_saving: bool  # whether an incomplete checkpoint was left
    has_saved: bool  # whether it had a checkpoint to resume from


def rows(smoke: bool) -> Iterator[Row]:
    counts = _SMOKE if smoke else _FULL
    with tempfile.TemporaryDirectory() as folder, _environment(Path(folder)):
        work = Path(folder)
        if counts.bert is not None:
            bert = _subject("BERT on labelled rows", _bert(work / "model-bert"), work)
            yield from _killed(bert, counts.bert)
            yield from _asked(bert, counts.bert)
        if "--labelled" in sys.argv:
            return
        if counts.gpt2 is not None:
            flags = (*_GPT2, "--text", str(work / "text"))
            gpt2 = _subject("GPT-2", flags, work)
            yield from _killed(gpt2, counts.gpt2)
            yield from _asked(gpt2, counts.gpt2)
        flags = write_llama(
            work / "model", hidden_size=16, context=16, with_weights=False
        )
        llama = _subject("Llama", flags, work)
        yield from _killed(llama, counts.llama)
        yield from _asked(llama, counts.llama)
        if counts.kills_on_meshes:
            yield from _moved(llama, counts.kills_on_meshes)
        yield from _damaged(llama.work / "unbroken", counts)


def _bert(folder: Path) -> tuple[str, ...]:
    """Writes a BERT and labelled rows; returns the flags of `jaxopt-tf train`."""
    import transformers

    labelled.quiet()
    os.environ["WARM_TORCHAX"] = "1"
    parts = [labelled.synthetic_reviews(num, seed=num) for num in (150, 20)]
    texts = [row["sentence"] for row in parts[0]]
    tokenizer = labelled.save_tokenizer(folder, texts, vocab_size=100, is_bert=True)
    config = labelled.bert_config(len(tokenizer), hidden_size=16, num_hidden_layers=1)
    transformers.set_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    files = [
        labelled.write_rows(folder / f"{name}.jsonl", rows)
        for name, rows in zip(("train", "validation"), parts, strict=True)
    ]
    return (
        *("--model_name_or_path", str(folder), "--group_by_length"),
        *("--train_file", str(files[0]), "--validation_file", str(files[1])),
    )


def _subject(name: str, flags: tuple[str, ...], root: Path) -> Subject:
    work = root / name
    work.mkdir()
    unbroken = work / "unbroken"
    _complete(unbroken, flags)  # compiles
    shutil.rmtree(unbroken)
    since = time.perf_counter()
    _complete(unbroken, flags)
    seconds = time.perf_counter() - since
    expected = _what_is_left(unbroken)
    assert expected["steps"] == list(range(1, MAX_STEPS + 1))
    return Subject(name, flags, work, seconds, expected)


def _killed(subject: Subject, count: Count) -> Iterator[Row]:
    def kill(folder: Path, rng: random.Random) -> Attempt | None:
        return _kill(_start(folder, subject.flags), folder, rng, subject.seconds)

    def end(folder: Path, rng: random.Random) -> None:
        _complete(folder, subject.flags)

    attempts, left = _broken_off(subject.work, "killed", count.kills, kill, end)
    yield from _rows(subject, f"{len(attempts)} SIGKILLs", attempts, left)
    yield Row(
        claim=f"{subject.name}: of them, left a half-written checkpoint behind",
        value=sum(attempt.was_saving for attempt in attempts),
        unit="kills",
        limit=count.kills_in_a_save,
        at_least=True,
    )


def _kill(process, folder: Path, rng: random.Random, seconds: float) -> Attempt | None:
    """Kills a run at a random moment; None if it had ended by itself."""
    if rng.random() < 0.6:
        _wait_for_a_save(folder, process, num_before=rng.randrange(4))
        time.sleep(rng.random() * 0.01)
    else:
        process.join(rng.random() * seconds)
    attempt = _end(folder, process, signal.SIGKILL)
    if attempt.exit_status == -signal.SIGKILL:
        return attempt
    _check_success(folder, attempt.exit_status)
    return None


def _asked(subject: Subject, count: Count) -> Iterator[Row]:
    def ask(folder: Path, rng: random.Random) -> Attempt | None:
        before = _num_starts(folder)
        process = _start(folder, subject.flags)
        # After the run has recorded its start. Before that, SIGTERM ends any process.
        _wait_for(lambda: _num_starts(folder) > before, process)
        process.join(rng.random() * 0.3 * subject.seconds)
        attempt = _end(folder, process, signal.SIGTERM)
        return None if (folder / f"checkpoint-{MAX_STEPS}").exists() else attempt

    def end(folder: Path, rng: random.Random) -> None:
        _complete(folder, subject.flags)

    attempts, left = _broken_off(subject.work, "asked", count.terms, ask, end)
    yield from _rows(subject, f"{len(attempts)} SIGTERMs", attempts, left)
    yield Row(
        claim=f"{subject.name}: SIGTERMs that did not end with status 143 and a "
        "complete checkpoint",
        value=sum(
            attempt.exit_status != 128 + signal.SIGTERM or attempt.was_saving
            for attempt in attempts
        ),
        unit="of them",
        limit=0,
    )


def _moved(subject: Subject, num_kills: int) -> Iterator[Row]:
    """Kills runs that each start resumes on another mesh."""
    meshes: dict[Path, list[str]] = collections.defaultdict(list)

    def start(folder: Path, rng: random.Random):
        others = [mesh for mesh in MESHES if mesh not in meshes[folder][-1:]]
        meshes[folder].append(rng.choice(others))
        return _start(folder, subject.flags, meshes[folder][-1])

    def kill(folder: Path, rng: random.Random) -> Attempt | None:
        return _kill(start(folder, rng), folder, rng, 2 * subject.seconds)

    def end(folder: Path, rng: random.Random) -> None:
        _join(start(folder, rng), folder)

    attempts, left = _broken_off(subject.work, "moved", num_kills, kill, end)
    resumed = sum(attempt.has_saved for attempt in attempts)
    what = (
        f"{subject.name}: {len(attempts)} SIGKILLs, {resumed} with a checkpoint to "
        f"resume from, in {len(left)} runs, each start on another mesh"
    )
    expected = _numbers(subject.expected["log"])
    distances = []
    for found in left:
        numbers = _numbers(found["log"])
        same_steps = numbers.shape == expected.shape
        same_steps = same_steps and np.array_equal(numbers[:, 0], expected[:, 0])
        difference = np.inf
        if same_steps:
            difference = np.max(np.abs(numbers[:, 1] / expected[:, 1] - 1))
        distances.append(float(difference))
    yield Row(
        claim=f"{what}: loss of any step or evaluation (infinite if one is missing)",
        value=max(distances),
        unit="of that on one device",
        limit=LIMIT,
        detail=f"{len({mesh for used in meshes.values() for mesh in used})} meshes",
    )


def _numbers(log: bytes) -> np.ndarray:
    """Returns the step and the loss of each line of a log, [N, 2]."""
    records = [json.loads(line) for line in log.splitlines()]
    return np.array([(r["step"], r.get("loss", r.get("eval_loss"))) for r in records])


def _broken_off(
    work: Path,
    name: str,
    num_attempts: int,
    break_off: Callable[[Path, random.Random], Attempt | None],
    end: Callable[[Path, random.Random], None],
) -> tuple[list[Attempt], list[dict]]:
    """Interrupts runs several times each, and then lets them complete.

    `break_off` starts a run and ends it, and gives None where it had ended by itself.
    `end` starts a run and waits for its end. Returns all interruptions, and what is
    left of each run.
    """
    attempts: list[Attempt] = []
    left: list[dict] = []
    plans = [
        (work / f"{name}-{i}", min(BREAKS_PER_RUN, num_attempts - at))
        for i, at in enumerate(range(0, num_attempts, BREAKS_PER_RUN))
    ]

    def run(plan: tuple[Path, int]) -> None:
        folder, num_breaks = plan
        rng = random.Random(folder.name)
        done = 0
        while done < num_breaks:
            attempt = break_off(folder, rng)
            if attempt is None:
                shutil.rmtree(folder)
            else:
                attempts.append(attempt)
                done += 1
        end(folder, rng)
        left.append(_what_is_left(folder))
        shutil.rmtree(folder)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run, plans))
    return attempts, left


def _rows(
    subject: Subject, what: str, attempts: list[Attempt], left: list[dict]
) -> Iterator[Row]:
    resumed = sum(attempt.has_saved for attempt in attempts)
    for name, claim in (
        ("arrays", "parameters and optimizer state"),
        ("log", "log (every step once, every number)"),
        ("last_line", "last line"),
    ):
        yield Row(
            claim=f"{subject.name}: {what}, {resumed} with a checkpoint to resume "
            f"from, in {len(left)} runs: runs whose {claim} is not that of the "
            "unbroken run, bit for bit",
            value=sum(found[name] != subject.expected[name] for found in left),
            unit="runs",
            limit=0,
        )


def _damaged(folder: Path, count: Counts) -> Iterator[Row]:
    from jaxopt_tf.checkpoints import find_checkpoints, latest_valid

    newest, before = find_checkpoints(folder)[-1], find_checkpoints(folder)[-2]
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    rng, unnoticed, elsewhere = random.Random(0), 0, 0
    kinds = [_flip] * count.flips + [_truncate] * count.truncations
    for i, damage in enumerate(kinds):
        path = files[i % len(files)]
        whole = path.read_bytes()
        path.write_bytes(damage(whole, rng))
        said: list[str] = []
        found = latest_valid(folder, report=said.append)
        unnoticed += found == newest or not any(newest.name in line for line in said)
        elsewhere += found != before
        path.write_bytes(whole)
    assert latest_valid(folder) == newest
    what = (
        f"{count.flips} flipped bits and {count.truncations} truncations, over all "
        f"{len(files)} files of a checkpoint"
    )
    yield Row(claim=f"{what}: not noticed", value=unnoticed, unit="damages", limit=0)
    yield Row(
        claim=f"{what}: not fallen back from to the checkpoint before",
        value=elsewhere,
        unit="damages",
        limit=0,
    )


def _flip(whole: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(whole)
    damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def _truncate(whole: bytes, rng: random.Random) -> bytes:
    return whole[: rng.randrange(len(whole))]


def _end(folder: Path, process, signal_: signal.Signals) -> Attempt:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal_)
    process.join()
    has_saved = any(folder.glob("checkpoint-*/SHA256SUMS"))
    return Attempt(process.exitcode, any(_half_written(folder)), has_saved)


def _wait_for_a_save(folder: Path, process, *, num_before: int) -> None:
    """Waits until a checkpoint is being written after a number of others."""
    start = _newest_step(folder)
    enough = start + num_before * SAVE_STEPS
    _wait_for(
        lambda: _newest_step(folder) >= enough and bool(_half_written(folder)), process
    )


def _newest_step(folder: Path) -> int:
    complete = folder.glob("checkpoint-*[0-9]")
    return max((int(path.name.rpartition("-")[2]) for path in complete), default=0)


def _num_starts(folder: Path) -> int:
    starts = folder / "starts.jsonl"
    return len(starts.read_bytes().splitlines()) if starts.exists() else 0


def _half_written(folder: Path) -> list[Path]:
    return list(folder.glob("checkpoint-*.orbax-checkpoint-tmp"))


def _wait_for(condition: Callable[[], bool], process) -> None:
    while not condition() and process.is_alive():
        time.sleep(0.0005)


def _what_is_left(folder: Path) -> dict:
    """Returns all results that must be equal, read from the files."""
    from jaxopt_tf.checkpoints import latest_valid

    log = (folder / "metrics.jsonl").read_bytes()
    records = [json.loads(line) for line in log.splitlines()]
    checkpoint = latest_valid(folder)
    assert checkpoint.name == f"checkpoint-{MAX_STEPS}", checkpoint
    console = (folder.with_suffix(".console")).read_text()
    return {
        "arrays": {
            name: (array.dtype, array.shape, array.tobytes())
            for name, array in _arrays(checkpoint).items()
        },
        "log": log,
        "steps": [record["step"] for record in records if "loss" in record],
        # The number of shapes is that of the last start.
        "last_line": [
            line for line in console.splitlines() if not line.startswith("batches of")
        ][-1],
    }


def _arrays(checkpoint: Path) -> dict[str, np.ndarray]:
    import jax

    from jaxopt_tf.checkpoints import restore
    from jaxopt_tf.checkpoints._record import read_record

    key = jax.random.key(0).dtype
    like = {
        name: jax.ShapeDtypeStruct(kind.shape, key if kind.key else kind.dtype)
        for name, kind in read_record(checkpoint).leaves.items()
    }
    arrays = restore(checkpoint, like).arrays
    return {
        name: np.asarray(jax.random.key_data(x) if x.dtype == key else x)
        for name, x in arrays.items()
    }


@contextlib.contextmanager
def _environment(work: Path) -> Iterator[None]:
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": str(work / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 5)) for _ in range(200)]
    (work / "text").mkdir()
    for i in range(12):
        text = " ".join(rng.choice(words, 300))
        (work / "text" / f"{i}.txt").write_text(text)
    yield


@functools.cache
def _context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks._warm"])
    return context


def _start(folder: Path, flags: tuple[str, ...], mesh: str = "data=1"):
    process = _context().Process(target=_train, args=(folder, flags, mesh), daemon=True)
    process.start()
    return process


def _complete(folder: Path, flags: tuple[str, ...]) -> None:
    _join(_start(folder, flags), folder)


def _join(process, folder: Path) -> None:
    process.join()
    _check_success(folder, process.exitcode)


def _check_success(folder: Path, exit_status: int) -> None:
    if exit_status != 0:
        said = folder.with_suffix(".console").read_text()
        raise RuntimeError(f"it ended with {exit_status}: {said}")


def _train(folder: Path, flags: tuple[str, ...], mesh: str) -> None:
    """Runs the command in a separate process, with its output in a file."""
    import jax

    from jaxopt_tf.cli import main
    from jaxopt_tf.sharding import axis_sizes, num_batch_shards

    with folder.with_suffix(".console").open("a") as console:
        os.dup2(console.fileno(), 1)
        os.dup2(console.fileno(), 2)
    sizes = axis_sizes(mesh)
    jax.config.update("jax_num_cpu_devices", math.prod(sizes.values()))
    per_device = NUM_SEQUENCES // num_batch_shards(sizes)
    args = ["train", *flags, *_ARGS, "--mesh", mesh, "--output_dir", str(folder)]
    sys.exit(main([*args, "--per_device_train_batch_size", str(per_device)]))


if __name__ == "__main__":
    main("Killed and resumed", rows)
