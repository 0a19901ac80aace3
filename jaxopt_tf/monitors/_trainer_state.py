"""The run as Transformers' Trainer would have noted it down."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from .. import _checks
from .._io import check_folder, whole_file
from ..training import (
    Evaluation,
    Monitor,
    Progress,
    Selection,
    Window,
    after_evaluation,
    check_selection,
    metric_values,
)

# Where the entries go in the text of a state that has none yet.
_NO_ENTRIES = '"log_history": []'


def trainer_state(
    path: Path,
    *,
    max_steps: int,
    logging_steps: int = 10,
    eval_steps: int | None = None,
    save_steps: int | None = None,
    train_batch_size: int | None = None,
    steps_per_epoch: int | None = None,
    flops_per_item: float | None = None,
    selection: Selection | None = None,
) -> Monitor:
    """Writes `trainer_state.json`, which `TrainerState` of transformers 4.50 on loads.

    It is written at every evaluation and at the end, each time whole or not at all;
    not at those that are told again from a file, whose windows have no `seconds`.
    `log_history` holds what the Trainer would have logged:

        {"epoch": 0.1, "grad_norm": 2.1, "learning_rate": 3e-4, "loss": 4.2, "step": 10}
        {"epoch": 0.1, "eval_loss": 4.3, "step": 10}

    with the mean loss since the last entry (a loss that is not finite replaced as the
    Trainer does it), and the norm (before clipping) and rate of the last step. At the
    end comes its closing entry, with the mean loss and the time of this start's steps:
    its model card is made from that. Numbers that are not finite are `NaN` and
    `Infinity`, as the Trainer's own `json.dumps` has them: Python reads them, strict
    JSON does not.

    Takes about 200 bytes of memory for an entry.

    Args:
        path: the file, in the run's folder, which must exist; `best_model_checkpoint`
            is the best step's `checkpoint-N` beside it, once that is there.
        max_steps: number of steps of the whole run.
        logging_steps: steps from one entry to the next.
        eval_steps: as the run has it; None for the Trainer's default.
        save_steps: as the run has it; None for the Trainer's default.
        train_batch_size: sequences in a step, on all devices; None where not known.
        steps_per_epoch: None for data without a length, of which the whole run is one
            epoch, as with the Trainer.
        flops_per_item: floating-point operations for one item; None leaves
            `total_flos` at 0, as the Trainer does for models that it does not know.
        selection: which evaluation is the best; None for the least loss.

    Raises:
        ValueError, TypeError: if the folder does not exist or a number is out of range.

    Source: transformers 5.23 `trainer_callback.py`, `TrainerState`; `trainer.py`,
        `_maybe_log_save_evaluate`, `_determine_best_metric` and `_finalize_training`.
    Differs: `num_input_tokens_seen` is the sum of `Metrics.num_items`; the Trainer
        leaves it at 0 unless asked.
    """
    path = Path(path)
    check_folder(path)
    max_steps = _checks.step_count("max_steps", max_steps, least=1)
    logging_steps = _checks.step_count("logging_steps", logging_steps, least=1)
    selection = Selection() if selection is None else selection
    check_selection(selection)
    per_epoch, num_epochs = max_steps, sys.maxsize  # for data without a length
    if steps_per_epoch is not None:
        per_epoch = _checks.step_count("steps_per_epoch", steps_per_epoch, least=1)
        num_epochs = -(-max_steps // per_epoch)

    entries: list[str] = []
    progress, checkpoint = Progress(), None
    step, num_items = 0, 0.0
    sum_since_entry, num_since_entry = 0.0, 0
    # Of this start: what is told again from a file has no time.
    is_timed, total_loss, num_timed, seconds = True, 0.0, 0, 0.0

    def epoch() -> float:
        return step // per_epoch + step % per_epoch / per_epoch

    def add(**values: float) -> None:
        entry = {"epoch": epoch(), **values, "step": step}
        entries.append(json.dumps(entry, indent=2, sort_keys=True))

    def window(window: Window) -> None:
        nonlocal step, num_items, sum_since_entry, num_since_entry
        nonlocal is_timed, total_loss, num_timed, seconds
        metrics, is_timed = window.metrics, not math.isnan(window.seconds)
        for i, loss in enumerate(np.asarray(metrics.loss).tolist()):
            step = window.first_step + i
            num_since_entry += 1
            if not math.isfinite(loss):
                loss = sum_since_entry / num_since_entry
            sum_since_entry += loss
            total_loss += loss if is_timed else 0.0
            if step % logging_steps == 0:
                add(
                    loss=sum_since_entry / num_since_entry,
                    grad_norm=float(metrics.norms.grads[i]),
                    learning_rate=float(metrics.learning_rate[i]),
                )
                sum_since_entry, num_since_entry = 0.0, 0
        num_items += float(np.sum(metrics.num_items, dtype=np.float64))
        if is_timed:
            num_timed += len(metrics.loss)
            seconds += window.seconds

    def evaluation(evaluation: Evaluation) -> None:
        nonlocal progress, step
        step = evaluation.step
        named = {
            f"eval_{name.removeprefix('eval_')}": value
            for name, value in metric_values(evaluation.metrics).items()
        }
        add(**named)
        # The Trainer counts no evaluation before the first step.
        if step > 0:
            progress = after_evaluation(progress, selection, evaluation)
        # What is told again is in the file; to write it at each would take long.
        if is_timed:
            write()

    def close() -> None:
        if seconds > 0:
            add(
                total_flos=(flops_per_item or 0.0) * num_items,
                train_loss=total_loss / num_timed,
                train_runtime=round(seconds, 4),
                train_steps_per_second=round(num_timed / seconds, 3),
            )
        # What was only told again is in the file, with the entry that closes it.
        if (entries or step) and (is_timed or not path.exists()):
            write()

    def write() -> None:
        nonlocal checkpoint
        checkpoint = _best_checkpoint(path.parent, progress, checkpoint)
        state: dict[str, Any] = {
            "best_global_step": progress.best_step,
            "best_metric": progress.best_metric,
            "best_model_checkpoint": checkpoint,
            "epoch": epoch(),
            "eval_steps": 500 if eval_steps is None else eval_steps,
            "global_step": step,
            "is_hyper_param_search": False,
            "is_local_process_zero": True,
            "is_world_process_zero": True,
            "log_history": [],
            "logging_steps": logging_steps,
            "max_steps": max_steps,
            "num_input_tokens_seen": round(num_items),
            "num_train_epochs": num_epochs,
            "save_steps": 500 if save_steps is None else save_steps,
            "stateful_callbacks": {"TrainerControl": _control(step >= max_steps)},
            "total_flos": (flops_per_item or 0.0) * num_items,
            "train_batch_size": train_batch_size,
            "trial_name": None,
            "trial_params": None,
        }
        # Entries are put into words once: a long run has very many.
        before, _, after = json.dumps(state, indent=2, sort_keys=True).partition(
            _NO_ENTRIES
        )
        listed = ",\n".join(entries).replace("\n", "\n    ")
        history = f'"log_history": [\n    {listed}\n  ]' if entries else _NO_ENTRIES
        with whole_file(path) as new_path:
            new_path.write_text(f"{before}{history}{after}\n", encoding="utf-8")

    return Monitor(window, evaluation, close)


def _best_checkpoint(
    folder: Path, progress: Progress, so_far: str | None
) -> str | None:
    """The best evaluation's checkpoint, else the one before it that is still there."""
    best = str(folder / f"checkpoint-{progress.best_step}")
    for checkpoint in (best, so_far):
        if checkpoint is not None and Path(checkpoint).is_dir():
            return checkpoint
    return None


def _control(is_over: bool) -> dict[str, Any]:
    # A Trainer that goes on from the file wants to find its switches.
    names = ("evaluate", "log", "save", "epoch_stop")
    args = {f"should_{name}": False for name in names}
    return {"args": {**args, "should_training_stop": is_over}, "attributes": {}}
