"""First step: its compilation during the evaluation before it, and its time."""

import dataclasses
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxopt_tf.jobs import Job, RunConfig, _first_step, pretrain
from jaxopt_tf.jobs._first_step import FirstStep, compile_ahead
from jaxopt_tf.models import GPT2Config
from jaxopt_tf.recipes import Recipe

# Strict promotion is a setting of this thread, for which programs are compiled again.
pytestmark = pytest.mark.promotion_of_others


@pytest.fixture
def compilations():
    """Names of compiled functions and of the threads that compiled them."""
    found = []

    def listen(name, *_, fun_name="", **__):
        if name.endswith("backend_compile_duration"):
            found.append((fun_name, threading.current_thread().name.partition("_")[0]))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.clear_event_listeners()


def test_a_call_uses_the_program_of_the_thread(compilations):
    step = jax.jit(lambda x, y: (x + y, x * y))
    x = jax.device_put(jnp.arange(3.0), jax.devices()[0])  # committed, as in runs
    shapes = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    compilations.clear()
    with compile_ahead(step, shapes, x) as compilation:
        timed = FirstStep(step, compilation, lambda *_: None, lambda: 0.0)
        total, product = timed(x, x)
    assert [thread for _, thread in compilations] == ["compilation"]
    assert total.tolist() == [0, 2, 4]
    assert product.tolist() == [0, 1, 4]


@pytest.mark.usefixtures("compiled_quickly")
def test_a_run_and_its_resumption_compile_the_step_once(tmp_path, compilations):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    recipe = Recipe(max_steps=2, per_device_train_batch_size=2, warmup_steps=0)
    model = GPT2Config(n_layer=1, n_head=2, n_embd=8, block_size=8)
    job = Job(text=(text,), output_dir=tmp_path / "run")
    for max_steps in (2, 3):
        compilations.clear()
        recipe = dataclasses.replace(recipe, max_steps=max_steps)
        job = dataclasses.replace(job, intended_changes=("max_steps",))
        pretrain(RunConfig(recipe=recipe, model=model, job=job))
        threads = [thread for name, thread in compilations if "train_step" in name]
        assert threads == ["compilation"]


def test_an_error_of_the_compilation_is_raised_by_the_first_call():
    @jax.jit
    def step(x):
        raise ValueError("`x` cannot be traced")

    with compile_ahead(step, 1.0) as compilation:
        timed = FirstStep(step, compilation, lambda *_: None, lambda: 0.0)
        with pytest.raises(ValueError, match="cannot be traced"):
            timed(1.0)


def test_the_context_ends_with_the_compilation():
    is_traced = threading.Event()

    @jax.jit
    def step(x):
        time.sleep(0.2)
        is_traced.set()
        return x

    with pytest.raises(KeyError), compile_ahead(step, 1.0):
        raise KeyError
    assert is_traced.is_set()


def test_a_command_counts_from_the_start_of_the_process(monkeypatch):
    age = _first_step.seconds_since_process_start
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", lambda _: "1 (py) S 1")  # no such field
        since_import = age()
    # The kernel counts in ticks of 10 ms.
    assert since_import - 0.05 < age() < since_import + 60
    begin = age()
    time.sleep(0.1)
    assert 0.05 < age() - begin < 5


def test_only_the_first_step_is_waited_for(monkeypatch):
    waited, reported = [], []
    wait = jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", lambda x: waited.append(x) or wait(x))
    step = jax.jit(lambda x: x + 1)
    with compile_ahead(step, 1) as compilation:
        timed = FirstStep(step, compilation, lambda *x: reported.append(x), lambda: 2.5)
        assert [timed(1), timed(2), timed(3)] == [2, 3, 4]
    assert (waited, reported) == ([2], [(2, 2.5)])
