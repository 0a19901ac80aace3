"""Imports of libraries of the extras, such as torch and Transformers."""

import importlib
from typing import Any


def import_extra(
    name: str,
    *,
    extra: str = "transformers",
    purpose: str = "to read and write the files of Trainer",
) -> Any:
    """Imports a library of an extra when a function that needs it is called.

    Args:
        name: name of the module.
        extra: extra of this package that installs it, for the message.
        purpose: purpose of the library, for the message.

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
            f"{missing} must be installed {purpose}. "
            f'Install it with `pip install -e ".[{extra}]"`.',
            name=missing,
        ) from error
