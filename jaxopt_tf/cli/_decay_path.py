"""Subcommand `decay-path`: suggests a weight decay for the job of `train`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import rich.console

from .. import tuning
from .._checks import pluralize
from ..data import training_windows
from ..jobs import compilation_cache
from ._run_flags import parse
from ._searches import SearchFlags


@dataclass(frozen=True, kw_only=True)
class DecayPath(SearchFlags):
    """Suggests a weight decay for the job of `jaxopt-tf train`.

    Trains the job with several weight decays at once, with k-fold cross-validation.

    Example:
      jaxopt-tf decay-path --text books --decays 0 0.01 0.1 1

    Attributes:
        decays: weight decays to try; at least 0.
        num_folds: number of folds, from 2 to `num_windows`. Each fold evaluates the
            runs that are trained on the others.
        num_windows: number of windows of `block_size` + 1 tokens for training and
            evaluation, spread evenly over the training part of the text; fewer if it is
            short. With few windows the suggested decay may be larger than for the whole
            text.
        warm_starts: start each run from the final parameters of the next larger decay,
            instead of from scratch.
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
    flags = parse(DecayPath, args)
    with compilation_cache(flags.compilation_cache):
        return _decay_path(flags)


def _decay_path(flags: DecayPath) -> int:
    recipe, block_size = flags.run.recipe, flags.run.model.block_size
    folder, corpus, task = flags.prepare(num_eval_tokens=0)
    if corpus.is_masked or flags.run.job.packing:
        raise ValueError(
            "`train_file` must contain text for the cross-validation, which divides it "
            "into windows, got rows for fine-tuning or `packing`. Compare decays on "
            "them with `jaxopt-tf sweep --over weight_decay=0,0.01,0.1`."
        )
    windows = training_windows(
        corpus, block_size=block_size, num_windows=flags.num_windows
    )
    if flags.num_folds > len(windows):
        raise ValueError(
            f"`num_folds` must be at most the number of windows, which is "
            f"{len(windows):,}, got {flags.num_folds!r}. Use fewer folds, or more "
            "text."
        )
    print(
        f"{pluralize(len(flags.decays), 'decay')} on "
        f"{pluralize(flags.num_folds, 'fold')} of {pluralize(len(windows), 'window')}, "
        f"{pluralize(recipe.max_steps, 'step')} each, in {folder}. The program is "
        "compiled first; results are printed at the end.",
        flush=True,
    )
    path = tuning.decay_path(
        task.loss_fn,
        task.init,
        windows,
        recipe,
        flags.decays,
        num_folds=flags.num_folds,
        warm_starts=flags.warm_starts,
        takes_key=task.takes_key,
        compute_dtype=task.compute_dtype,
        layouts=task.layouts,
        layer_norms=task.layer_norms,
        frozen=task.frozen,
        memory_limit=flags.memory_limit,
    )
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "decay_path.png"
    path.picture(picture)
    rich.console.Console().print(path.table())
    print(f"picture {picture}\n{path.reason}\n--weight_decay {path.suggestion:g}")
    return 0
