"""`jaxopt-tf migrate`: a Trainer's GPT-2 run becomes one of ours, and back."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from ..checkpoints import find_checkpoints
from ..jobs import ImportedRun, export_run, import_run
from ._run_flags import RunFlags, merged_settings, read_typed

_STATE, _SUMS = "trainer_state.json", "SHA256SUMS"


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Migrate(Origin, RunFlags):
    """Converts a checkpoint of Transformers' Trainer to a run folder, or back.

    FOLDER is a checkpoint-<step> of a GPT-2 or a run folder, OUT a new folder.

    Flags set what the Trainer's files lack, such as the text, or replace it.

    A run folder takes `--like CHECKPOINT` only: its version can read the result.

    Example:
      jaxopt-tf migrate checkpoint-500 runs/books --text books
    """

    prog: ClassVar[str] = "jaxopt-tf migrate FOLDER OUT"
    # They belong to a single start.
    unused: ClassVar[frozenset[str]] = frozenset(
        {"intended_changes", "resume_from_checkpoint"}
    )
    # Arguments of Python functions that are no flags.
    arguments: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "checkpoint": "FOLDER",
            "folder": "FOLDER",
            "like": "--like",
            "out": "OUT",
            "recipe": "--training_args",
        }
    )


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
            f"{' '.join(args)!r}. Write `{Migrate.prog}`."
        )
    source, out, flags = Path(args[0]), Path(args[1]), args[2:]
    try:
        _migrate(source, out, flags)
    except ModuleNotFoundError as error:
        raise ValueError(str(error)) from error
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
    typed = read_typed(Migrate, flags)
    # The fields are ignored in the TrainingArguments of the run, not in `--config`.
    settings = merged_settings({**typed, "ignore_fields": ()})
    origin = {field.name for field in dataclasses.fields(Origin)}
    options = {name: value for name, value in typed.items() if name in origin}
    return settings, {"ignore_fields": typed.get("ignore_fields", ()), **options}


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
