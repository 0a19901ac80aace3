"""Fixtures of all tests: strict dtype and rank promotion, and random numbers."""

import importlib.metadata
import os

# Before JAX or torch start. Meshes of 8 devices are tested in `tests/sharding`.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# Of two workers on two cores, torch's threads would wait for each other's cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Commands keep compiled programs in the user's cache folder otherwise.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
# For `compiled_quickly`. The XLA of JAX 0.10 still has its older emitters, and with the
# reset it reads its flags again before each program.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    flags = "--xla_flags_reset=true --xla_cpu_use_fusion_emitters=true"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"

import jax
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _strict_promotion(request):
    """No silent cast and no silent broadcast; `promotion_of_others` opts out."""
    if request.node.get_closest_marker("promotion_of_others"):
        yield
        return
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def compiled_programs(tmp_path_factory):
    """A folder for the programs of all files: many compile the same small runs."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def compiled_once(compiled_programs):
    """For files whose runs compile the same few programs again and again."""
    from jax.experimental.compilation_cache import compilation_cache

    names = {
        "jax_enable_compilation_cache": True,
        "jax_compilation_cache_dir": str(compiled_programs),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in names}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in names.items():  # in the processes that such a test starts
            patch.setenv(name.upper(), str(value))
        for settings in (names, before):
            for name, value in settings.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()
            if settings is names:
                yield


@pytest.fixture(scope="module")
def compiled_quickly():
    """Compiles faster, in a fifth of the time, to slower machine code.

    For files without a numerical reference. LLVM optimizes less, and older emitters of
    XLA write shorter code. The setting also applies to processes that a test starts.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    quick = flags.replace("_fusion_emitters=true", "_fusion_emitters=false")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        patch.setenv("XLA_FLAGS", quick)
        jax.config.update("jax_disable_most_optimizations", True)
        yield
    jax.config.update("jax_disable_most_optimizations", False)
