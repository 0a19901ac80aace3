"""Names of the optimizers whose state dicts are not read, by the keys in them."""

from collections.abc import Sequence
from typing import NamedTuple


class Marks(NamedTuple):
    """Keys by which a format that is not read is recognized."""

    name: str
    entries: frozenset[str] = frozenset()  # all of them are in entries of `state`
    groups: frozenset[str] = frozenset()  # or all of them are in a group
    absent: frozenset[str] = frozenset()  # and none of these is in a group


def _set(keys: str) -> frozenset[str]:
    return frozenset(keys.split())


# Keys that every group may have.
LABELS = _set("params param_names initial_lr")

# Each was written by Trainer or by the optimizer itself: torch 2.13, transformers 5.23,
# bitsandbytes 0.50.2 (0.49.2 and later nest their state, earlier ones do not), torchao
# 0.18, torch-optimi 0.3.3, schedulefree 1.4.1, lomo-optim 0.1.1, grokadamw 0.1.2,
# galore-torch 1.0, apollo-torch 1.0.3. The order matters: a more special one first.
_NESTED = "__bnb_optimizer_quant_state__"
_OTHERS = (
    Marks("GaLore", groups=_set("update_proj_gap scale"), absent=_set("scale_type")),
    Marks("APOLLO", _set("scaled_grad"), _set("update_proj_gap scale_type")),
    Marks("bitsandbytes 8-bit AdamW or AdEMAMix", _set("qmap1 state2")),
    Marks("bitsandbytes 8-bit Lion or RMSprop", _set("qmap1")),
    Marks("bitsandbytes 32-bit AdamW or AdEMAMix", _set("state1 state2")),
    Marks("bitsandbytes 32-bit Lion or RMSprop", _set("state1")),
    Marks("bitsandbytes", _set(_NESTED), _set("t_alpha t_beta3")),
    Marks("stable_adamw (torch-optimi)", _set("eps_sq"), _set("kahan_sum decouple_lr")),
    Marks(
        "schedule_free_radam (schedulefree)", groups=_set("train_mode silent_sgd_phase")
    ),
    Marks(
        "schedule_free_sgd (schedulefree)", groups=_set("train_mode lr_max momentum")
    ),
    Marks("schedule_free_adamw (schedulefree)", _set("z"), _set("train_mode lr_max")),
    Marks("grokadamw", groups=_set("alpha_init lamb")),
    Marks("AdaLomo", groups=_set("clip_grad_value weight_decay")),
    Marks("LOMO", groups=_set("clip_grad_value")),
    Marks("adamw_anyprecision", _set("compensation"), _set("use_kahan_summation")),
    Marks("torch's NAdam", _set("mu_product"), _set("momentum_decay")),
    Marks(
        "torch's RAdam",
        groups=_set("betas decoupled_weight_decay"),
        absent=_set("amsgrad"),
    ),
    Marks("torch's Adamax", _set("exp_inf")),
    Marks(
        "torch's SparseAdam", groups=_set("betas maximize"), absent=_set("weight_decay")
    ),
    Marks("torch's Adafactor", _set("row_var"), _set("beta2_decay")),
    Marks("torch's Muon", groups=_set("ns_coefficients")),
    Marks("torch's SGD", groups=_set("momentum dampening nesterov")),
    Marks("torch's Adagrad", groups=_set("lr_decay initial_accumulator_value")),
    Marks("torch's RMSprop", groups=_set("alpha centered")),
    Marks("torch's Adadelta", _set("acc_delta"), _set("rho")),
    Marks("torch's ASGD", _set("eta ax"), _set("lambd t0")),
    Marks("torch's Rprop", _set("prev step_size"), _set("etas")),
    Marks("torch's LBFGS", _set("old_dirs"), _set("history_size")),
    Marks("Apex's FusedLAMB", groups=_set("grad_averaging max_grad_norm")),
    Marks("CAME", _set("exp_avg_res_row")),
    Marks("Adan", _set("exp_avg_diff")),
    Marks("AdaBelief", _set("exp_avg_var")),
    Marks("Sophia", _set("hessian")),
    Marks("SOAP", _set("GG Q")),
    Marks("Prodigy", groups=_set("d d_coef")),
    Marks("torch's SGD or Muon", _set("momentum_buffer")),
)


def optimizer_name(
    entry_keys: frozenset[str], group_keys: Sequence[frozenset[str]]
) -> str:
    """Returns the optimizer that wrote a state dict with these keys; "" if unknown.

    Args:
        entry_keys: of all entries of `state`, and of the dicts in them.
        group_keys: of each group.
    """
    if not entry_keys and all(keys - LABELS == {"lr"} for keys in group_keys):
        return (
            "a layer-wise optimizer (galore_*_layerwise, apollo_adamw_layerwise), of "
            "which Trainer saves no moments"
        )
    for marks in _OTHERS:
        by_entry = marks.entries and marks.entries <= entry_keys
        by_group = marks.groups and any(marks.groups <= keys for keys in group_keys)
        if (by_entry or by_group) and not any(marks.absent & k for k in group_keys):
            return marks.name
    if entry_keys - {"step"} == {"exp_avg"}:
        return "Lion"
    return ""
