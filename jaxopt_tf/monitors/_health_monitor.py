"""Monitor of training health: reports problems of a run, with a proposed change.

After each block of 20 steps, one function per kind of problem examines the last blocks
and returns a sentence or None. All rules compare ratios, so that they depend neither on
the unit of the loss nor on the size of the model.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ..training import Evaluation, Monitor, Window, metric_values
from . import _run_stats
from ._run_stats import NUM_RECENT, STEPS_IN_A_BLOCK, Block, RunningStats

# Limits of the rules. Brackets contain the run of `benchmarks` (`_runs_in_trouble`,
# `_runs_that_go_well`) that is closest to the limit. "x2" or "/2" is the factor by
# which the limit must be changed until this run is misjudged. Without a factor, no run
# is misjudged if the limit is changed by a factor of 10 in either direction.
_RISE_SHARE = 0.15  # share of the decrease [a rate that rises until it is too high]
_RISE_SHARE_AT_HIGHER_RATE = 0.5  # after a warmup or a restart [four restarts]
_RISE_OVER_BEST = 0.25  # share of the best loss [characters, from a trained model]
_RISE_OVER_ERROR = 8.0  # standard errors [/3: linear regression, momentum]
_RISE_OVER_FIRST = 4.0  # deviations of a step [x2: a rate too high from the start]
_RISE_BLOCKS = 4  # with Adam, a spike lasts up to 50 steps [/2: linear regression]
# Gradient norm times parameter norm, relative to the largest loss: to first order, a
# relative change of the parameters by 1e-6 changes the loss by its largest value.
# GPT-2 and other healthy models have values from 1 to 1000.
_STEEP = 1e6  # [x100: 30 layers of tanh, weights 4 times too large]
_STEEP_STEPS = 0.2  # share of the steps [a recurrence, weights 3 times too large]
_GROWTH = 30.0  # relative to the largest gradient [/10: gradient descent on a square]
_EXPLODING_BLOCKS = 3  # [/1.5: gradient descent on a square]
_SWING = 0.25  # share of the largest loss [/2: classifier, rate at the stability limit]
_SWING_UPDATES = 5e-3  # update ratio of a step [x10: classifier, AdamW, rate 0.1]
_ROUNDING_BLOCKS = 5  # at full rate [x10: bfloat16 parameters, rate 1e-4]
_SMALL_LAYER = 1e-6  # share of the largest norm; float32 has 1e-7 [12 sigmoid layers]
_NO_SLOPE = 1e-5  # same ratio as `_STEEP` [very small weights]
_VANISHING_BLOCKS = 5  # [x2: a recurrence over 50 steps with very small weights]
_FALL = 0.01  # share of the loss [/2: units that are never active]
_FALL_OVER_ERROR = 3.0  # standard errors of a block [regression to the noise]
_QUIET = 0.02  # deviation of a step, relative to the loss [/10: a rate of 1e-7]
_STUCK_STEPS = 500  # at full rate, after the warmup [x2: a rate of 1e-7]
_STUCK_STEPS_IN_NOISE = 5_000  # at full rate [classifier, batches of 1]
_SMALL_UPDATES = 1e-5  # update ratio of a step [a rate of 1e-7]
_GAP = 0.05  # share of the best loss [x10: a character model on a page of text]
_GAP_OVER_SWING = 3.0  # relative to the fluctuation [/10: classifier, momentum]
_IN_A_ROW = 3  # evaluations [x10: a classifier on 200 examples]
_FAR_GAP, _FEW_EVALUATIONS = 0.25, 5  # [x1.6: 2.97, 3.34, 4.17 in `tests/monitors`]
_NUM_EVALUATIONS = 7  # number of evaluations that are kept
_SKIPPED_AMONG, _NUM_SKIPPED = 100, 10  # [x2.1: one batch in five with a NaN]
_STEPS_WITHOUT = 10 * STEPS_IN_A_BLOCK  # without a problem until it counts as ended
_STEPS_UNTIL_REPEATED = 20_000  # between reports of a problem that does not end

_SMALLER_STEPS = (
    "lower `learning_rate`, lengthen `warmup_steps` or clip with a smaller "
    "`max_grad_norm`"
)


def health_monitor(
    report: Callable[[str], None] = print, *, param_dtype: str = "float32"
) -> Monitor:
    """Reports problems of training, each in one sentence with a proposed change.

        steps 241 to 320: the loss has risen to 6.12 from 2.31 (step 160), training
        diverges; go back, lower `learning_rate`, lengthen `warmup_steps` or clip ...

    The problems are divergence, a loss that is not finite, exploding gradients,
    vanishing gradients (detected earlier with norms per layer), oscillation, a loss
    that stays at its initial value, overfitting, updates that are rounded away in the
    dtype of the parameters, and many skipped steps. Each problem is reported once, and
    again if it has ended and recurs, or if it still exists 20,000 steps later. Rules
    prefer silence in doubtful cases: a run without reports is not proven to be healthy.

    A run that starts at its optimum cannot be distinguished from one that is stuck. It
    is reported as stuck after 500 steps at full rate if the losses of batches differ
    little, and after 5,000 steps otherwise.

    Blocks of 20 steps are independent of the windows of the training loop, so that the
    replay of a log gives the same sentences. Memory use is constant.

    Args:
        report: function that receives each sentence.
        param_dtype: name of the parameters' dtype.

    Raises:
        ValueError: if `param_dtype` is not a floating-point dtype.
    """
    try:
        is_floating = jnp.issubdtype(jnp.dtype(param_dtype), jnp.floating)
    except TypeError:
        is_floating = False
    if not is_floating:
        raise ValueError(
            "`param_dtype` must be the name of a floating-point dtype, got "
            f"{param_dtype!r}. Pass for example 'float32' or 'bfloat16'."
        )
    watching = _Watcher(report, param_dtype)
    return Monitor(watching.window, watching.evaluation, lambda: None)


def _diverging(stats: RunningStats, blocks: Block) -> str | None:
    """Detects divergence: a loss that is far above its minimum for several blocks."""
    is_higher_rate = blocks.rate > 1.2 * stats.best_rate
    share = np.where(is_higher_rate, _RISE_SHARE_AT_HIGHER_RATE, _RISE_SHARE)
    error = stats.best_noise / math.sqrt(STEPS_IN_A_BLOCK)
    limit = np.maximum(
        share * (stats.start - stats.best),
        max(_RISE_OVER_BEST * abs(stats.best), _RISE_OVER_ERROR * error),
    )
    best, best_step = stats.best, stats.best_step
    if not (blocks.loss - best > limit).all():
        # Else the loss may have increased from the first step on, to at least twice the
        # first loss.
        best, best_step = stats.first_loss, 1
        rise = max(abs(best), _RISE_OVER_FIRST * stats.noise)
        if not (blocks.loss - best > rise).all():
            return None
    return (
        f"the loss has risen to {blocks.loss.mean():.4g} from {best:.4g} (step "
        f"{best_step}), training diverges; go back, {_SMALLER_STEPS}"
    )


def _exploding(stats: RunningStats, blocks: Block) -> str | None:
    """Detects exploding gradients, by their size or by their growth."""
    is_steep_step = blocks.grad_param_product > _STEEP * stats.scale
    # Growth counts only without a new lowest loss: when a run leaves a plateau,
    # gradients grow as much.
    has_grown = (
        0 < _GROWTH * stats.max_grad_norm < blocks.grad_norm.min()
        and stats.best_step < blocks.first_step[0]
    )
    if not (is_steep_step.mean() > _STEEP_STEPS or has_grown):
        return None
    usual = f"; it was {stats.max_grad_norm:.2g} at most" if has_grown else ""
    return (
        f"the gradient norm is {blocks.grad_norm.max():.2g}{usual}, gradients explode; "
        "clip with a small `max_grad_norm`, lower `learning_rate`, or look for a "
        "product of many factors, as in a recurrence or where normalisation is missing"
    )


def _oscillating(stats: RunningStats, blocks: Block) -> str | None:
    """Detects oscillation: steps across a minimum, with a constant mean loss."""
    # To first order, a step changes the loss by at most gradient norm times update
    # norm. If this is a large share of the loss, the step passes the minimum along its
    # direction.
    product = np.median(blocks.grad_update_product)
    ratio = np.median(blocks.update_ratio)
    is_long = product >= _SWING * max(stats.scale, abs(stats.start))
    is_large = is_long and ratio >= _SWING_UPDATES
    if not (is_large and _run_stats.is_flat(blocks.loss, _FALL_OVER_ERROR)):
        return None
    return (
        f"the loss stays at {blocks.loss.mean():.4g} and swings by {stats.noise:.2g}, "
        f"while parameters change by {ratio:.0e} a step, enough by their gradient to "
        f"change the loss by {product:.2g}, training oscillates; lower "
        "`learning_rate`, let it decay, or take larger batches"
    )


def _vanishing(stats: RunningStats, blocks: Block) -> str | None:
    """Detects vanishing gradients, except after the loss has converged."""
    loss = blocks.loss.mean()
    small = _run_stats.layers_with_small_grads(blocks.layers, _SMALL_LAYER)
    if small:
        more = f" and {len(small) - 1} more" if len(small) > 1 else ""
        subject = f"the gradient of `{small[0]}`{more}"
        symptom = f"{subject} is below {_SMALL_LAYER:.0e} of the largest layer's"
    else:
        gained, lost = stats.start - stats.best, loss - stats.best
        is_learnt = gained > _FALL * abs(stats.start) and lost < 0.1 * gained
        if is_learnt or blocks.grad_param_product.max() > _NO_SLOPE * stats.scale:
            return None
        symptom = f"the gradient norm is {blocks.grad_norm[-1]:.1e}"
    return (
        f"{symptom} while the loss is {loss:.4g}, gradients vanish; use residual "
        "connections, normalisation or another activation, or a larger initialisation"
    )


def _plateau(stats: RunningStats, blocks: Block) -> str | None:
    """Detects a loss that stays at its initial value."""
    size = abs(stats.start)
    needed = _STUCK_STEPS if stats.noise < _QUIET * size else _STUCK_STEPS_IN_NOISE
    error = stats.noise / math.sqrt(STEPS_IN_A_BLOCK)
    if (
        stats.num_full_rate_blocks * STEPS_IN_A_BLOCK < needed
        or stats.start - stats.best > max(_FALL * size, _FALL_OVER_ERROR * error)
        or not _run_stats.is_flat(blocks.loss, _FALL_OVER_ERROR)
    ):
        return None
    ratio = blocks.update_ratio[-1]
    remedy = "check that labels belong to their inputs, or lower `learning_rate`"
    if ratio < _SMALL_UPDATES:
        remedy = "raise `learning_rate`, or look for units that are always off"
    loss = blocks.loss[len(blocks.loss) // 2 :].mean()
    return (
        f"the loss is {loss:.4g} and was {stats.start:.4g} at the start, it is stuck "
        f"while parameters change by {ratio:.0e} a step; {remedy}"
    )


class _Evaluated(NamedTuple):
    """Evaluation loss and training loss at a step."""

    step: int
    loss: float  # evaluation loss
    training: float  # mean training loss since the previous evaluation


class _Gap(NamedTuple):
    """Gap between evaluation loss and training loss."""

    best: _Evaluated | None = None  # evaluation with the lowest loss
    recent: tuple[_Evaluated, ...] = ()  # last evaluations, oldest first
    num_above: int = 0  # consecutive evaluations with a loss above the best
    first_above: int = 0  # step of the first of these evaluations

    def add(self, new: _Evaluated) -> "_Gap":
        """Returns the gap after another evaluation."""
        recent, best = (*self.recent, new)[-_NUM_EVALUATIONS:], self.best
        if best is None or new.loss < best.loss:
            return _Gap(new, recent)
        swing = _GAP_OVER_SWING * _run_stats.median_swing([e.loss for e in recent])
        rise, size = new.loss - best.loss, abs(best.loss)
        # If both losses increase, as after a restart of the rate, the gap does not.
        is_above = new.training < best.training and rise > max(_GAP * size, swing)
        num_above = self.num_above + 1 if is_above else 0
        first_above = self.first_above if self.num_above else new.step
        # A run with few evaluations may end before three consecutive ones are above the
        # best. Two are enough if the evaluation loss increases far and the training
        # loss decreases from each evaluation to the next.
        previous, is_few = self.recent[-1], len(recent) <= _FEW_EVALUATIONS
        is_far = rise > _FAR_GAP * size and previous.loss > best.loss + _GAP * size
        is_falling = new.training < previous.training < best.training
        if is_few and is_above and is_far and is_falling and new.loss > previous.loss:
            num_above, first_above = _IN_A_ROW, previous.step
        return _Gap(best, recent, num_above, first_above)


class _Watcher:
    """State of `health_monitor`: statistics, evaluations, and reported problems."""

    def __init__(self, report: Callable[[str], None], param_dtype: str) -> None:
        """Creates the state before the first step."""
        self._print, self._param_dtype = report, param_dtype
        self._stats, self._gap = RunningStats(), _Gap()
        self._last_loss = math.nan
        self._total = self._count = 0.0  # sum and number of losses since an evaluation
        self._skipped: deque[bool] = deque(maxlen=_SKIPPED_AMONG)
        # Kind of problem -> step of its last report, and last step at which it existed.
        self._reported: dict[str, tuple[float, int]] = {}
        # Causes precede their consequences, since only the first rule that applies is
        # reported. The number is that of the blocks a rule examines.
        self._symptoms = (
            ("diverging", _diverging, _RISE_BLOCKS),
            ("exploding", _exploding, _EXPLODING_BLOCKS),
            ("oscillating", _oscillating, NUM_RECENT),
            ("rounding", self._rounding, _ROUNDING_BLOCKS),
            ("vanishing", _vanishing, _VANISHING_BLOCKS),
            ("stuck", _plateau, NUM_RECENT),
        )

    def window(self, window: Window) -> None:
        """Processes the steps of a window."""
        metrics: Any = window.metrics  # numpy arrays
        steps = _run_stats.finite_steps(window)
        losses = steps["loss"]
        self._total += float(np.sum(losses))
        self._count += len(losses)
        if math.isnan(self._stats.first_loss) and len(losses):
            self._stats.first_loss = float(losses[0])
        self._check_finite(window, steps)
        if len(losses):
            self._last_loss = float(losses[-1])
        for _ in self._stats.blocks(steps):
            self._check_blocks()
        self._skipped.extend(metrics.is_skipped.tolist())
        num_skipped, sentence = sum(self._skipped), None
        if num_skipped >= _NUM_SKIPPED:
            sentence = (
                f"{num_skipped} steps were skipped since loss or gradient were not "
                "finite; lower `learning_rate`, look at the batches, or compute in "
                "float32"
            )
        last_step = window.first_step + len(metrics.loss) - 1
        first_step = last_step - len(self._skipped) + 1
        self._report("skipping", first_step, last_step, sentence)

    def evaluation(self, evaluation: Evaluation) -> None:
        """Processes an evaluation."""
        step = evaluation.step
        loss = metric_values(evaluation.metrics).get("loss", math.nan)
        training = self._total / self._count if self._count else math.nan
        self._total = self._count = 0.0
        if not math.isfinite(loss + training):
            return
        new = _Evaluated(step, loss, training)
        self._gap = gap = self._gap.add(new)
        best, sentence = gap.best or new, None
        if gap.num_above >= _IN_A_ROW:
            sentence = (
                f"the evaluation loss has risen to {loss:.4g} from {best.loss:.4g} "
                f"(step {best.step}) while the training loss fell to "
                f"{new.training:.4g} from {best.training:.4g}, the model overfits; "
                f"take the checkpoint of step {best.step}, stop early, or add data, "
                "dropout or `weight_decay`"
            )
        # Overfitting ends only when the evaluation loss reaches a new minimum.
        if sentence is not None or best is new:
            self._report("overfitting", gap.first_above, step, sentence)

    def _check_blocks(self) -> None:
        for kind, symptom, num_blocks in self._symptoms:
            blocks = self._stats.last(num_blocks)
            if blocks is None:
                continue
            sentence = symptom(self._stats, blocks)
            first, last = int(blocks.first_step[0]), int(blocks.last_step[-1])
            self._report(kind, first, last, sentence)
            if sentence is not None:
                return

    def _check_finite(self, window: Window, steps: _run_stats.Steps) -> None:
        metrics: Any = window.metrics
        is_finite = np.isfinite(metrics.loss) & np.isfinite(metrics.norms.grads)
        is_bad = ~is_finite & (~metrics.is_skipped | metrics.is_stopped)
        if not is_bad.any():
            return
        first = int(np.argmax(is_bad))
        step, stats = window.first_step + first, self._stats
        previous_loss = [self._last_loss, *steps["loss"][steps["step"] < step]][-1]
        loss, norm = float(metrics.loss[first]), float(metrics.norms.grads[first])
        symptom = f"the loss is {loss:.4g} and the gradient norm {norm:.4g}"
        lowest, gain = stats.first_loss, 0.0
        if stats.recent:
            lowest, gain = stats.best, stats.start - stats.best
        # In a run that diverges, losses increase before they become infinite. Without
        # such a rise, a single batch or operation is the likely cause.
        if previous_loss > lowest + max(_RISE_OVER_BEST * abs(lowest), gain):
            sentence = (
                f"{symptom} after a rise from {lowest:.4g} to {previous_loss:.4g}, "
                f"training diverges; {_SMALLER_STEPS}"
            )
        else:
            sentence = (
                f"{symptom}, all at once after {previous_loss:.4g}; look at the batch, "
                "at divisions and logarithms, or skip such steps with "
                "`on_non_finite='skip'`"
            )
        self._report("not finite", step, step, sentence)

    def _rounding(self, stats: RunningStats, blocks: Block) -> str | None:
        """Detects updates that are too small for the parameters' dtype."""
        # A change is rounded away below half of the spacing, which is 1/4 to 1/2 of
        # `eps` relative to a parameter, depending on its mantissa. The limit is half of
        # the lower bound, since the sizes of parameters differ.
        limit = float(jnp.finfo(self._param_dtype).eps) / 8
        # The largest ratio of all blocks: at the end of a run, updates are small.
        ratio = stats.max_update_ratio
        if ratio >= limit or stats.num_full_in_a_row < len(blocks.loss):
            return None
        remedy = f"keep parameters in float32 and compute in {self._param_dtype}, or "
        return (
            f"updates are {ratio:.0e} of the parameters, and {self._param_dtype} "
            f"rounds most changes below {2 * limit:.0e} away; "
            f"{remedy if limit > 1e-7 else ''}raise `learning_rate`"
        )

    def _report(self, kind: str, first: int, last: int, sentence: str | None) -> None:
        """Reports a problem, unless it was reported before and has not ended since."""
        reported_at, observed_at = self._reported.get(kind, (-math.inf, -math.inf))
        if sentence is None:
            if last - observed_at > _STEPS_WITHOUT:
                self._reported.pop(kind, None)
            return
        if last - reported_at >= _STEPS_UNTIL_REPEATED:
            reported_at = last
            steps = f"steps {first} to" if first < last else "step"
            self._print(f"{steps} {last}: {sentence}")
        self._reported[kind] = (reported_at, last)
