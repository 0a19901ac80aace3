"""The command `jaxopt-tf`."""

from ._main import main as main
