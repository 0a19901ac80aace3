"""Rules of Transformers 4.0 to 4.39, known by the fields of its TrainingArguments.

Source: transformers 4.0, 4.1, 4.2, 4.3, 4.4, 4.5, 4.6, 4.8, 4.10, 4.12, 4.15, 4.17,
    4.18, 4.21, 4.24, 4.26 to 4.33, 4.35, 4.37, 4.39 and 4.40, `training_args.py` and
    `trainer.py`.
"""

from collections.abc import Collection, Mapping
from typing import Any

from .._io import is_set

# Fields of every version of 4, which 5 no longer has.
_IN_ALL_OF_4 = frozenset(
    [
        "fp16_opt_level",
        "no_cuda",
        "overwrite_output_dir",
        "past_index",
        "per_gpu_eval_batch_size",
        "tpu_metrics_debug",
    ]
)
# Fields that came with a version, or soon after it: where none of them is there, the
# version is an earlier one. One alone may have been deleted by hand.
_SINCE_4_40 = ("eval_do_concat_batches", "eval_strategy", "eval_on_start")
_SINCE_4_18 = ("optim", "data_seed", "eval_delay")
_SINCE_4_4 = ("warmup_ratio", "logging_strategy", "save_strategy")
# Fields that 4.40 no longer has: 4.1 to 4.34, 4.12 to 4.32, 4.1.
_GONE = frozenset({"sharded_ddp", "xpu_backend", "model_parallel"})


def is_before_4_40(names: Collection[str]) -> bool:
    """Returns True for the fields of a version before 4.40."""
    return not _GONE.isdisjoint(names) or _is_before(names, _SINCE_4_40)


def is_before_4_4(names: Collection[str]) -> bool:
    """Returns True for the fields of a version before 4.4.

    Until then Trainer left out names that hold `bias` or `LayerNorm.weight`.
    """
    return _is_before(names, _SINCE_4_4)


def default_optimizer(given: Mapping[str, Any]) -> str | None:
    """Returns the optimizer of a version that had no `optim`; None for later ones.

    Raises:
        ValueError: if the fields are some of an old version, so that its default is
            not known: "adamw_hf" until 4.31, "adamw_torch" from 4.32 on.
    """
    if "optim" in given:
        return None
    if _is_before(given, _SINCE_4_18):
        return "adamw_hf"
    for name in sorted(_GONE):
        if is_set(given.get(name)):
            raise ValueError(
                f"`optim` must be given with `{name}`, a field of a version before "
                "4.40: 'adamw_hf' was the default until 4.31, then 'adamw_torch'."
            )
    return None


def _is_before(names: Collection[str], later: Collection[str]) -> bool:
    """Returns True for all fields of a version of 4 that had none of the later ones."""
    return set(names) >= _IN_ALL_OF_4 and set(names).isdisjoint(later)
