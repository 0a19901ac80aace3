"""Reads damaged files of a Trainer's checkpoint, which must be refused or read intact.

    python -m benchmarks.damaged_trainer_files

A real Trainer writes a checkpoint of a tiny GPT-2. Each trial changes one of its six
files: bits are flipped, bytes replaced, zeroed, cut out, inserted or repeated, the file
is cut short or extended, or its header is overwritten. The checkpoint is then read with
the functions that `jaxopt-tf migrate` uses, and the result is compared bit by bit with
that of the intact checkpoint.
"""

import collections
import dataclasses
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks._report import Row, main
from jaxopt_tf import interop
from jaxopt_tf.recipes import build_optimizer
from tests.interop import trainer_runs
from tests.references import torch_models

SEED = 20
JSON_FILES = ("config.json", "trainer_state.json")
FILES = (
    *JSON_FILES,
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "training_args.bin",
)


def rows(smoke: bool) -> Iterator[Row]:
    num_trials = 120 if smoke else 5_000
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        trainer_runs.trainer(work / "run", "adamw_torch", "linear").train()
        counts = _outcomes(work / "run" / "checkpoint-4", work / "trial", num_trials)
    for file in FILES:
        found = counts[file]
        yield Row(
            claim=f"{file}: neither refused by its name nor read",
            value=float(found["raw"]),
            unit=f"of {sum(found.values())} trials",
            limit=0.0,
            detail=", ".join(f"{num} {what}" for what, num in sorted(found.items())),
        )
    for what, files in (
        ("other content", [f for f in FILES if f not in JSON_FILES]),
        ("other finite weights (no checksum)", ["model.safetensors"]),
        ("another valid value (JSON)", JSON_FILES),
    ):
        total = sum(sum(counts[file].values()) for file in files)
        yield Row(
            claim=f"{', '.join(files)}: read with {what}",
            value=float(sum(counts[file][what] for file in files)),
            unit=f"of {total} trials",
            # Without a checksum such a file cannot be recognized as damaged.
            limit=0.0 if what == "other content" else float(total),
        )


def _outcomes(
    intact: Path, trial: Path, num_trials: int
) -> dict[str, collections.Counter[str]]:
    """Returns the number of trials per file and outcome."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(
        collections.Counter
    )
    reader = _Reader(intact)
    shutil.copytree(intact, trial)
    for number in range(num_trials):
        file = FILES[number % len(FILES)]
        content = (intact / file).read_bytes()
        chance = random.Random(f"{SEED} {number}")
        damaged = chance.choice(_CHANGES)(bytearray(content), chance)
        if damaged == content:
            damaged = content[:-1]
        (trial / file).write_bytes(damaged)
        outcome = _outcome(reader, trial, file)
        if outcome == "raw":
            print(f"trial {number}: {file} is neither refused by name nor read")
        counts[file][outcome] += 1
        (trial / file).write_bytes(content)
    return counts


def _outcome(reader: "_Reader", trial: Path, file: str) -> str:
    try:
        found = reader.read(trial, is_other_model=file == "config.json")
    except (ValueError, TypeError) as error:
        if str(trial / file) in str(error):
            return "refused by name"
        print(f"{type(error).__name__}: {error}")
        return "raw"
    except BaseException as error:  # every error is counted
        print(f"{type(error).__name__}: {error}")
        return "raw"
    if file in JSON_FILES:
        is_equal = _json(trial / file) == _json(reader.intact / file)
        return "read unchanged" if is_equal else "another valid value (JSON)"
    if _bits(found) == reader.bits:
        return "read unchanged"
    is_weights = file == "model.safetensors"
    return "other finite weights (no checksum)" if is_weights else "other content"


class _Reader:
    """Reads a checkpoint as `jaxopt-tf migrate` does."""

    def __init__(self, intact: Path):
        leaves = torch_models.flax_leaves(torch_models.gpt2())
        self.params = torch_models.flax_tree(leaves)
        self.intact = intact
        self.model = interop.torch_model_from_config(intact)
        self.names = interop.match_names(self.params, self.model)
        self.opt_states: dict[Any, Any] = {}
        self.bits = _bits(self.read(intact, is_other_model=False))

    def read(self, folder: Path, *, is_other_model: bool) -> Any:
        """Returns all values; `is_other_model` reads config.json again."""
        names = self.names
        if is_other_model:
            model = interop.torch_model_from_config(folder)
            names = interop.match_names(self.params, model)
        came = interop.recipe_from_transformers(folder / "training_args.bin")
        optimizer = build_optimizer(came.recipe, layer_norms=names.layer_norms)
        if "state" not in self.opt_states:
            self.opt_states["state"] = optimizer.init(self.params)
        read = interop.read_trainer_checkpoint(
            folder,
            self.params,
            names,
            recipe=came.recipe,
            opt_state=self.opt_states["state"],
        )
        return came, read


def _bits(read: Any) -> Any:
    """Returns all values in a form that compares bitwise."""
    came, run = read
    arrays = jax.tree.leaves((run.params, run.opt_state, run.schedule_state))
    others = dataclasses.asdict(run)
    for name in ("params", "opt_state", "schedule_state"):
        del others[name]
    return (
        [(array.dtype, array.shape, np.asarray(array).tobytes()) for array in arrays],
        repr((came, others)),
    )


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _places(content: bytearray, chance: random.Random, most: int) -> tuple[int, int]:
    """Returns start and end of a random range of limited length."""
    start = chance.randrange(len(content))
    return start, min(len(content), start + chance.randint(1, most))


def _flip_bits(content: bytearray, chance: random.Random) -> bytes:
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(content)


def _replace_bytes(content: bytearray, chance: random.Random) -> bytes:
    start, end = _places(content, chance, 16)
    content[start:end] = chance.randbytes(end - start)
    return bytes(content)


def _zero_bytes(content: bytearray, chance: random.Random) -> bytes:
    start, end = _places(content, chance, 512)
    content[start:end] = bytes(end - start)
    return bytes(content)


def _cut_out(content: bytearray, chance: random.Random) -> bytes:
    start, end = _places(content, chance, 64)
    del content[start:end]
    return bytes(content)


def _insert(content: bytearray, chance: random.Random) -> bytes:
    start = chance.randrange(len(content))
    content[start:start] = chance.randbytes(chance.randint(1, 16))
    return bytes(content)


def _repeat(content: bytearray, chance: random.Random) -> bytes:
    start, end = _places(content, chance, 64)
    content[end:end] = content[start:end]
    return bytes(content)


def _cut_short(content: bytearray, chance: random.Random) -> bytes:
    return bytes(content[: chance.randrange(len(content))])


def _extend(content: bytearray, chance: random.Random) -> bytes:
    return bytes(content) + chance.randbytes(chance.randint(1, 64))


def _overwrite_header(content: bytearray, chance: random.Random) -> bytes:
    start = chance.randrange(min(64, len(content)))
    content[start : start + chance.randint(1, 4)] = chance.randbytes(4)
    return bytes(content)


_CHANGES: tuple[Callable[[bytearray, random.Random], bytes], ...] = (
    _flip_bits,
    _flip_bits,
    _replace_bytes,
    _zero_bytes,
    _cut_out,
    _insert,
    _repeat,
    _cut_short,
    _extend,
    _overwrite_header,
)


if __name__ == "__main__":
    main("Damaged files", rows)
