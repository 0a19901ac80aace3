"""Files of a Trainer's checkpoint folder, and folders of other frameworks."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .. import _checks

OPTIMIZER, SCHEDULER, STATE = "optimizer.pt", "scheduler.pt", "trainer_state.json"
MODEL_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

_PLAIN_TORCH = (
    "Load it with the framework that wrote it and save a full state with plain torch: "
    "`model.save_pretrained(folder)`, `torch.save(optimizer.state_dict(), "
    "'optimizer.pt')`."
)
_ZERO = (
    "Run `python zero_to_fp32.py . OUT` in it for the parameters; the moments cannot "
    "be read."
)
_FSDP = (
    "Run `accelerate merge-weights FOLDER OUT` on its pytorch_model_fsdp_0 for the "
    "parameters, or train with `fsdp_state_dict_type: FULL_STATE_DICT`."
)
_PEFT = (
    "Merge it into its base model: `AutoPeftModel.from_pretrained(folder)"
    ".merge_and_unload().save_pretrained(out)`."
)
# Patterns of names that only another kind of folder has; the kind, and the cure.
_OTHERS = (
    ("global_step*", "DeepSpeed", _ZERO),
    ("*_zero_pp_rank_*", "DeepSpeed's ZeRO", _ZERO),
    ("zero_pp_rank_*", "DeepSpeed's ZeRO", _ZERO),
    ("zero_to_fp32.py", "DeepSpeed's ZeRO", _ZERO),
    ("pytorch_model_fsdp*", "FSDP", _FSDP),
    ("optimizer_[0-9]*", "FSDP", _FSDP),
    ("*.distcp", "torch.distributed.checkpoint, as FSDP writes it", _FSDP),
    ("rank*-of-*-optimizer.pt", "FSDP on XLA", _PLAIN_TORCH),
    (
        "random_states_*.pkl",
        "Accelerate's `save_state`",
        "Without FSDP its optimizer.bin and scheduler.bin are plain: rename them to "
        "optimizer.pt and scheduler.pt, and delete random_states_*.pkl.",
    ),
    (
        "optimizer.bin",
        "FSDP, or of Accelerate's `save_state`",
        "Without FSDP it is plain: rename it to optimizer.pt.",
    ),
    ("adapter_model.*", "PEFT, whose base model is elsewhere", _PEFT),
    ("adapter_config.json", "PEFT, whose base model is elsewhere", _PEFT),
)
# Models whose parameters of one shape had another order than today, by `model_type`:
# the first version of Transformers with that order, and the first without it.
_OTHER_ORDER = {
    "gemma2": ((4, 45), (4, 47)),
    "jetmoe": ((4, 40), (5, 0)),
    "siglip_text_model": ((4, 37), (4, 51)),
    "siglip_vision_model": ((4, 37), (4, 51)),
}
_WITHOUT = {
    OPTIMIZER: "Without it moments begin at 0.",
    SCHEDULER: "Without it the schedule resumes at `global_step`, and is not checked; "
    "one that a metric drives starts again, from the optimizer's rate.",
    STATE: "Without it the number of steps is the schedule's, and the log is empty.",
}


def check_folder_is_trainers(folder: Path) -> None:
    """Raises unless the folder exists and was not written by another framework."""
    if not folder.is_dir():
        raise ValueError(
            f"`folder` must be a Trainer's checkpoint folder, got {str(folder)!r}, "
            "which is no folder. Name one such as `output_dir/checkpoint-500`."
        )
    other = _other_framework(folder)
    if other:
        if _has_weights(folder):
            other += " The parameters alone can be read: `read_params(folder, ...)`."
        raise ValueError(
            f"`folder` must be of plain torch, got {str(folder)!r}, {other}"
        )


def check_folder_has_weights(folder: Path) -> None:
    """Raises unless the folder has weight files that can be read."""
    if _has_weights(folder):
        return
    what = f"which has none.{_checkpoints_in(folder)}"
    if not folder.is_dir():
        what = "which is no folder."
    what = _other_framework(folder) or what
    raise ValueError(
        f"`folder` must hold {' or '.join(MODEL_FILES)}, got {str(folder)!r}, {what}"
    )


def check_files(
    folder: Path, wanted: Collection[str], without: Collection[str]
) -> tuple[str, ...]:
    """Returns the missing files, which `without` allows; raises for all others."""
    odd = sorted(set(without) - set(_WITHOUT))
    if odd:
        raise ValueError(f"`without` must hold names of {list(_WITHOUT)}, got {odd}.")
    missing = [name for name in wanted if not (folder / name).is_file()]
    needed = [
        f"{name}. {_WITHOUT[name]} Allow it by {name!r} in `without`."
        for name in missing
        if name not in without
    ]
    if not _has_weights(folder):
        needed.append(
            f"{MODEL_FILES[0]} (or {' or '.join(MODEL_FILES[1:])}). Without it "
            "there is nothing to resume from."
        )
    # Either of the two has the step.
    if {SCHEDULER, STATE} <= set(missing) and not needed:
        needed.append(f"{SCHEDULER} or {STATE}. Without both the step is not known.")
    if needed:
        listed = "\n  ".join(needed)
        raise ValueError(
            f"`folder` must hold all that a run resumes from, got {str(folder)!r} "
            f"without:\n  {listed}{_reason(folder)}"
        )
    return tuple(missing)


def version_of_folder(folder: Path) -> str | None:
    """Returns the version that wrote the `config.json` of a folder; None if unknown."""
    version = _config_of(folder).get("transformers_version")
    try:
        _checks.version("transformers_version", version)
    except ValueError:
        return None
    return version


def check_order(folder: Path) -> None:
    """Raises if the version of a folder had the model's parameters in another order.

    Moments without names go by that order. It was compared for 33 architectures.

    Source: transformers 4.40 to 5.24, `models/*/modeling_*.py`.
    """
    config, version = _config_of(folder), version_of_folder(folder)
    number = _checks.version("transformers_version", version or "0.0")
    # A model of several parts has the configuration of each in its own.
    for part in [config, *config.values()]:
        kind = str(part.get("model_type")) if isinstance(part, dict) else ""
        first, end = _OTHER_ORDER.get(kind, (number, number))
        if first <= number < end:
            raise ValueError(
                f"`groups` must be given for a {kind!r} of Transformers {version}, got "
                f"None: before {end[0]}.{end[1]} its parameters had another order, and "
                f"{str(folder / OPTIMIZER)!r} has no names. Pass the names of each "
                "group in the order of `named_parameters()` of that version."
            )


def _config_of(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in MODEL_FILES)


def _other_framework(folder: Path) -> str:
    """Describes a folder that another framework wrote, with the cure; else ""."""
    for pattern, whose, cure in _OTHERS:
        found = sorted(path.name for path in folder.glob(pattern))
        if found:
            return f"which is of {whose}: it has {found[0]!r}. {cure}"
    return ""


def _reason(folder: Path) -> str:
    """Explains missing files; "" if the reason is unknown."""
    has = [(folder / name).is_file() for name in (OPTIMIZER, SCHEDULER, STATE)]
    if has == [False, False, True] and _has_weights(folder):
        return (
            "\nIt is a folder of a run with `save_only_model=True`, which saves no "
            f"optimizer and no schedule. With {OPTIMIZER!r} and {SCHEDULER!r} in "
            "`without` the run continues with new moments; `read_params` reads the "
            "parameters alone."
        )
    if not any(has):
        return _checkpoints_in(folder, before="\n")
    return ""


def _checkpoints_in(folder: Path, before: str = " ") -> str:
    found = sorted(path.name for path in folder.glob("checkpoint-*"))
    if not found:
        return ""
    return f"{before}It holds checkpoints: name one of them, {found[-1]!r} say."
