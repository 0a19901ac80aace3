"""Flags and task of the commands that train the job of a run many times at once."""

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..data import Corpus
from ..jobs import Job, tuning_corpus, tuning_task
from ..tuning import Task
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

    def prepare(self, *, num_evaluated: int) -> tuple[Path, Corpus, Task]:
        """Reads the text, and describes the job for `tuning`.

        Args:
            num_evaluated: approximate number of tokens that runs are evaluated on; 0
                for none.

        Returns:
            The folder for results, which is `output_dir` or a new one that is named by
            the time; the text; and the task.
        """
        now = f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"
        folder = self.run.job.output_dir or Path("runs", now)
        corpus = tuning_corpus(self.run, folder)
        task = tuning_task(self.run, corpus, num_held_out=num_evaluated)
        return folder, corpus, task
