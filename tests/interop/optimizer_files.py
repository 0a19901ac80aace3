"""Keys of the optimizer states that other optimizers leave in optimizer.pt.

Recorded from files that Trainer 5.23 wrote with each name of `optim`, or that the
optimizer wrote itself.
"""

from typing import Any

# Name, what the refusal calls it, keys of an entry of `state`, keys of a group.
_BNB = "__bnb_optimizer_quant_state__"
_TWO = "weight_decay lr betas eps alpha t_alpha t_beta3 initial_lr"
_ONE = "weight_decay lr betas eps initial_lr"
_EIGHT = "state1 qmap1 state2 qmap2 absmax1 absmax2"
_DUMMY = ("a layer-wise optimizer", "", "lr initial_lr")
FILES = {
    "sgd": ("torch's SGD", "", "lr momentum dampening nesterov maximize foreach fused"),
    "adagrad": (
        "torch's Adagrad",
        "step sum",
        "lr lr_decay eps initial_accumulator_value",
    ),
    "rmsprop": ("torch's RMSprop", "step square_avg", "lr momentum alpha eps centered"),
    "ademamix_8bit": ("bitsandbytes 8-bit AdEMAMix", f"step {_BNB}/{_EIGHT}", _TWO),
    "ademamix": ("AdEMAMix", f"step {_BNB}/state1 state2", _TWO),
    "lion_8bit": ("8-bit Lion", f"step {_BNB}/state1 qmap1 absmax1", _ONE),
    "lion_32bit": ("32-bit Lion or RMSprop", f"step {_BNB}/state1", _ONE),
    "rmsprop_bnb": ("32-bit Lion or RMSprop", f"step {_BNB}/state1", _ONE),
    "bitsandbytes 0.49.1": ("bitsandbytes 8-bit AdEMAMix", f"step {_EIGHT}", _TWO),
    "bitsandbytes without blocks": (
        "bitsandbytes 8-bit AdamW without blocks",
        "step state1 state2 qmap1 qmap2 max1 max2 new_max1 new_max2",
        _ONE,
    ),
    "ademamix, fresh": ("bitsandbytes AdEMAMix", "", _TWO),
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
    "stable_adamw": (
        "stable_adamw",
        "exp_avg exp_avg_sq eps_sq kahan_comp",
        "weight_decay lr beta1 beta2 eps decouple_lr max_lr kahan_sum foreach triton "
        "gradient_release initial_lr setup step",
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
    if name.startswith(("ademamix", "bitsandbytes")):
        group["betas"] = (0.9, 0.999, 0.9999)
    return {"state": {0: entry} if entry else {}, "param_groups": [group]}
