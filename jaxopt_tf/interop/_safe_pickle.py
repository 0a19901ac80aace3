"""Pickles read without running anything: names become inert stand-ins, or are refused.

Reading a pickle calls every name in it. Nothing that it names is imported here. A name
on the lists below stands for a function that returns its arguments, or for an empty
class that is made for this one file. A name of another package or script, such as a
subclass of TrainingArguments, becomes an empty class, too: it holds the fields that the
file has. Every other name of Python itself, torch, Transformers and accelerate is
refused.
"""

import io
import pickle
import sys
from pathlib import Path
from typing import Any, NamedTuple

_ENUMS = {
    "transformers.trainer_utils": """EvaluationStrategy FSDPOption HubStrategy
    IntervalStrategy SaveStrategy SchedulerType""",
    "transformers.training_args": "OptimizerNames ParallelMode",
    "transformers.debug_utils": "DebugOption",
    "accelerate.utils.dataclasses": "DistributedType",
}
_RECORDS = {
    "transformers.training_args": "TrainingArguments",
    "transformers.training_args_seq2seq": "Seq2SeqTrainingArguments",
    "transformers.trainer_pt_utils": "AcceleratorConfig",
    "accelerate.state": "PartialState AcceleratorState",
}
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")
# Packages of which nothing but the names below and above is expected in a file.
_CLOSED = frozenset({*sys.stdlib_module_names, "__builtin__", "accelerate", "numpy"})
_CLOSED |= {"torch", "transformers"}
_DTYPES = ("float16", "bfloat16", "float32", "float64")
# Containers that are read as plain ones.
_CONTAINERS = {
    ("builtins", "set"): list,
    ("builtins", "frozenset"): list,
    ("__builtin__", "set"): list,
    ("collections", "OrderedDict"): dict,
}


class Record:
    """Attributes of an object whose class was not loaded; `kind` names the class."""

    kind = ""


class Stranger(Record):
    """A `Record` of a class that is on no list; an enum member is its value alone."""

    def __new__(cls, *args: Any) -> Any:
        """Returns the value of an enum member, or an empty record; raises for calls."""
        if not args:
            return super().__new__(cls)
        # Only an enum is called with one plain value when its member is read.
        if len(args) > 1 or not isinstance(args[0], str | int | float):
            raise NotAllowedError(cls.kind)
        return args[0]


class NotAllowedError(Exception):
    """The pickle names something that is not on the list."""


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _ENUMS.get(module, "").split():
            return lambda value: value
        if name in _RECORDS.get(module, "").split():
            return type(name, (Record,), {"kind": f"{module}.{name}"})
        if module == "torch" and name in _DTYPES:
            return name
        # A function made here, each time: a pickle can set the attributes of what it
        # is given, which must not outlive the file.
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
        # A dotted name would be looked up attribute by attribute.
        if is_closed or not name.isidentifier():
            raise NotAllowedError(f"{module}.{name}")
        return type(name, (Stranger,), {"kind": f"{module}.{name}"})

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
            return type(name, (dict,), {})  # a subclass has `_metadata`
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        return Storage(str(pid[2]))


def load_storage_keys(stream: io.BytesIO) -> Any:
    """Reads the pickle of a torch archive with a `Storage` in place of each tensor."""
    return _StorageUnpickler(stream).load()


class _NoGlobals(pickle.Unpickler):
    """Refuses the first name."""

    def find_class(self, module: str, name: str) -> Any:
        raise NotAllowedError(f"{module}.{name}")


def first_global(path: Path) -> str:
    """Returns the first name that a bare pickle refers to; "" if it has none."""
    try:
        with path.open("rb") as file:
            _NoGlobals(file).load()
    except NotAllowedError as error:
        return str(error)
    # A damaged pickle, or a file that is none.
    except Exception:
        pass
    return ""


def load_inert(stream: io.BufferedIOBase | io.BytesIO) -> Any:
    """Reads the next object of a stream, made of plain values and `Record`s.

    Args:
        stream: a pickle, or several one after another.

    Returns:
        Numbers, strings, lists, tuples, dicts and `Record`s. An enum member is its
        value, a device, a path and a dtype their strings.

    Raises:
        NotAllowedError: naming the first module and name that is refused.
        ValueError: if the bytes are no pickle, or one that is cut short.
    """
    try:
        return _InertUnpickler(stream).load()
    except NotAllowedError:
        raise
    # A damaged pickle fails in as many ways as there are operations.
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
