"""Checks of the files in a Trainer's checkpoint folder.

Folders that another framework wrote are recognized by the names of their files.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .. import _checks

OPTIMIZER, SCHEDULER, STATE = "optimizer.pt", "scheduler.pt", "trainer_state.json"
# Weight files, in the order in which Transformers looks for them.
MODEL_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

# The weight files of an adapter, without those of its base model.
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
ADAPTER_CONFIG = "adapter_config.json"

_PLAIN_TORCH = (
    "Load it with the framework that wrote it and save a full state with plain torch: "
    "`model.save_pretrained(folder)`, `torch.save(optimizer.state_dict(), "
    "'optimizer.pt')`."
)
_ZERO = (
    "To read the parameters, run `python zero_to_fp32.py . OUT` in the folder; the "
    "moments cannot be read."
)
_FSDP = (
    "To read the parameters, run `accelerate merge-weights FOLDER/pytorch_model_fsdp_0 "
    "OUT`, or train with `fsdp_state_dict_type: FULL_STATE_DICT`."
)
_PEFT = (
    "Pass `names=models.from_transformers(peft_model).names`, or merge the adapter "
    "into its base model: `AutoPeftModel.from_pretrained(folder)"
    ".merge_and_unload().save_pretrained(out)`."
)
# Patterns of names that occur only in folders of another framework, with the framework
# and a remedy. The first match counts.
_OTHER_FRAMEWORKS = (
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
        "If FSDP was not used, optimizer.bin and scheduler.bin have the format of "
        "Trainer's files: rename them to optimizer.pt and scheduler.pt, and delete "
        "random_states_*.pkl.",
    ),
    (
        "optimizer.bin",
        "FSDP or Accelerate's `save_state`",
        "If FSDP was not used, it has the format of Trainer's optimizer.pt: rename it "
        "to optimizer.pt.",
    ),
    ("adapter_model.*", "PEFT, without the base model", _PEFT),
    ("adapter_config.json", "PEFT, without the base model", _PEFT),
)
# Models whose `named_parameters()` once came in another order, in a way that shapes
# cannot reveal. Keys: `model_type`. Values: the first version of Transformers with that
# order, and the first version with the current order.
_OTHER_ORDER = {
    "gemma2": ((4, 45), (4, 47)),
    "jetmoe": ((4, 40), (5, 0)),
    "siglip_text_model": ((4, 37), (4, 51)),
    "siglip_vision_model": ((4, 37), (4, 51)),
}
_OPTIONAL_FILES = {
    OPTIMIZER: "Without it moments start at 0.",
    SCHEDULER: "Without it the schedule resumes at `global_step`; whether scheduler.pt "
    "had counted the same number of steps cannot be checked. A metric-driven schedule "
    "restarts from the optimizer's rate.",
    STATE: "Without it the step is that of the schedule, and the log is empty.",
}


def check_trainer_folder(folder: Path, *, is_adapter: bool = False) -> None:
    """Raises if the folder does not exist, or if another framework wrote it.

    Args:
        folder: the folder.
        is_adapter: whether the weights are those of an adapter of PEFT.
    """
    if not folder.is_dir():
        raise ValueError(
            f"`folder` must be a Trainer's checkpoint folder, got {str(folder)!r}, "
            "which is not a folder. Pass a folder like `output_dir/checkpoint-500`."
        )
    other = _describe_other_framework(folder, is_adapter=is_adapter)
    if other:
        if _has_weights(folder):
            other += " `read_params(folder, ...)` can read the parameters."
        raise ValueError(
            f"`folder` must be written by plain torch, got {str(folder)!r}, {other}"
        )


def check_has_weights(folder: Path, *, is_adapter: bool = False) -> None:
    """Raises unless the folder contains a weight file or an index of weight files."""
    if _has_weights(folder, is_adapter=is_adapter):
        return
    problem = f"which has none.{_checkpoint_hint(folder)}"
    if not folder.is_dir():
        problem = "which is not a folder."
    problem = _describe_other_framework(folder, is_adapter=is_adapter) or problem
    names = ADAPTER_FILES if is_adapter else MODEL_FILES
    raise ValueError(
        f"`folder` must contain {' or '.join(names)}, got {str(folder)!r}, {problem}"
    )


def check_files(
    folder: Path,
    required: Collection[str],
    may_be_missing: Collection[str],
    *,
    is_adapter: bool = False,
) -> tuple[str, ...]:
    """Returns the names of the required files that are missing.

    Raises:
        ValueError: if a file is missing that is not in `may_be_missing`, or if
            `may_be_missing` contains a name that is not that of an optional file.
            Messages call the argument `without`, as the public functions do.
    """
    unexpected = sorted(set(may_be_missing) - set(_OPTIONAL_FILES))
    if unexpected:
        raise ValueError(
            f"`without` must contain only {list(_OPTIONAL_FILES)}, got {unexpected}."
        )
    missing = [name for name in required if not (folder / name).is_file()]
    needed = [
        f"{name}. {_OPTIONAL_FILES[name]} To allow this, add {name!r} to `without`."
        for name in missing
        if name not in may_be_missing
    ]
    if not _has_weights(folder, is_adapter=is_adapter):
        first, *others = ADAPTER_FILES if is_adapter else MODEL_FILES
        needed.append(
            f"{first} (or {' or '.join(others)}). It contains the parameters."
        )
    # One of these two files must exist: both contain the step.
    if {SCHEDULER, STATE} <= set(missing) and not needed:
        needed.append(f"{SCHEDULER} or {STATE}. Without both the step is unknown.")
    if needed:
        listed = "\n  ".join(needed)
        raise ValueError(
            f"`folder` must contain all files of a checkpoint, got {str(folder)!r} "
            f"without:\n  {listed}{_reason_for_missing(folder)}"
        )
    return tuple(missing)


def version_of_folder(folder: Path) -> str | None:
    """Returns the version of Transformers in `config.json`; None if unknown."""
    version = _config_of(folder).get("transformers_version")
    try:
        _checks.version("transformers_version", version)
    except ValueError:
        return None
    return version


def check_param_order(folder: Path) -> None:
    """Raises if the folder's version of Transformers ordered parameters differently.

    Moments without names are assigned in the order of the current version.
    `_OTHER_ORDER` is the result of a comparison of 33 architectures.

    Source: transformers 4.40 to 5.24, `models/*/modeling_*.py`.
    """
    config, version = _config_of(folder), version_of_folder(folder)
    saved_version = _checks.version("transformers_version", version or "0.0")
    # The configuration of a composite model contains one configuration per part, such
    # as `text_config`.
    for part in [config, *config.values()]:
        model_type = str(part.get("model_type")) if isinstance(part, dict) else ""
        if model_type not in _OTHER_ORDER:
            continue
        first, first_current = _OTHER_ORDER[model_type]
        if first <= saved_version < first_current:
            raise ValueError(
                f"`groups` must be given for a {model_type!r} of Transformers "
                f"{version}, got None: before {first_current[0]}.{first_current[1]} "
                "its parameters had another order, and "
                f"{str(folder / OPTIMIZER)!r} contains no names. Pass the names of "
                "each group in the order of `named_parameters()` of that version."
            )


def _config_of(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _has_weights(folder: Path, *, is_adapter: bool = False) -> bool:
    names = ADAPTER_FILES if is_adapter else MODEL_FILES
    return any((folder / name).is_file() for name in names)


def _describe_other_framework(folder: Path, *, is_adapter: bool = False) -> str:
    """Describes a folder of another framework, with a remedy; "" for other folders."""
    for pattern, framework, remedy in _OTHER_FRAMEWORKS:
        if is_adapter and remedy == _PEFT:
            continue
        found = sorted(path.name for path in folder.glob(pattern))
        if found:
            return (
                f"which was written by {framework}: it contains {found[0]!r}. {remedy}"
            )
    return ""


def _reason_for_missing(folder: Path) -> str:
    """Explains why files are missing; "" if the reason is unknown."""
    has = [(folder / name).is_file() for name in (OPTIMIZER, SCHEDULER, STATE)]
    if has == [False, False, True] and _has_weights(folder):
        return (
            "\nThe run was made with `save_only_model=True`, which saves neither "
            f"optimizer nor schedule. With {OPTIMIZER!r} and {SCHEDULER!r} in "
            "`without` the run resumes with new moments; `read_params` reads only the "
            "parameters."
        )
    if not any(has):
        return _checkpoint_hint(folder, separator="\n")
    return ""


def _checkpoint_hint(folder: Path, separator: str = " ") -> str:
    """Suggests a checkpoint in the folder to pass instead; "" if there is none."""
    found = sorted(path.name for path in folder.glob("checkpoint-*"))
    if not found:
        return ""
    return (
        f"{separator}It contains checkpoints: pass one of them, such as {found[-1]!r}."
    )
