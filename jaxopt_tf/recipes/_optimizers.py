"""Optimizers by the values of `optim`, with the arguments that each of them accepts."""

import functools
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import optax

from .. import _checks, optimizers
from .._typing import PyTree, ScalarOrSchedule
from ..optimizers import TorchLayout
from ._adapted import adalomo, ademamix, anyprecision, lomo, stable_adamw, torchao

# Type of an argument: int, float, bool, str, or the strings that are accepted.
Kind = type | tuple[str, ...]
Value = int | float | bool | str

_DTYPES = ("float32", "bfloat16")
_LOW_BIT_ARGUMENTS = ("betas", "eps", "layouts")
_MOMENT_DTYPES: Mapping[str, Kind] = {"mu_dtype": _DTYPES, "nu_dtype": _DTYPES}


class Algorithm(NamedTuple):
    """Row of the table `ALGORITHMS`."""

    build: Callable[..., optax.GradientTransformationExtraArgs]
    # Subset of "betas", "eps", "layouts", "peak" (rate), "seed", "shardings" and
    # "warmup_steps".
    takes: tuple[str, ...] = ()
    # Arguments that Transformers reads from `optim_args`: name -> int, float, bool, str
    # or the strings that are accepted.
    optim_args: Mapping[str, Kind] = MappingProxyType({})
    # Arguments that Transformers does not have.
    own_args: Mapping[str, Kind] = MappingProxyType({})
    # Weight decay is added to the gradient, as in torch, and enters the moments.
    is_decay_in_gradient: bool = False
    # Fields of a recipe that have no effect, as in Trainer.
    ignores: tuple[str, ...] = ()
    # The update is part of the backward pass in Trainer.
    updates_in_backward: bool = False
    # Parameters are evaluated and saved as averages, see `eval_params`.
    is_averaging: bool = False

    @property
    def all_args(self) -> dict[str, Kind]:
        """Arguments that a recipe accepts in `optim_args`, with their kinds."""
        return {**self.optim_args, **self.own_args}


def _torch_algorithm(build: Callable[..., Any], **optim_args: Kind) -> Algorithm:
    return Algorithm(build, optim_args=optim_args, is_decay_in_gradient=True)


def _torchao(build: Callable[..., Any]) -> Algorithm:
    return Algorithm(
        functools.partial(torchao, build),
        (*_LOW_BIT_ARGUMENTS, "seed"),
        optim_args={"bf16_stochastic_round": bool},
    )


def _ademamix(build: Callable[..., Any], *, has_8_bits: bool) -> Algorithm:
    """Returns AdEMAMix, whose betas may be among `optim_args`."""
    return Algorithm(
        functools.partial(ademamix, build),
        _LOW_BIT_ARGUMENTS if has_8_bits else ("betas", "eps"),
        optim_args={
            **dict.fromkeys(("beta1", "beta2", "beta3", "alpha", "eps"), float),
            **dict.fromkeys(("t_alpha", "t_beta3"), int),
        },
        own_args={} if has_8_bits else _MOMENT_DTYPES,
    )


# Values of `optim` for which Transformers uses different kernels of AdamW. Here each of
# them is `adamw_tf`. Paged states are moved to host memory when a GPU has none left,
# which changes no number.
_ADAMW_KERNELS = (
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_torch_xla",
    "adamw_torch_npu_fused",
    "adamw_apex_fused",
    "paged_adamw_32bit",
)
_ADAMW_8_BIT = ("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit")
# Trainer passes only the model and the rate to LOMO and AdaLomo.
_IGNORED = ("max_grad_norm", "weight_decay")
# Arguments of schedulefree's optimizers that Trainer reads from `optim_args`.
_WEIGHTS_OF_MEAN: Mapping[str, Kind] = {"r": float, "weight_lr_power": float}
# Muon of torch with AdamW, which is no name of Transformers.
_MUON = Algorithm(
    optimizers.muon_tf,
    ("betas", "eps", "layouts", "shardings"),
    own_args={
        **dict.fromkeys(("momentum", "adamw_rate_factor"), float),
        "nesterov": bool,
        "ns_steps": int,
        "ns_dtype": ("bfloat16", "float32"),
        "adjust_lr_fn": ("original", "match_rms_adamw"),
        "matrices": str,
    },
)
# Values of `optim` that `Recipe` accepts.
ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType(
    {
        **dict.fromkeys(
            _ADAMW_KERNELS,
            Algorithm(optimizers.adamw_tf, ("betas", "eps"), own_args=_MOMENT_DTYPES),
        ),
        "adamw_hf": Algorithm(
            optimizers.adamw_hf_v4, ("betas", "eps"), own_args=_MOMENT_DTYPES
        ),
        "adamw_anyprecision": Algorithm(
            anyprecision,
            ("betas", "eps"),
            optim_args={
                "use_kahan_summation": bool,
                "momentum_dtype": _DTYPES,
                "variance_dtype": _DTYPES,
                "compensation_buffer_dtype": _DTYPES,
            },
        ),
        "stable_adamw": Algorithm(
            stable_adamw,
            ("betas", "eps", "layouts", "peak"),
            optim_args={"decouple_lr": bool, "max_lr": float, "kahan_sum": bool},
            own_args=_MOMENT_DTYPES,
        ),
        "adafactor": Algorithm(optimizers.adafactor_trainer, ("layouts",)),
        "sgd": _torch_algorithm(
            optimizers.sgd_tf, momentum=float, dampening=float, nesterov=bool
        ),
        "adagrad": _torch_algorithm(optimizers.adagrad_tf, lr_decay=float, eps=float),
        "rmsprop": _torch_algorithm(
            optimizers.rmsprop_tf, momentum=float, alpha=float, eps=float, centered=bool
        ),
        # RMSprop of bitsandbytes is that of torch. It accepts no `optim_args`, because
        # Trainer passes them to it as strings.
        **dict.fromkeys(
            ("rmsprop_bnb", "rmsprop_bnb_32bit"),
            _torch_algorithm(optimizers.rmsprop_tf),
        ),
        "rmsprop_bnb_8bit": Algorithm(
            optimizers.rmsprop_8bit_tf, ("layouts",), is_decay_in_gradient=True
        ),
        **dict.fromkeys(
            ("ademamix", "paged_ademamix_32bit"),
            _ademamix(optimizers.ademamix_tf, has_8_bits=False),
        ),
        **dict.fromkeys(
            ("ademamix_8bit", "paged_ademamix_8bit"),
            _ademamix(optimizers.ademamix_8bit_tf, has_8_bits=True),
        ),
        "lomo": Algorithm(lomo, ignores=_IGNORED, updates_in_backward=True),
        "adalomo": Algorithm(
            adalomo, ("layouts",), ignores=_IGNORED, updates_in_backward=True
        ),
        **dict.fromkeys(
            ("lion_32bit", "paged_lion_32bit"),
            Algorithm(optimizers.lion_tf, ("betas",)),
        ),
        **dict.fromkeys(
            _ADAMW_8_BIT, Algorithm(optimizers.adamw_8bit_tf, _LOW_BIT_ARGUMENTS)
        ),
        "adamw_torch_8bit": _torchao(
            functools.partial(optimizers.adamw_8bit_tf, library="torchao")
        ),
        "adamw_torch_4bit": _torchao(optimizers.adamw_4bit_tf),
        **dict.fromkeys(
            ("lion_8bit", "paged_lion_8bit"),
            Algorithm(optimizers.lion_8bit_tf, ("betas", "layouts")),
        ),
        "schedule_free_adamw": Algorithm(
            optimizers.schedule_free_adamw_tf,
            ("betas", "eps", "warmup_steps"),
            _WEIGHTS_OF_MEAN,
            is_averaging=True,
        ),
        "schedule_free_radam": Algorithm(
            optimizers.schedule_free_radam_tf,
            ("betas", "eps"),
            _WEIGHTS_OF_MEAN,
            is_averaging=True,
        ),
        "schedule_free_sgd": Algorithm(
            optimizers.schedule_free_sgd_tf,
            ("warmup_steps",),
            _WEIGHTS_OF_MEAN,
            is_decay_in_gradient=True,
            is_averaging=True,
        ),
        "muon": _MUON,
    }
)
# Values of `optim` for which `optim_args` may be given.
TAKES_OPTIM_ARGS = tuple(name for name, row in ALGORITHMS.items() if row.optim_args)

# Common names of other libraries, in lower case and without underscores.
_COMMON_NAMES = {"adam": "adamw_torch", "adamw": "adamw_torch", "lion": "lion_32bit"}
# Regular expressions of names that Trainer accepts and `Recipe` rejects, with the
# reason. The first match is used.
_REFUSED = {
    "galore_adafactor_layerwise": "Trainer cannot start it: it sets a learning rate "
    "and `relative_step`; use 'adafactor'",
    "(galore|apollo)_.*layerwise": "Trainer saves no state of it, so that it cannot be "
    "resumed; use 'adamw_torch'",
    "galore_.*": "its update depends on the signs of singular vectors, which torch "
    "chooses, and Trainer cannot resume its own checkpoints of it; use 'adamw_torch'",
    "apollo_.*": "its update depends on torch's random numbers, and Trainer cannot "
    "resume its own checkpoints of it; use 'adamw_torch'",
    "grokadamw": "its update of a tensor depends on the position in its group, and "
    "Trainer restarts its moments at each resume; use 'adamw_torch'",
}


def optimizer_refusal(optim: Any) -> str | None:
    """Returns an error message if an optimizer is not supported, else None.

    Args:
        optim: a name of Transformers' `OptimizerNames`, or any other value.
    """
    # A list: `in` on a dict raises a TypeError for values that are not hashable.
    if optim in list(ALGORITHMS):
        return None
    for pattern, reason in _REFUSED.items():
        if re.fullmatch(pattern, str(optim)):
            return f"`optim` must be a supported optimizer, got {optim!r}: {reason}."
    lowered = str(optim).lower()
    common = _COMMON_NAMES.get(re.sub(r"[\W_]", "", lowered))
    hint = _checks.suggest(common or lowered, ALGORITHMS)
    listed = ", ".join(map(repr, ALGORITHMS))
    return f"`optim` must be one of {listed}, got {optim!r}.{hint}"


def ignored_fields(optim: Any, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the fields that an optimizer ignores, if they are not at defaults."""
    defaults = {"max_grad_norm": (0.0, 1.0), "weight_decay": (0.0,)}
    return tuple(
        name
        for name in (ALGORITHMS[optim].ignores if optim in list(ALGORITHMS) else ())
        if settings.get(name) not in (None, *defaults[name])
    )


def named_optimizer(
    learning_rate: ScalarOrSchedule,
    settings: Mapping[str, Any],
    *,
    decay_mask: Callable[[PyTree], PyTree] | None = None,
    layouts: Mapping[str, TorchLayout] | None = None,
    shardings: PyTree | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer that `settings["optim"]` names, without clipping.

    Args:
        learning_rate: the rate, or a schedule.
        settings: values by the names of a recipe's fields; numbers may be traced.
            `warmup_steps` is a number of steps.
        decay_mask: see `adamw_tf`.
        layouts: see `adafactor_tf` and `adamw_8bit_tf`; other optimizers ignore it.
        shardings: see `muon_tf`; other optimizers ignore it.

    Raises:
        ValueError, TypeError: if the optimizer rejects a value.

    Source: transformers 5.23 `trainer_optimizer.py`; 4.46 `trainer.py` for "adamw_hf".
    Differs: Trainer passes a fraction as `warmup_steps` to schedulefree as it is, whose
        first step then has the rate divided by the fraction.
    """
    algorithm = ALGORITHMS[settings["optim"]]
    options = {
        "betas": (settings["adam_beta1"], settings["adam_beta2"]),
        "eps": settings["adam_epsilon"],
        "layouts": layouts,
        "peak": settings["learning_rate"],
        "seed": settings["seed"],
        "warmup_steps": settings["warmup_steps"],
        "shardings": shardings,
    }
    options = {name: options[name] for name in algorithm.takes}
    return algorithm.build(
        learning_rate,
        weight_decay=settings["weight_decay"],
        decay_mask=decay_mask,
        **options | dict(settings["optim_args"]),  # which may contain `eps`
    )
