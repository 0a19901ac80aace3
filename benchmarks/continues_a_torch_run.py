"""Resumes a run of Trainer in jaxopt_tf and the reverse, and compares the losses.

    python -m benchmarks.continues_a_torch_run            # some minutes on 2 cores
    python -m benchmarks.continues_a_torch_run --smoke    # one case, short

Trainer trains a small GPT-2 on text and saves halfway. `jaxopt_tf` continues from there
with the same batches, and Trainer continues a run of `jaxopt_tf`. Both are compared
with a run by Trainer alone. "torch itself" is Trainer with another attention kernel in
one half of the steps, which is the noise that no implementation can be below.
"""

import itertools
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import _trainer_runs as runs
from benchmarks._report import Row, main


def rows(smoke: bool) -> Iterator[Row]:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    cases = itertools.product(
        ("adamw_torch", "adafactor"),
        ("linear", "cosine", "reduce_lr_on_plateau"),
        (1, 4),
    )
    if smoke:
        cases = iter([("adamw_torch", "cosine", 1)])
    for optim, schedule, accumulated in cases:
        plan = runs.Plan(optim, schedule, accumulated, 40 if smoke else 400)
        with tempfile.TemporaryDirectory() as folder:
            yield from _case(plan, Path(folder))


def _case(plan: runs.Plan, work: Path) -> Iterator[Row]:
    half = plan.max_steps // 2
    whole = runs.by_trainer(plan, work / "trainer")
    checkpoint = work / "trainer" / f"checkpoint-{half}"

    ours, _ = runs.Ours.at(plan, work, checkpoint).until(plan, plan.max_steps)
    eager = runs.by_trainer(
        plan, work / "eager", resume_from=checkpoint, attention="eager"
    )
    title = f"{plan}: Trainer to step {half}, then jaxopt_tf"
    beside = ""
    if plan.optim == "adamw_torch":
        # From the start, because a resumed run reads its kernel from the checkpoint.
        with_fused = plan._replace(optim="adamw_torch_fused")
        fused = runs.by_trainer(with_fused, work / "fused")
        beside = f"; all with the fused optimizer {runs.distance(fused, whole):.2g}"
    yield from _rows(title, half, whole, ours, eager, beside)

    begun = runs.Ours.at(plan, work, runs.begin(work / "begin"))
    _, position = begun.until(plan, half)
    handed_over = work / "ours" / f"checkpoint-{half}"
    handed_over.parent.mkdir()
    begun.hand_over(handed_over, position, like=work / "begin")
    theirs = runs.by_trainer(plan, work / "ours", resume_from=handed_over)
    # The reference for the first half is Trainer with the other kernel.
    runs.by_trainer(plan, work / "first", attention="eager", stop_at=half)
    eager = runs.by_trainer(
        plan, work / "first", resume_from=work / "first" / f"checkpoint-{half}"
    )
    title = f"{plan}: jaxopt_tf to step {half}, then Trainer"
    yield from _rows(title, half, whole, theirs, eager)
    ours, _ = runs.Ours.at(plan, work, work / "begin").until(plan, plan.max_steps)
    yield Row(
        claim=f"{title}: largest loss difference to a run by jaxopt_tf alone",
        value=runs.loss_difference(_after(theirs, half), ours),
        unit="relative",
        limit=1e-4,
    )


def _rows(
    title: str,
    half: int,
    whole: runs.Ended,
    ours: runs.Ended,
    eager: runs.Ended,
    beside: str = "",
) -> Iterator[Row]:
    yield Row(
        claim=f"{title}: largest loss difference to a run by Trainer alone",
        value=runs.loss_difference(_after(ours, half), whole),
        unit="relative",
        limit=1e-4,
        torch=runs.loss_difference(_after(eager, half), whole),
    )
    far, noise = runs.distance(ours, whole), runs.distance(eager, whole)
    yield Row(
        claim=f"{title}: distance of the last parameters ({far:.2g}) divided by that "
        f"of torch itself ({noise:.2g}{beside})",
        value=far / noise,
        unit="times",
        limit=3.0,
        torch=1.0,
    )


def _after(ended: runs.Ended, step: int) -> runs.Ended:
    later = {n: loss for n, loss in ended.losses.items() if n > step}
    return ended._replace(losses=later)


if __name__ == "__main__":
    main("A torch run goes on", rows)
