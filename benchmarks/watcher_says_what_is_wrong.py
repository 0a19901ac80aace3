"""Whether the watcher says what is wrong with a run, and nothing of a healthy one.

    python -m benchmarks.watcher_says_what_is_wrong

All runs are real ones, each of a second or two: a model of characters, classifiers,
recurrences and regressions. Those of `_provoked` are driven into trouble; the first
sentence that the watcher says of each must be about that trouble. Those of `_healthy`
end where they should, and nothing may be said.
"""

from collections.abc import Iterator

from benchmarks import _runs_in_trouble, _runs_that_go_well
from benchmarks._report import Row, main
from benchmarks._small_runs import Run, listen


def rows(smoke: bool) -> Iterator[Row]:
    provoked = list(_runs_in_trouble.all_runs())
    healthy = list(_runs_that_go_well.all_runs())
    if smoke:
        provoked = provoked[::6]
        healthy = healthy[::16]
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
    main("The watcher", rows)
