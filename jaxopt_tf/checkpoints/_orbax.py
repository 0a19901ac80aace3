"""Storage of trees of arrays with orbax.

Leaves are stored as a flat dict by name, so that a checkpoint does not depend on the
classes of the tree.

Orbax's `CheckpointManager` is not used. It stores arrays in a subfolder that existing
checkpoints do not have. It also writes a second set of checksums, cannot replace a
step, and would require custom policies for names and retention.
"""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from .._io import is_primary_process
from .._typing import PyTree
from ._host_copies import HostCopies
from ._priority import WriterPriority
from ._record import (
    Record,
    changed_moments,
    check_compatible,
    converted_leaves,
    describe,
    is_key,
    is_python_number,
    leaves_by_name,
    read_record,
)


class Writer:
    """Asynchronous checkpointer of orbax, with a custom finalization of each save."""

    def __init__(self, finish: Callable[[Path, Path], None]) -> None:
        """Creates a writer.

        Args:
            finish: function that receives the complete temporary folder and its final
                path, and renames the folder; called by process 0 only, in a background
                thread.
        """

        class Temporary(ocp.path.atomicity.AtomicRenameTemporaryPath):
            """Temporary folder of orbax whose finalization is `finish`."""

            async def finalize(self) -> None:
                # Orbax would add the file `commit_success.txt` and rename the folder.
                # `finish` adds checksums before it renames the folder. They must be
                # written after all other files.
                finish(Path(self.get()), Path(self.get_final()))

        self._priority = WriterPriority()
        self._checkpointer = ocp.AsyncCheckpointer(
            _handler(),
            # The folder is created synchronously, so that `save` raises an error if it
            # cannot be created.
            async_options=ocp.options.AsyncOptions(
                create_directories_asynchronously=False,
                # Called in each process when it has written its files.
                post_finalization_callback=self._priority.stop,
            ),
            # The validations would reject an existing final path, which `finish`
            # replaces.
            file_options=ocp.options.FileOptions(skip_sync_file_validations=True),
            checkpoint_metadata_store=_no_metadata_store(),
            temporary_path_class=Temporary,
        )
        self._copies = HostCopies()
        # Blocks until the save is complete; raises the error of a failed save.
        self.wait = self._checkpointer.wait_until_finished

    def close(self) -> None:
        """Waits for background threads, and closes the checkpointer."""
        self._copies.close()
        self._checkpointer.close()
        self._priority.stop()

    def reserve(self, arrays: PyTree) -> None:
        """Allocates memory for the copies of `save` in the background."""
        self._copies.reserve(map(_storable, jax.tree.leaves(arrays)))

    def save(self, path: Path, arrays: PyTree, metadata: dict[str, Any]) -> None:
        """Starts a save; returns when the arrays are copied to the host."""
        leaves = leaves_by_name("arrays", arrays)
        record = Record(metadata, describe(leaves))
        # Orbax does not accept empty arrays. Their shapes and dtypes are in the record.
        data = {name: _storable(leaf) for name, leaf in leaves.items() if leaf.size}
        if not data:
            raise ValueError("`arrays` must contain at least one array, got none.")
        # The maximum file size is left at orbax's default of 2 GB. Orbax writes each
        # file in its own thread, and the threads of more and smaller files would slow
        # down the next training step.
        content = record.to_json()
        copied = self._copies.copy(data)
        args = ocp.args.PyTreeSave(copied, custom_metadata=content)
        self._priority.start()
        self._checkpointer.save(path, args=args)


@contextlib.contextmanager
def open_writer(finish: Callable[[Path, Path], None]) -> Iterator[Writer]:
    """Opens a `Writer`, and closes it at the end of the `with` block."""
    with _quiet(), contextlib.closing(Writer(finish)) as writer:
        yield writer


def read_arrays(path: Path, like: PyTree, *, is_partial: bool = False) -> PyTree:
    """Reads the arrays of a checkpoint with the structure and shardings of `like`.

    Args:
        path: folder of the checkpoint.
        like: tree of arrays or of `jax.ShapeDtypeStruct`.
        is_partial: whether the checkpoint may have further arrays, which are not read.

    Raises:
        ValueError: if names, shapes or dtypes differ from those of `like`. Moments may
            change between float32 and bfloat16, which is reported on stderr.
    """
    saved = read_record(path).leaves
    like_by_name = leaves_by_name("like", like)
    if is_partial:
        saved = {name: spec for name, spec in saved.items() if name in like_by_name}
    # Some leaves of `like` are computed from saved leaves of an older format. Neither
    # these leaves nor the saved leaves that they are computed from are compared. A
    # saved leaf is still compared if `like` has an unconverted leaf of the same name.
    converted = converted_leaves(saved, like_by_name)
    sources = {source for leaf in converted.values() for source in leaf.sources}
    unconverted_like = {
        name: leaf for name, leaf in like_by_name.items() if name not in converted
    }
    changed = changed_moments(saved, unconverted_like)
    if changed and is_primary_process():
        first = next(iter(changed))
        print(
            f"{len(changed)} moments of {path.name} are converted from "
            f"{changed[first].dtype} to {like_by_name[first].dtype}.",
            file=sys.stderr,
            flush=True,
        )
    saved_to_compare = {
        name: spec._replace(dtype=str(like_by_name[name].dtype))
        if name in changed
        else spec
        for name, spec in saved.items()
        if name in unconverted_like or name not in sources
    }
    check_compatible(path, saved_to_compare, unconverted_like)
    restore_args = {
        **{name: ocp.RestoreArgs(restore_type=np.ndarray) for name in sources},
        **{n: _restore_args(x) for n, x in unconverted_like.items() if x.size},
    }
    args = ocp.args.PyTreeRestore(
        item=dict.fromkeys(restore_args, 0),
        restore_args=restore_args,
        partial_restore=is_partial,
    )
    checkpointer = ocp.Checkpointer(
        _handler(), checkpoint_metadata_store=_no_metadata_store()
    )
    with _quiet(), contextlib.closing(checkpointer):
        data = checkpointer.restore(path.absolute(), args=args)
    data |= {
        name: leaf.convert(*(data[source] for source in leaf.sources))
        for name, leaf in converted.items()
    }
    prng_implementations = {name: spec.key for name, spec in saved.items()}
    like_leaves, structure = jax.tree.flatten(like)
    leaves = [
        _restored_leaf(
            data[name] if leaf.size else np.zeros(leaf.shape, leaf.dtype),
            like_leaf,
            prng_implementations.get(name),
        )
        for (name, leaf), like_leaf in zip(
            like_by_name.items(), like_leaves, strict=True
        )
    ]
    return jax.tree.unflatten(structure, leaves)


def _handler() -> Any:
    # Compression is disabled. It reduces the size of float32 arrays by only 7 %, and
    # its CPU time delays the next training step. The sharding file is not needed,
    # because arrays are restored with the shardings of `like`.
    types = ocp.type_handlers
    registry = types.create_type_handler_registry(
        (np.ndarray, types.NumpyHandler()),
        (jax.Array, types.ArrayHandler(enable_write_sharding_file=False)),
    )
    return ocp.PyTreeCheckpointHandler(
        use_compression=False, type_handler_registry=registry
    )


def _no_metadata_store() -> Any:
    # Disables the file `_CHECKPOINT_METADATA` of orbax.
    return ocp.metadata.metadata_store(enable_write=False, blocking_write=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses orbax's log messages, but not its exceptions."""

    def is_not_from_orbax(record: logging.LogRecord) -> bool:
        return "orbax" not in Path(record.pathname).parts

    # Orbax uses absl's logger, as other libraries do. A filter keeps the records for
    # which it returns True.
    logger = logging.getLogger("absl")
    logger.addFilter(is_not_from_orbax)
    try:
        yield
    finally:
        logger.removeFilter(is_not_from_orbax)


def _storable(leaf: Any) -> Any:
    """Returns the array that orbax stores for a leaf."""
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def _sharding(leaf: Any) -> jax.sharding.Sharding | None:
    """Returns the sharding of a leaf; None if the leaf is not committed."""
    if isinstance(leaf, jax.Array) and not leaf.committed:
        return None
    return getattr(leaf, "sharding", None)


def _restore_args(leaf: Any) -> Any:
    sharding = _sharding(leaf)
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=_dtype(leaf))
    # The data of a key have one more axis than the key. A partition spec may be shorter
    # than the shape, so that the sharding of the key is valid for its data.
    shape = None if is_key(leaf) else leaf.shape
    return ocp.ArrayRestoreArgs(
        restore_type=jax.Array,
        sharding=sharding,
        global_shape=shape,
        dtype=_dtype(leaf),
    )


def _dtype(leaf: Any) -> Any:
    """Returns the dtype to which a restored leaf is converted; None for a key."""
    return None if is_key(leaf) else leaf.dtype


def _restored_leaf(data: Any, leaf: Any, implementation: str | None) -> Any:
    """Converts `data` to a leaf with the type and placement of `leaf`.

    Type, sharding, commitment and weak type are part of the cache key of `jax.jit`. If
    one of them differed, the training step would be recompiled.
    """
    if is_python_number(leaf):
        return data.item()
    if isinstance(leaf, np.ndarray | np.generic):
        return data[()] if isinstance(leaf, np.generic) else data
    sharding = _sharding(leaf)
    if implementation is not None:
        data = jax.random.wrap_key_data(data, impl=implementation)
    # With a sharding of None, the array is not committed to its device.
    array = jax.device_put(data, sharding)
    # `full_like` without a dtype keeps the weak type of `leaf`, and so does `at.set`.
    if getattr(leaf, "weak_type", False):
        return jnp.full_like(leaf, 0).at[...].set(array)
    return array
