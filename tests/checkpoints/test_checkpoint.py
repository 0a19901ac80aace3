"""Saving of checkpoints, during training and under failures."""

import contextlib
import functools
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_tf.checkpoints import (
    latest_valid,
    lock_folder,
    open_checkpoints,
    restore,
    restore_latest,
)
from jaxopt_tf.optimizers import adamw_tf, clip
from jaxopt_tf.schedules import greedy
from jaxopt_tf.training import init_train_state, make_train_step

pytestmark = [
    pytest.mark.promotion_of_others,  # optax.apply_updates
    pytest.mark.usefixtures("compiled_quickly"),
]

NAN_WITH_A_MESSAGE = np.array([0x7FC12345, 0x80000000], np.uint32).view(np.float32)


def sharded(array, *axes):
    mesh = jax.make_mesh((2,), ("data",))
    spec = jax.sharding.PartitionSpec(*axes)
    return jax.device_put(array, jax.sharding.NamedSharding(mesh, spec))


def loss_fn(params, batch, rng):
    kept = jax.random.bernoulli(rng, 0.9, params["kernel"].shape)
    outputs = batch @ (params["kernel"] * kept).astype(jnp.float32) + params["bias"]
    return jnp.sum(outputs**2), jnp.asarray(len(batch), jnp.int32)


OPTIMIZER = optax.chain(clip(1.0), adamw_tf(1e-2), optax.identity())
BATCH = np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3)


def fresh_state():
    kernel = jnp.linspace(-1, 1, 6).reshape(3, 2)
    params = {"kernel": kernel.astype(jnp.bfloat16), "bias": jnp.zeros(2)}
    return init_train_state(params, OPTIMIZER, rng=0)


def bits(leaf):
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    leaves = jax.tree_util.tree_leaves_with_path(expected)
    for (path, e), a in zip(leaves, jax.tree.leaves(actual), strict=True):
        name = jax.tree_util.keystr(path)
        assert np.shape(a) == np.shape(e), name
        assert getattr(a, "dtype", type(a)) == getattr(e, "dtype", type(e)), name
        assert bits(a) == bits(e), name


@contextlib.contextmanager
def saving(folder, **options):
    with lock_folder(folder) as lock, open_checkpoints(lock, **options) as checkpoints:
        yield checkpoints


def test_every_kind_of_leaf_is_restored_exactly(tmp_path):
    arrays = {
        "state": fresh_state(),
        "schedule": greedy(1e-3, smooth=True, window_size=3).init(),
        "odd numbers": jnp.asarray(NAN_WITH_A_MESSAGE),
        "all the fill value": -jnp.zeros(3),
        "uint32": jnp.arange(3, dtype=jnp.uint32),
        "bool": jnp.array([True, False]),
        "none": None,
        "empty": jnp.zeros((0, 3)),
        "weak": jnp.asarray(2.5),
        "numpy": np.arange(3, dtype=np.int64),
        "number": np.float64(1 / 3),
        "Python": {"float": 1 / 3, "int": 2**40, "bool": True, "inf": -np.inf},
        "a": [optax.EmptyState(), jnp.ones(3)],
        "a.1/0": jnp.zeros(3),  # where a part of the one above is kept
        "bound": jax.device_put(1.0, jax.devices()[1]),
        "divided": sharded(jnp.arange(8.0), "data"),
        "repeated": sharded(jnp.arange(6.0)),
        "empty and repeated": sharded(jnp.zeros((0, 2))),
        "keys": sharded(jax.random.split(jax.random.key(1), 4), "data"),
        "other key": jax.random.key(2, impl="rbg"),
    }
    with saving(tmp_path) as checkpoints:
        assert checkpoints.save(7, arrays, {}) == tmp_path / "checkpoint-7"
    restored = restore_latest(tmp_path, arrays).arrays
    assert_same(restored, arrays)
    for actual, expected in zip(
        jax.tree.leaves(restored), jax.tree.leaves(arrays), strict=True
    ):
        assert type(actual) is type(expected)
        if isinstance(expected, jax.Array):
            assert actual.sharding == expected.sharding
            assert actual.committed == expected.committed
            assert jax.typeof(actual) == jax.typeof(expected)  # its weak type too


def test_float64_leaves_are_restored_exactly(tmp_path):
    with jax.enable_x64(True):
        params = {"wide": jnp.arange(6.0).reshape(3, 2) / 3, "bias": jnp.zeros(2)}
        state = OPTIMIZER.init(params)
        _, state = OPTIMIZER.update(params, state, params)
        arrays = {"params": params, "state": state}
        assert optax.tree.get(state, "grad_norm").dtype == jnp.float64
        with saving(tmp_path) as checkpoints:
            checkpoints.save(1, arrays, {})
        assert_same(restore_latest(tmp_path, arrays).arrays, arrays)


def test_saves_the_state_at_the_time_of_the_call(tmp_path):
    # On CPUs orbax writes from the memory of the arrays, which the next step wants.
    @functools.partial(jax.jit, donate_argnums=0)
    def step(arrays):
        return jax.tree.map(lambda x: 1.5 * x + 1, arrays)

    large = np.linspace(0, 1, 300_000, dtype=np.float32)
    arrays = {"divided": sharded(large, "data"), "repeated": sharded(large)}
    arrays["on one device"] = jnp.array(large)
    arrays = step(arrays)
    host = np.ones(1000)
    expected = []
    with saving(tmp_path) as checkpoints:
        for i in range(3):
            expected.append(jax.tree.map(np.array, arrays | {"host": host}))
            checkpoints.save(i, arrays | {"host": host}, {})
            host += 1
            for _ in range(30):
                arrays = step(arrays)
    for i in range(3):
        restored = restore(tmp_path / f"checkpoint-{i}", expected[i])
        assert_same(restored.arrays, expected[i])


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no own priority")
def test_only_threads_that_write_files_have_a_lower_priority(tmp_path):
    niceness = os.getpriority(os.PRIO_PROCESS, os.getpid())
    with saving(tmp_path) as checkpoints:
        # The files of so large an array are written after `save` has returned.
        checkpoints.save(1, {"w": jnp.ones(2**24)}, {})
        checkpoints.wait()
        priorities = {}
        for thread in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):  # the thread has ended
                name = (thread / "comm").read_text().strip()
                own = os.getpriority(os.PRIO_PROCESS, int(thread.name))
                priorities.setdefault(name.startswith("ts_pool"), set()).add(own)
    assert priorities == {False: {niceness}, True: {min(niceness + 10, 19)}}


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no own priority")
def test_checksums_of_a_save_are_computed_at_a_lower_priority(tmp_path, monkeypatch):
    niceness, digest = [], hashlib.file_digest

    def file_digest(*args):
        thread = threading.get_native_id()
        niceness.append(os.getpriority(os.PRIO_PROCESS, thread))
        return digest(*args)

    monkeypatch.setattr(hashlib, "file_digest", file_digest)
    own = os.getpriority(os.PRIO_PROCESS, os.getpid())
    with saving(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(3)}, {})
    assert set(niceness) == {min(own + 10, 19)}
    niceness.clear()
    assert latest_valid(tmp_path) is not None
    assert set(niceness) == {own}


def test_reserves_memory_for_the_copies_of_a_save(tmp_path):
    arrays = {
        "w": jnp.ones(300_000),
        "key": jax.random.key(1),
        "number": 3,
        "none": None,
    }
    with saving(tmp_path) as checkpoints:
        checkpoints.reserve(arrays)
        checkpoints.save(1, arrays, {})
    assert_same(restore_latest(tmp_path, arrays).arrays, arrays)


@pytest.mark.parametrize("is_abstract", [False, True], ids=["arrays", "shapes"])
def test_restored_state_resumes_bit_for_bit_without_recompilation(
    tmp_path, is_abstract
):
    traces = []

    def counted(*arguments):
        traces.append(1)
        return loss_fn(*arguments)

    step = make_train_step(counted, OPTIMIZER)
    state = fresh_state()
    with saving(tmp_path) as checkpoints:
        for i in range(5):
            if i == 2:
                checkpoints.save(i, state, {})
            state, _ = step(state, BATCH)
    num_traces, num_compiled = len(traces), step._cache_size()
    like = jax.eval_shape(fresh_state) if is_abstract else fresh_state()
    restored = restore_latest(tmp_path, like).arrays
    for _ in range(3):
        restored, _ = step(restored, BATCH)
    assert_same(restored, state)
    assert len(traces) == num_traces
    assert step._cache_size() == num_compiled == 1


def test_restored_state_hits_the_persistent_compilation_cache(tmp_path):
    events = []
    jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
    options = {
        "jax_enable_compilation_cache": True,
        "jax_compilation_cache_dir": str(tmp_path / "cache"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    from jax.experimental.compilation_cache import compilation_cache

    def compiled(state):
        """Events of a first call in what could be a new process."""
        jax.clear_caches()
        step = make_train_step(loss_fn, OPTIMIZER)
        events.clear()
        jax.block_until_ready(step(state, BATCH))
        return [event for event in events if "compilation_cache/cache_" in event]

    try:
        for name, value in options.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        state = fresh_state()
        with saving(tmp_path) as checkpoints:
            checkpoints.save(0, state, {})
        assert "/jax/compilation_cache/cache_misses" in compiled(state)
        restored = restore_latest(tmp_path, jax.eval_shape(fresh_state)).arrays
        assert set(compiled(restored)) == {"/jax/compilation_cache/cache_hits"}
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        jax.monitoring.clear_event_listeners()


def test_keeps_the_newest_and_the_best(tmp_path):
    with saving(tmp_path, save_total_limit=2) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, {"w": jnp.ones(2)}, {}, best_step=min(step, 2))
            checkpoints.wait()
            there = sorted(path.name for path in tmp_path.glob("*checkpoint*"))
            steps = {1: [1], 2: [1, 2], 3: [2, 3], 4: [2, 4]}[step]
            assert there == [f"checkpoint-{step}" for step in steps]


def test_deletes_the_checkpoint_that_another_replaces(tmp_path):
    with saving(tmp_path) as checkpoints:
        for step, replaces in ((1, None), (2, None), (3, 2), (4, 9)):
            checkpoints.save(step, {"w": jnp.ones(2)}, {}, replaces=replaces)
    there = sorted(path.name for path in tmp_path.glob("*checkpoint*"))
    assert there == ["checkpoint-1", "checkpoint-3", "checkpoint-4"]


def test_replaces_a_checkpoint_that_has_the_step_already(tmp_path):
    with saving(tmp_path) as checkpoints:
        checkpoints.save(20, {"w": jnp.ones(2)}, {})
        checkpoints.wait()
        (tmp_path / "checkpoint-20" / "manifest.ocdbt").unlink()
        checkpoints.save(20, {"w": jnp.zeros(2)}, {"is": "new"})
    assert [path.name for path in tmp_path.glob("*checkpoint*")] == ["checkpoint-20"]
    assert restore_latest(tmp_path, {"w": jnp.ones(2)}).metadata == {"is": "new"}


def test_removes_an_interrupted_save_and_reports_it(tmp_path):
    (tmp_path / "checkpoint-5.orbax-checkpoint-tmp").mkdir()
    said = []
    with saving(tmp_path, report=said.append):
        assert not (tmp_path / "checkpoint-5.orbax-checkpoint-tmp").exists()
    assert len(said) == 1
    assert "checkpoint-5.orbax-checkpoint-tmp is incomplete" in said[0]


def test_refuses_what_cannot_be_saved(tmp_path):
    with saving(tmp_path) as checkpoints:
        with pytest.raises(
            TypeError, match="`metadata` must be serializable as JSON, but"
        ):
            checkpoints.save(1, {"w": jnp.ones(2)}, {"path": tmp_path})
        with pytest.raises(
            ValueError, match="`arrays` must contain at least one array"
        ):
            checkpoints.save(1, {"w": None}, {})
        with pytest.raises(TypeError, match="`arrays` must contain only arrays, got"):
            checkpoints.save(1, {"w": "1.0"}, {})
        with pytest.raises(ValueError, match="`step` must be from 0"):
            checkpoints.save(-1, {"w": jnp.ones(2)}, {})
    with (
        pytest.raises(ValueError, match="`save_total_limit` must be from 0"),
        saving(tmp_path, save_total_limit=-1),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]


def test_reports_old_checkpoints_that_cannot_be_deleted(tmp_path):
    in_the_way = tmp_path / "deleted-checkpoint-1"
    with saving(tmp_path, save_total_limit=1) as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(2)}, {})
        checkpoints.wait()
        in_the_way.mkdir()
        (in_the_way / "file").touch()
        checkpoints.save(2, {"w": jnp.ones(2)}, {})
        with pytest.raises(OSError, match="is complete, but older ones could not be"):
            checkpoints.wait()
    assert latest_valid(tmp_path) == tmp_path / "checkpoint-2"


def test_reports_a_folder_that_became_read_only(tmp_path):
    folder = tmp_path / "run"
    with saving(folder) as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(2)}, {})
        checkpoints.wait()
        folder.rename(tmp_path / "elsewhere")
        folder.touch()
        with pytest.raises(OSError, match="checkpoint-2' could not be written: "):
            checkpoints.save(2, {"w": jnp.ones(2)}, {})
    assert latest_valid(tmp_path / "elsewhere") is not None


def run(code, *arguments):
    """A process of its own, with its output."""
    command = [sys.executable, "-W", "error", "-c", PROGRAM + code, *arguments]
    return subprocess.run(
        [str(argument) for argument in command],
        capture_output=True,
        text=True,
        timeout=120,
    )


PROGRAM = """
import contextlib, resource, sys
import jax.numpy as jnp
from jaxopt_tf.checkpoints import lock_folder, open_checkpoints
"""

# A disk with room for some: 2 fails, 3 does not, 4 is seen at the end of the `with`.
FILLS_THE_DISK = """
small, large = {"w": jnp.arange(10.0)}, {"w": jnp.arange(3e6)}
with contextlib.suppress(OSError), lock_folder(sys.argv[1]) as held:
    with open_checkpoints(held) as checkpoints:
        checkpoints.save(1, small, {})
        checkpoints.wait()
        if sys.argv[2] == "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
        checkpoints.save(2, large, {})
        try:
            checkpoints.save(3, small, {})
        except OSError as error:
            print(error)
            checkpoints.save(3, small, {})
        checkpoints.save(4, large, {})
    print("no error")
"""


@pytest.fixture
def small_disk(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def assert_fails_and_goes_on(folder, kind, reason):
    done = run(FILLS_THE_DISK, folder, kind)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # orbax logs every error with its traceback
    (line,) = done.stdout.splitlines()
    path = str(folder / "checkpoint-2")
    assert line.startswith(f"The checkpoint {path!r} could not be written: ")
    assert reason in line
    there = sorted(path.name for path in folder.glob("*checkpoint*"))
    assert there == ["checkpoint-1", "checkpoint-3"]
    restored = restore_latest(folder, {"w": jnp.zeros(10)})
    np.testing.assert_array_equal(restored.arrays["w"], np.arange(10))


def test_reports_a_file_over_the_size_limit_and_continues(tmp_path):
    assert_fails_and_goes_on(tmp_path, "limit", "File too large")


def test_reports_a_full_disk_and_continues(small_disk):
    assert_fails_and_goes_on(small_disk / "run", "disk", "No space left on device")


SAVES_UNTIL_KILLED = """
lock = lock_folder(sys.argv[1])
with lock as held, open_checkpoints(held, save_total_limit=2) as saves:
    for step in range(int(sys.argv[2]), 10_000):
        saves.save(step, {"w": jnp.full(1000, step)}, {"step": step})
        print(step, flush=True)
"""


def test_survives_being_killed_at_any_moment(tmp_path):
    moments = random.Random(0)
    newest = 0
    for _ in range(2):
        command = [sys.executable, "-c", PROGRAM + SAVES_UNTIL_KILLED]
        with subprocess.Popen(
            [*command, str(tmp_path), str(newest + 1)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            for _ in range(3):
                process.stdout.readline()
            time.sleep(moments.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
        said = []
        restored = restore_latest(
            tmp_path, {"w": jnp.zeros(1000, jnp.int32)}, report=said.append
        )
        assert restored.step > newest
        assert restored.metadata == {"step": restored.step}
        assert set(np.asarray(restored.arrays["w"])) == {restored.step}
        assert all("is incomplete" in line for line in said)
        newest = restored.step


def test_process_that_does_not_wait_for_a_save_still_exits(tmp_path):
    done = run(
        "held = lock_folder(sys.argv[1]).__enter__()\n"
        "checkpoints = open_checkpoints(held).__enter__()\n"
        'checkpoints.save(1, {"w": jnp.ones(3)}, {})\n',
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    latest_valid(tmp_path, report=print)
