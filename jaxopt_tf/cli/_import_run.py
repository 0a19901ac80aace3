"""A Trainer's checkpoint of a GPT-2 comes in as the folder of a run."""

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from .. import _checks, interop, training
from ..jobs import Run, first_position, write_run
from ..models import gpt2_layout, make_loss_fn
from ..recipes import recipe_settings
from ._flags import build
from ._gpt2_config import json_object, sizes_of
from ._job_of_trainer import OF_AN_EVALUATION, STATE, job_settings
from ._run_flags import RunFlags, read_typed, run_config

_ARGUMENTS = "training_args.bin"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """Settings that the files of a Trainer may lack.

    Attributes:
        training_args: file of the TrainingArguments, JSON too; that in FOLDER if not
            given.
        num_devices: how many devices took part, where the file does not have it.
        without: files that need not be in FOLDER: optimizer.pt, scheduler.pt.
        groups: names of the parameters of each group of optimizer.pt, in its order, as
            [["transformer.wte.weight", ...], [...]]; Trainer's own if not given.
        decay_groups: "file" applies weight decay to the parameters that optimizer.pt
            decays, for the groups of a script; by the names of parameters if not given.
        transformers_version: version of Transformers that made the run, such as 4.46.3;
            that of config.json, or told by the fields, if not given.
    """

    training_args: Path | None = None
    num_devices: int | None = None
    without: tuple[str, ...] = ()
    groups: Sequence[Sequence[str]] | None = None
    decay_groups: Literal["file"] | None = None
    transformers_version: str | None = None

    def __post_init__(self) -> None:
        """Checks the flags that have few values."""
        if self.decay_groups is not None:
            _checks.one_of("decay_groups", self.decay_groups, ["file"])


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


def import_run(source: Path, out: Path, flags: Sequence[str]) -> None:
    """Makes the folder of a run from a Trainer's checkpoint.

    Args:
        source: the checkpoint-<step> of a Trainer.
        out: a folder that does not exist yet.
        flags: those of `jaxopt-tf train`, and `OWN_FLAGS`.

    Raises:
        ValueError: naming all that is missing, damaged, or cannot be carried over.
    """
    typed = read_typed(Migrate, flags)
    origin = build(Origin, typed.own)
    state = json_object(source / STATE)
    if "max_steps" not in state:
        raise ValueError(f"{source / STATE} must contain 'max_steps'. Copy it again.")
    arguments = origin.training_args or source / _ARGUMENTS
    came = interop.recipe_from_transformers(
        arguments,
        max_steps=state["max_steps"],
        num_devices=origin.num_devices,
        ignore_fields=typed.ignore_fields,
        transformers_version=origin.transformers_version,
    )
    # Ours leaves out the same leaves of a GPT-2, by their names.
    recipe = dataclasses.replace(came.recipe, decay_rule="default")
    taken = job_settings(arguments, typed, recipe, state)
    found = {**recipe_settings(recipe), **sizes_of(source), "output_dir": str(out)}
    of_file = typed._replace(ignore_fields=())
    config = run_config(of_file, {**found, **taken.settings})
    recipe, model, job = config.recipe, config.model, config.job
    if job.output_dir != out:
        raise ValueError(
            f"`output_dir` must be the new folder, {str(out)!r}, got "
            f"{str(job.output_dir)!r}. Leave it out: `OUT` says it."
        )
    params, _ = make_loss_fn(model, recipe.seed)
    names = interop.match_names(params, _torch_model(source, model.block_size))
    if origin.decay_groups == "file":
        rule = interop.decay_rule_from_checkpoint(source, names, groups=origin.groups)
        recipe = dataclasses.replace(recipe, decay_rule=rule)
    start = first_position(recipe, model, params)
    layout = gpt2_layout(model)
    try:
        read = interop.read_trainer_checkpoint(
            source,
            params,
            names,
            recipe=dataclasses.replace(came.recipe, decay_rule=recipe.decay_rule),
            opt_state=start.state.opt_state,
            groups=origin.groups,
            layouts=layout,
            without=origin.without,
        )
    except interop.DecayGroupsError as error:
        raise ValueError(
            f"{error.difference} Add `--decay_groups file` to decay what the file "
            "decays."
        ) from error
    if type(read.schedule_state) is not type(start.schedule_state):
        raise ValueError(
            "`lr_scheduler_type` must stay where a metric drives the rate, got "
            f"{recipe.lr_scheduler_type!r} after {came.recipe.lr_scheduler_type!r}. "
            "Leave it out: what such a schedule remembers is not another's."
        )
    at = dataclasses.replace(
        start.state,
        step=jnp.int32(read.step),
        params=read.params,
        opt_state=read.opt_state,
    )
    position = training.Position(at, start.progress, read.schedule_state)
    out.mkdir(parents=True)
    try:
        write_run(Run(recipe, model, job, position))
    except BaseException:  # half of a run, which would be in the way of the next try
        shutil.rmtree(out, ignore_errors=True)
        raise
    carried = sorted(
        name
        for name, value in taken.settings.items()
        if value is not None and name not in {*typed.settings, "lr_scheduler_type"}
    )
    for note in _notes_on_fields(came, taken, carried, read.unused):
        print(note)
    _print_differences(source, read, at.rng is not None)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(read.params))
    print(
        f"{out} holds the run of {source}, {num_params:,} parameters, at its step "
        f"{read.step:,}; it goes on with\n"
        f"  jaxopt-tf train --config {out / 'config.json'} --output_dir {out}"
    )


def _notes_on_fields(
    came: interop.FromTransformers,
    taken: interop.Translation,
    carried: Sequence[str],
    unused: Sequence[str],
) -> list[str]:
    """Returns a line for each kind of fields: carried over, without effect, ..."""
    return [
        *_listed("taken over", [*came.honoured, *carried]),
        *_listed(
            "without effect here",
            sorted({*came.without_effect, *taken.neutral} - {*carried}),
        ),
        *_listed(
            "not taken over; flags set it where there are any",
            [name for name in came.elsewhere if name not in OF_AN_EVALUATION],
        ),
        *_listed("ignored", came.ignored),
        *_listed("left out of the weight files", unused),
        # Decay was compared with the groups of optimizer.pt.
        *(note for note in came.notes if not note.startswith("`decay_rule`")),
        *taken.notes,
    ]


def _print_differences(
    source: Path, read: interop.TrainerCheckpoint, has_dropout: bool
) -> None:
    """Prints what differs between the run here and in Trainer."""
    config = json_object(source / "config.json")
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    if dtype != "float32":
        print(f"parameters and moments are float32 here, and were {dtype} in torch")
    if not all("param_names" in group for group in read.param_groups):
        print(
            "moments were taken in the order of Trainer's groups: optimizer.pt has no "
            "names, and parameters of one shape in another order cannot be told apart"
        )
    print(
        "a loss is the mean over all that is predicted here; Trainer 5.23 divides a "
        "GPT-2's by all labels, the first of each row included, so that its losses and "
        "gradients are (L - 1) / L of ours for rows of L tokens"
    )
    if has_dropout:
        print("dropout begins anew, from `seed`: torch's random numbers are its own")


def _torch_model(source: Path, block_size: int) -> interop.TorchModel:
    """Describes the model; an old file may have `n_ctx` in place of `n_positions`."""
    config = json_object(source / "config.json")
    if {"n_positions", "max_position_embeddings"} & set(config):
        return interop.torch_model_from_config(source)
    with tempfile.TemporaryDirectory() as folder:
        written = json.dumps({**config, "n_positions": block_size})
        Path(folder, "config.json").write_text(written, encoding="utf-8")
        return interop.torch_model_from_config(folder)


def _listed(what: str, names: Sequence[str]) -> list[str]:
    return [f"{what}: {', '.join(names)}"] if names else []
