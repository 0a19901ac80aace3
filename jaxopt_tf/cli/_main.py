"""One command, a subcommand for each job."""

import signal
import sys
from collections.abc import Callable, Sequence

from .. import _checks
from ._decay_path import decay_path
from ._doctor import doctor, explain
from ._errors import in_flags
from ._find_lr import find_lr
from ._migrate import migrate
from ._plan import plan
from ._schedule import schedule
from ._sweep import sweep
from ._train import train

# What stands after the command's name comes in, the exit status goes out.
_COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (train, "pretrain a GPT-2"),
    "find-lr": (find_lr, "suggest a learning rate"),
    "sweep": (sweep, "try many recipes, and say which one trains best"),
    "decay-path": (decay_path, "suggest a weight decay"),
    "schedule": (schedule, "draw learning rates in the terminal"),
    "migrate": (migrate, "make a run of a Trainer's checkpoint, or back"),
    "doctor": (doctor, "say what is wrong with a plan"),
    "plan": (plan, "say what a run needs on devices that are only named"),
    "explain": (explain, "say what becomes of each parameter"),
}


def main(args: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Args:
        args: what stands after `jaxopt-tf`; None for the process's own arguments.

    Returns:
        The exit status: 0; 1 where the doctor found something, a run does not fit or
        no learning rate can be told; 2 where something is refused or the run cannot go
        on, with a sentence on stderr; 128 and the signal's number where a signal ended
        the run, 130 after Ctrl-C.

    Raises:
        SystemExit: after the `--help` of a subcommand.
    """
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        print(_usage())
        return 0 if args else 2
    name, *rest = args
    try:
        if name not in _COMMANDS:
            raise ValueError(
                f"{name!r} must be a command: {', '.join(_COMMANDS)}."
                + _checks.nearest(name, _COMMANDS, "`{}`")
            )
        return _COMMANDS[name][0](rest)
    except (ValueError, TypeError, FloatingPointError, OSError) as error:
        print(f"jaxopt-tf: {in_flags(str(error), name)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:  # with what one can do now, if there is any
        print(f"\njaxopt-tf: stopped by Ctrl-C. {error}".rstrip(), file=sys.stderr)
        return 128 + signal.SIGINT


def _usage() -> str:
    width = max(map(len, _COMMANDS))
    commands = "\n".join(
        f"  {name:{width}}  {does}" for name, (_, does) in _COMMANDS.items()
    )
    return (
        "usage: jaxopt-tf COMMAND [FLAGS]\n\n"
        "Transformers' optimization stack in JAX.\n\n"
        f"commands:\n{commands}\n\n"
        "jaxopt-tf COMMAND --help lists a command's flags."
    )
