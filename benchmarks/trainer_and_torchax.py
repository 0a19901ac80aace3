"""Runs that Trainer begins and torchax continues, and the other way round.

    python -m benchmarks.trainer_and_torchax            # 10 minutes on 2 cores
    python -m benchmarks.trainer_and_torchax --smoke    # a BERT, 10 and 10 steps

A BERT, a T5, a Mistral and a ViT train for 200 steps with warmup, a cosine schedule,
clipping and weight decay, each step on another batch. At step 100 either side continues
the other's checkpoint, with its optimizer.pt and scheduler.pt. The losses of steps 101
to 200 are compared with those of an uninterrupted run of Trainer.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks._architectures import ROWS, build, make_batches
from benchmarks._report import Row, main
from benchmarks._torch_module_runs import (
    Here,
    Plan,
    by_trainer,
    loss_difference,
    model_of,
    recipe_of,
)

LIMIT = 1e-5
NAMES = ("bert", "t5", "mistral", "vit")


def rows(smoke: bool) -> Iterator[Row]:
    """Yields the differences of each model, in both directions."""
    steps = 20 if smoke else 200
    plan = Plan(steps, steps // 2, lr_scheduler_type="cosine", warmup_steps=steps // 10)
    for name in NAMES[:1] if smoke else NAMES:
        with tempfile.TemporaryDirectory() as folder:
            yield from _rows(name, plan, Path(folder))


def _rows(name: str, plan: Plan, work: Path) -> Iterator[Row]:
    half = plan.save_steps
    module = build(name)
    batches = make_batches(name, module.config.num_labels, plan.max_steps)
    theirs = by_trainer(build(name), batches, plan, work / "theirs").losses
    here = Here(model_of(module), recipe_of(plan, work, ROWS))
    checkpoint = work / "theirs" / f"checkpoint-{half}"
    continued, _ = here.run(here.read(checkpoint), batches[half:])
    yield Row(
        claim=f"{name}: Trainer to step {half}, then here: loss of each step after it",
        value=loss_difference(continued, theirs),
        unit="relative",
        limit=LIMIT,
        detail=f"{theirs[1]:.3f} to {theirs[plan.max_steps]:.3f}",
    )
    first, state = here.run(here.start(), batches[:half])
    written = work / "continued" / f"checkpoint-{half}"
    written.parent.mkdir()
    here.write(state, written, like=checkpoint)
    ended = by_trainer(
        build(name), batches, plan, work / "continued", resume_from=written
    )
    after = {n: loss for n, loss in ended.losses.items() if n > half}
    yield Row(
        claim=f"{name}: here to step {half}, then Trainer: loss of each step",
        value=max(loss_difference(first, theirs), loss_difference(after, theirs)),
        unit="relative",
        limit=LIMIT,
        detail=f"{loss_difference(first, theirs):.1e} here, "
        f"{loss_difference(after, theirs):.1e} after it",
    )


if __name__ == "__main__":
    main("Trainer and torchax", rows)
