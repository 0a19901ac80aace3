"""Keys of moments in torch's state dicts, for each state of an optimizer."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax

from ..optimizers import (
    AdafactorState,
    AdagradState,
    AdamWState,
    AdEMAMixState,
    LionState,
    RMSpropState,
    ScheduleFreeState,
    SGDState,
    StableAdamWState,
)

# Key of the dict that contains the arrays of an entry in bitsandbytes since 0.49.2.
BITSANDBYTES_NESTED = "__bnb_optimizer_quant_state__"
# Number of bitsandbytes' array for each moment, and its index in an array of AdEMAMix,
# which contains the fast and the slow mean.
BITSANDBYTES_KEYS: Mapping[str, tuple[int, int | None]] = {
    "exp_avg": (1, None),
    "exp_avg_fast": (1, 0),
    "exp_avg_slow": (1, 1),
    "square_avg": (1, None),
    "exp_avg_sq": (2, None),
}
# torch's key for each field, by the state that is converted. Arrays of bitsandbytes
# have other keys, see `BITSANDBYTES_KEYS`.
KEYS_BY_STATE: Mapping[type, Mapping[str, str]] = {
    AdafactorState: {
        "mu": "exp_avg",
        "nu": "exp_avg_sq",
        "nu_row": "exp_avg_sq_row",
        "nu_col": "exp_avg_sq_col",
    },
    AdagradState: {"nu": "sum"},
    AdamWState: {"mu": "exp_avg", "nu": "exp_avg_sq"},
    AdEMAMixState: {
        "mu": "exp_avg_fast",
        "mu_slow": "exp_avg_slow",
        "nu": "exp_avg_sq",
    },
    LionState: {"mu": "exp_avg"},
    RMSpropState: {
        "nu": "square_avg",
        "mu": "grad_avg",
        "momentum": "momentum_buffer",
    },
    ScheduleFreeState: {"z": "z", "nu": "exp_avg_sq"},
    SGDState: {"momentum": "momentum_buffer"},
    StableAdamWState: {
        "mu": "exp_avg",
        "nu": "exp_avg_sq",
        "compensation": "kahan_comp",
    },
}


# Argument of an optimizer with which it has the array of a key.
_ARGUMENTS = {
    "exp_avg": "beta1",
    "grad_avg": "centered",
    "momentum_buffer": "momentum",
}


def check_no_more_keys(
    leaf: str, node: Any, keys: Collection[str], entries: Iterable[Mapping[str, Any]]
) -> None:
    """Raises if the file has arrays for a leaf that the state has no field for.

    Args:
        leaf: name of the leaf.
        node: the optimizer state.
        keys: torch's keys of the moments that the state has for the leaf.
        entries: entries of the leaf's tensors.
    """
    optional = (KEYS_BY_STATE[type(node)].values() & _ARGUMENTS.keys()) - set(keys)
    for entry in entries:
        for key in sorted(optional):
            if entry.get(key) is not None:
                raise ValueError(
                    f"`opt_state` must have `{key}` for {leaf!r}, because the file "
                    "contains it, got none. Build the optimizer with the "
                    f"`{_ARGUMENTS[key]}` of the file."
                )


def check_for_bitsandbytes(node: Any) -> None:
    """Raises if a state of RMSprop has moments that bitsandbytes does not have."""
    if isinstance(node, RMSpropState) and jax.tree.leaves((node.mu, node.momentum)):
        raise ValueError(
            "`opt_state` must have no `momentum` and no centered mean in its "
            "RMSpropState, as RMSprop of bitsandbytes, got moments. Build `rmsprop_tf` "
            "without `momentum` and `centered`."
        )


def check_uncompensated(leaf: str, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises if the file has compensations of a leaf that has none here."""
    for name, entry in entries.items():
        if entry.get("kahan_comp") is not None:
            raise ValueError(
                f"`opt_state` must have a compensation for {leaf!r}, because the file "
                f"has `kahan_comp` for {name!r}, got none. Keep the parameter in the "
                "dtype of the file, bfloat16 or float16."
            )
