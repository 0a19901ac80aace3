"""Keys of the optimizer states that other optimizers leave in optimizer.pt.

Recorded from files that Trainer 5.23 wrote with each name of `optim`, or that the
optimizer wrote itself.
"""

from typing import Any

# Name, what the refusal calls it, keys of an entry of `state`, keys of a group.
_ONE = "weight_decay lr betas eps initial_lr"
_DUMMY = ("a layer-wise optimizer", "", "lr initial_lr")
FILES = {
    "bitsandbytes without blocks": (
        "bitsandbytes 8-bit AdamW without blocks",
        "step state1 state2 qmap1 qmap2 max1 max2 new_max1 new_max2",
        _ONE,
    ),
    "galore_adamw": (
        "GaLore",
        "step projector exp_avg exp_avg_sq",
        "rank update_proj_gap scale proj_type lr betas eps weight_decay correct_bias",
    ),
    "apollo_adamw": (
        "APOLLO",
        "seed step projector exp_avg exp_avg_sq scaled_grad",
        "rank update_proj_gap scale scale_type proj proj_type lr betas eps "
        "weight_decay correct_bias",
    ),
    "galore_adamw_layerwise": _DUMMY,
    "apollo_adamw_layerwise": _DUMMY,
    "lomo": ("LOMO", "", "lr clip_grad_norm clip_grad_value initial_lr"),
    "adalomo": (
        "AdaLomo",
        "",
        "lr eps weight_decay clip_grad_norm clip_grad_value initial_lr",
    ),
    "grokadamw": (
        "grokadamw",
        "",
        "weight_decay lr betas eps alpha_init lamb gamma grokking_signal_fns "
        "grokking_signal_decay_rate gradient_clipping initial_lr state",
    ),
    "adamw_anyprecision": (
        "adamw_anyprecision",
        "step exp_avg exp_avg_sq",
        "lr betas eps weight_decay momentum_dtype variance_dtype use_kahan_summation "
        "compensation_buffer_dtype",
    ),
    "Apex's FusedLAMB": (
        "Apex's FusedLAMB",
        "exp_avg exp_avg_sq",
        "lr bias_correction betas eps weight_decay grad_averaging max_grad_norm step",
    ),
    "Lion": ("Lion", "exp_avg", "lr betas weight_decay"),
    "CAME": (
        "CAME",
        "step exp_avg exp_avg_sq_row exp_avg_sq_col exp_avg_res_row RMS",
        "lr eps clip_threshold betas weight_decay",
    ),
    "SOAP": ("SOAP", "step exp_avg exp_avg_sq GG Q", "lr betas eps weight_decay"),
    "unknown": (
        "an unknown format",
        "step exp_avg exp_avg_sq",
        "lr betas eps lr_scale",
    ),
}


def state_dict(name: str) -> dict[str, Any]:
    """Returns a state dict of one parameter, of shape [2, 3], in a recorded format."""
    import torch

    _, entry_keys, group_keys = FILES[name]
    outer, _, inner = entry_keys.partition("/")
    entry: dict[str, Any] = {key: torch.zeros(2, 3) for key in outer.split()}
    if inner:
        entry[outer.split()[-1]] = {key: torch.zeros(2, 3) for key in inner.split()}
    if "step" in entry:
        entry["step"] = torch.tensor(2.0)
    group: dict[str, Any] = dict.fromkeys(group_keys.split(), 0.0)
    group |= {"params": [0]}
    return {"state": {0: entry} if entry else {}, "param_groups": [group]}
