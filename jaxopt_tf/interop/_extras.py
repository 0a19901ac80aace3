"""Imports of torch and Transformers, which are not installed with this package."""

import importlib
from typing import Any

_INSTALL = 'pip install -e ".[transformers]"'


def import_extra(name: str) -> Any:
    """Imports torch or transformers, at the call of a function that needs it.

    Raises:
        ModuleNotFoundError: with the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or name).partition(".")[0]
        raise ModuleNotFoundError(
            f"{missing} must be installed to read and write the files of a Trainer, "
            f"and is not. Install it by `{_INSTALL}`.",
            name=missing,
        ) from error
