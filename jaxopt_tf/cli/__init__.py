"""Command line of the package: `jaxopt-tf`."""

from ._main import main as main
