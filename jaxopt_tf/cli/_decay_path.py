"""`jaxopt-tf decay-path`: suggest a weight decay for the job of `train`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import rich.console

from .. import tuning
from ..data import training_windows
from ..jobs import tuning_corpus, tuning_task
from ._run_flags import parse
from ._searches import SearchFlags, count, folder_of


@dataclass(frozen=True, kw_only=True)
class DecayPath(SearchFlags):
    """Suggests a weight decay for the job of `jaxopt-tf train`.

    Trains the job with several weight decays at once, with k-fold cross-validation.

    Example:
      jaxopt-tf decay-path --text books --decays 0 0.01 0.1 1

    Attributes:
        decays: weight decays to try; at least 0.
        num_folds: parts of the windows, each of which is held out once; from 2 to
            `num_windows`.
        num_windows: windows of `block_size` + 1 tokens to train on and to hold out,
            spread evenly over the training part of the text; fewer if it is short. With
            few windows the suggested decay may be larger than for the whole text.
        warm_starts: starts a run from the parameters of the next larger decay, instead
            of from scratch.
    """

    prog: ClassVar[str] = "jaxopt-tf decay-path"

    decays: tuple[float, ...] = (0, 0.01, 0.1, 1)
    num_folds: int = 5
    num_windows: int = 1_000
    warm_starts: bool = False


def decay_path(args: Sequence[str]) -> int:
    """Runs `jaxopt-tf decay-path`.

    Args:
        args: command line after the name of the command.

    Returns:
        The exit status: 0.
    """
    search = parse(DecayPath, args)
    recipe, model = search.run.recipe, search.run.model
    folder = folder_of(search.run.job)
    corpus = tuning_corpus(search.run, folder)
    windows = training_windows(
        corpus, block_size=model.block_size, num_windows=search.num_windows
    )
    if search.num_folds > len(windows):
        raise ValueError(
            f"`num_folds` must be at most the number of windows, which is "
            f"{len(windows):,}, got {search.num_folds!r}. Take fewer folds, or more "
            "text."
        )
    task = tuning_task(search.run, corpus, num_held_out=0)
    print(
        f"{count(len(search.decays), 'decay')} on {count(search.num_folds, 'fold')} of "
        f"{count(len(windows), 'window')}, {count(recipe.max_steps, 'step')} each, in "
        f"{folder}. The program is compiled first; results are printed at the end.",
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
