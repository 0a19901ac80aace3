"""`jaxopt-tf decay-path`: which weight decay the job of `train` is to have."""

from collections.abc import Sequence
from dataclasses import dataclass

import rich.console

from .. import tuning
from ..data import training_windows
from ._flags import flags_of
from ._job_task import folder_of, job_corpus, job_task
from ._train import parse_with

_PROG = "jaxopt-tf decay-path"
_DESCRIPTION = (
    "Trains the job of `jaxopt-tf train` with several weight decays by k-fold "
    "cross-validation, side by side, and suggests one."
)


@dataclass(frozen=True, kw_only=True)
class _Search:
    """What is tried.

    Attributes:
        decays: weight decays to try; at least 0.
        num_folds: parts of the windows, each of which is held out once; from 2 to
            `num_windows`.
        num_windows: windows of `block_size` + 1 tokens, spread evenly over the training
            part of the text, that runs are trained on and held out from; fewer where it
            is short. Runs on few windows may ask for more decay than the whole text
            does.
        warm_starts: whether a run starts from the parameters of the next stronger
            decay, instead of from scratch.
        memory_limit: bytes that runs side by side may take on each device; 90 % of what
            it has if not given, and no limit on CPUs.
    """

    decays: tuple[float, ...] = (0, 0.01, 0.1, 1)
    num_folds: int = 5
    num_windows: int = 1_000
    warm_starts: bool = False
    memory_limit: float | None = None


def decay_path(args: Sequence[str]) -> int:
    """Suggests a weight decay.

    Args:
        args: what stands after the command's name.

    Returns:
        The exit status: 0.
    """
    (recipe, model, job), typed = parse_with(
        flags_of(_Search, {}), args, prog=_PROG, description=_DESCRIPTION
    )
    search = _Search(**typed)
    folder = folder_of(job)
    corpus = job_corpus(model, job, folder)
    windows = training_windows(
        corpus, block_size=model.block_size, num_windows=search.num_windows
    )
    if search.num_folds > len(windows):
        raise ValueError(
            f"`num_folds` must be at most the number of windows, which is "
            f"{len(windows):,}, got {search.num_folds!r}. Take fewer folds, or more "
            "text."
        )
    task = job_task(recipe, model, job, corpus, num_held_out=0)
    print(
        f"{len(search.decays)} decays on {search.num_folds} folds of {len(windows):,} "
        f"windows, {recipe.max_steps:,} steps each, in {folder}. It is compiled first, "
        "and more is told at the end.",
        flush=True,
    )
    path = tuning.decay_path(
        task.loss_fn,
        task.init,
        windows,
        recipe,
        search.decays,
        num_folds=search.num_folds,
        warm_starts=search.warm_starts,
        takes_key=task.takes_key,
        compute_dtype=task.compute_dtype,
        layouts=task.layouts,
        memory_limit=search.memory_limit,
    )
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "decay_path.png"
    path.picture(picture)
    rich.console.Console().print(path.table())
    print(f"picture {picture}\n{path.reason}\n--weight_decay {path.suggestion:g}")
    return 0
