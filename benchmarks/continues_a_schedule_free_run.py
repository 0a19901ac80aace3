"""Resumes runs of Trainer with schedule-free optimizers, and the reverse.

    python -m benchmarks.continues_a_schedule_free_run            # 3 minutes on 2 cores
    python -m benchmarks.continues_a_schedule_free_run --smoke    # shorter runs

Needs schedulefree 1.4.1. As in `continues_an_8bit_run`, Trainer trains a small GPT-2 on
text and saves halfway, and either side continues the run of the other. With an
evaluation at the step of the checkpoint, Trainer saves the mean of the iterates instead
of the parameters of training. "torch itself" is Trainer with another attention kernel
in one half.
"""

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import _trainer_runs as runs
from benchmarks._report import Row, main
from benchmarks.continues_an_8bit_run import both_directions


def rows(smoke: bool) -> Iterator[Row]:
    """Yields the figures of both directions for each optimizer."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    num_steps = 20 if smoke else 100
    plans = [
        runs.Plan("schedule_free_adamw", "constant", 1, num_steps),
        runs.Plan("schedule_free_adamw", "constant", 1, num_steps, is_evaluated=True),
        runs.Plan("schedule_free_radam", "cosine", 1, num_steps),
        runs.Plan("schedule_free_sgd", "constant", 1, num_steps),
    ]
    for plan in plans:
        with tempfile.TemporaryDirectory() as folder:
            yield from both_directions(plan, Path(folder))


if __name__ == "__main__":
    main("Runs with schedule-free optimizers, by Trainer and here", rows)
