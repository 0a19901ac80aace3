"""Reading of torch tensors onto the devices of a leaf, one shard at a time."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..optimizers import TorchLayout
from ._tensor_slices import TensorSlice, leaf_from_tensors
from ._weight_files import WHOLE, Index, blocks

# Reads a part of a torch tensor by its name.
Read = Callable[[str, Index], np.ndarray]

_Box = tuple[tuple[int, int], ...]  # start and stop along each axis of a leaf


def leaf_on_devices(
    slices: Sequence[TensorSlice], read: Read, like: Any, *, max_bytes: int
) -> jax.Array:
    """Reads a leaf onto the devices of `like`.

    Each process reads the parts of tensors that its devices store, each once. One shard
    at a time is in the memory of the host. With several processes, all must call the
    function.

    Args:
        slices: all slices of the leaf.
        read: returns a part of a torch tensor.
        like: leaf of the right shape and dtype. Without a sharding the result is an
            array on the default device.
        max_bytes: largest shard of a stack of layers that is assembled on the host. A
            stack with larger shards is assembled on the devices, layer by layer. A
            stack that is divided along its layers is always assembled on the host.
    """
    shape, dtype = tuple(like.shape), np.dtype(like.dtype)
    sharding = getattr(like, "sharding", None)
    stacked = slices[0].layout.stacked_axes
    shard_shape = shape if sharding is None else sharding.shard_shape(shape)
    is_small = math.prod(shard_shape) * dtype.itemsize <= max_bytes
    if (
        not stacked
        or is_small
        or any(shard_shape[axis] < shape[axis] for axis in stacked)
    ):
        return _on_devices(slices, read, shape, dtype, sharding)
    # The stack is updated in its own memory, because its buffer is donated.
    leaf = jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=sharding)(
        shape, dtype
    )
    update = jax.jit(_update, donate_argnums=0, out_shardings=sharding)
    layer_shape = tuple(
        1 if axis in stacked else size for axis, size in enumerate(shape)
    )
    for stack_index, group in itertools.groupby(
        sorted(slices, key=lambda part: part.stack_index), lambda part: part.stack_index
    ):
        parts = [part._replace(stack_index=(0,) * len(stack_index)) for part in group]
        layer = _on_devices(parts, read, layer_shape, dtype, sharding)
        index = dict(zip(stacked, stack_index, strict=True))
        start = tuple(index.get(axis, 0) for axis in range(len(shape)))
        # Without the wait, the layers that are still to be copied would add up.
        leaf = jax.block_until_ready(update(leaf, layer, start))
    return leaf


def _update(leaf: jax.Array, layer: jax.Array, start: tuple[int, ...]) -> jax.Array:
    return jax.lax.dynamic_update_slice(leaf, layer, start)


def _on_devices(
    slices: Sequence[TensorSlice],
    read: Read,
    shape: tuple[int, ...],
    dtype: np.dtype,
    sharding: jax.sharding.Sharding | None,
) -> jax.Array:
    """Returns an array of which one shard at a time is assembled on the host."""
    shards = _Shards(slices, read, shape, dtype)
    if sharding is None:
        whole_box = tuple((0, size) for size in shape)
        return jax.block_until_ready(jax.device_put(shards.assemble(whole_box)))
    # Devices with equal shards share one copy on the host.
    devices: dict[_Box, list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        ranges = zip(index or (), shape, strict=True)
        box = tuple(part.indices(size)[:2] for part, size in ranges)
        devices.setdefault(box, []).append(device)
    arrays = []
    for box, same_devices in devices.items():
        shard = shards.assemble(box)
        arrays += [
            jax.device_put(
                shard,
                jax.sharding.SingleDeviceSharding(
                    device, memory_kind=sharding.memory_kind
                ),
            )
            for device in same_devices
        ]
        # The memory of `shard` can be released only after the transfers.
        jax.block_until_ready(arrays)
    return jax.make_array_from_single_device_arrays(
        shape, sharding, arrays, dtype=dtype
    )


class _Shards:
    """Shards of a leaf, assembled from the slices of its tensors."""

    def __init__(
        self,
        slices: Sequence[TensorSlice],
        read: Read,
        shape: tuple[int, ...],
        dtype: np.dtype,
    ):
        self._slices, self._read = slices, read
        self._shape, self._dtype = shape, dtype
        self._layout: TorchLayout = slices[0].layout
        self._groups = self._layout.groups(len(shape))
        self._whole: np.ndarray | None = None

    def assemble(self, box: _Box) -> np.ndarray:
        """Returns the shard of a leaf at `box`, as a view of new memory."""
        shape = tuple(stop - start for start, stop in box)
        if all(len(group) == 1 for group in self._groups):
            axes = (*self._layout.stacked_axes, *(axis for (axis,) in self._groups))
            torch_box = tuple(box[axis] for axis in axes)
            buffer = _new([shape[axis] for axis in axes], self._dtype)
            for part in self._slices:
                self._fill(buffer, part, torch_box)
            return self._layout.from_torch(buffer, shape)
        # A range of merged axes is not one of the tensor, so the tensor is read whole.
        if self._whole is None:
            self._whole = leaf_from_tensors(
                self._slices,
                lambda name: self._read(name, WHOLE),
                self._shape,
                self._dtype,
            )
        buffer = _new(shape, self._dtype)
        buffer[...] = self._whole[tuple(slice(*part) for part in box)]
        return buffer

    def _fill(self, buffer: np.ndarray, part: TensorSlice, box: _Box) -> None:
        """Reads the part of a slice that is in `box`, in torch's axes, to `buffer`."""
        num_stacked = len(part.stack_index)
        stack, ranges = box[:num_stacked], list(box[num_stacked:])
        local_index: list[Any] = [
            n - start for n, (start, _) in zip(part.stack_index, stack, strict=True)
        ]
        if any(
            not 0 <= n < size
            for n, size in zip(local_index, buffer.shape, strict=False)
        ):
            return
        target = buffer[(*local_index, ...)]  # a view, also of a single number
        # Offset of an element of the tensor relative to the same element of the leaf.
        offset = 0
        if not part.is_whole:
            start, stop = ranges[part.axis]
            first, end = part.leaf_range or (0, stop)
            offset = (part.torch_range or (0, 0))[0] - first
            ranges[part.axis] = found = max(start, first), min(stop, end)
            if found[0] >= found[1]:
                return
            axes = (slice(None),) * part.axis
            target = target[(*axes, slice(found[0] - start, found[1] - start))]
            ranges[part.axis] = found[0] + offset, found[1] + offset
        for index in blocks(ranges, self._dtype.itemsize):
            if index:
                first_row = ranges[0][0]
                rows = slice(index[0].start - first_row, index[0].stop - first_row)
                target[rows] = self._read(part.torch_name, index)
            else:
                target[...] = self._read(part.torch_name, WHOLE)


def _new(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Returns an array that `device_put` copies and does not share.

    On a CPU, `device_put` shares the memory of an array that starts at a multiple of 64
    bytes. The buffer would then not belong to JAX, which would have to copy it when it
    is donated. NumPy's memory starts at a multiple of 16 bytes; the second element of
    it never does.
    """
    return np.empty(math.prod(shape) + 1, dtype)[1:].reshape(shape)
