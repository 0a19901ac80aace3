"""`optim`: the names that there are here, and why the others are not."""

from typing import Any

from .. import _checks

# AdamW with torch's numbers, by one kernel or another.
ADAMW = (
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_torch_xla",
    "adamw_torch_npu_fused",
    "adamw_apex_fused",
)
# Values of `optim` that a `Recipe` takes.
OPTIMIZERS = (
    *ADAMW,
    "adamw_hf",
    "adafactor",
    "sgd",
    "adagrad",
    "rmsprop",
    "lion_32bit",
)

_LOW_RANK = (
    "it projects gradients to a low rank chosen from the modules and by random numbers "
    "or a torch decomposition; take 'adamw_torch'"
)
_LOW_BITS = (
    "its state has few bits, rounded by a CUDA kernel of its own; take the same "
    "optimizer with a float32 state"
)
_BNB = "bitsandbytes' version of it could not be compared here; "
_LAYER_BY_LAYER = (
    "it updates each layer inside of the backward pass, so that nothing can clip or "
    "accumulate gradients before; take 'adamw_torch' or 'adafactor'"
)
_AVERAGES = (
    "Trainer evaluates it at averaged parameters, which a chain of updates does not "
    "carry; "
)
_SCHEDULE_FREE = (
    "see `optax.contrib.schedule_free`, which over 50 steps is within {} of "
    "schedulefree 1.4.1, its base optimizer's warm-up one step ahead; or take '{}'"
)
_REFUSED = {
    "adamw_anyprecision": "torchdistx, whose it is, is not maintained and could not be "
    "compared; take 'adamw_torch'",
    "adamw_torch_4bit": _LOW_BITS,
    "adamw_torch_8bit": _LOW_BITS,
    "adamw_bnb_8bit": _LOW_BITS,
    "adamw_8bit": _LOW_BITS,
    "lion_8bit": _LOW_BITS,
    "ademamix_8bit": _LOW_BITS,
    "rmsprop_bnb_8bit": _LOW_BITS,
    "paged_adamw_8bit": _LOW_BITS,
    "paged_lion_8bit": _LOW_BITS,
    "paged_ademamix_8bit": _LOW_BITS,
    "paged_adamw_32bit": _BNB + "take 'adamw_torch', which has no pages",
    "paged_lion_32bit": _BNB + "take 'lion_32bit', which has no pages",
    "ademamix": _BNB + "see `optax.contrib.ademamix`, or take 'adamw_torch'",
    "paged_ademamix_32bit": _BNB + "see `optax.contrib.ademamix`, or take "
    "'adamw_torch'",
    "rmsprop_bnb": _BNB + "take 'rmsprop'",
    "rmsprop_bnb_32bit": _BNB + "take 'rmsprop'",
    "galore_adamw": _LOW_RANK,
    "galore_adamw_8bit": _LOW_RANK,
    "galore_adafactor": _LOW_RANK,
    "galore_adamw_layerwise": _LOW_RANK,
    "galore_adamw_8bit_layerwise": _LOW_RANK,
    "galore_adafactor_layerwise": _LOW_RANK,
    "apollo_adamw": _LOW_RANK,
    "apollo_adamw_layerwise": _LOW_RANK,
    "lomo": _LAYER_BY_LAYER,
    "adalomo": _LAYER_BY_LAYER,
    "grokadamw": "the package of this name could not be compared here; take "
    "'adamw_torch'",
    "schedule_free_radam": _AVERAGES + "take 'adamw_torch'",
    "schedule_free_adamw": _AVERAGES + _SCHEDULE_FREE.format("4e-5", "adamw_torch"),
    "schedule_free_sgd": _AVERAGES + _SCHEDULE_FREE.format("4e-6", "sgd"),
    "stable_adamw": "torch-optimi, whose it is, could not be compared here; take "
    "'adamw_torch' with `max_grad_norm`",
}
# Those that Trainer takes and a `Recipe` refuses, with the reason.
REFUSED_OPTIMIZERS = tuple(_REFUSED)


def optimizer_refusal(optim: Any) -> str | None:
    """Why there is no such optimizer here, in a sentence; None where there is.

    Args:
        optim: a name of Transformers' `OptimizerNames`, or anything else.
    """
    if optim in OPTIMIZERS:
        return None
    if optim in REFUSED_OPTIMIZERS:
        return f"`optim` must be an optimizer that is here, got {optim!r}: " + (
            f"{_REFUSED[optim]}."
        )
    listed = ", ".join(map(repr, OPTIMIZERS))
    hint = _checks.nearest(optim, OPTIMIZERS)
    return f"`optim` must be one of {listed}, got {optim!r}.{hint}"
