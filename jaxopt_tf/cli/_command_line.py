"""Flags from a command line: what was typed, and no more. tyro does the help."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypedDict

import tyro

from .. import _checks
from ._flags import Flag, read


def typed_settings(
    groups: Mapping[str, Sequence[Flag]],
    args: Sequence[str],
    *,
    prog: str,
    description: str,
) -> dict[str, Any]:
    """The settings that stand on the command line, by name; `--help` prints and exits.

    Switches are `--bf16` and `--no_bf16`, or `--bf16 True` as the Trainer's scripts
    have it; words of a flag are joined by underscores or hyphens. Of a flag that is
    there twice the last counts.

    Args:
        groups: flags by the title that they have in the help.
        args: what stands after `prog`.
        prog: the command's name, for the help.
        description: the help's first lines.

    Raises:
        ValueError: naming every argument that is no flag's, with the nearest flag, and
            every value that cannot be read.
    """
    flags = {flag.name: flag for group in groups.values() for flag in group}
    # All fields are left out unless they are typed: the dicts are not total. mypy knows
    # a TypedDict only where its fields are written out, and these are made here.
    fields = {
        title: Annotated[
            TypedDict(title, {f.name: _field(f) for f in group}, total=False),  # type: ignore[operator]
            tyro.conf.arg(name=title),
        ]
        for title, group in groups.items()
    }
    form: Any = TypedDict("Flags", fields)  # type: ignore[misc]
    found: Any = tyro.cli(
        form,
        prog=prog,
        description=description,
        args=_with_switches(args, flags),
        use_underscores=True,
        return_unknown_args=True,
    )
    by_group, unknown = found
    typed: dict[str, Any] = {}
    problems = _strangers(unknown, list(flags), prog)
    for name, values in (pair for group in by_group.values() for pair in group.items()):
        flag = flags[name]
        if flag.kind and not flag.is_several:
            if len(values) != 1:
                got = " ".join(values) or "none"
                problems.append(f"`--{name}` must have one value, got {got}.")
                continue
            (values,) = values
        try:
            typed[name] = read(flag, values)
        except TypeError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n  ".join(problems))
    return typed


def _field(flag: Flag) -> Any:
    # Values are strings, any number of them, so that they are read and refused here.
    shown = flag.default is not None and flag.default != ()
    default = " ".join(map(str, flag.default)) if flag.is_several else flag.default
    metavar = f"{flag.kind} [{flag.kind} ...]" if flag.is_several else flag.kind
    return Annotated[
        tuple[str, ...] if flag.kind else bool,
        tyro.conf.arg(
            prefix_name=False,
            metavar=metavar or None,
            help=flag.help,
            help_behavior_hint=f"(default: {default})" if shown else "",
        ),
    ]


def _with_switches(args: Sequence[str], flags: Mapping[str, Flag]) -> list[str]:
    """`--bf16 False` and `--bf16=False` as `--no_bf16`."""

    def switch(arg: str) -> str | None:
        flag = flags.get(arg.removeprefix("--").replace("-", "_"))
        is_switch = arg.startswith("--") and flag is not None and not flag.kind
        return flag.name if flag is not None and is_switch else None

    written: list[str] = []
    for arg in args:
        is_joined = switch(arg.partition("=")[0]) is not None
        for word in arg.split("=", 1) if is_joined else [arg]:
            name = switch(written[-1]) if written else None
            if name is not None and word in ("True", "true", "False", "false"):
                written[-1] = f"--{'' if word.lower() == 'true' else 'no_'}{name}"
            else:
                written.append(word)
    return written


def _strangers(unknown: Sequence[str], known: list[str], prog: str) -> list[str]:
    """A sentence for every flag that there is not, or for the first stray value."""
    names = [arg.partition("=")[0] for arg in unknown if arg.startswith("-")]
    if not names and unknown:
        return [f"{unknown[0]!r} must follow a flag. `{prog} --help` lists them."]
    return [
        f"`{name}` must be a flag of `{prog}`."
        + _checks.nearest(name.strip("-").replace("-", "_"), known, "`--{}`")
        for name in names
    ]
