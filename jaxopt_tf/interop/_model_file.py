"""The parameters in a checkpoint folder, read and written one tensor at a time."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import _tree
from .._typing import PyTree
from ._casting import check_fits, placed_like
from ._param_names import ParamNames
from ._pieces import by_leaf, by_tensor, leaf_from_tensors, tensor_from_leaves
from ._safetensors import model_tensors, read_tensor, write_tensors
from ._torch_files import as_numpy, as_tensor, load_torch, save_torch
from ._torch_model import TorchModel


def read_params(folder: Path, params: PyTree, names: ParamNames) -> PyTree:
    """The folder's parameters in the structure, dtypes and devices of `params`.

    Raises:
        ValueError: if the file is not of this model, with all differences; if a leaf's
            dtype cannot hold the file's.
    """
    shapes, read = _opened(folder)
    place = _places(shapes, names.model, folder)
    pieces = by_leaf(names.pieces)

    def leaf(name: str, p: Any) -> tuple:
        def tensor(torch_name: str) -> np.ndarray:
            array = read(place[torch_name])
            check_fits(array.dtype, p.dtype, f"{torch_name!r} of {str(folder)!r}")
            return array

        found = leaf_from_tensors(pieces[name], tensor, p.shape, p.dtype)
        return (placed_like(found, p),)

    return _tree.map_leaves(leaf, params, num_results=1)[0]


def write_params(
    path: Path, params: PyTree, names: ParamNames, buffers: Mapping[str, np.ndarray]
) -> None:
    """Writes a model's file as `save_pretrained` does.

    A path that ends in `.bin` is written by torch, with every name of a tied tensor;
    any other in the format of safetensors, with one of them.
    """
    leaves = dict(_tree.named_leaves(params))
    host = {name: np.asarray(leaf) for name, leaf in leaves.items()}
    pieces = by_tensor(names.pieces)
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        p.name: (p.shape, host[pieces[p.name][0].leaf].dtype)
        for p in names.model.parameters
    }
    shapes |= {name: (array.shape, array.dtype) for name, array in buffers.items()}

    def tensor(name: str) -> np.ndarray:
        if name in buffers:
            return buffers[name]
        return tensor_from_leaves(pieces[name], host.__getitem__)

    if path.suffix != ".bin":
        write_tensors(path, shapes, tensor)
        return
    tensors = {name: as_tensor(tensor(name)) for name in shapes}
    tensors |= {alias: tensors[name] for alias, name in names.model.tied}
    save_torch(tensors, path)


def read_buffers(folder: Path | None, model: TorchModel) -> dict[str, np.ndarray]:
    """What a model saves beside its parameters, from a folder that has it.

    Raises:
        ValueError: if the model saves something and there is no such folder.
    """
    if not model.buffers:
        return {}
    if folder is None:
        raise ValueError(
            f"`like` must be given, got None: the model saves {list(model.buffers)} "
            "beside its parameters. Name a checkpoint folder that has them."
        )
    _, read = _opened(folder)
    return {name: np.array(read(name)) for name in model.buffers}


def _opened(
    folder: Path,
) -> tuple[Mapping[str, tuple[int, ...]], Callable[[str], np.ndarray]]:
    """The shapes of all tensors, and what reads one."""
    files = model_tensors(folder)
    if files is not None:
        shapes = {name: place.shape for name, place in files.items()}
        return shapes, lambda name: read_tensor(files[name])
    tensors = load_torch(folder / "pytorch_model.bin")
    if not isinstance(tensors, Mapping):
        raise ValueError(
            "`folder` must hold tensors by name in pytorch_model.bin, got "
            f"{type(tensors).__name__} in {str(folder)!r}."
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return shapes, lambda name: as_numpy(tensors[name])


def _places(
    shapes: Mapping[str, tuple[int, ...]], model: TorchModel, folder: Path
) -> dict[str, str]:
    """Under which name the file has each parameter: its own, or one tied to it."""
    known: dict[str, list[str]] = {p.name: [p.name] for p in model.parameters}
    for alias, name in model.tied:
        known[name].append(alias)
    wanted = {p.name: p.shape for p in model.parameters}
    place, problems = {}, []
    for name, spellings in known.items():
        found = [spelling for spelling in spellings if spelling in shapes]
        if not found:
            problems.append(f"{name!r} {list(wanted[name])} is not in it")
        elif shapes[found[0]] != wanted[name]:
            problems.append(
                f"{name!r} is {list(shapes[found[0]])}, not {list(wanted[name])}"
            )
        else:
            place[name] = found[0]
    of_model = {spelling for group in known.values() for spelling in group}
    of_model |= set(model.buffers)
    problems += [
        f"{name!r} {list(shape)} is not of the model"
        for name, shape in shapes.items()
        if name not in of_model
    ]
    if problems:
        listed = "\n  ".join(problems)
        raise ValueError(
            f"`folder` must hold the parameters of the model, but {str(folder)!r} has "
            f"{len(problems)} differences:\n  {listed}"
        )
    return place
