"""Subcommand `generate`: continues a prompt with a trained model."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from .. import jobs
from ._flags import build, read_flags


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Continues a prompt with the model of a run, and prints prompt and continuation.

    RUN is a run's folder, one of its checkpoints or a folder of Transformers.

    With --chat, the prompt is a message, and only the answer is printed.

    Without --temperature, each new token is the most probable one.

    Example:
      jaxopt-tf generate runs/books --prompt "Once upon a time" --temperature 0.8

    Attributes:
        prompt: the text to continue, or the message to answer. Default: the start of a
            document.
        max_new_tokens: maximum number of tokens after the prompt. Default: 128, or
            fewer up to the context length of the model.
        temperature: divisor of the logits; 0 takes the most probable token.
        top_k: number of most probable tokens that are sampled from. Default: all.
        top_p: cumulative probability of the tokens that are sampled from, which are the
            most probable ones; from 0 to 1.
        seed: seed of the samples.
        chat: whether the chat template renders the prompt, as a user message.
            Default: as in the training data of the run.
        system_prompt: system message before the prompt, for a chat.
        chat_template: file of a Jinja template. Default: that of the run or the
            tokenizer.
        tokenizer: path of a tokenizer.json. Default: that of the run or the folder.
        bf16: whether the model computes in bfloat16. Default: as in the run.
    """

    prog: ClassVar[str] = "jaxopt-tf generate RUN"
    # Names that replace those of Python arguments, which are not flags, in messages.
    names_in_messages: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"checkpoint": "RUN", "folder": "RUN"}
    )

    prompt: str = ""
    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0
    chat: bool | None = None
    system_prompt: str | None = None
    chat_template: Path | None = None
    tokenizer: Path | None = None
    bf16: bool | None = None


def generate(args: Sequence[str]) -> int:
    """Runs `jaxopt-tf generate`.

    Args:
        args: command line after the name of the command: a folder, then flags.

    Returns:
        The exit status: 0.
    """
    # tyro prints the help and exits before the folder is required.
    if any(arg in ("-h", "--help") for arg in args):
        read_flags(Generate, ["--help"])
    if not args or args[0].startswith("-"):
        raise ValueError(
            "`generate` must be given the folder of a run, got "
            f"{' '.join(args) or 'none'!r}. The usage is `{Generate.prog}`, followed "
            "by flags."
        )
    flags = build(Generate, read_flags(Generate, args[1:]))
    print(jobs.generate(Path(args[0]), **vars(flags), report=_print_to_stderr))
    return 0


def _print_to_stderr(line: str) -> None:
    print(f"jaxopt-tf: {line}", file=sys.stderr)
