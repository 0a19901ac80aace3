"""One command, a subcommand for each job."""

import sys
from collections.abc import Sequence

import tyro

from ._train import REGISTRY, train

# A new subcommand is one more entry: a function whose arguments are its flags.
_SUBCOMMANDS = {"train": train}


def main(args: Sequence[str] | None = None) -> int:
    """Runs a subcommand; the exit status: 0, or 2 where an argument is refused.

    Args:
        args: what stands after `jaxopt-tf`; None for the process's own arguments.
    """
    try:
        tyro.extras.subcommand_cli_from_dict(
            _SUBCOMMANDS,
            prog="jaxopt-tf",
            description="Transformers' optimization stack in JAX.",
            args=args,
            use_underscores=True,
            registry=REGISTRY,
        )
    except (ValueError, TypeError, FloatingPointError) as error:
        print(f"jaxopt-tf: {error}", file=sys.stderr)
        return 2
    return 0
