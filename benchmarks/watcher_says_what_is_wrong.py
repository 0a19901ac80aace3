"""Tests that the health monitor reports problems of runs, and none of healthy runs.

    python -m benchmarks.watcher_says_what_is_wrong

All runs are real trainings of a few seconds: a character model, classifiers,
recurrences and regressions. Runs of `_runs_in_trouble` have a deliberate problem, which
the first finding of the health monitor must name. Runs of `_runs_that_go_well` are
healthy, and the health monitor must report nothing. The thresholds were chosen with
these runs; with all seeds changed the result is the same.
"""

import itertools
from collections.abc import Iterator

from benchmarks import _runs_in_trouble, _runs_that_go_well
from benchmarks._report import Row, main
from benchmarks._small_runs import Run, listen


def rows(smoke: bool) -> Iterator[Row]:
    provoked = list(_runs_in_trouble.all_runs())
    healthy = _runs_that_go_well.all_runs()
    if smoke:  # the last healthy runs start from a trained model
        provoked, healthy = provoked[3::7], itertools.islice(healthy, 8, 18, 8)
    healthy = list(healthy)
    yield Row(
        claim=f"runs driven into trouble, of {len(provoked)}, of which the first "
        "sentence says what it is",
        value=sum(_is_told(run, words) for run, words in provoked),
        unit="runs",
        limit=len(provoked),
        at_least=True,
    )
    yield Row(
        claim=f"sentences said of {len(healthy)} healthy runs of "
        f"{sum(run.max_steps for run in healthy):,} steps",
        value=sum(_num_said(run) for run in healthy),
        unit="sentences",
        limit=0,
    )


def _is_told(run: Run, words: str) -> bool:
    sentences = listen(run)
    print(f"{run.name}\n  {sentences[0] if sentences else 'silence'}")
    return bool(sentences) and words in sentences[0]


def _num_said(run: Run) -> int:
    sentences = listen(run)
    print("\n  ".join([run.name, *sentences]))
    return len(sentences)


if __name__ == "__main__":
    main("The health monitor", rows)
