"""Tensors of torchao that contain moments of 8 or 4 bits, with and without torchao.

torchao stores such a moment as a subclass of `torch.Tensor` with the arrays `codes`,
`scale` and `qmap`, and a file contains the name of the class and these arrays. If
torchao is imported, tensors here are instances of its classes. Otherwise they are
instances of stand-ins, which have the same attributes, cannot be computed with, and are
written under the names of torchao's classes: files are read and written without
torchao.
"""

import functools
import pickle
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ._arrays import as_numpy, as_tensor, check_finite, check_tensor
from ._extras import import_extra

BLOCK_SIZE = 256  # of Trainer; the default of `AdamW4bit` itself is 128
# Number of bits by module and name of the class.
_BITS = {
    ("torchao.optim.subclass_8bit", "OptimState8bit"): 8,
    ("torchao.optim.subclass_4bit", "OptimState4bit"): 4,
}


def torchao_bits(value: Any) -> int:
    """Returns the number of bits of the codes of a tensor; 0 for any other value."""
    return _BITS.get((type(value).__module__, type(value).__qualname__), 0)


def torchao_tensor(
    codes: np.ndarray,
    scale: np.ndarray,
    qmap: np.ndarray,
    *,
    signed: bool,
    shape: Sequence[int],
    dtype: np.dtype[Any],
) -> Any:
    """Returns a tensor of torchao.

    Args:
        codes: codes of 8 bits in the shape of the parameter, or pairs of codes of 4
            bits in its flattened order, the first one high.
        scale: largest magnitude of each block.
        qmap: levels that codes denote.
        signed: whether there are negative levels.
        shape: shape of the parameter.
        dtype: dtype of the parameter, which the tensor reports as its own.

    Source: torchao 0.18 `optim/subclass_8bit.py`, `optim/subclass_4bit.py`.
    """
    torch = import_extra("torch")

    bits, size = (8, ()) if len(qmap) == 256 else (4, (torch.Size(shape),))
    kind = next(kind for name, kind in _types().items() if _BITS[name] == bits)
    arrays = [as_tensor(array) for array in (codes, scale, qmap)]
    torch_dtype = as_tensor(np.zeros(0, dtype)).dtype
    return kind(*arrays, signed, *size, dtype=torch_dtype)


def check_torchao_tensor(value: Any, name: str) -> None:
    """Raises unless the arrays of a tensor of torchao have the right dtypes and sizes.

    Args:
        value: a tensor for which `torchao_bits` is not 0.
        name: name of the tensor, for the message.
    """
    torch = import_extra("torch")

    dtypes = {"codes": torch.uint8, "scale": torch.float32, "qmap": torch.float32}
    for key, dtype in dtypes.items():
        array: Any = getattr(value, key, None)
        check_tensor(array, f"`{key}` in {name}")
        if array.dtype != dtype:
            raise ValueError(
                f"`{key}` in {name} must be {dtype}, as in torchao 0.18, got "
                f"{array.dtype}. Copy the file again, or use an earlier checkpoint."
            )
    shape, found = tuple(value.shape), tuple(value.codes.shape)
    if torchao_bits(value) == 4:
        shape = (value.numel() // 2,)  # pairs
    if found != shape:
        raise ValueError(
            f"`codes` in {name} must have shape {list(shape)}, for a parameter of "
            f"shape {list(value.shape)}, got {list(found)}. Copy the file again, or "
            "use an earlier checkpoint."
        )


def torchao_arrays(
    value: Any, name: str, expected: np.ndarray, *, signed: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the codes and the scales of a tensor.

    Args:
        value: tensor that `check_torchao_tensor` accepts.
        name: name of the tensor, for messages.
        expected: the levels that its codes must denote.
        signed: whether there must be negative levels.

    Raises:
        ValueError: if the tensor has other levels or another block size, or if a scale
            is not finite and at least 0.
    """
    levels = as_numpy(value.qmap)
    # The levels span seven decades, so that only a relative limit tests small ones.
    is_same = levels.shape == expected.shape and np.allclose(levels, expected, 1e-6, 0)
    if not is_same or bool(value.signed) != signed:
        sign = "with" if value.signed else "without"
        raise ValueError(
            f"`qmap` of {name} must be the levels of torchao 0.18 for "
            f"{torchao_bits(value)} bits, {'with' if signed else 'without'} a sign, "
            f"got {levels.size} levels {sign} a sign, the first "
            f"{levels.flat[0] if levels.size else 'missing'}. Only states with these "
            "levels are converted: start with new moments."
        )
    scale, num_blocks = as_numpy(value.scale), value.numel() // BLOCK_SIZE
    if scale.shape != (num_blocks,):
        raise ValueError(
            f"`scale` of {name} must have {num_blocks} elements, one for each block of "
            f"{BLOCK_SIZE}, got shape {list(scale.shape)}. Trainer sets this block "
            f"size, and other ones are not converted: train with "
            f"`block_size={BLOCK_SIZE}`, or start with new moments."
        )
    check_finite(scale, f"`scale` of {name}", non_negative=True)
    return as_numpy(value.codes), scale


def safe_globals() -> list[tuple[type, str]]:
    """Returns the classes that a file may contain, for `torch.serialization`."""
    return [(kind, ".".join(name)) for name, kind in _types().items()]


def pickle_module(value: Any) -> Any:
    """Returns the `pickle_module` with which `torch.save` can write a value."""
    if not _has_stand_in(value):
        return pickle
    return types.SimpleNamespace(__name__="pickle", Pickler=_NamedPickler)


# The pickler in Python, which has a method for classes. `pickle.Pickler` is in C.
_PythonPickler: Any = pickle._Pickler


class _NamedPickler(_PythonPickler):
    """Pickler that writes a stand-in for a class without importing the class."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if _is_stand_in(obj):
            # Opcode, module and name, as for any class in the protocol of `torch.save`.
            names = f"{obj.__module__}\n{obj.__qualname__}\n"
            self.write(pickle.GLOBAL + names.encode())
            self.memoize(obj)
        else:
            super().save_global(obj, name)


def _has_stand_in(node: Any) -> bool:
    """Returns whether nested containers have an instance of a stand-in."""
    if isinstance(node, Mapping):
        return any(map(_has_stand_in, node.values()))
    if isinstance(node, list | tuple):
        return any(map(_has_stand_in, node))
    return _is_stand_in(type(node))


def _is_stand_in(kind: Any) -> bool:
    return getattr(kind, "is_stand_in", False) is True


def _types() -> dict[tuple[str, str], type]:
    """Returns torchao's class for each name, or the stand-in if it is not imported."""
    # A package that is installed but not imported is not used: its import takes
    # seconds, and fails for some versions of torch.
    return {
        (module, name): getattr(sys.modules[module], name)
        if module in sys.modules
        else _stand_in(module, name)
        for module, name in _BITS
    }


@functools.cache
def _stand_in(module: str, name: str) -> type:
    torch = import_extra("torch")

    def create(
        cls: Any,
        codes: Any,
        scale: Any,
        qmap: Any,
        signed: bool,
        shape: Any = None,
        *,
        dtype: Any,
    ) -> Any:
        """Returns a tensor with the attributes of torchao's, in their order."""
        of_parameter = codes.shape if shape is None else shape
        self = torch.Tensor._make_wrapper_subclass(cls, of_parameter, dtype=dtype)
        attributes = {"codes": codes, "scale": scale, "qmap": qmap, "signed": signed}
        if shape is not None:
            attributes["_shape"] = shape
        vars(self).update(attributes, block_size=self.numel() // scale.numel())
        return self

    def refuse(cls: Any, function: Any, *_: Any) -> Any:
        # Not a TypeError, which torch's operators replace by one without a reason.
        raise ValueError(
            f"`{name}` must be the class of torchao for {function}, got a tensor that "
            "was read or made before torchao was imported. Install torchao with "
            "`pip install torchao==0.18.0`, import it first, and read the file again."
        )

    def describe(self: Any) -> str:
        return f"{name}(signed={self.signed}, shape={tuple(self.shape)})"

    namespace = {
        "__module__": module,
        "__new__": create,
        "__init__": lambda self, *_, **__: None,
        "__repr__": describe,
        # Shapes and dtypes are read without a call of an operator.
        "__torch_function__": torch._C._disabled_torch_function_impl,
        "__torch_dispatch__": classmethod(refuse),
        "is_stand_in": True,
    }
    return type(name, (torch.Tensor,), namespace)
