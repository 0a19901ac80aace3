"""Job: what a run reads, writes and does when something goes wrong; and one flat dict.

The numbers of the updates are the `Recipe`'s and the model's size is `GPT2Config`'s.
`flat` lays all three side by side, as `config.json` and the command line name them.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .. import _checks, training
from ..models import GPT2Config
from ..recipes import METRIC_DRIVEN, Recipe, recipe_settings
from ._mesh_setting import SEQUENCES, check_mesh, num_sequences

# Of one start, not of the run: a config.json with them would go back every time.
OF_ONE_START = ("resume_from_checkpoint", "intended_changes")

_PER_DEVICE = "per_device_train_batch_size"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a run reads, writes and does when something goes wrong.

    Attributes:
        text: files or folders of text (UTF-8), or files of ready tokens: .npy, or .bin
            of raw uint16 (uint32 where `vocab_size` is above 65,536); the sources of
            Python's standard library if none are given.
        tokenizer: a tokenizer.json; without one, the tokens of a text are its bytes.
        eos_token_id: the token that ends a document in ready tokens; without one, each
            file is one document.
        output_dir: folder of the run; one that holds a run is resumed. A new folder
            in runs/, named by the time, if not given.
        eval_steps: updates from one held-out evaluation to the next.
        save_steps: updates from one checkpoint to the next; the last is always saved,
            and with `load_best_model_at_end` so is each that is the best so far.
        save_total_limit: checkpoints that are kept, the best among them; None for all.
        load_best_model_at_end: whether the run ends with the parameters of the lowest
            held-out loss, not with the last ones.
        early_stopping_patience: evaluations in a row without a lower held-out loss
            after which the run ends; None to go on to `max_steps`.
        early_stopping_threshold: nats per token by which a loss must be lower to count
            as lower.
        logging_steps: updates from one line to the next in trainer_state.json and
            TensorBoard; metrics.jsonl has every update.
        bf16: whether the model computes in bfloat16, its parameters being float32.
        tf32: whether products of float32 are rounded as tensor cores do (TPUs: take
            three passes in bfloat16): faster there. Otherwise they are float32's, as
            torch's are, whatever JAX is told.
        on_non_finite: what follows a loss or gradient that is not finite: "stop" keeps
            the parameters as they were and ends the run, "skip" leaves the update out,
            "propagate" goes on with it, as torch does.
        max_skipped_in_a_row: skipped updates in a row that end the run ("skip" only).
        log_layers: whether metrics.jsonl has the norms of every layer, too.
        resume_from_checkpoint: a checkpoint folder to go on from, of this run or of
            another; the newest good one in `output_dir` if not given.
        intended_changes: names of settings that may differ from the resumed run's.
        mesh: how devices divide the work: sizes of the axes data (each has a part of
            the batch), fsdp (of the batch and the parameters) and tensor (of the
            parameters), as data=2,fsdp=4; the product is the number of devices. One
            device if not given; of several processes all devices, as data.
        zero_1: whether the optimizer's state is divided along data, too.

    Raises:
        ValueError, TypeError: if a value is out of range or of another kind.

    Source: transformers 5.23 `training_args.py`, for the names that it has.
    Differs: three checkpoints are kept, not all: a run left overnight must not fill the
        disk, and if the newest is damaged there are two to fall back on.
    """

    text: tuple[Path, ...] = ()
    tokenizer: Path | None = None
    eos_token_id: int | None = None
    output_dir: Path | None = None
    eval_steps: int = 400
    save_steps: int = 400
    save_total_limit: int | None = 3
    load_best_model_at_end: bool = False
    early_stopping_patience: int | None = None
    early_stopping_threshold: float = 0.0
    logging_steps: int = 10
    bf16: bool = False
    tf32: bool = False
    on_non_finite: Literal["stop", "skip", "propagate"] = "stop"
    max_skipped_in_a_row: int = 10
    log_layers: bool = False
    resume_from_checkpoint: Path | None = None
    intended_changes: tuple[str, ...] = ()
    mesh: str | None = None
    zero_1: bool = False

    def __post_init__(self) -> None:
        """Checks every field; makes strings paths and whole floats ints."""
        _set(self, "text", tuple(map(Path, _several("text", self.text, str | Path))))
        for name in ("tokenizer", "output_dir", "resume_from_checkpoint"):
            _set(self, name, _path(name, getattr(self, name)))
        for name in ("eval_steps", "save_steps", "logging_steps"):
            _set(self, name, _checks.step_count(name, getattr(self, name), least=1))
        for name in ("save_total_limit", "early_stopping_patience", "eos_token_id"):
            least = 0 if name == "eos_token_id" else 1
            _set(self, name, _whole_or_none(name, getattr(self, name), least))
        most = _checks.whole_number(
            "max_skipped_in_a_row", self.max_skipped_in_a_row, least=1
        )
        _set(self, "max_skipped_in_a_row", most)
        _checks.non_negative("early_stopping_threshold", self.early_stopping_threshold)
        for name in ("load_best_model_at_end", "bf16", "tf32", "log_layers", "zero_1"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(
                    f"`{name}` must be True or False, got {getattr(self, name)!r}."
                )
        _checks.one_of(
            "on_non_finite", self.on_non_finite, ("stop", "skip", "propagate")
        )
        names = _several("intended_changes", self.intended_changes, str)
        _set(self, "intended_changes", names)
        _set(self, "mesh", None if self.mesh is None else check_mesh(self.mesh))

    @property
    def matmul_precision(self) -> str | None:
        """As `loss_of` takes it; of bfloat16 there is one."""
        if self.bf16:
            return None
        return "tensorfloat32" if self.tf32 else "highest"

    @property
    def selection(self) -> training.Selection:
        """How evaluations are compared, as the loop takes it."""
        return training.Selection(
            early_stopping_patience=self.early_stopping_patience,
            early_stopping_threshold=self.early_stopping_threshold,
        )


def flat(recipe: Recipe, model: GPT2Config, job: Job) -> dict[str, Any]:
    """The whole configuration under the names of the flags: what config.json holds.

    `resume_from_checkpoint` and `intended_changes` are left out: they speak of one
    start, and the file is for every later one.

    Returns:
        A dict that `json.dumps` takes and that `--config` takes back to equal records.
    """
    named = {
        field.name: getattr(record, field.name)
        for record in (recipe, model, job)
        for field in dataclasses.fields(record)
        if field.name not in OF_ONE_START
    }
    named |= recipe_settings(recipe)
    named["text"] = [str(path) for path in named["text"]]
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in named.items()
    }


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """The settings that decide a run's numbers and are not what they were.

    Left out is what decides none: where the run writes, how often it logs, saves and
    evaluates; on which devices, as long as the batch is the same; and where `text` and
    `tokenizer` lie, whose contents are compared by the data's fingerprint. Where the
    held-out loss decides (it drives the schedule, ends the run or picks its model), how
    often it is taken decides too.

    Args:
        saved: `flat` of the run that was; a setting that it lacks is a difference.
        now: `flat` of the run that is to go on.

    Returns:
        A line for each by its name, in the order of `now`:
        "`learning_rate`: 0.003 was, 0.001 is".
    """
    decides_nothing = {
        "text",
        "tokenizer",
        "output_dir",
        "logging_steps",
        "save_steps",
        "save_total_limit",
        "log_layers",
        "mesh",
        "zero_1",
        SEQUENCES,
        *OF_ONE_START,
    }
    if _have_one_batch(saved, now):
        decides_nothing.add(_PER_DEVICE)
    if not any(held_out_loss_decides(settings) for settings in (saved, now)):
        decides_nothing.add("eval_steps")
    names = [*now, *(name for name in saved if name not in now)]
    return {
        name: f"`{name}`: {_told(name, saved)} was, {_told(name, now)} is"
        for name in names
        if name not in decides_nothing
        and (name not in saved or name not in now or saved[name] != now[name])
    }


def held_out_loss_decides(settings: Mapping[str, Any]) -> bool:
    """Whether evaluations change the run: its rates, its end or its final model.

    Args:
        settings: `flat` of a run, or a part of it; what is not there has its default.
    """
    return (
        settings.get("lr_scheduler_type") in METRIC_DRIVEN
        or settings.get("early_stopping_patience") is not None
        or settings.get("load_best_model_at_end", False) is True
    )


def _have_one_batch(saved: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    is_known = _PER_DEVICE in saved and _PER_DEVICE in now
    return is_known and num_sequences(saved) == num_sequences(now)


def _told(name: str, settings: Mapping[str, Any]) -> str:
    return repr(settings[name]) if name in settings else "nothing"


def _set(job: Job, name: str, value: Any) -> None:
    object.__setattr__(job, name, value)  # frozen for everyone else


def _several(name: str, values: Any, kind: Any) -> tuple:
    # A lone string is a sequence as well: of letters.
    several = isinstance(values, tuple | list)
    if not several or not all(isinstance(value, kind) for value in values):
        what = "names" if kind is str else "paths"
        raise TypeError(f"`{name}` must be a tuple of {what}, got {values!r}.")
    return tuple(values)


def _path(name: str, value: Any) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, str | Path) or not str(value):
        raise TypeError(f"`{name}` must be a path or None, got {value!r}.")
    return Path(value)


def _whole_or_none(name: str, value: Any, least: int) -> int | None:
    return None if value is None else _checks.whole_number(name, value, least=least)
