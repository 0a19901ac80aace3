"""`jaxopt-tf migrate`: a Trainer's GPT-2 run becomes one of ours, and back."""

import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from .. import _checks
from ..checkpoints import find_checkpoints
from ..jobs import ImportedRun, export_run, import_run
from ..models import GPT2_PRESETS, gpt2_preset
from ._config import read_config
from ._flags import flags_of
from ._train import read_command_line

_PROG = "jaxopt-tf migrate FOLDER OUT"
_DESCRIPTION = (
    "Makes a run's folder of a Trainer's checkpoint-<step> of a GPT-2, or such a "
    "checkpoint of a run's folder. Flags set what the files of a Trainer do not, such "
    "as the text, and win over what they do. On the way out --like CHECKPOINT names a "
    "checkpoint of the Trainer that resumes; its version can read the result."
)
_STATE, _SUMS = "trainer_state.json", "SHA256SUMS"
# Phrases of Python functions, and what can be typed here in their place.
_TYPED = (
    (r"Pass `decay_groups='file'`", "Add `--decay_groups file`"),
    (r"Pass `transformers_version='(\S+)'`", r"Add `--transformers_version \1`"),
    (r"`without=\{'(\S+)', '(\S+)'\}`", r"`--without \1 \2`"),
    (r"`source`", "`training_args`"),
    (r"`checkpoint`", "`FOLDER`"),
    (r"`out`", "`OUT`"),
    (
        r"`(training_args|num_devices|without|groups|decay_groups|transformers_version"
        r"|ignore_fields|like|eval_steps|max_steps|output_dir|lr_scheduler_type)`",
        r"`--\1`",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """Settings that the files of a Trainer may lack.

    Attributes:
        training_args: file of the TrainingArguments, JSON too; that in FOLDER if not
            given.
        num_devices: how many devices took part, if the file does not have it.
        without: files that need not be in FOLDER: optimizer.pt, scheduler.pt.
        groups: names of the parameters of each group of optimizer.pt, in its order, as
            [["transformer.wte.weight", ...], [...]]; Trainer's own if not given.
        decay_groups: "file" applies weight decay to the parameters that optimizer.pt
            decays, for the groups of a script; by the names of parameters if not given.
        transformers_version: version of Transformers that made the run, such as 4.46.3;
            that of config.json, or of the fields, if not given.
    """

    training_args: Path | None = None
    num_devices: int | None = None
    without: tuple[str, ...] = ()
    groups: Sequence[Sequence[str]] | None = None
    decay_groups: Literal["file"] | None = None
    transformers_version: str | None = None


def migrate(args: Sequence[str]) -> int:
    """Runs `jaxopt-tf migrate`.

    Args:
        args: arguments after the command's name: two folders, then flags.

    Returns:
        The exit status: 0.
    """
    if any(arg in ("-h", "--help") for arg in args):
        _read_flags(["--help"])
    if len(args) < 2 or any(arg.startswith("-") for arg in args[:2]):
        raise ValueError(
            "`migrate` must be given two folders, the one to read and a new one, got "
            f"{' '.join(args)!r}. Write `{_PROG}`."
        )
    source, out, flags = Path(args[0]), Path(args[1]), args[2:]
    try:
        _migrate(source, out, flags)
    except (ValueError, TypeError, ModuleNotFoundError) as error:
        text = str(error)
        for python, typed in _TYPED:
            text = re.sub(python, typed, text)
        raise ValueError(text) from error
    return 0


def _migrate(source: Path, out: Path, flags: Sequence[str]) -> None:
    if (source / _STATE).exists() and not (source / "metrics.jsonl").exists():
        settings, options = _read_flags(flags)
        run = import_run(source, out, settings=settings, **options)
        _print_import(source, out, run)
    elif _holds(source, _STATE) and not _holds(source, _SUMS):
        raise ValueError(
            "`FOLDER` must be one checkpoint of a Trainer's folder, got all of "
            f"{str(source)!r}. Name one of its checkpoint-<step>."
        )
    elif (source / _SUMS).exists() or find_checkpoints(source):
        exported = export_run(source, out, like=_like(flags))
        print(
            f"{out} holds the run of {source} at its step {exported.step:,}, for\n"
            f"  Trainer.train(resume_from_checkpoint={str(out)!r})"
        )
    else:
        raise ValueError(
            "`FOLDER` must be a Trainer's checkpoint-<step>, a run's folder or one of "
            f"its checkpoints, got {str(source)!r}."
        )


def _read_flags(flags: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns settings of the run, and further arguments of `import_run`."""
    typed = read_command_line(
        flags_of(Origin, {}), flags, prog=_PROG, description=_DESCRIPTION
    )
    settings = dict(typed.settings)
    if "preset" in settings:
        name = settings.pop("preset")
        _checks.one_of("preset", name, GPT2_PRESETS)
        preset = dataclasses.asdict(gpt2_preset(name))
        sizes = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
        settings = {name: preset[name] for name in sizes} | settings
    if typed.config is not None:
        file, notes = read_config(typed.config, typed.flags, settings)
        if notes:
            print(f"jaxopt-tf: {typed.config}: {'; '.join(notes)}.", file=sys.stderr)
        settings = {**file, **settings}
    return settings, {"ignore_fields": typed.ignore_fields, **typed.own}


def _like(flags: Sequence[str]) -> Path | None:
    """Returns the checkpoint whose version reads the one that is written."""
    if not flags:
        return None
    if len(flags) != 2 or flags[0] != "--like":
        raise ValueError(
            "`migrate` takes `--like CHECKPOINT` and no other flag on the way out, got "
            f"{' '.join(flags)!r}: the run has its numbers."
        )
    return Path(flags[1])


def _print_import(source: Path, out: Path, run: ImportedRun) -> None:
    arguments = run.arguments
    for title, names in (
        ("taken over", arguments.mapped),
        ("without effect here", arguments.ignored),
        (
            "not taken over; flags set it where there are any",
            arguments.non_optimizer,
        ),
        ("ignored", arguments.unread),
        ("left out of the weight files", run.unused_tensors),
    ):
        if names:
            print(f"{title}: {', '.join(names)}")
    for note in run.notes:
        print(note)
    print(
        f"{out} holds the run of {source}, {run.num_params:,} parameters, at its step "
        f"{run.step:,}; it continues with\n"
        f"  jaxopt-tf train --config {out / 'config.json'} --output_dir {out}"
    )


def _holds(folder: Path, name: str) -> bool:
    return any(folder.glob(f"checkpoint-*/{name}"))
