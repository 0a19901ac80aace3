"""Names of the optimizers whose state dicts are not read, by their keys."""

from collections.abc import Sequence


def key_set(keys: str) -> frozenset[str]:
    """Returns the set of keys that a string lists."""
    return frozenset(keys.split())


# Keys that every group may have. `initial_lr` is added by torch's schedules.
LABELS = key_set("params param_names initial_lr")

# Formats of other optimizers, taken from files that Trainer or the optimizer wrote:
# torch 2.13, transformers 5.23, bitsandbytes 0.50.2 (0.49.2 and later nest their state,
# earlier versions do not), torchao 0.18, torch-optimi 0.3.3, schedulefree 1.4.1,
# lomo-optim 0.1.1, grokadamw 0.1.2, galore-torch 1.0, apollo-torch 1.0.3.
# Columns: name; keys of entries of `state`; keys of one group; keys that no group may
# have. A format matches if all keys of the second or all keys of the third column are
# present. The first match counts, so more specific formats come first.
_OTHER_FORMATS = (
    ("torch's AdamW with `amsgrad`", "max_exp_avg_sq", "", ""),
    ("GaLore", "", "update_proj_gap scale", "scale_type"),
    ("APOLLO", "scaled_grad", "update_proj_gap scale_type", ""),
    ("bitsandbytes AdamW with `percentile_clipping`", "gnorm_vec", "", ""),
    ("bitsandbytes AdamW with `max_unorm`", "unorm_vec", "", ""),
    ("bitsandbytes 8-bit AdamW without blocks", "new_max1 new_max2", "", ""),
    ("another version of bitsandbytes", "state1", "", ""),
    ("stable_adamw (torch-optimi)", "eps_sq", "kahan_sum decouple_lr", ""),
    ("schedule_free_radam (schedulefree)", "", "train_mode silent_sgd_phase", ""),
    ("schedule_free_sgd (schedulefree)", "", "train_mode lr_max momentum", ""),
    ("schedule_free_adamw (schedulefree)", "z", "train_mode lr_max", ""),
    ("grokadamw", "", "alpha_init lamb", ""),
    ("AdaLomo", "", "clip_grad_value weight_decay", ""),
    ("LOMO", "", "clip_grad_value", ""),
    ("adamw_anyprecision", "compensation", "use_kahan_summation", ""),
    ("torch's NAdam", "mu_product", "momentum_decay", ""),
    ("torch's RAdam", "", "betas decoupled_weight_decay", "amsgrad"),
    ("torch's Adamax", "exp_inf", "", ""),
    ("torch's SparseAdam", "", "betas maximize", "weight_decay"),
    ("torch's Adafactor", "row_var", "beta2_decay", ""),
    ("torch's Muon", "", "ns_coefficients", ""),
    ("torch's Adadelta", "acc_delta", "rho", ""),
    ("torch's ASGD", "eta ax", "lambd t0", ""),
    ("torch's Rprop", "prev step_size", "etas", ""),
    ("torch's LBFGS", "old_dirs", "history_size", ""),
    ("Apex's FusedLAMB", "", "grad_averaging max_grad_norm", ""),
    ("CAME", "exp_avg_res_row", "", ""),
    ("Adan", "exp_avg_diff", "", ""),
    ("AdaBelief", "exp_avg_var", "", ""),
    ("Sophia", "hessian", "", ""),
    ("SOAP", "GG Q", "", ""),
    ("Prodigy", "", "d d_coef", ""),
    ("torch's SGD or Muon", "momentum_buffer", "", ""),
)


def optimizer_name(
    entry_keys: frozenset[str], group_keys: Sequence[frozenset[str]]
) -> str:
    """Returns the optimizer that wrote a state dict with these keys; "" if unknown.

    Args:
        entry_keys: keys of all entries of `state`, and of the dicts in them.
        group_keys: keys of each group.
    """
    # Layer-wise optimizers step in gradient hooks. Trainer saves a dummy optimizer,
    # whose groups have nothing but `lr`.
    if not entry_keys and all(keys - LABELS == {"lr"} for keys in group_keys):
        return (
            "a layer-wise optimizer (galore_*_layerwise, apollo_adamw_layerwise), "
            "whose moments Trainer does not save"
        )
    for name, entries, groups, absent in _OTHER_FORMATS:
        by_entry = entries and key_set(entries) <= entry_keys
        by_group = groups and any(key_set(groups) <= keys for keys in group_keys)
        if (by_entry or by_group) and not any(key_set(absent) & k for k in group_keys):
            return name
    # Lion's group has no key of its own, and its entries have only a first moment.
    return "Lion" if entry_keys - {"step"} == {"exp_avg"} else ""
