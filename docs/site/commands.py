"""Generates the page of all commands from the help texts that they print."""

import os
import re
import subprocess
import sys
import textwrap

# Prints the help of `jaxopt-tf` and of all commands from one process, each after a form
# feed. It does not replace stdout, whose encoding decides whether boxes are printed.
_PRINT_HELP = """
from jaxopt_tf.cli import main
from jaxopt_tf.cli._main import _COMMANDS
main(["--help"])
for name in _COMMANDS:
    print("\\f")
    main([name, "--help"])
"""


def commands_page() -> str:
    """Returns a page with the flags of each command.

    A terminal of 2,000 columns prints each description without breaking it.
    """
    text = subprocess.run(
        [sys.executable, "-c", _PRINT_HELP],
        env={
            **os.environ,
            "COLUMNS": "2000",
            "JAX_PLATFORMS": "cpu",
            "PYTHONIOENCODING": "utf-8",
        },
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=True,
    ).stdout
    usage, *helps = text.split("\f")
    synopsis, about, commands, more = usage.strip().split("\n\n")
    lines = [
        f"# Commands\n\n{about}\n",
        f"```text\n{textwrap.dedent(synopsis.replace('usage:', '      '))}\n```\n",
        re.sub(r"\n  ([\w-]+) +", r"\n- [`\1`](#\1): ", commands).partition("\n")[2],
        re.sub(r"\n  (jaxopt-tf .*)", r"\n\n```bash\n\1\n```", f"\n{more}"),
    ]
    for text in helps:
        name = re.search(r"usage: jaxopt-tf (\S+)", text)[1]
        lines += [f"\n## {name}\n", *_command(text)]
    return "\n".join(lines) + "\n"


def _command(text: str) -> list[str]:
    """Converts a help text: paragraphs, an example, and boxes of flags."""
    usage, *rest = text.strip().split("\n")
    lines = [f"```text\n{usage.strip().removeprefix('usage: ')}\n```\n"]
    flag = ""
    for line in map(str.strip, rest):
        if line.startswith("╭"):
            lines.append(f"\n**{line.strip('╭╮─ ').capitalize()}**\n")
        elif line.startswith("│"):
            flag = _add_flag(lines, flag, line.strip("│ "))
        elif line.startswith("jaxopt-tf "):
            lines.append(f"```bash\n{line}\n```")
        elif not line.startswith("╰"):
            lines.append(_escaped(line) + "\n" * line.endswith("Example:"))
    return lines


def _add_flag(lines: list[str], flag: str, line: str) -> str:
    """Appends the entry of a flag to `lines`.

    A long flag has a line of its own. It is returned, and passed with the next line.
    """
    if flag:
        form, description = flag, line
    else:
        form, _, description = line.partition("  ")
        if not description:
            return form
    lines.append(f"`{form}`\n:   {_escaped(description.strip())}\n")
    return ""


def _escaped(text: str) -> str:
    """Escapes the characters of Markdown outside of code, and marks flags as code."""
    parts = re.split(r"(`[^`]*`)", re.sub(r"(?<![`\w])--\w+", r"`\g<0>`", text))
    parts[::2] = [re.sub(r"([*_<\[\]|])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)
