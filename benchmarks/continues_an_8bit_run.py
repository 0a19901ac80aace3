"""Resumes a run of Trainer with moments of 8 bits, and the reverse.

    python -m benchmarks.continues_an_8bit_run            # 1 minute on 2 cores
    python -m benchmarks.continues_an_8bit_run --smoke    # shorter runs

Needs bitsandbytes 0.50. Trainer trains a small GPT-2 on text with `optim="adamw_8bit"`
and saves halfway. `jaxopt_tf` continues from there with the same batches, and Trainer
continues a run of `jaxopt_tf`. Each is compared with Trainer's own uninterrupted run.

On CPUs bitsandbytes rounds moments through a table. Here it rounds them to the nearest
levels, which is the rule of its CUDA kernel and of `adamw_8bit_tf`. "torch itself" is
Trainer with another attention kernel in one half.
"""

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks import _trainer_runs as runs
from benchmarks._report import Row, main
from jaxopt_tf.interop import load_torch

LIMIT = 1e-4
NESTED = "__bnb_optimizer_quant_state__"


def rows(smoke: bool) -> Iterator[Row]:
    """Yields the figures of both directions."""
    from bitsandbytes.backends.cpu import ops

    logging.getLogger("transformers").setLevel(logging.ERROR)
    ops._quant_blockwise_fp32_direct = _round_to_nearest_levels
    plan = runs.Plan("adamw_8bit", "cosine", 1, 20 if smoke else 100)
    with tempfile.TemporaryDirectory() as folder:
        yield from both_directions(plan, Path(folder))


def both_directions(plan: runs.Plan, work: Path) -> Iterator[Row]:
    """Yields the figures of a run that Trainer begins, and of one that begins here."""
    half = plan.max_steps // 2
    whole = runs.by_trainer(plan, work / "trainer")
    checkpoint = work / "trainer" / f"checkpoint-{half}"

    start = runs.Ours.at(plan, work, checkpoint)
    returned = work / "returned"
    start.hand_over(returned, start.start, like=checkpoint)
    ours, _ = start.until(plan, plan.max_steps)
    eager = runs.by_trainer(
        plan, work / "eager", resume_from=checkpoint, attention="eager"
    )
    losses = list(whole.losses.values())
    yield Row(
        claim=f"{plan}: Trainer to step {half}, then here: loss of each step after it",
        value=runs.loss_difference(_after(ours, half), whole),
        unit="relative",
        limit=LIMIT,
        torch=runs.loss_difference(_after(eager, half), whole),
        detail=f"{losses[0]:.3f} to {losses[-1]:.3f}",
    )
    yield Row(
        claim=f"{plan}: Trainer's optimizer.pt in and out: bytes of arrays that differ",
        value=_num_differing(checkpoint, returned),
        unit="bytes",
        limit=0,
    )

    begun = runs.Ours.at(plan, work, runs.begin(work / "begin"))
    _, position = begun.until(plan, half)
    handed_over = work / "ours" / f"checkpoint-{half}"
    handed_over.parent.mkdir()
    begun.hand_over(handed_over, position, like=work / "begin")
    theirs = runs.by_trainer(plan, work / "ours", resume_from=handed_over)
    runs.by_trainer(plan, work / "first", attention="eager", stop_at=half)
    eager = runs.by_trainer(
        plan, work / "first", resume_from=work / "first" / f"checkpoint-{half}"
    )
    yield Row(
        claim=f"{plan}: here to step {half}, then Trainer: loss of each step after it",
        value=runs.loss_difference(_after(theirs, half), whole),
        unit="relative",
        limit=LIMIT,
        torch=runs.loss_difference(_after(eager, half), whole),
    )


def _after(ended: runs.Ended, step: int) -> runs.Ended:
    losses = {n: loss for n, loss in ended.losses.items() if n > step}
    return ended._replace(losses=losses)


def _round_to_nearest_levels(x, levels, scales_out, codes_out, block_size):
    """Replaces bitsandbytes' quantization on CPUs by the rule of its CUDA kernel."""
    import torch

    n = x.numel()
    padded = torch.nn.functional.pad(x.reshape(-1), (0, -n % block_size))
    blocks = padded.reshape(-1, block_size)
    scales = blocks.abs().amax(1)
    ratios = (blocks * (1 / scales)[:, None]).clamp(-1, 1)
    codes = torch.bucketize(ratios, (levels[1:] + levels[:-1]) / 2)
    if levels[0] < 0:  # a small negative number has the level below 0
        codes[(levels[codes] == 0) & (blocks < 0)] -= 1
    codes[scales == 0] = 0
    codes_out.copy_(codes.reshape(-1)[:n].to(torch.uint8).reshape(codes_out.shape))
    scales_out.copy_(scales)


def _num_differing(a: Path, b: Path) -> int:
    states = [load_torch(folder / "optimizer.pt")["state"] for folder in (a, b)]
    num_differing = 0
    for number in states[0].keys() | states[1].keys():
        entries = (state[number] for state in states)
        of_a, of_b = (entry.get(NESTED, entry) for entry in entries)
        for key in of_a.keys() | of_b.keys():
            pair = [np.asarray(arrays[key]).reshape(-1) for arrays in (of_a, of_b)]
            num_differing += int((pair[0].view("u1") != pair[1].view("u1")).sum())
    return num_differing


if __name__ == "__main__":
    main("Runs with moments of 8 bits, by Trainer and here", rows)
