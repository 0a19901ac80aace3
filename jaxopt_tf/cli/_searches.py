"""Flags and folder of the commands that train the job of a run many times at once."""

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..jobs import Job
from ._flags import flag_kinds
from ._run_flags import RunFlags


@dataclass(frozen=True, kw_only=True)
class SearchFlags(RunFlags):
    """Flags of `find-lr`, `sweep` and `decay-path`.

    Attributes:
        memory_limit: bytes that runs trained at once may take on each device; 90 % of
            its memory by default, and no limit on CPUs.
    """

    # Such runs are not evaluated on the way, saved, resumed or divided over devices.
    unused: ClassVar[frozenset[str]] = frozenset(flag_kinds(Job)) - {
        *("text", "tokenizer", "eos_token_id", "output_dir"),
        *("bf16", "tf32"),
    }

    memory_limit: float | None = None


def folder_of(job: Job) -> Path:
    """Returns the job's `output_dir`, by default a new folder named by the time."""
    return job.output_dir or Path(
        "runs", f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"
    )


def count(number: int, noun: str) -> str:
    """Returns a number with its noun: "1 run", "1,000 runs"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
