"""Unpickling without imports and without running code.

A pickle refers to functions and classes by name, and `pickle.load` imports and calls
them. Here nothing is imported. A name in the lists below is replaced by a function that
returns its arguments, or by an empty class that is created for one file. A name of
another package or of a script, such as a subclass of `TrainingArguments`, is replaced
by an `InertObject`, which only takes on the attributes that the file contains. All
other names of Python, NumPy, torch, Transformers and accelerate are refused.
"""

import io
import pickle
import sys
from pathlib import Path
from typing import Any, NamedTuple

# Enums by module. A member is replaced by its value.
_ENUMS = {
    "transformers.trainer_utils": """EvaluationStrategy FSDPOption HubStrategy
    IntervalStrategy SaveStrategy SchedulerType""",
    "transformers.training_args": "OptimizerNames ParallelMode",
    "transformers.debug_utils": "DebugOption",
    "accelerate.utils.dataclasses": "DistributedType",
}
# Classes by module. An object is replaced by a `Record` of its attributes.
_RECORDS = {
    "transformers.training_args": "TrainingArguments",
    "transformers.training_args_seq2seq": "Seq2SeqTrainingArguments",
    "transformers.trainer_pt_utils": "AcceleratorConfig",
    "accelerate.state": "PartialState AcceleratorState",
}
# Functions that only tensors of subclasses need, such as those of torchao.
_OF_SUBCLASSES = {("torch.serialization", "_get_layout"), ("torch", "Size")}
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")
# Packages whose names are refused, except the names in `_ENUMS`, `_RECORDS` and
# `_CONTAINERS`. `__builtin__` is Python 2's name of `builtins`; pickles of protocol 2,
# which `torch.save` writes, contain it.
_CLOSED = frozenset({*sys.stdlib_module_names, "__builtin__", "accelerate", "numpy"})
_CLOSED |= {"torch", "transformers"}
_DTYPES = ("float16", "bfloat16", "float32", "float64")
# Containers, and the plain types that replace them.
_CONTAINERS = {
    ("builtins", "set"): list,
    ("builtins", "frozenset"): list,
    ("__builtin__", "set"): list,
    ("collections", "OrderedDict"): dict,
}


class Record:
    """Attributes of an object whose class is not imported; `kind` names the class."""

    kind = ""


class InertObject(Record):
    """Record of a class that is on no list; a member of an enum becomes its value."""

    def __new__(cls, *args: Any) -> Any:
        """Returns an empty record, or the value of an enum member.

        Raises:
            NotAllowedError: for any other call.
        """
        if not args:
            return super().__new__(cls)
        # The pickle of an enum member calls its class with one plain value. Other
        # objects are created without arguments and filled with attributes afterwards.
        if len(args) > 1 or not isinstance(args[0], str | int | float):
            raise NotAllowedError(cls.kind)
        return args[0]


class NotAllowedError(Exception):
    """Error for a pickle that refers to a name that is not allowed."""


class _InertUnpickler(pickle.Unpickler):
    """Replaces every name in a pickle, or refuses it."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _ENUMS.get(module, "").split():
            return lambda value: value
        if name in _RECORDS.get(module, "").split():
            return type(name, (Record,), {"kind": f"{module}.{name}"})
        if module == "torch" and name in _DTYPES:
            return name
        # Functions and classes are created for each file: a pickle can set attributes
        # of an object that it receives (opcode BUILD), and the attributes must not
        # outlive the file.
        if (module, name) == ("torch", "device"):
            return lambda kind, index=None: kind if index is None else f"{kind}:{index}"
        if module in ("pathlib", "pathlib._local") and name in _PATHS:
            return lambda *parts: "/".join(parts).replace("//", "/")
        if module == "datetime" and name in ("timedelta", "datetime", "date"):
            return lambda *args: list(map(str, args))
        if (module, name) in _CONTAINERS:
            plain = _CONTAINERS[module, name]
            return lambda *args: plain(*args)
        is_main = module in ("__main__", "__mp_main__")
        is_closed = module.partition(".")[0] in _CLOSED and not is_main
        # Protocol 4 resolves a dotted name attribute by attribute.
        if is_closed or not name.isidentifier():
            raise NotAllowedError(f"{module}.{name}")
        return type(name, (InertObject,), {"kind": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> Any:
        raise NotAllowedError(f"a tensor ({pid!r:.60})")


class Storage(NamedTuple):
    """Reference to the file of an archive that contains the data of a tensor."""

    key: str  # name of that file in the folder `data` of the archive


class _StorageUnpickler(_InertUnpickler):
    """Replaces each tensor by the `Storage` of its data."""

    def find_class(self, module: str, name: str) -> Any:
        # torch pickles a tensor as a call `_rebuild_tensor_v2(storage, offset, ...)`,
        # and its storage as a persistent id ("storage", type, key, device, size).
        if module == "torch._utils" and name.startswith("_rebuild_"):
            return lambda storage, *_: storage
        # A tensor of torchao is a class and a dict of tensors.
        if (module, name) == ("torch._tensor", "_rebuild_from_type_v2"):
            return lambda function, kind, arguments, attributes: attributes
        if (module, name) in _OF_SUBCLASSES:
            return lambda *arguments: arguments
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            return name
        if (module, name) == ("collections", "OrderedDict"):
            # A module's state dict has the attribute `_metadata`, which `dict` itself
            # cannot store.
            return type(name, (dict,), {})
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        return Storage(str(pid[2]))


def load_storage_keys(stream: io.BytesIO) -> Any:
    """Reads the pickle of a torch archive, with a `Storage` in place of each tensor."""
    return _StorageUnpickler(stream).load()


class _NoGlobals(pickle.Unpickler):
    """Raises `NotAllowedError` for the first name."""

    def find_class(self, module: str, name: str) -> Any:
        raise NotAllowedError(f"{module}.{name}")


def first_global(path: Path) -> str:
    """Returns the first name to which a pickle file refers; "" if there is none.

    The file is a bare pickle, not a zip archive that contains one.
    """
    try:
        with path.open("rb") as file:
            _NoGlobals(file).load()
    except NotAllowedError as error:
        return str(error)
    # The file is a damaged pickle or no pickle, so there is no name to report.
    except Exception:
        pass
    return ""


def load_restricted(stream: io.BufferedIOBase | io.BytesIO) -> Any:
    """Reads the next object of a stream as plain values and `Record`s.

    Args:
        stream: one pickle, or several consecutive ones.

    Returns:
        Numbers, strings, lists, tuples, dicts and `Record`s. Members of enums become
        their values; devices, paths and dtypes become strings.

    Raises:
        NotAllowedError: if a name is refused; the message has the first one.
        ValueError: if the bytes are not a pickle or are truncated.
    """
    try:
        return _InertUnpickler(stream).load()
    except NotAllowedError:
        raise
    # The operations of a damaged pickle raise exceptions of many types.
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
