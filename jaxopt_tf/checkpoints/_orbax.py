"""A tree of arrays on disk, written and read by orbax.

Leaves are stored under their names, flat. So a checkpoint does not depend on the
classes that the tree is made of.
"""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from .._typing import PyTree
from ._record import (
    Record,
    check_fit,
    describe,
    is_key,
    is_python_number,
    named,
    older_leaves,
    read_record,
)

# Arrays of fewer bytes are not worth a memory of their own.
_LARGE = 2**20


class Writer(NamedTuple):
    """Writes one tree after the other, in the background."""

    save: Callable[[Path, PyTree, dict], None]  # returns when the arrays are copied
    wait: Callable[[], None]  # returns when all is on disk, or raises what went wrong


@contextlib.contextmanager
def open_writer(put_in_place: Callable[[Path, Path], None]) -> Iterator[Writer]:
    """Orbax's asynchronous writer, with the last step of a save left to the caller.

    Args:
        put_in_place: is given the complete temporary folder and the path that it is to
            have; called by the first process only, in the background.
    """

    class Temporary(ocp.path.atomicity.AtomicRenameTemporaryPath):
        """Orbax's way of being atomic, without the file that it adds at the end."""

        async def finalize(self) -> None:
            put_in_place(Path(self.get()), Path(self.get_final()))

    checkpointer = ocp.AsyncCheckpointer(
        _handler(),
        # The folder is made at once, so that one which cannot be made is known at once;
        # whether there is one of that name already is for `put_in_place` to see.
        async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
        file_options=ocp.options.FileOptions(skip_sync_file_validations=True),
        checkpoint_metadata_store=_no_metadata_store(),
        temporary_path_class=Temporary,
    )

    copied = make_copier()

    def save(path: Path, arrays: PyTree, notes: dict) -> None:
        leaves = named("arrays", arrays)
        record = Record(notes, describe(leaves))
        # Orbax takes no empty arrays; the record is all there is to them.
        data = {name: _data(leaf) for name, leaf in leaves.items() if leaf.size}
        if not data:
            raise ValueError("`arrays` must hold at least one array, got none.")
        # Files are of 2 GB, orbax's default: each has a thread that writes it, and many
        # threads would take the processor from the step that follows.
        args = ocp.args.PyTreeSave(copied(data), custom_metadata=record._asdict())
        checkpointer.save(path, args=args)

    with _quiet():
        try:
            yield Writer(save, checkpointer.wait_until_finished)
        finally:
            checkpointer.close()


def make_copier() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Copies large arrays of CPU devices, each time into the same memory.

    Orbax copies what is on an accelerator to the host. On a CPU it reads the arrays
    themselves; JAX sees that, and a step that is given them for good puts its results
    elsewhere. That is right, and good enough for small arrays, but new memory is slow
    to get: it made the step after a save of 1.5 GB wait for up to 6 s.

    Returns:
        Arrays by name -> the same with large ones copied; a second call takes over the
        memory of the first one's copies, which must not be used any more then.
    """
    memory: dict[str, jax.Array] = {}

    @functools.partial(jax.jit, donate_argnums=0, keep_unused=True)
    def refill(_: jax.Array, array: jax.Array) -> jax.Array:
        return jnp.copy(array)

    def copy(name: str, array: jax.Array) -> jax.Array:
        old = memory.get(name)
        is_same = old is not None and _where(old) == _where(array)
        return refill(old, array) if is_same else jnp.copy(array)

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
    """The arrays of a checkpoint in the structure of `like`, where `like` has them.

    Raises:
        ValueError: if names, shapes or dtypes are not those of `like`.
    """
    saved = read_record(path).leaves
    wanted = named("like", like)
    older = older_leaves(saved, wanted)
    sources = {source for leaf in older.values() for source in leaf.sources}
    present = {name: leaf for name, leaf in wanted.items() if name not in older}
    current = {n: kind for n, kind in saved.items() if n in present or n not in sources}
    check_fit(path, current, present)
    restore_args = {
        **{name: ocp.RestoreArgs(restore_type=np.ndarray) for name in sources},
        **{name: _restore_args(leaf) for name, leaf in present.items() if leaf.size},
    }
    args = ocp.args.PyTreeRestore(
        item=dict.fromkeys(restore_args, 0), restore_args=restore_args
    )
    with _quiet():
        checkpointer = ocp.Checkpointer(
            _handler(), checkpoint_metadata_store=_no_metadata_store()
        )
        data = checkpointer.restore(path.absolute(), args=args)
        checkpointer.close()
    data |= {
        name: leaf.value(*(data[source] for source in leaf.sources))
        for name, leaf in older.items()
    }
    keys = {name: kind.key for name, kind in saved.items()}
    leaves = [
        _placed(data[name] if leaf.size else _empty(leaf), leaf, keys.get(name))
        for name, leaf in wanted.items()
    ]
    like_leaves, structure = jax.tree.flatten(like)
    return jax.tree.unflatten(
        structure,
        [
            leaf.item() if is_python_number(old) else leaf
            for leaf, old in zip(leaves, like_leaves, strict=True)
        ],
    )


def _handler() -> Any:
    # Compression takes time that the next step would need, and gains 7% on float32.
    # Of each array's sharding and layout nothing is stored: `like` says them.
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
    """Keeps what orbax logs off the console; what goes wrong is raised all the same."""

    def is_of_others(record: logging.LogRecord) -> bool:
        return "orbax" not in Path(record.pathname).parts

    logger = logging.getLogger("absl")
    logger.addFilter(is_of_others)
    try:
        yield
    finally:
        logger.removeFilter(is_of_others)


def _where(array: jax.Array) -> tuple:
    return array.shape, array.dtype, array.sharding


def _data(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def _sharding(leaf: Any) -> jax.sharding.Sharding | None:
    """Where the leaf is bound to lie; None where JAX is free to put it."""
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


def _placed(data: Any, leaf: Any, implementation: str | None) -> Any:
    """As the leaf of a fresh state is, so that a compiled step takes it as it is."""
    if isinstance(leaf, np.ndarray | np.generic):
        return data[()] if isinstance(leaf, np.generic) else data
    sharding = _sharding(leaf)
    if implementation is not None:
        data = jax.random.wrap_key_data(data, impl=implementation)
    # Without a sharding it is not bound to the device that it lies on.
    array = jax.device_put(data, sharding)
    if getattr(leaf, "weak_type", False):
        return jnp.full_like(leaf, 0).at[...].set(array)
    return array


def _empty(leaf: Any) -> np.ndarray:
    return np.zeros(leaf.shape, leaf.dtype)
