"""PyTorch names of the parameters of a Flax model, from the names of its leaves."""

from collections.abc import Iterator
from typing import Any

from .. import _pytrees, interop
from .._typing import PyTree

# Types of modules in PyTorch by the last component of a leaf's name.
_LAYER_TYPES = {"embedding": "Embedding", "scale": "LayerNorm"}


def torch_model_of_leaves(
    shapes: PyTree,
    *,
    tied: tuple[tuple[str, str], ...],
    is_transposed: bool,
    prefix: str,
) -> interop.TorchModel:
    """Describes the PyTorch parameters that correspond to a tree of parameters.

    The names are those of the leaves, with `weight` for `kernel`, `scale` and
    `embedding`. A leaf that is stacked over all layers corresponds to one parameter per
    layer: `h.ln_1.scale` to `h.0.ln_1.weight`, `h.1.ln_1.weight`, ...

    Args:
        shapes: parameters, or their shapes. In a stacked leaf, the layers are the first
            axis, and the component `h` or `layers` of its name has no number.
        tied: pairs (alias, name) of tied tensors.
        is_transposed: True if kernels are [out, in] in PyTorch, as in Linear; False if
            they are [in, out], as in Conv1D.
        prefix: first component of the names of the base model, which files of the base
            model alone do not have.
    """
    layer_types = {"kernel": "Linear" if is_transposed else "Conv1D"} | _LAYER_TYPES
    parameters = [
        interop.TorchParam(name, shape, layer_types.get(kind, ""))
        for leaf_name, leaf in _pytrees.named_leaves(shapes)
        for name, kind, shape in _torch_params(leaf_name, leaf, is_transposed)
    ]
    return interop.TorchModel(
        parameters=tuple(parameters),
        tied=tied,
        is_ordered=False,
        load_rules=interop.LoadRules(prefix=prefix),
        origin="the configuration",
    )


def _torch_params(
    leaf_name: str, leaf: Any, is_transposed: bool
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yields name, kind and shape of the parameters that correspond to a leaf."""
    path, _, kind = leaf_name.rpartition(".")
    last = "weight" if kind in ("kernel", "scale", "embedding") else kind
    parts, shape = path.split("."), tuple(leaf.shape)
    list_index = next(
        (i for i, part in enumerate(parts) if part in ("h", "layers")), None
    )
    is_stacked = list_index is not None and not parts[list_index + 1].isdecimal()
    layer_shape = shape[1:] if is_stacked else shape
    if kind == "kernel" and is_transposed:
        layer_shape = layer_shape[::-1]
    for number in range(shape[0]) if is_stacked else [None]:
        name_parts = parts.copy()
        if list_index is not None and number is not None:
            name_parts.insert(list_index + 1, str(number))
        yield ".".join([*name_parts, last]), kind, layer_shape
