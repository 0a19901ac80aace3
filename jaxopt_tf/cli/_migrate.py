"""`jaxopt-tf migrate`: a Trainer's GPT-2 run becomes one of ours, and back."""

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from .. import interop, training
from ..checkpoints import find_checkpoints
from ..pretraining import (
    Run,
    first_position,
    gpt2_layout,
    make_loss_fn,
    read_run,
    write_run,
)
from ..recipes import recipe_settings
from ._gpt2_config import json_object, sizes_of, torch_config
from ._train import parse

_PROG = "jaxopt-tf migrate FOLDER OUT"
_DESCRIPTION = (
    "Makes a run's folder of a Trainer's checkpoint-<step> of a GPT-2, or such a "
    "checkpoint of a run's folder. Flags say what the file of a Trainer does not: the "
    "text, how often to evaluate and save. With --decay_groups file weight decay is "
    "applied to the parameters that optimizer.pt decays, by a script's groups say. On "
    "the way out --like CHECKPOINT names a checkpoint of the Trainer that resumes; its "
    "version can read what is written."
)
# Flag of `migrate` alone: decay by the groups of optimizer.pt.
_FILE_GROUPS = ("--decay_groups", "file")
_ARGUMENTS, _STATE = "training_args.bin", "trainer_state.json"


def migrate(args: Sequence[str]) -> int:
    """Runs `jaxopt-tf migrate`.

    Args:
        args: what stands after the command's name: two folders, then flags.

    Returns:
        The exit status: 0.
    """
    if any(arg in ("-h", "--help") for arg in args):
        parse(["--help"], prog=_PROG, description=_DESCRIPTION)
    if len(args) < 2 or any(arg.startswith("-") for arg in args[:2]):
        raise ValueError(
            "`migrate` must be given two folders, the one to read and a new one, got "
            f"{' '.join(args)!r}. Write `{_PROG}`."
        )
    source, out, flags = Path(args[0]), Path(args[1]), args[2:]
    if out.exists():
        raise ValueError(
            f"`OUT` must be a new folder, got {str(out)!r}. Name another: nothing is "
            "overwritten."
        )
    if (source / _STATE).exists() and not (source / "metrics.jsonl").exists():
        _come_in(source, out, flags)
    elif _holds(source, _STATE) and not _holds(source, "SHA256SUMS"):
        raise ValueError(
            "`FOLDER` must be one checkpoint of a Trainer's folder, got all of "
            f"{str(source)!r}. Name one of its checkpoint-<step>."
        )
    elif (source / "SHA256SUMS").exists() or find_checkpoints(source):
        _go_out(source, out, _like(flags))
    else:
        raise ValueError(
            "`FOLDER` must be a Trainer's checkpoint-<step>, a run's folder or one of "
            f"its checkpoints, got {str(source)!r}."
        )
    return 0


def _come_in(source: Path, out: Path, flags: Sequence[str]) -> None:
    state = json_object(source / _STATE)
    if "max_steps" not in state:
        raise ValueError(f"`max_steps` must be in {source / _STATE}: copy it anew.")
    came = interop.recipe_from_transformers(
        source / _ARGUMENTS, max_steps=state["max_steps"]
    )
    flags, takes_file = _without_file_groups(flags)
    # Ours leaves out the same leaves of a GPT-2, by their names.
    recipe = dataclasses.replace(came.recipe, decay_rule="default")
    found = {**recipe_settings(recipe), **sizes_of(source), "output_dir": str(out)}
    recipe, model, job = parse(flags, prog=_PROG, description=_DESCRIPTION, found=found)
    if job.output_dir != out:
        raise ValueError(
            f"`output_dir` must be the new folder, {str(out)!r}, got "
            f"{str(job.output_dir)!r}. Leave it out: `OUT` says it."
        )
    params, _ = make_loss_fn(model, recipe.seed)
    names = interop.match_names(params, interop.torch_model_from_config(source))
    if takes_file:
        rule = interop.decay_rule_from_checkpoint(source, names)
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
            layouts=layout,
        )
    except interop.DecayGroupsError as error:
        raise ValueError(
            f"{error.difference} Add `{' '.join(_FILE_GROUPS)}` to decay what the file "
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
    for note in (
        *_told("taken over", came.honoured),
        *_told("without effect here", came.without_effect),
        *_told("not taken over, for flags to say", came.elsewhere),
        # Decay was compared with the groups of optimizer.pt.
        *(note for note in came.notes if not note.startswith("`decay_rule`")),
    ):
        print(note)
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
    if at.rng is not None:
        print("dropout begins anew, from `seed`: torch's random numbers are its own")
    num_params = sum(leaf.size for leaf in jax.tree.leaves(read.params))
    print(
        f"{out} holds the run of {source}, {num_params:,} parameters, at its step "
        f"{read.step:,}; it goes on with\n"
        f"  jaxopt-tf train --config {out / 'config.json'} --output_dir {out}"
    )


def _without_file_groups(flags: Sequence[str]) -> tuple[list[str], bool]:
    """The flags of a run, and whether decay is by the groups of the file."""
    left = list(flags)
    name, value = _FILE_GROUPS
    if name not in left:
        return left, False
    place = left.index(name)
    if left[place + 1 : place + 2] != [value]:
        raise ValueError(
            f"`{name}` must be {value!r}, got {left[place + 1 : place + 2]!r}. Leave "
            "it out to decay by the names of parameters."
        )
    return left[:place] + left[place + 2 :], True


def _like(flags: Sequence[str]) -> Path | None:
    """The checkpoint whose version is going to read the one that is written."""
    if not flags:
        return None
    if len(flags) != 2 or flags[0] != "--like":
        raise ValueError(
            "`migrate` takes `--like CHECKPOINT` and no other flag on the way out, got "
            f"{' '.join(flags)!r}: the run has its numbers."
        )
    like = Path(flags[1])
    if not (like / "config.json").is_file():
        raise ValueError(
            f"`--like` must hold config.json, got {str(like)!r}. Name the Trainer's "
            "checkpoint-<step> that the run came from."
        )
    return like


def _go_out(source: Path, out: Path, like: Path | None) -> None:
    recipe, model, job, position = read_run(source)
    step = int(position.state.step)
    # Less by the updates that were skipped; none where no schedule asks with it.
    found = optax.tree.get_all_with_path(position.state.opt_state, "step")
    asked = [int(leaf) for _, leaf in found if leaf is not None]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        config = json.dumps(torch_config(model), indent=2)
        Path(made, "config.json").write_text(f"{config}\n", encoding="utf-8")
        like = Path(made) if like is None else like
        names = interop.match_names(
            position.state.params, interop.torch_model_from_config(like)
        )
        interop.write_trainer_checkpoint(
            out,
            position.state.params,
            position.state.opt_state,
            names,
            recipe=recipe,
            step=step,
            schedule_step=asked[0] if asked else None,
            schedule_state=position.schedule_state,
            # Trainer goes by these, not by its arguments.
            trainer_state={
                "eval_steps": job.eval_steps,
                "logging_steps": job.logging_steps,
                "save_steps": job.save_steps,
            },
            like=like,
            layouts=gpt2_layout(model),
        )
    print(
        f"{out} holds the run of {source} at its step {step:,}, for\n"
        f"  Trainer.train(resume_from_checkpoint={str(out)!r})"
    )


def _holds(folder: Path, name: str) -> bool:
    return any(folder.glob(f"checkpoint-*/{name}"))


def _told(what: str, names: Sequence[str]) -> list[str]:
    return [f"{what}: {', '.join(names)}"] if names else []
