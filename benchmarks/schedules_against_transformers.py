"""Distance of every schedule in float32 from Transformers' doubles.

Each type of schedule has random settings, including edge cases such as no warmup or a
warmup longer than training. All steps of a run and some after its end are compared with
Transformers' formula in NumPy doubles, which has a bound of its rounding error. The
tests compare the formula with Transformers itself. A relative error is measured if the
bound is below 1e-7 of the value and the rate is above 1e-37.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks._report import Row
from jaxopt_tf.schedules import get_scheduler, greedy, reduce_lr_on_plateau
from tests.references import schedules as reference

_LIMIT = 1e-6
_CHUNKS = 2**12, 2**16  # steps per call: two shapes, so that little is compiled


class _Seen(NamedTuple):
    """Largest errors of one or more comparisons."""

    absolute: float = 0.0  # of the base rate, beyond the double's rounding error
    relative: float = 0.0
    points: int = 0
    left_out: int = 0  # not compared relatively: the double is less accurate
    optax: float = 0.0  # relative error of the optax schedule
    doubles: float = 0.0  # rounding error of the double, of the base rate

    def __or__(self, other: "_Seen") -> "_Seen":
        return _Seen(
            max(self.absolute, other.absolute),
            max(self.relative, other.relative),
            self.points + other.points,
            self.left_out + other.left_out,
            max(self.optax, other.optax),
            max(self.doubles, other.doubles),
        )


def rows(smoke: bool) -> Iterator[Row]:
    """Returns the figures of all schedules, with few settings in a smoke run."""
    for name in reference.NAMES:
        yield from _named(name, settings=5 if smoke else 1_000)
    for which in ("plateau", "greedy"):
        yield from _streams(which, streams=10 if smoke else 1_000)


def _named(name: str, settings: int) -> Iterator[Row]:
    runs = _every_step(name, settings)
    # Above, one operation at a time; here one compiled program, as in training.
    runs |= _compiled(name, max(settings // 100, 1))
    long = _long_runs(name, settings)
    both = runs | long
    claim = f"{name}: {settings} settings, all {runs.points:.2g} steps, "
    yield _row(claim + "of the base rate", runs.absolute)
    claim = f"{name}: {settings} settings up to 2^31 - 3 steps and past the end, "
    note = f"of the base rate, beyond the double's own error (to {long.doubles:.0e})"
    yield _row(claim + note, long.absolute)
    note = (
        f"relative, in both; {both.left_out} of {both.points:.2g} points are left out: "
        "the double is off by over 1e-7 itself, or the rate is below 1e-37"
    )
    yield _row(f"{name}: {note}", both.relative, both.optax or None)


def _every_step(name: str, settings: int) -> _Seen:
    rng, seen = np.random.default_rng(0), _Seen()
    for _ in range(settings):
        lr, options = reference.random_settings(name, rng, 1_000_000)
        schedule = _by_name(name, lr, options)
        last = int(min(1.25 * reference.last_step(options) + 10, 1_000_000))
        chunk = _CHUNKS[last > _CHUNKS[0]]
        for start in range(0, last, chunk):
            steps = np.arange(start, start + chunk)
            seen |= _compared(schedule, name, steps, lr, options)
    return seen


def _compiled(name: str, settings: int) -> _Seen:
    rng, seen = np.random.default_rng(1), _Seen()
    for _ in range(settings):
        lr, options = reference.random_settings(name, rng, 1_000_000)
        schedule = jax.jit(_by_name(name, lr, options))
        steps = reference.telling_steps(rng, options, count=_CHUNKS[-1])
        seen |= _compared(schedule, name, steps, lr, options)
    return seen


def _long_runs(name: str, settings: int) -> _Seen:
    rng, seen = np.random.default_rng(2), _Seen()
    for _ in range(settings):
        lr, options = reference.random_settings(name, rng, 2**31 - 3)
        schedule = _by_name(name, lr, options)
        steps = reference.telling_steps(rng, options, count=1_000)
        seen |= _compared(schedule, name, steps, lr, options)
    return seen


def _row(claim: str, value: float, optax_value: float | None = None) -> Row:
    return Row(claim=claim, value=value, unit="", limit=_LIMIT, optax=optax_value)


def _by_name(name: str, lr: float, options: dict) -> Callable:
    options = dict(options)
    counts = [
        options.pop(key, None) for key in ("num_warmup_steps", "num_training_steps")
    ]
    return get_scheduler(name, lr, *counts, options)


def _compared(schedule, name, steps, lr, options) -> _Seen:
    double, noise = reference.factor(name, steps, lr, **options)
    traced = jnp.asarray(steps, jnp.int32)
    apart = np.abs(np.asarray(schedule(traced), np.float64) / lr - double)
    good = (noise < 1e-7 * double) & (double * lr > 1e-37)
    good |= (noise == 0.0) & (double == 0.0)
    scale = np.where(double > 0.0, double, 1.0)
    theirs = _optax(name, lr, options)
    if theirs is None:
        theirs_apart = 0.0
    else:
        theirs_rate = np.asarray(theirs(traced), np.float64)
        theirs_apart = np.max((np.abs(theirs_rate / lr - double) / scale)[good])
    return _Seen(
        float(np.max(np.maximum(apart - noise, 0.0))),
        float(np.max((apart / scale)[good], initial=0.0)),
        steps.size,
        int(np.sum(~good)),
        float(theirs_apart),
        float(np.max(noise)),
    )


def _optax(name: str, lr: float, options: dict) -> Callable | None:
    """Returns the same schedule composed of optax schedules, if possible."""
    W, T = options.get("num_warmup_steps", 0), options.get("num_training_steps", 0)
    if T <= W or W == 0:
        return None
    if name == "linear":
        down = optax.linear_schedule(lr, 0.0, T - W)
    elif name == "polynomial":
        end, power = options["lr_end"], options["power"]
        down = optax.polynomial_schedule(lr, end, power, T - W)
    else:
        return None
    return optax.join_schedules([optax.linear_schedule(0.0, lr, W), down], [W])


def _streams(which: str, streams: int) -> Iterator[Row]:
    """Compares rates as doubles, for streams with different options and metrics."""
    rng, differ, mismatches, changes = np.random.default_rng(3), 0, 0, 0
    make = {"plateau": reduce_lr_on_plateau, "greedy": greedy}[which]
    run_reference = {"plateau": reference.plateau, "greedy": reference.greedy}[which]
    for _ in range(streams):
        numbers, shape = reference.random_options(rng, which)
        options, metrics = numbers | shape, reference.random_stream(rng)
        schedule = make(**options)
        state, ours = schedule.init(), []
        for metric in metrics:
            state = schedule.update(state, metric)
            ours.append(state.learning_rate)
        theirs = run_reference(metrics, **options)
        differ += int(np.sum(np.asarray(ours) != theirs))
        first = options["learning_rate"]
        decided = _decisions(theirs, first)
        mismatches += int(np.sum(_decisions(np.asarray(ours), first) != decided))
        changes += int(np.sum(decided != 0))
    claim = f"{which}: {streams} streams of 300 metrics, {changes} changes of rate"
    yield Row(
        claim=f"{claim}, decisions that differ", value=mismatches, unit="", limit=0
    )
    yield Row(claim=f"{claim}, rates that differ", value=differ, unit="", limit=0)


def _decisions(rates: np.ndarray, first: float) -> np.ndarray:
    """Returns whether rates decrease, stay or increase."""
    return np.sign(np.diff(rates, prepend=first))
