"""Says what goes wrong in a run."""

import math
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ..training import Evaluation, Monitor, Window, metric_values
from . import _symptoms
from ._blocks import STEPS_IN_A_BLOCK, Memory, Steps, block_of, cut, joined, steps_of
from ._oscillation import oscillating
from ._overfitting import Gap, after, overfitting

# A complaint is over when it has not held for so many steps, ten blocks; if it comes
# back then, it is said again.
_STEPS_WITHOUT = 10 * STEPS_IN_A_BLOCK
# And one that does not end is said again after so many: someone may have come by.
_STEPS_UNTIL_SAID_AGAIN = 20_000


def watcher(
    say: Callable[[str], None] = print, *, param_dtype: str = "float32"
) -> Monitor:
    """Says in one sentence what is going wrong, in which steps, and what to try.

        steps 241 to 320: the loss has risen to 6.12 from 2.31 (step 160), training
        diverges; go back, lower `learning_rate`, lengthen `warmup_steps` or clip ...

    It knows divergence and a loss that is no longer finite, exploding and vanishing
    gradients (these better with the norms of each layer), oscillation, a loss stuck at
    its start, a growing gap between held-out and training loss, updates that the
    parameters' dtype rounds away, and many skipped steps. Each is said once; again if
    it has ended and come back, or still holds 20,000 steps later. Of a healthy run
    nothing is said: in doubt it is silent, so its silence proves nothing.

    A run that begins at its optimum and stays there cannot be told from one that is
    stuck: that it is stuck is said after 500 steps at full rate where batches differ
    little in their loss, and after 5,000 where they differ more.

    It looks at blocks of 20 steps, however windows are cut: told the same run again,
    from a file say, it says the same again. Its memory does not grow.

    Args:
        say: called with each sentence.
        param_dtype: of the parameters, to which updates are added.

    Raises:
        ValueError: if `param_dtype` is not that of floating-point numbers.
    """
    _check_dtype(param_dtype)
    memory, gap = Memory(), Gap()
    pending: Steps = {}
    last_loss = math.nan
    skipped: deque[bool] = deque(maxlen=_symptoms.SKIPPED_AMONG)
    losses: list[np.ndarray] = []  # sums and counts since the last evaluation
    said: dict[str, _Said] = {}

    def report(kind: str, first_step: int, last_step: int, what: str | None) -> None:
        before = said.get(kind)
        if what is None:
            if before is not None and last_step - before.held_at > _STEPS_WITHOUT:
                del said[kind]
            return
        if before is not None and last_step - before.said_at < _STEPS_UNTIL_SAID_AGAIN:
            said[kind] = before._replace(held_at=last_step)
            return
        said[kind] = _Said(last_step, last_step)
        many = f"s {first_step} to" if first_step < last_step else ""
        say(f"step{many} {last_step}: {what}")

    def window(window: Window) -> None:
        nonlocal pending, last_loss
        metrics: Any = window.metrics  # numpy here
        steps = steps_of(window)
        losses.append(np.array([np.sum(steps["loss"]), len(steps["loss"])]))
        losses[:] = [np.sum(losses, axis=0)]
        if math.isnan(memory.first_loss) and len(steps["loss"]):
            memory.first_loss = float(steps["loss"][0])
        report_not_finite(window.first_step, metrics, steps)
        if len(steps["loss"]):
            last_loss = float(steps["loss"][-1])
        pending = joined(pending, steps)
        while len(pending["loss"]) >= STEPS_IN_A_BLOCK:
            look_at_block(cut(pending, slice(None, STEPS_IN_A_BLOCK)))
            pending = cut(pending, slice(STEPS_IN_A_BLOCK, None))
        skipped.extend(metrics.is_skipped.tolist())
        last_step = window.first_step + len(metrics.loss) - 1
        what = _symptoms.skipping(sum(skipped))
        report("skipping", last_step - len(skipped) + 1, last_step, what)

    def look_at_block(steps: Steps) -> None:
        memory.add(block_of(steps))
        # The cause before the effect: nothing is said of what another one explains.
        for kind, symptom, num_blocks in (
            ("diverging", _symptoms.diverging, 4),
            ("exploding", _symptoms.exploding, 3),
            ("oscillating", oscillating, 20),
            ("rounding", rounded_away, 5),
            ("vanishing", _symptoms.vanishing, 5),
            ("stuck", _symptoms.stuck, 20),
        ):
            blocks, what = memory.last(num_blocks), symptom(memory)
            report(kind, blocks[0].first_step, blocks[-1].last_step, what)
            if what is not None:
                return

    def rounded_away(memory: Memory) -> str | None:
        return _symptoms.rounded_away(memory, param_dtype)

    def report_not_finite(first_step: int, metrics: Any, steps: Steps) -> None:
        is_finite = np.isfinite(metrics.loss) & np.isfinite(metrics.norms.grads)
        bad = np.flatnonzero(~is_finite & (~metrics.is_skipped | metrics.is_stopped))
        if len(bad):
            step = first_step + int(bad[0])
            earlier = steps["loss"][steps["step"] < step]
            before = float(earlier[-1]) if len(earlier) else last_loss
            loss, norm = metrics.loss[bad[0]], metrics.norms.grads[bad[0]]
            what = _symptoms.not_finite(memory, before, float(loss), float(norm))
            report("not finite", step, step, what)

    def evaluation(evaluation: Evaluation) -> None:
        nonlocal gap
        held_out = metric_values(evaluation.metrics).get("loss", math.nan)
        total, count = losses.pop() if losses else (0.0, 0)
        if count and math.isfinite(held_out):
            gap = after(gap, evaluation.step, held_out, total / count)
            what = overfitting(gap)
            # It is over when the held-out loss is at its best again, and not before.
            if what is not None or gap.best_step == evaluation.step:
                report("overfitting", gap.first_above, evaluation.step, what)

    return Monitor(window, evaluation, lambda: None)


class _Said(NamedTuple):
    said_at: int  # step at which it was said
    held_at: int  # last step at which it held


def _check_dtype(param_dtype: str) -> None:
    try:
        is_floating = jnp.issubdtype(jnp.dtype(param_dtype), jnp.floating)
    except TypeError:
        is_floating = False
    if not is_floating:
        raise ValueError(
            "`param_dtype` must be the name of a floating-point dtype, got "
            f"{param_dtype!r}. Most parameters are 'float32' or 'bfloat16'."
        )
