"""`jaxopt-tf migrate`: a Trainer's GPT-2 run becomes one of ours, and back."""

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import optax

from .. import interop
from ..checkpoints import find_checkpoints
from ..jobs import read_run
from ..models import gpt2_layout
from ._gpt2_config import torch_config
from ._import_run import Migrate, import_run
from ._job_of_trainer import STATE
from ._run_flags import read_typed


def migrate(args: Sequence[str]) -> int:
    """Runs `jaxopt-tf migrate`.

    Args:
        args: what stands after the command's name: two folders, then flags.

    Returns:
        The exit status: 0.
    """
    try:
        return _migrate(args)
    except ValueError as error:
        raise ValueError(_without_python(str(error))) from error


def _migrate(args: Sequence[str]) -> int:
    if any(arg in ("-h", "--help") for arg in args):
        read_typed(Migrate, ["--help"])
    if len(args) < 2 or any(arg.startswith("-") for arg in args[:2]):
        raise ValueError(
            "`migrate` must be given two folders, the one to read and a new one, got "
            f"{' '.join(args)!r}. Write `{Migrate.prog}`."
        )
    source, out, flags = Path(args[0]), Path(args[1]), args[2:]
    if out.exists():
        raise ValueError(
            f"`OUT` must be a new folder, got {str(out)!r}. Name another: nothing is "
            "overwritten."
        )
    if (source / STATE).exists() and not (source / "metrics.jsonl").exists():
        import_run(source, out, flags)
    elif _holds(source, STATE) and not _holds(source, "SHA256SUMS"):
        raise ValueError(
            "`FOLDER` must be one checkpoint of a Trainer's folder, got all of "
            f"{str(source)!r}. Name one of its checkpoint-<step>."
        )
    elif (source / "SHA256SUMS").exists() or find_checkpoints(source):
        _export_run(source, out, _like(flags))
    else:
        raise ValueError(
            "`FOLDER` must be a Trainer's checkpoint-<step>, a run's folder or one of "
            f"its checkpoints, got {str(source)!r}."
        )
    return 0


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


def _export_run(source: Path, out: Path, like: Path | None) -> None:
    recipe, model, job, position = read_run(source)
    step, schedule_state = int(position.state.step), position.schedule_state
    # Smaller than `step` by the updates that were skipped.
    (_, num_updates), *_ = optax.tree.get_all_with_path(
        position.state.opt_state, "step"
    )
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
            schedule_step=int(num_updates) if schedule_state is None else None,
            schedule_state=schedule_state,
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


# Errors of `interop` are about arguments and functions of Python.
_PHRASES = {
    "`folder`": "`FOLDER`",
    "`recipe`": "`training_args`",
    "Take the recipe that the run was begun with.": "Give the TrainingArguments that "
    "the run was begun with, by `training_args`.",
    "the recipe's": "that of `training_args`",
    "the recipe": "`training_args`",
}
_MODEL = "`migrate` takes a GPT2LMHeadModel, named under `architectures`."
# Sentences with these words are of use in Python only; what to do instead.
_REMEDIES = {
    "`torch_model_from_module`": _MODEL,
    "`torch_model_from_shapes`": _MODEL,
    "Name leaves by `table`": _MODEL,
    "`torch_from_opt_state`": "Such a run cannot be migrated.",
    "`metric_state_from_torch`": "Give the TrainingArguments that the run was begun "
    "with, by `training_args`.",
}


def _without_python(text: str) -> str:
    """Returns an error of `interop` with remedies that can be typed."""
    lines = []
    for line in text.split("\n"):
        sentences = [
            next(
                (cure for word, cure in _REMEDIES.items() if word in sentence), sentence
            )
            for sentence in re.split(r"(?<=\.) (?=[A-Z])", line)
        ]
        lines.append(" ".join(dict.fromkeys(sentences)))
    text = "\n".join(lines)
    for phrase, typed in _PHRASES.items():
        text = text.replace(phrase, typed)
    return text
