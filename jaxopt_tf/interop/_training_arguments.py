"""Reading of `TrainingArguments` from an object, a mapping, JSON or a file of torch."""

import dataclasses
import enum
import io
import json
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .._io import parse_json
from ._argument_fields import has_all_fields
from ._safe_pickle import NotAllowedError, Record, load_restricted
from ._trainer_folder import version_of_folder

# torch's files before version 1.6 are consecutive pickles: this number, the version of
# the protocol, a dict of the system, and the object.
_MAGIC = 0x1950A86A20F9469CFC6C
# Attributes of a TrainingArguments object that are not fields.
_NO_FIELDS = """_n_gpu _setup_devices __cached__setup_devices deepspeed_plugin
distributed_state fsdp_plugin_args hf_deepspeed_config mixed_precision"""
_MAX_BYTES = 2**24  # 16 MiB; actual files have a few KiB
# Classes of Transformers, whose fields are all known.
_CLASSES = (
    "transformers.training_args.TrainingArguments",
    "transformers.training_args_seq2seq.Seq2SeqTrainingArguments",
)


class ArgsSource(NamedTuple):
    """`TrainingArguments` of a source, before they are parsed."""

    values: dict[str, Any]  # values of JSON types, by the names of the fields
    name: str = "TrainingArguments"  # path or name of the source, for messages
    num_devices: int | None = None  # number of devices of the run; None: unknown
    may_be_subclass: bool = True  # False for a class of Transformers
    version: str | None = None  # version of Transformers; None: unknown


def read_training_arguments(source: Any) -> ArgsSource:
    """Reads `TrainingArguments` as names and plain values.

    Args:
        source: a `TrainingArguments`, a mapping, a JSON string, or the path of a JSON
            file or of a `training_args.bin`, which is read without running code.

    Returns:
        The values, with the properties of the source that are known.

    Raises:
        ValueError: if a file cannot be read, is truncated, has another format, or
            refers to classes or functions that are not part of TrainingArguments.
        TypeError: if `source` has another type.
    """
    if isinstance(source, Mapping):
        return ArgsSource(_plain(source))
    # The class is recognized by its name, so that Transformers is not imported.
    classes = type(source).__mro__
    is_arguments = "TrainingArguments" in [cls.__name__ for cls in classes]
    if dataclasses.is_dataclass(source) and is_arguments:
        arguments: Any = source
        class_name = f"{classes[0].__module__}.{classes[0].__qualname__}"
        return ArgsSource(
            _plain(source),
            num_devices=arguments.world_size * max(1, arguments.n_gpu),
            may_be_subclass=class_name not in _CLASSES,
            version=getattr(sys.modules.get("transformers"), "__version__", None),
        )
    if isinstance(source, str) and source.lstrip().startswith("{"):
        return ArgsSource(_from_json(source.encode()))
    if not isinstance(source, str | Path):
        raise TypeError(
            "`source` must be a TrainingArguments, a mapping, a JSON string or the "
            f"path of a file, got {type(source).__name__}."
        )
    path = Path(source)
    return _read_file(path)._replace(version=version_of_folder(path.parent))


def _read_file(path: Path) -> ArgsSource:
    """Reads a JSON file or a file of `torch.save`."""
    try:
        content = path.read_bytes()[: _MAX_BYTES + 1]
        if content.lstrip()[:1] == b"{":
            return ArgsSource(_from_json(content), str(path))
        return _from_record(_from_torch(content), path)
    except OSError as error:
        raise ValueError(
            f"{path} must be a readable file, but: {error.strerror}. Pass "
            "training_args.bin, or a JSON file of TrainingArguments."
        ) from error
    except NotAllowedError as error:
        raise ValueError(
            f"{path} must contain only TrainingArguments, but it refers to {error}, "
            "which was not loaded or run. If you trust the file, load it with torch, "
            "write `args.to_json_string()` to a file, and pass that file."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} must be JSON, or TrainingArguments that torch.save wrote, but "
            f"{error}"
        ) from error


def _from_torch(content: bytes) -> Any:
    """Reads the object in a file of `torch.save`, written before or since torch 1.6."""
    if not content:
        raise ValueError("it is empty. Copy it again.")
    if len(content) > _MAX_BYTES:
        raise ValueError("it is larger than 16 MiB. Pass training_args.bin itself.")
    try:
        # A zip archive since torch 1.6; before, a pickle, which opens with the opcode
        # PROTO (0x80).
        if content[:2] == b"PK":
            return load_restricted(io.BytesIO(_pickle_of_zip(content)))
        if content[:1] == b"\x80":
            return _from_legacy(io.BytesIO(content))
    # `zipfile` raises NotImplementedError for an unsupported compression.
    except (ValueError, zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise ValueError(f"it is truncated or damaged: {error}.") from error
    raise ValueError(f"it starts with {content[:8]!r}, unlike both formats.")


def _pickle_of_zip(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        found = [i for i in archive.infolist() if i.filename.endswith("/data.pkl")]
        if len(found) != 1 or found[0].file_size > _MAX_BYTES:
            raise ValueError("it contains no data.pkl of the expected size")
        return archive.read(found[0])


def _from_legacy(stream: io.BytesIO) -> Any:
    if load_restricted(stream) != _MAGIC:
        raise ValueError("it is a pickle that torch.save did not write")
    for _ in ("protocol", "system"):
        load_restricted(stream)
    return load_restricted(stream)


def _from_record(found: Any, path: Path) -> ArgsSource:
    """Returns the fields of an unpickled `TrainingArguments`; raises for others."""
    cls = found if isinstance(found, type) else type(found)
    class_name = getattr(cls, "kind", cls.__name__)
    attributes = dict(vars(found)) if isinstance(found, Record) else {}
    is_known = class_name in _CLASSES
    if not attributes or not (is_known or has_all_fields(attributes)):
        raise ValueError(f"it contains {class_name}. Pass training_args.bin itself.")
    # As `TrainingArguments.world_size` and `n_gpu`: DataParallel uses several GPUs in
    # one process.
    num_processes = getattr(attributes.get("distributed_state"), "num_processes", None)
    num_gpus, num_devices = attributes.get("_n_gpu"), None
    if isinstance(num_processes, int) and isinstance(num_gpus, int):
        num_devices = num_processes * max(1, num_gpus)
    for name in _NO_FIELDS.split():
        attributes.pop(name, None)
    return ArgsSource(_plain(attributes), str(path), num_devices, not is_known)


def _from_json(content: bytes) -> dict[str, Any]:
    try:
        return parse_json(content)
    except json.JSONDecodeError as error:
        location = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"{location} is not JSON: {error.msg}.") from error
    except ValueError as error:
        raise ValueError(f"{error}.") from error


def _plain(value: Any) -> Any:
    """Converts enums to their values, paths to strings and dataclasses to dicts."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if isinstance(value, Record):
        return _plain(vars(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return _plain({field.name: getattr(value, field.name) for field in fields})
    if isinstance(value, Path):
        return str(value)
    return value.value if isinstance(value, enum.Enum) else value
