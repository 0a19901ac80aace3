"""Overhead of metrics relative to a step, and of the loop with its monitors.

    python -m benchmarks.metrics_and_loop_cost

Both sides alternate within one run, at the default size of `jaxopt-tf train`. A figure
is the median of the ratios of adjacent measurements.
"""

import contextlib
import io
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks._report import Row, main
from jaxopt_tf import (
    adamw_tf,
    clip,
    init_train_state,
    make_train_step,
    monitors,
    plots,
    training,
)
from jaxopt_tf.models import GPT2Config, make_loss_fn

OPTIMIZER = optax.chain(clip(1.0), adamw_tf(1e-3, weight_decay=0.1))
CONFIG = GPT2Config()
BATCH = np.random.default_rng(0).integers(0, 256, (8, CONFIG.block_size + 1), np.int32)


def rows(smoke: bool) -> Iterator[Row]:
    params, loss_fn = make_loss_fn(CONFIG, 0)

    def begin():
        return init_train_state(jax.tree.map(jnp.copy, params), OPTIMIZER)

    yield Row(
        claim="a step with all metrics and the check for NaN, in the time of one that "
        "returns its loss alone",
        value=_metrics_ratio(loss_fn, begin, 20 if smoke else 300),
        unit="times",
        # A smoke run is too short and its machine too busy for the real limit.
        limit=1.5 if smoke else 1.03,
    )
    yield Row(
        claim="the loop with every monitor, in the time of its bare compiled step",
        value=_loop_ratio(loss_fn, begin, 3 if smoke else 21, 20 if smoke else 100),
        unit="times",
        limit=1.5 if smoke else 1.02,
    )


def _bare_step(loss_fn):
    def step(state, batch):
        def mean_loss(params):
            total, num_items = loss_fn(params, batch)
            return total / num_items

        params, opt_state = state
        loss, grads = jax.value_and_grad(mean_loss)(params)
        updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    return jax.jit(step, donate_argnums=0)


def _metrics_ratio(loss_fn, begin, num_steps) -> float:
    bare, full = _bare_step(loss_fn), make_train_step(loss_fn, OPTIMIZER)
    bare_state, state = begin(), begin()
    bare_state, ratios = (bare_state.params, bare_state.opt_state), []
    for _ in range(num_steps):
        start = time.perf_counter()
        bare_state, loss = jax.block_until_ready(bare(bare_state, BATCH))
        middle = time.perf_counter()
        state, metrics = jax.block_until_ready(full(state, BATCH))
        ratios.append((time.perf_counter() - middle) / (middle - start))
    np.testing.assert_allclose(metrics.loss, loss, rtol=1e-3)  # the same computation
    return float(np.median(ratios[3:]))


def _loop_ratio(loss_fn, begin, num_rounds, num_steps) -> float:
    step, ratios = make_train_step(loss_fn, OPTIMIZER), []
    bare_state, state = begin(), begin()
    max_steps = num_rounds * num_steps
    with tempfile.TemporaryDirectory() as folder, _silence():
        told = _monitors(Path(folder), max_steps)
        # The loop closes its monitors. This one is used again in the next round.
        kept_open = [monitor._replace(close=lambda: None) for monitor in told]
        for i in range(num_rounds):
            start = time.perf_counter()
            for _ in range(num_steps):
                bare_state, _ = step(bare_state, BATCH)
            jax.block_until_ready(bare_state)
            middle = time.perf_counter()
            state = training.train(
                step,
                state,
                itertools.repeat(BATCH),
                max_steps=(i + 1) * num_steps,
                monitors=kept_open,
            ).state
            jax.block_until_ready(state)
            ratios.append((time.perf_counter() - middle) / (middle - start))
        for monitor in told:
            monitor.close()
    return float(np.median(ratios[1:]))


def _monitors(folder: Path, max_steps: int) -> list[training.Monitor]:
    return [
        monitors.console(max_steps),
        monitors.json_lines(folder / "metrics.jsonl"),
        monitors.tensorboard(folder / "tensorboard"),
        monitors.trainer_state(folder / "trainer_state.json", max_steps=max_steps),
        plots.curves(folder / "curves.png"),
        monitors.health_monitor(),
    ]


def _silence():
    return contextlib.redirect_stdout(io.StringIO())


if __name__ == "__main__":
    main("Metrics and loop", rows)
