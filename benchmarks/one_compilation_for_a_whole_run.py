"""A million updates with one compilation and constant memory; lowering for devices."""

import functools
import resource
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax

from benchmarks._report import Row
from jaxopt_tf.optimizers import adafactor_tf, adafactor_trainer, adamw_hf_v4, adamw_tf
from jaxopt_tf.optimizers import clip as clip_tf
from jaxopt_tf.schedules import get_linear_schedule_with_warmup

SCHEDULE = get_linear_schedule_with_warmup(1e-3, 1_000, 1_000_000)
TRANSFORMATIONS = {
    "clip, adamw_tf": optax.chain(clip_tf(1.0), adamw_tf(SCHEDULE, weight_decay=0.1)),
    "adamw_hf_v4": adamw_hf_v4(SCHEDULE, weight_decay=0.1),
    "adafactor_tf": adafactor_tf(beta1=0.9, weight_decay=0.1),
    "adafactor_trainer": adafactor_trainer(SCHEDULE, weight_decay=0.1),
}


def rows(smoke: bool) -> Iterator[Row]:
    num_updates = 1_000 if smoke else 1_000_000
    yield from _long_run(TRANSFORMATIONS["clip, adamw_tf"], num_updates)
    for name, tx in TRANSFORMATIONS.items():
        params = {"w": jnp.ones((8, 4)), "b": jnp.ones(4)}
        state = tx.init(params)
        abstract = jax.eval_shape(lambda x: x, (params, state))
        platforms = ("cpu", "cuda", "tpu")
        for platform in platforms:  # raises an error if it cannot be lowered
            lower = jax.export.export(_counted_step(tx)[0], platforms=[platform])
            lower(*abstract, abstract[0])
        step, traces = _counted_step(tx)
        for _ in range(100):
            params, state = step(
                params, state, {"w": jnp.ones((8, 4)), "b": jnp.ones(4)}
            )
        yield Row(
            claim=f"{name}: traces in 100 steps (lowered for {', '.join(platforms)})",
            value=len(traces),
            unit="traces",
            limit=1,
        )


def _long_run(tx, num_updates) -> Iterator[Row]:
    params, grads = {"w": jnp.ones(4)}, {"w": jnp.full(4, 0.1)}
    step, traces = _counted_step(tx)
    state = tx.init(params)
    warm_up = min(10_000, num_updates // 10)
    for i in range(num_updates):
        if i == warm_up:
            before = _peak_bytes()
            arrays_before = len(jax.live_arrays())
        params, state = step(params, state, grads)
    arrays_after = len(jax.live_arrays())
    assert int(optax.tree.get(state, "count")) == num_updates
    assert bool(jnp.all(jnp.isfinite(params["w"])))
    where = f"{num_updates:,} updates in a row"
    yield Row(claim=f"{where}: traces", value=len(traces), unit="traces", limit=1)
    yield Row(
        claim=f"{where}: arrays alive at the end, more than at the start",
        value=arrays_after - arrays_before,
        unit="arrays",
        limit=0,
    )
    yield Row(
        claim=f"{where}: growth of the process after the first {warm_up:,}",
        value=(_peak_bytes() - before) / 2**20,
        unit="MiB",
        limit=8,
    )


def _counted_step(tx):
    traces = []

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads):
        traces.append(1)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step, traces


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
