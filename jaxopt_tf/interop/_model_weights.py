"""Reading and writing of a model's parameters in a checkpoint folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from .. import _pytrees
from .._io import atomic_write
from .._typing import PyTree
from ._adapter import check_adapter_config, describe_base, write_adapter_config
from ._arrays import as_tensor, check_finite, check_fits
from ._checkpoint_keys import Keys, match_keys
from ._param_names import ParamNames
from ._sharded_leaves import leaf_on_devices
from ._tensor_slices import tensor_from_leaves
from ._torch_files import save_torch
from ._torch_model import TorchModel
from ._trainer_folder import ADAPTER_FILES
from ._weight_files import Index, WeightFiles


class StoredTensor(NamedTuple):
    """Name and dtype of a parameter in a weight file."""

    key: str  # name in the file
    dtype: np.dtype  # dtype in the file


def read_params(folder: Path | str, params: PyTree, names: ParamNames) -> PyTree:
    """Reads a folder's parameters in the structure, dtypes and shardings of `params`.

    Tensors are read one at a time, and only those slices that the devices of this
    process store. Host memory that is used in addition to the parameters is at most
    twice the largest tensor in the files.

    The folder contains `model.safetensors` or `pytorch_model.bin`, either as one file
    or as shards. Names are resolved as by `from_pretrained`: former names, the prefix
    of the base model and prefixes of wrappers are recognized. `unused_tensors` lists
    the tensors that are left out.

    Args:
        folder: the folder.
        params: parameters of the right structure, dtypes and shardings; or their
            shapes, as `jax.ShapeDtypeStruct`, with or without shardings.
        names: names of torch's parameters, with the leaf of each.

    Returns:
        The parameters.

    Raises:
        ValueError: if the weight files are missing or damaged; if they belong to
            another model (all differences are listed); if tensors that the model ties
            are not equal; if a number is not finite; or if the dtype of a leaf cannot
            represent the numbers of the file.

    Differs: `from_pretrained` initializes missing parameters randomly and unties
        tensors that are not equal. Here, missing parameters and unequal tensors are
        errors.
    """
    return read_weights(Path(folder), params, names)[0]


def read_weights(
    folder: Path, params: PyTree, names: ParamNames
) -> tuple[PyTree, tuple[str, ...]]:
    """Returns the parameters as `read_params`, and the names that are left out."""
    files = _files(folder, names.model)
    if names.model.adapter is not None:
        check_adapter_config(folder, names.model.adapter)
    keys = _keys(files, names.model)
    key_by_name = _key_by_parameter(files, keys, names.model)

    def leaf(name: str, p: Any) -> tuple:
        def read(torch_name: str, index: Index) -> np.ndarray:
            # Each tensor is checked separately, so that an error names the tensor and
            # not the leaf, which may be a stack of many tensors.
            key = key_by_name[torch_name]
            location = f"{key!r} in {str(files.file_of(key))!r}"
            part = files.read(key, index)
            try:
                check_finite(part, location)
            except ValueError:
                # The message contains positions in the whole tensor.
                check_finite(files.read(key), location)
                raise
            check_fits(part.dtype, p.dtype, location)
            return part

        slices = names.by_leaf[name]
        return (leaf_on_devices(slices, read, p, max_bytes=files.largest),)

    return _pytrees.map_leaves(leaf, params, num_results=1)[0], keys.unused


def unused_tensors(folder: Path | str, names: ParamNames) -> tuple[str, ...]:
    """Returns the names in a folder's weight files that `read_params` leaves out.

    These are buffers that older versions saved, and tensors that Transformers ignores
    for this model, such as the pooler in the files of `BertForMaskedLM`.

    Args:
        folder: the folder.
        names: names of torch's parameters, with the leaf of each.

    Raises:
        ValueError: if the weight files are missing or damaged.
    """
    return _keys(_files(Path(folder), names.model), names.model).unused


def stored_tensors(folder: Path | str, names: ParamNames) -> dict[str, StoredTensor]:
    """Returns the name and the dtype of every parameter in a folder's weight files.

    If a tied tensor has several names in the files, one of them is returned.

    Args:
        folder: the folder.
        names: names of torch's parameters, with the leaf of each.

    Raises:
        ValueError: for the reasons listed in `read_params`, except those that concern
            values and dtypes.
    """
    files = _files(Path(folder), names.model)
    key_by_name = _key_by_parameter(files, _keys(files, names.model), names.model)
    return {
        name: StoredTensor(key, files.dtype_of(key))
        for name, key in key_by_name.items()
    }


def write_params(
    path: Path,
    params: PyTree,
    names: ParamNames,
    buffers: Mapping[str, np.ndarray],
    frozen: PyTree = (),
) -> None:
    """Writes the weight file of a model as `save_pretrained` does.

    If the path ends in `.bin`, torch writes the file, with every name of a tied tensor.
    Otherwise the format is safetensors, with one name of a tied tensor. The parameters
    of an adapter have their names in PEFT's files.
    """
    # `np.asarray` returns a view of JAX's memory on a CPU, a copy from other devices.
    leaves = [*_pytrees.named_leaves(params), *_pytrees.named_leaves(frozen)]
    host = {name: np.asarray(leaf) for name, leaf in leaves}
    tensors = dict(buffers) | {
        name: tensor_from_leaves(slices, host.__getitem__)
        for name, slices in names.by_tensor.items()
    }
    if names.model.adapter is not None:
        tensors = {names.model.adapter.keys[name]: x for name, x in tensors.items()}
    if path.suffix != ".bin":
        with atomic_write(path) as new_path:
            # safetensors writes the memory of an array, so it must be contiguous.
            # `np.ascontiguousarray` would change the shape () to (1,). Transformers 4
            # refuses files whose metadata have no "format".
            dense = {name: np.asarray(x, order="C") for name, x in tensors.items()}
            save_file(dense, new_path, metadata={"format": "pt"})
        return
    # `torch.save` stores the memory of tied tensors once, under all of their names.
    saved = {name: as_tensor(array) for name, array in tensors.items()}
    saved |= {alias: saved[name] for alias, name in names.model.tied}
    save_torch(saved, path)


def write_adapter(folder: Path | str, params: PyTree, names: ParamNames) -> None:
    """Writes an adapter as `save_pretrained` of PEFT does.

    The folder then contains adapter_model.safetensors and adapter_config.json, from
    which `PeftModel.from_pretrained(base, folder)` loads the adapter.

    Args:
        folder: the folder; it is created if it does not exist.
        params: trained parameters, on any devices of this process.
        names: names of a PEFT model: `models.from_transformers(peft_model).names`.

    Raises:
        ValueError: if `names` are not those of a PEFT model.
    """
    adapter = names.model.adapter
    if adapter is None:
        raise ValueError(
            "`names` must be those of a PEFT model, got names of "
            f"{names.model.origin!r}. Use `write_weights` for other models."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_params(folder / ADAPTER_FILES[0], params, names, {})
    # Written last: a folder without it cannot be loaded.
    write_adapter_config(folder, adapter.config)


def read_buffers(folder: Path | None, model: TorchModel) -> dict[str, np.ndarray]:
    """Reads the buffers that a model saves with its parameters.

    Raises:
        ValueError: if the model has buffers and the folder is None or lacks one.
    """
    if not model.buffers:
        return {}
    if folder is None:
        raise ValueError(
            f"`like` must be a checkpoint folder, got None: the model saves the "
            f"buffers {list(model.buffers)}. Pass a checkpoint folder that has them."
        )
    # The arrays are copied below, so that the memory map of the file can be closed.
    files = WeightFiles(folder)
    found = _keys(files, model).by_param
    missing = [name for name in model.buffers if name not in found]
    if missing:
        raise ValueError(
            f"`like` must contain all buffers of the model, got {str(folder)!r} "
            f"without {missing}. Pass another checkpoint."
        )
    return {name: np.array(files.read(found[name][0])) for name in model.buffers}


def _files(folder: Path, model: TorchModel) -> WeightFiles:
    return WeightFiles(folder, is_adapter=model.adapter is not None)


def _keys(files: WeightFiles, model: TorchModel) -> Keys:
    if model.adapter is not None:
        of = {n: (k,) for n, k in model.adapter.keys.items() if k in files.shapes}
        unknown = sorted(set(files.shapes) - {key for (key,) in of.values()})
        problems = tuple(
            f"{key!r} is not in the adapter of the model" for key in unknown
        )
        return Keys(of, (), problems)
    known = [p.name for p in model.parameters] + [alias for alias, _ in model.tied]
    return match_keys(files.shapes, [*known, *model.buffers], model.load_rules)


def _key_by_parameter(
    files: WeightFiles, keys: Keys, model: TorchModel
) -> dict[str, str]:
    """Returns the name in the files of each parameter, or of one that is tied to it."""
    # A file contains one or several names of a tied tensor. Several must be equal.
    spellings: dict[str, list[str]] = {p.name: [p.name] for p in model.parameters}
    for alias, name in model.tied:
        spellings[name].append(alias)
    shapes, key_by_name, problems = files.shapes, {}, []
    for p in model.parameters:
        found = [
            k for spelling in spellings[p.name] for k in keys.by_param.get(spelling, ())
        ]
        misshapen = [key for key in found if shapes[key] != p.shape]
        if not found:
            problems.append(f"{p.name!r} {list(p.shape)} is missing")
        elif misshapen:
            renamed = "" if misshapen[0] == p.name else f", for {p.name!r},"
            problems.append(
                f"{misshapen[0]!r}{renamed} has shape {list(shapes[misshapen[0]])}, "
                f"not {list(p.shape)}"
            )
        else:
            key_by_name[p.name] = found[0]
            problems += _unequal(files, found, len(keys.by_param.get(p.name, ())))
    problems += keys.problems
    if problems:
        listed = "\n  ".join(problems)
        base = ""
        if model.adapter is not None:
            base = "\n" + describe_base(files.path.parent, model.adapter)
        raise ValueError(
            "`folder` must contain the parameters of the model, but "
            f"{str(files.path)!r} has {len(problems)} differences:\n  {listed}{base}"
        )
    return key_by_name


def _unequal(files: WeightFiles, found: list[str], num_renamed: int) -> list[str]:
    """Describes tensors that must be equal and are not.

    Args:
        files: the weight files.
        found: names of the tensors, compared with the first of them.
        num_renamed: number of these names that are spellings of one name; the remaining
            names are of tied tensors.
    """
    problems = []
    for number, other in enumerate(found[1:], start=1):
        if files.are_equal(found[0], other):
            continue
        if number < num_renamed:
            remedy = "both are names of the same parameter. Delete the wrong one."
        else:
            remedy = (
                "the model ties them. If they were trained separately, untie them: set "
                "`tie_word_embeddings` to false in config.json, and use a separate "
                "leaf for each. Otherwise delete the wrong one."
            )
        problems.append(f"{other!r} is not equal to {found[0]!r}, and {remedy}")
    return problems
