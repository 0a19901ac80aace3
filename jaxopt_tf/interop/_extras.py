"""Imports of torch and Transformers, which are not installed with this package."""

import importlib
from typing import Any

_INSTALL = 'pip install -e ".[transformers]"'


def import_extra(name: str) -> Any:
    """Imports torch or transformers when a function that needs it is called.

    Raises:
        ModuleNotFoundError: if it is not installed; the message has the command that
            installs it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # The missing module may be a dependency, such as `safetensors.torch`.
        missing = (error.name or name).partition(".")[0]
        raise ModuleNotFoundError(
            f"{missing} must be installed to read and write the files of Trainer. "
            f"Install it with `{_INSTALL}`.",
            name=missing,
        ) from error
