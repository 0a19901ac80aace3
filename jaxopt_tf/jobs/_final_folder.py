"""Writing of a run's parameters as a folder that Transformers loads.

runs/books/model.safetensors      parameters
           generation_config.json defaults of `generate`
           tokenizer.json         tokenizer, and the files beside it
           config.json            configuration of the model
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from .. import interop
from .._io import atomic_write, read_json_object, run_on_process_0
from .._typing import PyTree
from ..models import Model

_CONFIG, _GENERATION, _TOKENIZER = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
)
_CHAT_TEMPLATE = "chat_template.jinja"
# Files of a tokenizer beside tokenizer.json.
# Source: transformers 5.23 `tokenization_utils_base.py` and `tokenization_*.py`.
_TOKENIZER_FILES = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *(_CHAT_TEMPLATE, "chat_template.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "tekken.json"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)
_IMAGES = "preprocessor_config.json"


def write_transformers_folder(
    folder: Path | str,
    model: Model,
    params: PyTree,
    *,
    like: Path | str | None = None,
    has_new_weights: bool = False,
    tokenizer: Path | str | None = None,
    chat_template: Path | str | None = None,
) -> None:
    """Writes a folder that `AutoModelForCausalLM.from_pretrained` loads.

    Files of an earlier call are replaced. config.json is written last: a folder without
    it cannot be loaded. If the process is killed, the folder never contains parameters
    that belong to different calls; see `interop.write_weights`. With several processes,
    all must call the function; process 0 writes.

    Args:
        folder: folder of the run; it is created if it does not exist.
        model: the model.
        params: its parameters, on any devices.
        like: folder from which the run started. config.json keeps the fields in `like`
            that the model does not have, such as `bos_token_id`. Tensors have the names
            and dtypes in `like`, and values are rounded to the nearest one.
            generation_config.json and the files of the tokenizer are copied. None for
            the names of Transformers, the dtypes of `params` and no further files.
        has_new_weights: whether the run started with weights other than those in
            `like`, which is then not required to contain any. Tensors have the names of
            Transformers and the dtypes of `params`.
        tokenizer: tokenizer.json of the run, which is copied with the files of the
            tokenizer beside it, in place of those in `like`; None for those in `like`.
        chat_template: file of the Jinja template that replaced that of the tokenizer.

    Raises:
        ValueError: if a file of `like` is missing or damaged, or contains another
            model; if `tokenizer` does not exist; or if a parameter is too large for its
            dtype in `like`. The weights in `folder` are not changed.
        OSError: if a file cannot be written.
    """
    folder = Path(folder)
    like = None if like is None else Path(like)
    text = _config_text(model, like, has_new_weights=has_new_weights)
    copied = dict(_copied_files(like, None if tokenizer is None else Path(tokenizer)))
    # A resumed run may have read its rows from the stored tokens.
    if chat_template is not None and Path(chat_template).is_file():
        copied[_CHAT_TEMPLATE] = Path(chat_template)
    stored = None
    if like is not None and not has_new_weights:
        stored = interop.stored_tensors(like, model.names)
    run_on_process_0(lambda: _prepare(folder, text, copied))
    interop.write_weights(folder, params, model.names, stored=stored)
    run_on_process_0(lambda: _write_text(folder / _CONFIG, text))


def write_adapter_folder(
    folder: Path | str,
    model: Model,
    params: PyTree,
    *,
    base: Path | str | None = None,
    tokenizer: Path | str | None = None,
) -> None:
    """Writes a folder that `PeftModel.from_pretrained` loads, as Trainer does.

    adapter_config.json is written last: a folder without it cannot be loaded. With
    several processes, all must call the function; process 0 writes.

    Args:
        folder: folder of the run; it is created if it does not exist.
        model: the model, with an adapter.
        params: parameters of the adapter, on any devices.
        base: folder of the base model, whose tokenizer is copied; None for none.
        tokenizer: tokenizer.json of the run, in place of that in `base`.
    """
    folder = Path(folder)
    copied = dict(
        _copied_files(
            None if base is None else Path(base),
            None if tokenizer is None else Path(tokenizer),
        )
    )
    copied.pop(_GENERATION, None)
    if jax.process_count() > 1:
        params = multihost_utils.process_allgather(params, tiled=True)

    def write() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        _copy(folder, copied)
        interop.write_adapter(folder, params, model.names)

    run_on_process_0(write)


def _config_text(model: Model, like: Path | None, *, has_new_weights: bool) -> str:
    original: dict[str, Any] = {}
    if like is not None:
        original = dict(read_json_object(like / _CONFIG, "like"))
    if like is None or has_new_weights:
        # Transformers 5 converts weights to this dtype. Its former name is ignored.
        original.pop("torch_dtype", None)
        original["dtype"] = "float32"
    config = {**original, **model.transformers_config}
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def _copied_files(
    like: Path | None, tokenizer: Path | None
) -> Iterator[tuple[str, Path]]:
    """Yields the names and sources of the files to copy."""
    if tokenizer is not None and not tokenizer.is_file():
        raise ValueError(
            f"`tokenizer` must be an existing tokenizer.json, got {str(tokenizer)!r}. "
            "Pass the file that the run was started with."
        )
    for name in (_GENERATION, _IMAGES):
        if like is not None and (like / name).is_file():
            yield name, like / name
    if tokenizer is not None:
        yield _TOKENIZER, tokenizer
        # A tokenizer with another file name is a single file, which may be in any
        # folder.
        tokenizer_folder = tokenizer.parent if tokenizer.name == _TOKENIZER else None
    else:
        tokenizer_folder = like
        if like is not None and (like / _TOKENIZER).is_file():
            yield _TOKENIZER, like / _TOKENIZER
    for name in _TOKENIZER_FILES:
        if tokenizer_folder is not None and (tokenizer_folder / name).is_file():
            yield name, tokenizer_folder / name


def _prepare(folder: Path, text: str, copied: Mapping[str, Path]) -> None:
    """Removes a config.json of another model, and copies files."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / _CONFIG
    # With the old config.json, the new weights could be loaded as those of another
    # model.
    with contextlib.suppress(FileNotFoundError):
        if config.read_bytes() != text.encode():
            config.unlink()
    _copy(folder, copied)


def _copy(folder: Path, copied: Mapping[str, Path]) -> None:
    for name, source in copied.items():
        if (folder / name).exists() and source.samefile(folder / name):
            continue
        with atomic_write(folder / name) as new_path:
            shutil.copyfile(source, new_path)


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as new_path:
        new_path.write_text(text, encoding="utf-8")
