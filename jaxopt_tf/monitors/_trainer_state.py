"""Monitor that writes `trainer_state.json` of Transformers' Trainer."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import _checks
from .._io import atomic_write, check_parent_folder
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

# Text of an empty `log_history`, which is replaced by the text of its entries.
_NO_ENTRIES = '"log_history": []'


def trainer_state(
    path: Path,
    *,
    max_steps: int,
    logging_steps: int = 10,
    logging_first_step: bool = False,
    eval_steps: int | None = None,
    save_steps: int | None = None,
    train_batch_size: int | None = None,
    steps_per_epoch: int | None = None,
    flops_per_item: float | None = None,
    selection: Selection | None = None,
) -> Monitor:
    """Writes a `trainer_state.json` that transformers 4.50 and later can read.

    The file is written atomically, at every evaluation and at the end. When a run is
    resumed, the monitor first receives the windows and evaluations of its log, for
    which the file is not written; such windows have `seconds` NaN.

    `log_history` contains the entries that Trainer would log:

        {"epoch": 0.1, "grad_norm": 2.1, "learning_rate": 3e-4, "loss": 4.2, "step": 10}
        {"epoch": 0.1, "eval_loss": 4.3, "step": 10}

    The loss is the mean since the previous entry. A loss that is not finite is replaced
    by the sum of the losses since that entry divided by the number of steps, as by
    `logging_nan_inf_filter` of Trainer. `grad_norm` (before clipping) and
    `learning_rate` are those of the last step. The last entry contains the mean loss
    and the time of the steps since the run was started or resumed; Trainer's model card
    uses it. Numbers that are not finite are written as `NaN` and `Infinity`, as Trainer
    does. Python reads these literals, but strict JSON does not allow them.

    An entry requires about 200 bytes of memory.

    Args:
        path: the file, in the folder of the run, which must exist.
            `best_model_checkpoint` is `checkpoint-N` of the best step in this folder,
            if it exists.
        max_steps: number of steps of the whole run.
        logging_steps: steps between entries.
        logging_first_step: whether there is an entry for the first step, too.
        eval_steps: steps between evaluations; None for the default of Trainer.
        save_steps: steps between saves; None for the default of Trainer.
        train_batch_size: sequences per step on all devices; None if unknown.
        steps_per_epoch: number of steps per epoch; None for data without a length,
            where the whole run is one epoch, as in Trainer.
        flops_per_item: floating-point operations per item. For None, `total_flos` is 0,
            as in Trainer for unknown models.
        selection: settings of model selection; None for the lowest loss.

    Raises:
        ValueError, TypeError: if the folder does not exist or a number is out of range.

    Source: transformers 5.23 `trainer_callback.py`, `TrainerState` and
        `DefaultFlowCallback`; `trainer.py`,
        `_maybe_log_save_evaluate`, `_determine_best_metric` and `_finalize_training`.
    Differs: `num_input_tokens_seen` is the sum of `Metrics.num_items`; in Trainer it is
        0 by default.
    """
    path = Path(path)
    check_parent_folder(path)
    selection = Selection() if selection is None else selection
    check_selection(selection)
    state = default_trainer_state()
    given = {
        "eval_steps": eval_steps,
        "save_steps": save_steps,
        "train_batch_size": train_batch_size,
    }
    state |= {name: value for name, value in given.items() if value is not None}
    for name, value in (("max_steps", max_steps), ("logging_steps", logging_steps)):
        state[name] = _checks.step_count(name, value, minimum=1)
    # Trainer's values for data without a length, where the number of epochs is unknown.
    per_epoch, state["num_train_epochs"] = state["max_steps"], sys.maxsize
    if steps_per_epoch is not None:
        per_epoch = _checks.step_count("steps_per_epoch", steps_per_epoch, minimum=1)
        state["num_train_epochs"] = -(-state["max_steps"] // per_epoch)
    flops = flops_per_item or 0.0
    log = _Log(path, state, per_epoch, flops, selection, logging_first_step)
    return Monitor(log.window, log.evaluation, log.close)


def default_trainer_state() -> dict[str, Any]:
    """Returns the fields of `TrainerState`, with the defaults of transformers 5.23.

    `max_steps` and `global_step`, which each run sets, are not included.
    """
    return {
        "best_global_step": None,
        "best_metric": None,
        "best_model_checkpoint": None,
        "epoch": 0.0,
        "eval_steps": 500,
        "is_hyper_param_search": False,
        "is_local_process_zero": True,
        "is_world_process_zero": True,
        "log_history": [],
        "logging_steps": 500,
        "num_input_tokens_seen": 0,
        "num_train_epochs": 0,
        "save_steps": 500,
        "stateful_callbacks": {"TrainerControl": _control(saves=True, stops=False)},
        "total_flos": 0.0,
        "train_batch_size": None,
        "trial_name": None,
        "trial_params": None,
    }


def write_trainer_state(
    path: Path, state: Mapping[str, Any], entries: Sequence[str] = ()
) -> None:
    """Writes `trainer_state.json` atomically, with the layout of Transformers.

    Args:
        path: the file.
        state: all fields.
        entries: JSON texts of the entries of `log_history`. If there are any,
            `log_history` must be empty in `state`. Each entry is converted to JSON only
            once, since a long run has many entries.
    """
    # These are the options of `TrainerState.save_to_json`.
    text = json.dumps(state, indent=2, sort_keys=True)
    if entries:
        listed = ",\n".join(entries).replace("\n", "\n    ")
        text = text.replace(_NO_ENTRIES, f'"log_history": [\n    {listed}\n  ]', 1)
    with atomic_write(path) as new_path:
        new_path.write_text(f"{text}\n", encoding="utf-8")


@dataclass
class _Log:
    """Values of the run up to the current step, and the file that contains them."""

    path: Path  # path of trainer_state.json
    state: dict[str, Any]  # fields of the file, as last written
    steps_per_epoch: int
    flops_per_item: float
    selection: Selection  # settings that select the best evaluation
    logging_first_step: bool
    entries: list[str] = field(default_factory=list)  # JSON of `log_history`
    progress: Progress = field(default_factory=Progress)  # best evaluation so far
    step: int = 0  # last step that was received
    num_items: float = 0.0  # items of all steps so far
    # Sum and number of the losses since the last entry with a loss.
    loss_sum: float = 0.0
    num_losses: int = 0
    is_timed: bool = True  # False while windows of the log are received
    # Sum and number of the losses of timed steps, which are the steps since the run was
    # started or resumed.
    timed_loss_sum: float = 0.0
    num_timed: int = 0
    seconds: float = 0.0  # wall time of the timed steps

    def window(self, window: Window) -> None:
        """Adds the entries of the steps of a window."""
        metrics, self.is_timed = window.metrics, not math.isnan(window.seconds)
        for i, loss in enumerate(np.asarray(metrics.loss).tolist()):
            self.step = window.first_step + i
            self.num_losses += 1
            # As with `logging_nan_inf_filter` of Trainer, a loss that is not finite is
            # replaced by the sum since the last entry divided by the number of steps,
            # which includes the current step.
            if not math.isfinite(loss):
                loss = self.loss_sum / self.num_losses
            self.loss_sum += loss
            self.timed_loss_sum += loss if self.is_timed else 0.0
            is_first = self.logging_first_step and self.step == 1
            if is_first or self.step % self.state["logging_steps"] == 0:
                self._add(
                    loss=self.loss_sum / self.num_losses,
                    grad_norm=float(metrics.norms.grads[i]),
                    learning_rate=float(metrics.learning_rate[i]),
                )
                self.loss_sum, self.num_losses = 0.0, 0
        self.num_items += float(np.sum(metrics.num_items, dtype=np.float64))
        if self.is_timed:
            self.num_timed += len(metrics.loss)
            self.seconds += window.seconds

    def evaluation(self, evaluation: Evaluation) -> None:
        """Adds the entry of an evaluation and writes the file."""
        self.step = evaluation.step
        values = metric_values(evaluation.metrics)
        named = {f"eval_{k.removeprefix('eval_')}": v for k, v in values.items()}
        self._add(**named)
        # Trainer ignores an evaluation before the first step for the best metric.
        if self.step > 0:
            self.progress = after_evaluation(self.progress, self.selection, evaluation)
        # Replayed evaluations are already in the file: it is not written again.
        if self.is_timed:
            self._write()

    def close(self) -> None:
        """Adds the last entry and writes the file."""
        if self.seconds > 0:
            self._add(
                total_flos=self.flops_per_item * self.num_items,
                train_loss=self.timed_loss_sum / self.num_timed,
                train_runtime=round(self.seconds, 4),
                train_steps_per_second=round(self.num_timed / self.seconds, 3),
            )
        # If all events were replayed, the file already contains them.
        is_new = self.is_timed or not self.path.exists()
        if (self.entries or self.step) and is_new:
            self._write()

    def _add(self, **values: float) -> None:
        entry = {"epoch": self._epoch(), **values, "step": self.step}
        self.entries.append(json.dumps(entry, indent=2, sort_keys=True))

    def _epoch(self) -> float:
        whole, steps = divmod(self.step, self.steps_per_epoch)
        return whole + steps / self.steps_per_epoch

    def _write(self) -> None:
        best = str(self.path.parent / f"checkpoint-{self.progress.best_step}")
        # The best step is saved after its evaluation, or not at all. Until then, the
        # previous value remains, if that checkpoint still exists.
        candidates = (best, self.state["best_model_checkpoint"])
        found = [p for p in candidates if p and Path(p).is_dir()]
        is_over = self.step >= self.state["max_steps"]
        self.state |= {
            "best_global_step": self.progress.best_step,
            "best_metric": self.progress.best_metric,
            "best_model_checkpoint": found[0] if found else None,
            "epoch": self._epoch(),
            "global_step": self.step,
            "num_input_tokens_seen": round(self.num_items),
            "stateful_callbacks": {
                "TrainerControl": _control(saves=False, stops=is_over)
            },
            "total_flos": self.flops_per_item * self.num_items,
        }
        write_trainer_state(self.path, self.state, self.entries)


def _control(*, saves: bool, stops: bool) -> dict[str, Any]:
    # Trainer restores `TrainerControl` from these fields, and fails at the next save
    # after a resume if they are missing.
    args = {
        "should_epoch_stop": False,
        "should_evaluate": False,
        "should_log": False,
        "should_save": saves,
        "should_training_stop": stops,
    }
    return {"args": args, "attributes": {}}
