"""Pickles read without running anything: names become inert stand-ins, or are refused.

Reading a pickle calls every name in it. Here only the names listed below are accepted,
and each stands for a function that returns its arguments, or for an empty class that is
made for this one file.
"""

import io
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

_ENUMS = {
    "transformers.trainer_utils": (
        "EvaluationStrategy",
        "FSDPOption",
        "HubStrategy",
        "IntervalStrategy",
        "SaveStrategy",
        "SchedulerType",
    ),
    "transformers.training_args": ("OptimizerNames", "ParallelMode"),
    "transformers.debug_utils": ("DebugOption",),
    "accelerate.utils.dataclasses": ("DistributedType",),
}
_RECORDS = {
    "transformers.training_args": ("TrainingArguments",),
    "transformers.training_args_seq2seq": ("Seq2SeqTrainingArguments",),
    "transformers.trainer_pt_utils": ("AcceleratorConfig",),
    "accelerate.state": ("PartialState", "AcceleratorState"),
}
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")
_PLAIN: dict[tuple[str, str], Callable[..., Any]] = {
    ("builtins", "set"): list,
    ("builtins", "frozenset"): list,
    ("__builtin__", "set"): list,
    ("collections", "OrderedDict"): dict,
}
_DTYPES = ("float16", "bfloat16", "float32", "float64")


class Record:
    """Attributes of an object whose class was not loaded; `kind` names the class."""

    kind = ""


class NotAllowedError(Exception):
    """The pickle names something that is not on the list."""


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _ENUMS.get(module, ()):
            return lambda value: value
        if name in _RECORDS.get(module, ()):
            return type(name, (Record,), {"kind": f"{module}.{name}"})
        if module == "torch" and name in _DTYPES:
            return name
        if (module, name) == ("torch", "device"):
            return lambda kind, index=None: kind if index is None else f"{kind}:{index}"
        if module in ("pathlib", "pathlib._local") and name in _PATHS:
            return lambda *parts: "/".join(parts).replace("//", "/")
        if module == "datetime" and name in ("timedelta", "datetime", "date"):
            return lambda *args: list(map(str, args))
        if (module, name) in _PLAIN:
            plain = _PLAIN[module, name]
            return lambda *args: plain(*args)
        raise NotAllowedError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise NotAllowedError(f"a tensor ({pid!r:.60})")


class Storage(NamedTuple):
    """The record that a tensor of torch is stored in."""

    key: str


class _StorageUnpickler(_InertUnpickler):
    """Reads tensors as the `Storage` that they are stored in."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name.startswith("_rebuild_"):
            return lambda storage, *_: storage
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            return name
        if (module, name) == ("collections", "OrderedDict"):
            return type(name, (dict,), {})  # with room for `_metadata`
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        return Storage(str(pid[2]))


def load_storage_keys(stream: io.BytesIO) -> Any:
    """Reads the pickle of a torch archive with a `Storage` in place of each tensor."""
    return _StorageUnpickler(stream).load()


def load_inert(stream: io.BufferedIOBase | io.BytesIO) -> Any:
    """The next object of the stream, made of plain values and `Record`s.

    Args:
        stream: a pickle, or several one after another.

    Returns:
        Numbers, strings, lists, tuples, dicts and `Record`s. An enum member is its
        value, a device, a path and a dtype their strings.

    Raises:
        NotAllowedError: naming the first module and name that is not on the list.
        ValueError: if the bytes are no pickle, or one that is cut short.
    """
    try:
        return _InertUnpickler(stream).load()
    except NotAllowedError:
        raise
    # A damaged pickle fails in as many ways as there are operations.
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
