"""Writing of weight files as `save_pretrained` does, with one tensor in memory."""

import contextlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from .. import _pytrees
from .._io import atomic_write, is_primary_process, run_on_process_0
from .._typing import PyTree
from ._checkpoint_keys import natural_key
from ._model_weights import StoredTensor
from ._param_names import ParamNames
from ._tensor_slices import TensorSlice, tensor_from_leaves
from ._trainer_folder import MODEL_FILES
from ._weight_files import SAFETENSORS_DTYPES

MAX_SHARD_SIZE = 5 * 10**9  # bytes
_SINGLE, _INDEX = MODEL_FILES[:2]
_SHARD_NAME = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
# File of `atomic_write` that a killed process has left.
_INCOMPLETE = re.compile(r"\.model(-\d{5}-of-\d{5})?\.safetensors\.new")
_CODES = {np.dtype(dtype): code for code, dtype in SAFETENSORS_DTYPES.items()}


class _Spec(NamedTuple):
    """Tensor in a new weight file."""

    key: str  # name in the file
    name: str  # name of the parameter
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


def write_weights(
    folder: Path | str,
    params: PyTree,
    names: ParamNames,
    *,
    stored: Mapping[str, StoredTensor] | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
) -> None:
    """Writes the weight files of a model as `save_pretrained` does.

    The folder gets `model.safetensors`; or, if the tensors have more than
    `max_shard_size` bytes, shards and `model.safetensors.index.json`. A tied tensor is
    written once. Weight files of an earlier call are replaced. If the process is killed
    during the call, the folder contains the old weights, the new weights or no loadable
    weights, but never a mixture. With several processes, all must call the function;
    process 0 writes. Each tensor is gathered separately.

    Args:
        folder: an existing folder.
        params: the parameters, on any devices.
        names: names of torch's parameters, with the leaf of each.
        stored: mapping from the name of a parameter in `names` to the name and dtype
            with which it is written, as `stored_tensors` returns it for a folder of the
            same model. Values are rounded to that dtype. With None, the names in
            `names` and the dtypes of `params` are used.
        max_shard_size: maximum number of bytes of tensors per file. A larger tensor is
            written to a file of its own.

    Raises:
        ValueError: in all processes, if `params` has other leaves than `names`, or if a
            number is too large for its dtype in `stored`.
        OSError: in all processes, if a file cannot be written.

    Source: transformers 5.23 `modeling_utils.py`, `save_pretrained`; huggingface_hub
        1.32 `serialization/_base.py`.
    """
    folder = Path(folder)
    leaves = dict(_pytrees.named_leaves(params))
    differing = sorted(set(leaves) ^ set(names.by_leaf))
    if differing:
        raise ValueError(
            f"`params` must have the leaves of `names`, got {len(differing)} that are "
            f"in only one of them, the first being {differing[0]!r}. Pass the "
            "parameters that `names` was made for."
        )
    files = _files(_specs(leaves, names, stored), max_shard_size)
    specs = [spec for file in files.values() for spec in file]
    tensors = _gathered(leaves, names, specs)
    error: Exception | None = None
    if is_primary_process():
        # All processes take part in every gather. An error of process 0 is therefore
        # raised only after the last one.
        try:
            _write(folder, files, tensors)
        except (OSError, ValueError) as raised:
            error = raised
    for _ in tensors:
        pass

    def check() -> None:
        if error is not None:
            raise error

    run_on_process_0(check)


def _specs(
    leaves: Mapping[str, Any],
    names: ParamNames,
    stored: Mapping[str, StoredTensor] | None,
) -> list[_Spec]:
    shapes = {parameter.name: parameter.shape for parameter in names.model.parameters}
    if stored is None:
        stored = {
            name: StoredTensor(name, np.dtype(leaves[slices[0].leaf].dtype))
            for name, slices in names.by_tensor.items()
        }
    specs = [_Spec(key, n, shapes[n], dtype) for n, (key, dtype) in stored.items()]
    return sorted(specs, key=lambda spec: natural_key(spec.key))


def _files(specs: Sequence[_Spec], max_shard_size: int) -> dict[str, list[_Spec]]:
    """Distributes tensors over files, in their order, as huggingface_hub does."""
    shards: list[list[_Spec]] = []
    shard_in_progress: list[_Spec] = []
    for spec in specs:
        if spec.nbytes > max_shard_size:
            shards.append([spec])
            continue
        size = sum(s.nbytes for s in shard_in_progress) + spec.nbytes
        if shard_in_progress and size > max_shard_size:
            shards.append(shard_in_progress)
            shard_in_progress = []
        shard_in_progress.append(spec)
    shards += [shard_in_progress] if shard_in_progress else []
    # The order in a file is that of safetensors, so that the bytes are the same: the
    # largest dtypes first, which keeps all numbers aligned.
    ordered = [
        sorted(shard, key=lambda s: (-s.dtype.itemsize, _CODES[s.dtype], s.key))
        for shard in shards
    ]
    if len(ordered) == 1:
        return {_SINGLE: ordered[0]}
    return {
        f"model-{number:05}-of-{len(ordered):05}.safetensors": shard
        for number, shard in enumerate(ordered, start=1)
    }


def _gathered(
    leaves: Mapping[str, Any], names: ParamNames, specs: Sequence[_Spec]
) -> Iterator[np.ndarray]:
    """Yields the tensors on the host, one at a time."""

    def tensor(slices: Sequence[TensorSlice]) -> np.ndarray:
        arrays = {part.leaf: _on_host(leaves[part.leaf], part) for part in slices}
        # `_on_host` returns a single layer, so its index along the stacked axes is 0.
        slices_of_layer = [
            part._replace(stack_index=(0,) * len(part.stack_index)) for part in slices
        ]
        return tensor_from_leaves(slices_of_layer, arrays.__getitem__)

    for spec in specs:
        yield tensor(names.by_tensor[spec.name])


def _on_host(leaf: Any, part: TensorSlice) -> np.ndarray:
    """Returns a leaf, or one layer of a stack of layers, in the memory of the host."""
    if not isinstance(leaf, jax.Array):
        leaf = np.asarray(leaf)
        index_by_axis = dict(
            zip(part.layout.stacked_axes, part.stack_index, strict=True)
        )
        return leaf[
            tuple(
                slice(index_by_axis[axis], index_by_axis[axis] + 1)
                if axis in index_by_axis
                else slice(None)
                for axis in range(leaf.ndim)
            )
        ]
    if part.stack_index:
        start, sizes = [0] * leaf.ndim, list(leaf.shape)
        for axis, number in zip(
            part.layout.stacked_axes, part.stack_index, strict=True
        ):
            start[axis], sizes[axis] = number, 1
        leaf = jax.jit(_layer, static_argnums=2)(leaf, tuple(start), tuple(sizes))
    if not leaf.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    # JAX keeps the host copy as long as the array on which it was made. The copy is
    # therefore made on a temporary array of the same shards, and released with that
    # array.
    shards = [shard.data for shard in leaf.addressable_shards]
    return np.asarray(
        jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, shards)
    )


def _layer(
    leaf: jax.Array, start: tuple[int, ...], sizes: tuple[int, ...]
) -> jax.Array:
    return jax.lax.dynamic_slice(leaf, start, sizes)


def _write(
    folder: Path, files: Mapping[str, Sequence[_Spec]], tensors: Iterator[np.ndarray]
) -> None:
    is_sharded = _SINGLE not in files
    for path in folder.iterdir():
        if _INCOMPLETE.fullmatch(path.name):
            path.unlink()
    with contextlib.ExitStack() as stack:
        for name, specs in files.items():
            new_path = stack.enter_context(atomic_write(folder / name))
            _save(new_path, specs, tensors)
        if is_sharded:
            # When the `ExitStack` closes, the temporary shards are renamed one by one,
            # and may replace shards of the old weights. Without these two files, the
            # folder cannot be loaded until the new index is written.
            for name in (_SINGLE, _INDEX):
                (folder / name).unlink(missing_ok=True)
    if is_sharded:
        index = {
            "metadata": {
                "total_parameters": sum(s.size for f in files.values() for s in f),
                "total_size": sum(s.nbytes for f in files.values() for s in f),
            },
            "weight_map": {s.key: name for name, f in files.items() for s in f},
        }
        with atomic_write(folder / _INDEX) as new_path:
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            new_path.write_text(text, encoding="utf-8")
    else:
        # Transformers prefers the single file, so the index is without effect by now.
        (folder / _INDEX).unlink(missing_ok=True)
    for path in folder.iterdir():
        if _SHARD_NAME.fullmatch(path.name) and path.name not in files:
            path.unlink()


def _save(path: Path, specs: Sequence[_Spec], tensors: Iterator[np.ndarray]) -> None:
    """Writes a safetensors file, one tensor at a time.

    `safetensors.numpy.save_file` requires all tensors of the file in memory.

    Source: safetensors 0.8 `README.md`, "Format".
    """
    # Transformers 4 refuses files whose metadata have no "format".
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for spec in specs:
        start, end = end, end + spec.nbytes
        header[spec.key] = {
            "dtype": _CODES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the data start at a multiple of 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        # Only the tensors of this file are taken from the iterator.
        arrays = itertools.islice(tensors, len(specs))
        for spec, array in zip(specs, arrays, strict=True):
            # bfloat16 has no buffer protocol, so its bytes are viewed.
            file.write(_cast(array, spec).reshape(-1).view(np.uint8).data)


def _cast(array: np.ndarray, spec: _Spec) -> np.ndarray:
    """Returns a tensor in the dtype of its file, rounded to the nearest value."""
    with np.errstate(over="ignore"):
        stored = np.asarray(array, spec.dtype, order="C")
    if stored.dtype == array.dtype:
        return stored
    num_too_large = int(np.isinf(stored).sum()) - int(np.isinf(array).sum())
    if num_too_large:
        raise ValueError(
            "`params` must fit into the dtypes of the file, got "
            f"{num_too_large} numbers in {spec.name!r} that are too large for "
            f"{spec.dtype}. Write them in float32."
        )
    return stored
