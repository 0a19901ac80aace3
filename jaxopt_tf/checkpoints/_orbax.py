"""Trees of arrays on disk, written and read by orbax.

Leaves are stored in a flat dict under their names, so that a checkpoint does not depend
on the classes of the tree.

`CheckpointManager` is not used: it would store the arrays in a subfolder that
checkpoints so far do not have, write a second set of checksums for it, refuse to
replace a step, and need a naming and a retention policy of our own.
"""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from .._typing import PyTree
from ._record import (
    Record,
    check_compatible,
    describe,
    is_key,
    is_python_number,
    named,
    older_leaves,
    read_record,
)

# Smaller arrays are not copied into memory of their own.
_LARGE = 2**20


class Writer:
    """Orbax's asynchronous writer, with the last step of a save left to the caller."""

    def __init__(self, finish: Callable[[Path, Path], None]) -> None:
        """Creates a writer.

        Args:
            finish: receives the complete temporary folder and the path that it is to
                have; called by the first process only, in the background.
        """

        class Temporary(ocp.path.atomicity.AtomicRenameTemporaryPath):
            """Orbax's way of being atomic, without the file that it adds at the end."""

            async def finalize(self) -> None:
                finish(Path(self.get()), Path(self.get_final()))

        self._checkpointer = ocp.AsyncCheckpointer(
            _handler(),
            # The folder is created at once, so that an error is raised at once;
            # `finish` replaces a folder that has the name already.
            async_options=ocp.options.AsyncOptions(
                create_directories_asynchronously=False
            ),
            file_options=ocp.options.FileOptions(skip_sync_file_validations=True),
            checkpoint_metadata_store=_no_metadata_store(),
            temporary_path_class=Temporary,
        )
        self._copied = make_host_copier()
        # Returns when all is on disk, or raises what went wrong.
        self.wait = self._checkpointer.wait_until_finished
        self.close = self._checkpointer.close

    def save(self, path: Path, arrays: PyTree, notes: dict[str, Any]) -> None:
        """Starts a save; returns when the arrays are copied."""
        leaves = named("arrays", arrays)
        record = Record(notes, describe(leaves))
        # Orbax takes no empty arrays; the record has their shape and dtype.
        data = {name: _data(leaf) for name, leaf in leaves.items() if leaf.size}
        if not data:
            raise ValueError("`arrays` must hold at least one array, got none.")
        # Files are of 2 GB, orbax's default: each has a thread that writes it, and many
        # threads would take the processor from the step that follows.
        args = ocp.args.PyTreeSave(self._copied(data), custom_metadata=record._asdict())
        self._checkpointer.save(path, args=args)


@contextlib.contextmanager
def open_writer(finish: Callable[[Path, Path], None]) -> Iterator[Writer]:
    """Opens a `Writer`, and closes it at the end."""
    with _quiet(), contextlib.closing(Writer(finish)) as writer:
        yield writer


def make_host_copier() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Returns a function that copies large CPU arrays, always into the same memory.

    Orbax copies arrays of an accelerator to the host. On a CPU it reads the arrays
    themselves; JAX notices, and a step to which they are donated allocates its results.
    That is correct, and fast enough for small arrays, but allocating is slow: the step
    after a save of 1.5 GB waited for up to 6 s.

    Returns:
        Arrays by name -> the same with large ones copied; a second call reuses the
        memory of the first one's copies, which must not be used any more then.
    """
    memory: dict[str, jax.Array] = {}

    @functools.partial(jax.jit, donate_argnums=0, keep_unused=True)
    def refill(_: jax.Array, array: jax.Array) -> jax.Array:
        return jnp.copy(array)

    def copy(name: str, array: jax.Array) -> jax.Array:
        old = memory.get(name)
        if old is not None and all(
            getattr(old, field) == getattr(array, field)
            for field in ("shape", "dtype", "sharding")
        ):
            return refill(old, array)
        return jnp.copy(array)

    def copied(data: dict[str, Any]) -> dict[str, Any]:
        new = {
            name: copy(name, array)
            for name, array in data.items()
            if isinstance(array, jax.Array)
            and array.nbytes >= _LARGE
            and all(device.platform == "cpu" for device in array.devices())
        }
        memory.clear()
        memory.update(new)
        return data | new

    return copied


def read_arrays(path: Path, like: PyTree) -> PyTree:
    """Reads the arrays of a checkpoint in the structure and shardings of `like`.

    Raises:
        ValueError: if names, shapes or dtypes are not those of `like`.
    """
    saved = read_record(path).leaves
    wanted = named("like", like)
    older = older_leaves(saved, wanted)
    sources = {source for leaf in older.values() for source in leaf.sources}
    present = {name: leaf for name, leaf in wanted.items() if name not in older}
    current = {n: kind for n, kind in saved.items() if n in present or n not in sources}
    check_compatible(path, current, present)
    restore_args = {
        **{name: ocp.RestoreArgs(restore_type=np.ndarray) for name in sources},
        **{name: _restore_args(leaf) for name, leaf in present.items() if leaf.size},
    }
    args = ocp.args.PyTreeRestore(
        item=dict.fromkeys(restore_args, 0), restore_args=restore_args
    )
    checkpointer = ocp.Checkpointer(
        _handler(), checkpoint_metadata_store=_no_metadata_store()
    )
    with _quiet(), contextlib.closing(checkpointer):
        data = checkpointer.restore(path.absolute(), args=args)
    data |= {
        name: leaf.value(*(data[source] for source in leaf.sources))
        for name, leaf in older.items()
    }
    keys = {name: kind.key for name, kind in saved.items()}
    like_leaves, structure = jax.tree.flatten(like)
    leaves = [
        _restored_leaf(
            data[name] if leaf.size else np.zeros(leaf.shape, leaf.dtype),
            like_leaf,
            keys.get(name),
        )
        for (name, leaf), like_leaf in zip(wanted.items(), like_leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, leaves)


def _handler() -> Any:
    # Compression takes time that the next step would need, and gains 7% on float32.
    # Sharding and layout of arrays are not stored: those of `like` are used.
    types = ocp.type_handlers
    registry = types.create_type_handler_registry(
        (np.ndarray, types.NumpyHandler()),
        (jax.Array, types.ArrayHandler(enable_write_sharding_file=False)),
    )
    return ocp.PyTreeCheckpointHandler(
        use_compression=False, type_handler_registry=registry
    )


def _no_metadata_store() -> Any:
    return ocp.metadata.metadata_store(enable_write=False, blocking_write=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps orbax's log messages off the console; errors are raised all the same."""

    def is_of_others(record: logging.LogRecord) -> bool:
        return "orbax" not in Path(record.pathname).parts

    logger = logging.getLogger("absl")
    logger.addFilter(is_of_others)
    try:
        yield
    finally:
        logger.removeFilter(is_of_others)


def _data(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def _sharding(leaf: Any) -> jax.sharding.Sharding | None:
    """Returns the sharding of a leaf; None if it is not committed to its devices."""
    if isinstance(leaf, jax.Array) and not leaf.committed:
        return None
    return getattr(leaf, "sharding", None)


def _restore_args(leaf: Any) -> Any:
    sharding = _sharding(leaf)
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    # A key is stored with an axis more, which a spec need not mention.
    shape = None if is_key(leaf) else leaf.shape
    return ocp.ArrayRestoreArgs(
        restore_type=jax.Array, sharding=sharding, global_shape=shape
    )


def _restored_leaf(data: Any, leaf: Any, implementation: str | None) -> Any:
    """Returns `data` as a leaf like `leaf`, so that no step is recompiled."""
    if is_python_number(leaf):
        return data.item()
    if isinstance(leaf, np.ndarray | np.generic):
        return data[()] if isinstance(leaf, np.generic) else data
    sharding = _sharding(leaf)
    if implementation is not None:
        data = jax.random.wrap_key_data(data, impl=implementation)
    # Without a sharding it is not committed to its device.
    array = jax.device_put(data, sharding)
    if getattr(leaf, "weak_type", False):
        return jnp.full_like(leaf, 0).at[...].set(array)
    return array
