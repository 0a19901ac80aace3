"""Entry point of the command `jaxopt-tf`, and its table of subcommands.

The module of a subcommand is imported when the subcommand is called, so that
`jaxopt-tf --help` does not import JAX.
"""

import difflib
import importlib
import importlib.metadata
import os
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class _Command(NamedTuple):
    """Location and summary of the function that runs a subcommand.

    The function is named like the subcommand. It receives the command line after this
    name, and returns the exit status.
    """

    module: str  # module that contains the function
    flags_type: str  # name of the dataclass of the flags, in the same module
    summary: str  # one line for `jaxopt-tf --help`


_COMMANDS = {
    "train": _Command("_train", "Train", "train or fine-tune a model"),
    "generate": _Command("_generate", "Generate", "continue a prompt with a model"),
    "find-lr": _Command("_find_lr", "FindLr", "suggest a learning rate"),
    "sweep": _Command("_sweep", "Sweep", "compare many recipes"),
    "decay-path": _Command("_decay_path", "DecayPath", "suggest a weight decay"),
    "schedule": _Command("_schedule", "Schedules", "draw schedules in the terminal"),
    "migrate": _Command(
        "_migrate", "Migrate", "convert a Trainer's checkpoint to a run, or back"
    ),
    "doctor": _Command("_doctor", "Doctor", "find mistakes in the settings of a run"),
    "plan": _Command("_plan", "Plan", "compute the memory and time that a run needs"),
    "explain": _Command("_doctor", "Explain", "list how each parameter is updated"),
}

# Commands with steps whose temporary memory is large.
_WITH_STEPS = frozenset({"train", "generate", "find-lr", "sweep", "decay-path"})
_HUGE_PAGES = "glibc.malloc.hugetlb"
_HUGE_PAGES_MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def main(args: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    On Linux a command that trains first starts itself again with huge pages for large
    blocks of memory, by the variable `GLIBC_TUNABLES`, which glibc reads at the start
    of a process. `GLIBC_TUNABLES=glibc.malloc.hugetlb=0` prevents it.

    Args:
        args: command line after `jaxopt-tf`; None for `sys.argv[1:]`.

    Returns:
        The exit status: 0 for success; 1 if `doctor` found something, a run does not
        fit into memory or no learning rate can be suggested; 2 if an argument is
        invalid or the run cannot continue, with a message on stderr; 128 plus the
        number of the signal if a signal ended the run, such as 130 after Ctrl-C and 141
        if the process that reads the output has ended.
    """
    if args is None:
        args = sys.argv[1:]
        if (environment := _with_huge_pages(args, os.environ)) is not None:
            os.execve(sys.executable, sys.orig_argv, environment)
    args = list(args)
    try:
        status = _run(args)
        sys.stdout.flush()  # raises BrokenPipeError here instead of at exit
        return status
    except BrokenPipeError:
        # The process that reads the output has ended, such as `head` in
        # `jaxopt-tf train --help | head`. Python flushes stdout again at exit, which
        # would print an error. Redirecting stdout avoids this error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt as error:
        # Some subcommands raise KeyboardInterrupt with a text on how to resume.
        hint = str(error) or f"To start again:\n  {shlex.join(['jaxopt-tf', *args])}"
        print(f"\njaxopt-tf: stopped by Ctrl-C. {hint}", file=sys.stderr)
        return 128 + signal.SIGINT


def _with_huge_pages(
    args: Sequence[str], environment: Mapping[str, str]
) -> dict[str, str] | None:
    """Returns the environment to start again with; None if there is no need.

    XLA allocates the temporary memory of a step on CPUs again in each step, and glibc
    has it from the system, which clears each page of 4 KiB when it is first written.
    In a step of a BERT that is a fifth of the time. With pages of 2 MiB it is a
    twentieth. Where the mode is "always", programs need not ask for them.
    """
    tunables = environment.get("GLIBC_TUNABLES", "")
    if _HUGE_PAGES in tunables or not _WITH_STEPS.intersection(args[:1]):
        return None
    try:
        mode = _HUGE_PAGES_MODE.read_text()
    except OSError:  # not Linux, or a kernel without huge pages
        return None
    if "[madvise]" not in mode:
        return None
    chosen = ":".join(filter(None, [tunables, f"{_HUGE_PAGES}=1"]))
    return {**environment, "GLIBC_TUNABLES": chosen}


def _run(args: Sequence[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(_usage())
        return 0 if args else 2
    if args[0] == "--version":
        print(f"jaxopt-tf {importlib.metadata.version('jaxopt_tf')}")
        return 0
    name, *rest = args
    if name not in _COMMANDS:
        closest = difflib.get_close_matches(name, _COMMANDS, n=1)
        hint = "`jaxopt-tf --help` lists all."
        if closest:
            hint = f"Did you mean {closest[0]!r}?"
        print(f"jaxopt-tf: Unknown command {name!r}. {hint}", file=sys.stderr)
        return 2
    command = _COMMANDS[name]
    flags = importlib.import_module("._flags", __package__)
    module = importlib.import_module(f".{command.module}", __package__)
    try:
        return getattr(module, name.replace("-", "_"))(rest)
    # `main` handles BrokenPipeError. It is a subclass of OSError, which `USER_ERRORS`
    # contains.
    except BrokenPipeError:
        raise
    except flags.USER_ERRORS as error:
        flags_type = getattr(module, command.flags_type)
        # Messages name Python arguments; the user knows flags.
        names_in_messages = getattr(flags_type, "names_in_messages", {})
        flag_names = flags.flag_kinds(flags_type)
        text = flags.with_flag_names(str(error), flag_names, names_in_messages)
        print(f"jaxopt-tf: {text}", file=sys.stderr)
        return 2
    except SystemExit as done:  # raised after `--help`
        return int(done.code or 0)


def _usage() -> str:
    commands = "\n".join(f"  {n:10}  {c.summary}" for n, c in _COMMANDS.items())
    return (
        "usage: jaxopt-tf COMMAND [FLAGS]\n"
        "       jaxopt-tf --version\n\n"
        "The optimization stack of Hugging Face Transformers in JAX.\n\n"
        f"commands:\n{commands}\n\n"
        "`jaxopt-tf COMMAND --help` lists the flags of a command. Example:\n"
        "  jaxopt-tf train --text books --max_steps 1000 --output_dir runs/books"
    )
