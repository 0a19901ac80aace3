"""Subcommand `migrate`: import and export of a Trainer's checkpoint."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from ..checkpoints import find_checkpoints
from ..jobs import ImportedRun, export_run, import_run, labelled_settings
from ._run_flags import RunFlags, merged_settings, read_typed

_STATE, _SUMS = "trainer_state.json", "SHA256SUMS"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """Settings that the files of a Trainer may not contain.

    Attributes:
        training_args: file of the TrainingArguments, training_args.bin or JSON.
            Default: the training_args.bin in FOLDER.
        num_devices: number of devices of the run, if the file does not contain it.
        without: files that may be missing in FOLDER: optimizer.pt, scheduler.pt.
        groups: names of the parameters in each group of optimizer.pt, in its order,
            such as [["transformer.wte.weight", ...], [...]]. Default: the groups of
            Trainer.
        decay_groups: "file" applies weight decay to the parameters that optimizer.pt
            decays, for custom parameter groups. Default: Trainer's rule, by the names
            of the parameters.
        transformers_version: version of Transformers that wrote the checkpoint, such as
            4.46.3. Default: inferred from config.json or from the fields.
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

    FOLDER is a checkpoint-<step> of Trainer or a run folder, OUT is a new folder.

    Flags add settings that the Trainer's files do not contain, such as the text.

    They override settings in the files.

    For a run folder, the only flag is `--like CHECKPOINT`.

    The run is then written in the format of CHECKPOINT.

    Example:
      jaxopt-tf migrate checkpoint-500 runs/books --text books
    """

    prog: ClassVar[str] = "jaxopt-tf migrate FOLDER OUT"
    # Settings of a single start, which are not part of a run folder, and the length of
    # the run, which the checkpoint contains in steps.
    unused: ClassVar[frozenset[str]] = frozenset(
        {"intended_changes", "resume_from_checkpoint", "num_train_epochs"}
    )
    # Names that replace those of Python arguments, which are not flags, in messages.
    names_in_messages: ClassVar[Mapping[str, str]] = MappingProxyType(
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
        args: command line after the name of the command: two folders, then flags.

    Returns:
        The exit status: 0.
    """
    # tyro prints the help and exits before the folders are required.
    if any(arg in ("-h", "--help") for arg in args):
        _read_flags(["--help"])
    if len(args) < 2 or any(arg.startswith("-") for arg in args[:2]):
        raise ValueError(
            "`migrate` must be given two folders, the one to read and a new one, got "
            f"{' '.join(args)!r}. The usage is `{Migrate.prog}`."
        )
    source, out, flags = Path(args[0]), Path(args[1]), args[2:]
    try:
        _migrate(source, out, flags)
    except ModuleNotFoundError as error:
        raise ValueError(str(error)) from error
    return 0


def _migrate(source: Path, out: Path, flags: Sequence[str]) -> None:
    # A run folder contains trainer_state.json, too; only a run has metrics.jsonl.
    if (source / _STATE).exists() and not (source / "metrics.jsonl").exists():
        labelled = labelled_settings({"model_name_or_path": source})
        if labelled is not None:
            raise ValueError(
                "`FOLDER` must be a checkpoint of a causal language model, got one for "
                f"{labelled['task']}: {str(source)!r}. Continue it with `jaxopt-tf "
                f"train --resume_from_checkpoint {source} --output_dir {out}`, and "
                "with the model, the rows and the arguments of Trainer as flags."
            )
        settings, options = _read_flags(flags)
        run = import_run(source, out, settings=settings, **options)
        _print_import(source, out, run)
    elif _has_checkpoint_with(source, _STATE) and not _has_checkpoint_with(
        source, _SUMS
    ):
        raise ValueError(
            "`FOLDER` must be one checkpoint of a Trainer's folder, got all of "
            f"{str(source)!r}. Pass one of its checkpoint-<step> folders."
        )
    elif (source / _SUMS).exists() or find_checkpoints(source):
        exported = export_run(source, out, like=_like(flags))
        print(
            f"{out} contains the run of {source} at step {exported.step:,}, for\n"
            f"  Trainer.train(resume_from_checkpoint={str(out)!r})"
        )
        if exported.frozen:
            print(
                "Trainer must get a model in which `requires_grad` is False for "
                f"{len(exported.frozen)} parameters:\n  {', '.join(exported.frozen)}"
            )
    else:
        raise ValueError(
            "`FOLDER` must be a Trainer's checkpoint-<step>, a run's folder or one of "
            f"its checkpoints, got {str(source)!r}."
        )


def _read_flags(flags: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the settings of the run and further arguments of `import_run`."""
    typed = read_typed(Migrate, flags)
    # `--ignore_fields` applies to the TrainingArguments of the run, not to `--config`.
    settings = merged_settings({**typed, "ignore_fields": ()})
    origin = {field.name for field in dataclasses.fields(Origin)}
    options = {name: value for name, value in typed.items() if name in origin}
    return settings, {"ignore_fields": typed.get("ignore_fields", ()), **options}


def _like(flags: Sequence[str]) -> Path | None:
    """Returns the checkpoint of `--like`, the only flag for an export."""
    if not flags:
        return None
    if len(flags) != 2 or flags[0] != "--like":
        raise ValueError(
            "`migrate` of a run folder must have no flag other than `--like "
            f"CHECKPOINT`, got {' '.join(flags)!r}: the run contains its settings."
        )
    return Path(flags[1])


def _print_import(source: Path, out: Path, run: ImportedRun) -> None:
    arguments = run.arguments
    for title, names in (
        ("imported", arguments.mapped),
        ("without effect", arguments.ignored),
        (
            "not imported; set by flags if there are any",
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
        f"{out} contains the run of {source}, {run.num_params:,} parameters, at step "
        f"{run.step:,}; to resume it:\n"
        f"  jaxopt-tf train --config {out / 'settings.json'} --output_dir {out}"
    )


def _has_checkpoint_with(folder: Path, name: str) -> bool:
    return any(folder.glob(f"checkpoint-*/{name}"))
