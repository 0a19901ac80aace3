"""Everyone who watches the run, told what was before a resume."""

from pathlib import Path

from .. import monitors, plots, training
from .._io import is_first
from ..models import GPT2Config, flops_per_token
from ..recipes import Recipe
from . import _run_folder
from ._settings import Job


def all_monitors(
    recipe: Recipe,
    model: GPT2Config,
    job: Job,
    *,
    unit: str,
    num_sequences: int,
    num_windows: int,
    folder: Path,
    step: int,
) -> tuple[list[training.Monitor], list[float]]:
    """The monitors of the run, and the list in which held-out losses are gathered.

    The log is cut back to `step`. It is then the memory of the others: what it holds is
    told again to those who draw, count or compare over the whole run. Only the first of
    many processes has monitors.

    Args:
        recipe: the numbers of the updates.
        model: its size.
        job: all else.
        unit: what a token is called, "bytes" say.
        num_sequences: in a batch, with all its micro-batches.
        num_windows: sequences in an epoch.
        folder: of the run.
        step: where the run starts or goes on.
    """
    flops = flops_per_token(model)
    losses: list[float] = []
    if not is_first():
        return [], losses
    is_told_again = True

    def say(sentence: str) -> None:
        if not is_told_again:
            print(sentence)

    log = folder / _run_folder.METRICS
    forgetful = [
        monitors.json_lines(log, first_step=step),
        monitors.console(
            recipe.max_steps, first_step=step, unit=unit, flops_per_item=flops
        ),
        monitors.tensorboard(
            folder / "tensorboard", first_step=step, every=job.logging_steps
        ),
    ]
    remembering: list[training.Monitor] = [
        plots.curves(folder / "curves.png", unit=f"nats per {unit.removesuffix('s')}"),
        monitors.trainer_state(
            folder / "trainer_state.json",
            max_steps=recipe.max_steps,
            logging_steps=job.logging_steps,
            eval_steps=job.eval_steps,
            save_steps=job.save_steps,
            train_batch_size=num_sequences // recipe.gradient_accumulation_steps,
            steps_per_epoch=max(1, num_windows // num_sequences),
            flops_per_item=flops,
            selection=job.selection,
        ),
        monitors.watcher(say),
        training.Monitor(
            lambda _: None,
            lambda evaluation: losses.append(evaluation.metrics["loss"]),
            lambda: None,
        ),
    ]
    if step > 0:
        for event in monitors.read_history(log):
            for monitor in remembering:
                if isinstance(event, training.Window):
                    monitor.window(event)
                else:
                    monitor.evaluation(event)
    is_told_again = False
    return [*forgetful, *remembering], losses
