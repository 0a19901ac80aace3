"""Optimizers by the names of `optim`, with the arguments that each of them takes."""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from numbers import Real
from types import MappingProxyType
from typing import Any, NamedTuple

import optax

from .. import _checks, optimizers
from .._typing import PyTree, ScalarOrSchedule
from ..optimizers import TorchLayout


class Algorithm(NamedTuple):
    """Row of the table of optimizers."""

    build: Callable[..., optax.GradientTransformationExtraArgs]
    takes: tuple[str, ...] = ()  # of "betas", "eps" and "layouts"
    # Further arguments that Transformers reads for it: float or bool by name.
    optim_args: Mapping[str, type] = MappingProxyType({})
    # The decay is added to the gradient, as in torch, and passes through the moments.
    is_decay_in_gradient: bool = False


def _torch_algorithm(build: Callable[..., Any], **optim_args: type) -> Algorithm:
    return Algorithm(build, optim_args=optim_args, is_decay_in_gradient=True)


# Kernels by which Transformers computes AdamW; the numbers are torch's in each of them.
_ADAMW_KERNELS = (
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_torch_xla",
    "adamw_torch_npu_fused",
    "adamw_apex_fused",
)
# Values of `optim` that a `Recipe` accepts.
ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType(
    {
        **dict.fromkeys(
            _ADAMW_KERNELS, Algorithm(optimizers.adamw_tf, ("betas", "eps"))
        ),
        "adamw_hf": Algorithm(optimizers.adamw_hf_v4, ("betas", "eps")),
        "adafactor": Algorithm(optimizers.adafactor_trainer, ("layouts",)),
        "sgd": _torch_algorithm(
            optimizers.sgd_tf, momentum=float, dampening=float, nesterov=bool
        ),
        "adagrad": _torch_algorithm(optimizers.adagrad_tf, lr_decay=float, eps=float),
        "rmsprop": _torch_algorithm(
            optimizers.rmsprop_tf, momentum=float, alpha=float, eps=float, centered=bool
        ),
        "lion_32bit": Algorithm(optimizers.lion_tf, ("betas",)),
    }
)
# Values of `optim` that take `optim_args`.
TAKES_OPTIM_ARGS = tuple(name for name, row in ALGORITHMS.items() if row.optim_args)

_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")
# Names that are common elsewhere, in lower case and without underscores.
_COMMON_NAMES = {"adam": "adamw_torch", "adamw": "adamw_torch", "lion": "lion_32bit"}
_BNB = "bitsandbytes' version of it could not be compared here; "
_NOT_COMPARED = "the package whose it is could not be compared here; take 'adamw_torch'"
_AVERAGES = (
    "Trainer evaluates it at averaged parameters, which a chain of updates does not "
    "carry; "
)
_SCHEDULE_FREE = _AVERAGES + (
    "see `optax.contrib.schedule_free`, which over 50 steps is within {} of "
    "schedulefree 1.4.1, its base optimizer's warmup one step ahead; or take '{}'"
)
# Patterns of names that Trainer accepts and a `Recipe` refuses, with the reason; the
# first match counts.
_REFUSED = {
    "(galore|apollo)_.*": "it projects gradients to a low rank chosen from the modules "
    "and by random numbers or a torch decomposition; take 'adamw_torch'",
    ".*_[48]bit": "its state has few bits, rounded by a CUDA kernel of its own; take "
    "the same optimizer with a float32 state",
    "(ada)?lomo": "it updates each layer inside of the backward pass, so that nothing "
    "can clip or accumulate gradients before; take 'adamw_torch' or 'adafactor'",
    "(paged_)?ademamix(_32bit)?": _BNB
    + "see `optax.contrib.ademamix`, or take 'adamw_torch'",
    "rmsprop_bnb(_32bit)?": _BNB + "take 'rmsprop'",
    "paged_adamw_32bit": _BNB + "take 'adamw_torch', which has no pages",
    "paged_lion_32bit": _BNB + "take 'lion_32bit', which has no pages",
    "adamw_anyprecision": "torchdistx, whose it is, is not maintained and could not "
    "be compared; take 'adamw_torch'",
    "grokadamw": _NOT_COMPARED,
    "stable_adamw": f"{_NOT_COMPARED} with `max_grad_norm`",
    "schedule_free_radam": f"{_AVERAGES}take 'adamw_torch'",
    "schedule_free_adamw": _SCHEDULE_FREE.format("4e-5", "adamw_torch"),
    "schedule_free_sgd": _SCHEDULE_FREE.format("4e-6", "sgd"),
}


def optimizer_refusal(optim: Any) -> str | None:
    """Returns why there is no such optimizer, as a sentence; None if there is one.

    Args:
        optim: a name of Transformers' `OptimizerNames`, or anything else.
    """
    if optim in list(ALGORITHMS):  # of any type, hashable or not
        return None
    for pattern, reason in _REFUSED.items():
        if re.fullmatch(pattern, str(optim)):
            return (
                f"`optim` must be an optimizer that is here, got {optim!r}: {reason}."
            )
    lowered = str(optim).lower()
    common = _COMMON_NAMES.get(re.sub(r"[\W_]", "", lowered))
    hint = _checks.nearest(common or lowered, ALGORITHMS)
    listed = ", ".join(map(repr, ALGORITHMS))
    return f"`optim` must be one of {listed}, got {optim!r}.{hint}"


def named_optimizer(
    learning_rate: ScalarOrSchedule,
    settings: Mapping[str, Any],
    *,
    decay_mask: Callable[[PyTree], PyTree] | None = None,
    layouts: Mapping[str, TorchLayout] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer that `settings["optim"]` names, without clipping.

    Args:
        learning_rate: its rate, or a schedule.
        settings: values by the names of a recipe's fields; its numbers may be traced.
        decay_mask: as for `adamw_tf`.
        layouts: as for `adafactor_tf`; the other optimizers have no use for it.

    Raises:
        ValueError, TypeError: if the optimizer refuses a number.

    Source: transformers 5.23 `trainer_optimizer.py`; 4.46 `trainer.py` for "adamw_hf".
    """
    algorithm = ALGORITHMS[settings["optim"]]
    options = {
        "betas": (settings["adam_beta1"], settings["adam_beta2"]),
        "eps": settings["adam_epsilon"],
        "layouts": layouts,
    }
    return algorithm.build(
        learning_rate,
        weight_decay=settings["weight_decay"],
        decay_mask=decay_mask,
        **{name: options[name] for name in algorithm.takes},
        **dict(settings["optim_args"]),
    )


def read_optim_args(optim: str, given: Any) -> tuple[tuple[str, float | bool], ...]:
    """Returns an optimizer's further arguments as pairs, sorted by name.

    Args:
        optim: the optimizer's name.
        given: a mapping, pairs, or Transformers' string "momentum=0.9,nesterov=true".
            Strings are read by the kind of the argument, so that "False" is false.

    Raises:
        ValueError: if the string is not of this form, a name is there twice, or the
            optimizer has no such argument.
        TypeError: if a value is of another kind than its argument.
    """
    if isinstance(given, str):
        given = _from_string(given)
    try:
        named = dict(given or ())
    except (TypeError, ValueError) as error:
        raise TypeError(
            "`optim_args` must be a mapping from names to values, or a string "
            f'"name=value,name=value", got {given!r}.'
        ) from error
    kinds = ALGORITHMS[optim].optim_args if optim in ALGORITHMS else {}
    for name in named:
        if name == "weight_decay":
            raise ValueError(
                "`optim_args` must not hold `weight_decay`, got "
                f"{named[name]!r}: the recipe's own `weight_decay` decides. Set that."
            )
        if name not in kinds:
            listed = ", ".join(map(repr, kinds)) or "none"
            raise ValueError(
                f"`optim_args` must hold only arguments that {optim!r} takes, which "
                f"are {listed}, got {name!r}.{_checks.nearest(name, kinds)}"
            )
    return tuple(sorted((n, _read(n, value, kinds[n])) for n, value in named.items()))


def _from_string(given: str) -> dict[str, str]:
    named: dict[str, str] = {}
    for item in filter(None, given.replace(" ", "").split(",")):
        if not re.fullmatch("[^=]+=[^=]+", item):
            raise ValueError(
                f'`optim_args` must be of the form "momentum=0.9,nesterov=true", got '
                f"{item!r} in {given!r}."
            )
        name, _, value = item.partition("=")
        if name in named:
            raise ValueError(
                f"`optim_args` must name an argument once, got {name!r} twice in "
                f"{given!r}. Delete one."
            )
        named[name] = value
    return named


def _read(name: str, value: Any, kind: type) -> float | bool:
    if kind is bool:
        word = str(value).lower() if isinstance(value, bool | str) else None
        if word in _TRUE + _FALSE:
            return word in _TRUE
    elif isinstance(value, Real | str) and not isinstance(value, bool):
        with suppress(ValueError):
            return float(value)
    required = "true or false" if kind is bool else "a number"
    raise TypeError(
        f"`optim_args` must have {required} for `{name}`, got {value!r}. Write it as "
        "such."
    )
