"""Which files a Trainer's checkpoint folder has, and whose folder it is otherwise."""

from collections.abc import Collection
from pathlib import Path

OPTIMIZER, SCHEDULER, STATE = "optimizer.pt", "scheduler.pt", "trainer_state.json"
MODEL_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
)

# What stands in a folder of another kind, and the kind.
_OTHERS = {
    "global_step*": "DeepSpeed",
    "*zero_pp_rank_*": "DeepSpeed's ZeRO",
    "zero_to_fp32.py": "DeepSpeed's ZeRO",
    "pytorch_model_fsdp*": "FSDP",
    "optimizer_[0-9]*": "FSDP",
    "optimizer.bin": "FSDP",
    "*.distcp": "torch.distributed.checkpoint, as FSDP writes it",
    "rank*-of-*-optimizer.pt": "FSDP on XLA",
    "adapter_model.*": "PEFT, whose base model is elsewhere",
}
_WITHOUT = {
    OPTIMIZER: "Without it moments begin at 0.",
    SCHEDULER: "Without it the schedule goes on at `global_step`, and is not checked; "
    "one that a metric drives begins anew, from the optimizer's rate.",
    STATE: "Without it the number of steps is the schedule's, and the log is empty.",
}


def check_folder_is_trainers(folder: Path) -> None:
    """Raises unless the folder is there and is no other framework's."""
    if not folder.is_dir():
        raise ValueError(
            f"`folder` must be a Trainer's checkpoint folder, got {str(folder)!r}, "
            "which is no folder. Name one such as `output_dir/checkpoint-500`."
        )
    for pattern, whose in _OTHERS.items():
        found = sorted(path.name for path in folder.glob(pattern))
        if found:
            raise ValueError(
                f"`folder` must be of plain torch, got {str(folder)!r}, which is of "
                f"{whose}: it has {found[0]!r}. Save a full state with plain torch."
            )


def check_files(
    folder: Path, wanted: Collection[str], without: Collection[str]
) -> tuple[str, ...]:
    """The wanted files that are not there but need not be; raises for all others."""
    odd = sorted(set(without) - set(_WITHOUT))
    if odd:
        raise ValueError(f"`without` must hold names of {list(_WITHOUT)}, got {odd}.")
    missing = [name for name in wanted if not (folder / name).is_file()]
    needed = [
        f"{name}. {_WITHOUT[name]} Allow it by {name!r} in `without`."
        for name in missing
        if name not in without
    ]
    if not any((folder / name).is_file() for name in MODEL_FILES):
        needed.append(
            f"{MODEL_FILES[0]} (or {' or '.join(MODEL_FILES[1:])}). Without it "
            "there is nothing to go on with."
        )
    if {SCHEDULER, STATE} <= set(missing) and not needed:
        needed.append(f"{SCHEDULER} or {STATE}. Without both nobody knows the step.")
    if needed:
        listed = "\n  ".join(needed)
        raise ValueError(
            f"`folder` must hold all that a run goes on from, got {str(folder)!r} "
            f"without:\n  {listed}"
        )
    return tuple(missing)
