"""Cache of compiled programs: equal results, damage, settings."""

import json
import os
import shutil
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from jaxopt_tf.checkpoints import find_checkpoints, lock_folder, step_of
from jaxopt_tf.cli import _decay_path, _find_lr, _sweep, _train, main
from jaxopt_tf.jobs import Job, RunConfig, _compilation_cache, compilation_cache
from jaxopt_tf.jobs import pretrain as train
from jaxopt_tf.jobs._run_core import report_first_step
from jaxopt_tf.jobs._run_folder import OpenRun, sequences_of_last_start
from jaxopt_tf.models import GPT2Config
from jaxopt_tf.recipes import Recipe

pytestmark = [
    pytest.mark.promotion_of_others,  # flax's layers
    pytest.mark.usefixtures("compiled_quickly"),
]

TINY = GPT2Config(n_layer=1, n_head=2, n_embd=8, block_size=8)
# Compiles in half the time of AdamW, and has a state.
RECIPE = Recipe(
    max_steps=2,
    learning_rate=1e-2,
    warmup_steps=1,
    per_device_train_batch_size=8,
    optim="sgd",
    optim_args="momentum=0.9",
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The user's cache folder, and JAX's settings as they are by default."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setattr(sys, "platform", "linux")
    jax.config.update("jax_enable_compilation_cache", True)
    jax_cache.reset_cache()
    yield folder
    jax.config.update("jax_enable_compilation_cache", False)
    jax_cache.reset_cache()


@pytest.fixture
def hits(monkeypatch):
    """The names of programs that were read from the cache."""
    found = []
    from jax._src import compiler

    monkeypatch.setattr(
        compiler, "log_persistent_cache_hit", lambda name, _: found.append(name)
    )
    return found


def run(folder, recipe=RECIPE, **settings):
    text = folder.parent / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    settings = {"eval_steps": 2, "save_steps": 1, **settings}
    job = Job(text=(text,), output_dir=folder, **settings)
    return train(RunConfig(recipe=recipe, model=TINY, job=job))


def resumed_from(step, outcome, **settings):
    for checkpoint in find_checkpoints(outcome.folder):
        if step_of(checkpoint) > step:
            shutil.rmtree(checkpoint)
    return run(outcome.folder, **settings)


def product(n):
    """Compiles and runs a program of a few lines."""
    jax.clear_caches()
    return np.asarray(jax.jit(lambda x: jnp.sin(x @ x))(jnp.ones((n, n))))


def files(folder):
    return sorted(folder.rglob("*-cache"))


def make_older(folder, seconds=1_000):
    before = time.time() - seconds
    for path in files(folder):
        os.utime(path, (before, before))


def assert_equal_runs(one, other):
    logs = [(outcome.folder / "metrics.jsonl").read_bytes() for outcome in (one, other)]
    assert logs[0] == logs[1]
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


def test_a_run_has_equal_results_with_cached_programs(tmp_path, home, hits, capsys):
    compiled = run(tmp_path / "compiled")
    assert not files(home)
    with compilation_cache() as folder:
        written = run(tmp_path / "run")
        assert_equal_runs(written, compiled)
        assert "jit_train_step" not in hits
        assert_equal_runs(resumed_from(1, written), compiled)
        assert {"jit_train_step", "jit_eval_step"} <= set(hits)
        for path in files(folder):
            path.write_bytes(b"garbage")
        make_older(folder)
        hits.clear()
        printed = capsys.readouterr().out
        assert_equal_runs(resumed_from(1, written), compiled)
        assert hits == []
        assert len(capsys.readouterr().err.splitlines()) == 1
        check_starts(written.folder, printed)


def check_starts(folder, printed):
    text = (folder / "starts.jsonl").read_text()
    starts = [json.loads(line) for line in text.splitlines()]
    assert [start["step"] for start in starts] == [0, 1, 1]
    seconds = [start["seconds_to_first_step"] for start in starts]
    assert min(seconds) > 0
    for value in seconds[:2]:
        assert f"start   first step after {value:.1f} s\n" in printed
    # A finished run has no first step.
    run(folder)
    assert (folder / "starts.jsonl").read_text() == text


def test_a_run_on_eight_devices_has_equal_results_with_cached_programs(
    tmp_path, home, hits
):
    with compilation_cache():
        # The first run executes the programs that it compiles.
        written = run(tmp_path / "run", mesh="data=4,fsdp=2")
        copy = written._replace(folder=tmp_path / "copy")
        shutil.copytree(written.folder, copy.folder)
        hits.clear()
        read = resumed_from(1, written, mesh="data=4,fsdp=2")
        assert {"jit_train_step", "jit_eval_step"} <= set(hits)
        assert_equal_runs(read, copy)


DAMAGES = {
    "garbage": lambda data: os.urandom(len(data)),
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "one bit": lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_replaced_with_one_note(home, hits, capsys, damage):
    with compilation_cache() as folder:
        expected = product(40), product(50)
        paths = files(folder)
        whole = {path: path.read_bytes() for path in paths}
        for path in paths:
            path.write_bytes(damage(whole[path]))
        make_older(folder)
        hits.clear()
        assert capsys.readouterr().err == ""
        found = product(40), product(50)  # a warning is an error in pytest
        assert "jit__lambda" not in hits
        np.testing.assert_equal(found, expected)
        (line,) = capsys.readouterr().err.splitlines()
        assert f"jaxopt-tf: the compilation cache {folder} failed in reading" in line
        assert files(folder) == paths
        for path in paths:
            zlib.decompress(path.read_bytes())
        np.testing.assert_equal(product(40), expected[0])
        assert capsys.readouterr().err == ""
        assert hits


def test_a_file_that_another_process_is_writing_is_left_alone(home, capsys):
    with compilation_cache() as folder:
        product(40)
        for path in files(folder):
            path.write_bytes(b"the first half")
        product(40)
        assert {path.read_bytes() for path in files(folder)} == {b"the first half"}
    assert capsys.readouterr().err == ""


def test_other_warnings_are_still_shown(home):
    with compilation_cache(), pytest.warns(UserWarning, match="of the user"):
        warnings.warn("of the user", stacklevel=1)


def test_an_unwritable_folder_is_a_note(home, capsys):
    home.write_text("a file in the place of the folder")
    with compilation_cache() as folder:
        assert folder is None
        product(40)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("jaxopt-tf: there is no compilation cache: ")
    assert f"{str(home)!r}"[:-1] in line
    assert line.endswith("Set JAX_COMPILATION_CACHE_DIR to another folder.")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root")
def test_a_read_only_folder_is_a_note(home, capsys):
    home.mkdir(mode=0o500)
    with compilation_cache() as folder:
        assert folder is None
    assert "is not writable (Permission denied)" in capsys.readouterr().err


def test_a_folder_of_jaxs_settings_is_used_as_it_is(home, tmp_path, capsys):
    own = tmp_path / "own"
    with jax_settings(own), compilation_cache() as folder:
        assert folder is None
        assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.5
        product(40)
        assert own.is_dir()
        assert not files(own)  # too fast for the user's minimum
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        product(40)
        for path in files(own):
            path.write_bytes(b"garbage")
        make_older(own)
        product(40)
        assert {path.read_bytes() for path in files(own)} == {b"garbage"}
    assert not home.exists()
    assert f"cache {own} failed in reading" in capsys.readouterr().err


def test_it_can_be_switched_off(home, tmp_path):
    with jax_settings(tmp_path / "own"):
        with compilation_cache(enabled=False) as folder:
            assert folder is None
            product(40)
        assert jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    with compilation_cache() as folder:
        assert folder is None
        product(40)
    assert not home.exists()
    assert not (tmp_path / "own").exists()


class jax_settings:  # noqa: N801
    """Settings of a user, restored at the end."""

    def __init__(self, folder):
        self.new = {
            "jax_compilation_cache_dir": str(folder),
            "jax_persistent_cache_min_compile_time_secs": 0.5,
        }

    def __enter__(self):
        self.old = {name: getattr(jax.config, name) for name in self.new}
        for name, value in self.new.items():
            jax.config.update(name, value)
        jax_cache.reset_cache()

    def __exit__(self, *_):
        for name, value in self.old.items():
            jax.config.update(name, value)
        jax_cache.reset_cache()


def test_the_configuration_is_restored(home, monkeypatch):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_entry_size_bytes")
    before = [getattr(jax.config, name) for name in names]
    seconds = jax.config.jax_persistent_cache_min_compile_time_secs
    with compilation_cache() as folder:
        assert [getattr(jax.config, name) for name in names] == [str(folder), -1]
        # The environment takes precedence.
        assert jax.config.jax_persistent_cache_min_compile_time_secs == seconds
        product(40)
    assert [getattr(jax.config, name) for name in names] == before
    count = len(files(home))
    product(60)
    assert len(files(home)) == count


def test_each_cpu_has_a_folder(home, monkeypatch):
    names = set()
    for flags in ("sse2 avx2", "sse2 avx2 avx512f"):
        monkeypatch.setattr(_compilation_cache, "_cpu_description", lambda f=flags: [f])
        with compilation_cache() as folder:
            names.add(folder.name)
            assert folder.name.startswith(f"cpu-jax-{jax.__version__}-")
            if os.name == "posix":
                assert folder.stat().st_mode & 0o077 == 0
    assert len(names) == 2


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux")
def test_the_description_of_a_cpu_has_its_instructions():
    flags = max(_compilation_cache._cpu_description(), key=len).split()
    assert {"sse2", "fp", "asimd"} & set(flags)


def test_old_files_are_removed(home, monkeypatch):
    with compilation_cache() as folder:
        product(40)
    other = folder.with_name("cpu-jax-0.1.0-0123")
    other.mkdir()
    with compilation_cache():
        assert other.exists()
    os.utime(other, (0, 0))
    newest, oldest = folder / "jit_a-1-cache", folder / "jit_b-2-cache"
    newest.write_bytes(bytes(100_000))
    oldest.write_bytes(bytes(100_000))
    os.utime(oldest, (0, 0))
    monkeypatch.setattr(_compilation_cache, "_MAX_BYTES", 2 * 110_000)
    with compilation_cache():
        assert not other.exists()
        assert oldest.exists()
        monkeypatch.setattr(_compilation_cache, "_MAX_BYTES", 190_000)
    with compilation_cache():
        assert not oldest.exists()
        make_older(folder, -1_000)
        monkeypatch.setattr(_compilation_cache, "_MAX_BYTES", 1)
    with compilation_cache():
        assert not files(folder)


def test_processes_share_a_folder(tmp_path):
    environment = os.environ | {
        "XDG_CACHE_HOME": str(tmp_path),
        "JAX_ENABLE_COMPILATION_CACHE": "true",
    }
    code = (
        "from jaxopt_tf.jobs._compilation_cache import compilation_cache as c\n"
        "import jax, jax.numpy as jnp\n"
        "with c():\n"
        "    for n in range(20, 24):\n"
        "        print(float(jax.jit(lambda x: jnp.sin(x @ x).sum())(jnp.eye(n))))"
    )
    command = [sys.executable, "-c", code]
    processes = [
        subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    (one, errors), (other, more) = (process.communicate() for process in processes)
    assert (errors, more) == ("", "")
    assert one == other
    assert one.count("\n") == 4
    assert len(files(tmp_path)) >= 4


@pytest.mark.parametrize(
    ("module", "name", "flags"),
    [
        (_train, "pretrain", "train"),
        (_find_lr, "_find_lr", "find-lr"),
        (_sweep, "_sweep", "sweep --over learning_rate=1e-3,1e-2"),
        (_decay_path, "_decay_path", "decay-path"),
    ],
)
def test_commands_use_it(home, monkeypatch, module, name, flags):
    seen = []

    def body(*_, **__):
        config = jax.config
        seen.append(
            config.jax_enable_compilation_cache and config.jax_compilation_cache_dir
        )
        raise ValueError("stop here")

    monkeypatch.setattr(module, name, body)
    assert main(flags.split()) == 2
    assert Path(seen[0]).parent == home / "jaxopt_tf" / "compiled"
    assert main([*flags.split(), "--no_compilation_cache"]) == 2
    assert not seen[1]


def test_a_start_without_a_first_step_has_a_line(tmp_path, capsys):
    line = '{"step": 0, "sequences": 6}'
    starts = tmp_path / "starts.jsonl"
    starts.write_text(f"{line}\n{line}\n")
    assert sequences_of_last_start(tmp_path) == {"sequences": 6}
    with lock_folder(tmp_path) as lock:
        opened = OpenRun(
            lock=lock, corpus=None, settings={}, checkpoint=None, is_finished=False
        )
        # Rounded to a decimal, this is 1.3, and the value in the file 1.4.
        report_first_step(opened, 1.3496)
    first, second = starts.read_text().splitlines()
    assert first == line
    assert json.loads(second) == json.loads(line) | {"seconds_to_first_step": 1.35}
    assert capsys.readouterr().out == "start   first step after 1.4 s\n"
    assert sequences_of_last_start(tmp_path) == {"sequences": 6}
