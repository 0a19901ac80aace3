"""Flags and task of the commands that train many runs of a job at once."""

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
        memory_limit: bytes of memory on each device for runs that are trained at once.
            Default: 90 % of the device's memory, and no limit on CPUs.
    """

    # Fields of `Job` that `tuning` does not support: its runs are not evaluated during
    # training, saved, resumed or sharded.
    unused: ClassVar[frozenset[str]] = frozenset(flag_kinds(Job)) - {
        *("model_name_or_path", "from_scratch", "text", "train_file"),
        *("validation_file", "text_column", "tokenizer", "eos_token_id", "output_dir"),
        *("bf16", "tf32", "per_device_eval_batch_size"),
        *("packing", "completion_only_loss", "chat_template", "freeze"),
        *("model_implementation", "lora_r", "lora_alpha", "lora_dropout"),
        "lora_target_modules",
    }

    memory_limit: float | None = None

    def prepare(self, *, num_eval_tokens: int) -> tuple[Path, Corpus, Task]:
        """Reads the text, and builds the task for `tuning`.

        Args:
            num_eval_tokens: approximate number of tokens that runs are evaluated on; 0
                for none.

        Returns:
            The folder for results, which is `output_dir` or a new one in runs/ named by
            the time; the text; and the task.
        """
        timestamp = f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"
        folder = self.run.job.output_dir or Path("runs", timestamp)
        corpus = tuning_corpus(self.run, folder)
        task = tuning_task(self.run, corpus, num_eval_tokens=num_eval_tokens)
        return folder, corpus, task
