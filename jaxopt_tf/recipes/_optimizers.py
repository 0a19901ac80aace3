"""Optimizers by the values of `optim`, with the arguments that each of them accepts."""

import functools
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

# Type of an argument: int, float, bool, str, or the strings that are accepted.
Kind = type | tuple[str, ...]
Value = int | float | bool | str


class Algorithm(NamedTuple):
    """Row of the table `ALGORITHMS`."""

    build: Callable[..., optax.GradientTransformationExtraArgs]
    # Subset of "betas", "eps", "layouts", "shardings" and "warmup_steps".
    takes: tuple[str, ...] = ()
    # Arguments that Transformers reads from `optim_args`: name -> int, float, bool, str
    # or the strings that are accepted.
    optim_args: Mapping[str, Kind] = MappingProxyType({})
    # Arguments that Transformers does not have.
    own_args: Mapping[str, Kind] = MappingProxyType({})
    # Weight decay is added to the gradient, as in torch, and enters the moments.
    is_decay_in_gradient: bool = False
    # Parameters are evaluated and saved as averages, see `eval_params`.
    is_averaging: bool = False

    @property
    def all_args(self) -> dict[str, Kind]:
        """Arguments that a recipe accepts in `optim_args`, with their kinds."""
        return {**self.optim_args, **self.own_args}


def _torch_algorithm(build: Callable[..., Any], **optim_args: Kind) -> Algorithm:
    return Algorithm(build, optim_args=optim_args, is_decay_in_gradient=True)


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
_LOW_BIT_ARGUMENTS = ("betas", "eps", "layouts")
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
        # RMSprop of bitsandbytes is that of torch. It accepts no `optim_args`, because
        # Trainer passes them to it as strings.
        **dict.fromkeys(
            ("rmsprop_bnb", "rmsprop_bnb_32bit"),
            _torch_algorithm(optimizers.rmsprop_tf),
        ),
        **dict.fromkeys(
            ("lion_32bit", "paged_lion_32bit"),
            Algorithm(optimizers.lion_tf, ("betas",)),
        ),
        **dict.fromkeys(
            _ADAMW_8_BIT, Algorithm(optimizers.adamw_8bit_tf, _LOW_BIT_ARGUMENTS)
        ),
        "adamw_torch_8bit": Algorithm(
            functools.partial(optimizers.adamw_8bit_tf, library="torchao"),
            _LOW_BIT_ARGUMENTS,
        ),
        "adamw_torch_4bit": Algorithm(optimizers.adamw_4bit_tf, _LOW_BIT_ARGUMENTS),
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

_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")
# Common names of other libraries, in lower case and without underscores.
_COMMON_NAMES = {"adam": "adamw_torch", "adamw": "adamw_torch", "lion": "lion_32bit"}
_NOT_COMPARED = "no comparison with its package was possible; use 'adamw_torch'"
# Regular expressions of names that Trainer accepts and `Recipe` rejects, with the
# reason. The first match is used.
_REFUSED = {
    "(galore|apollo)_.*": "it projects gradients to a low-rank subspace that depends "
    "on module names and on random numbers or a torch decomposition; use 'adamw_torch'",
    "rmsprop_bnb_8bit": "it is not implemented with 8 bits; use 'rmsprop_bnb'",
    "(ada)?lomo": "it updates each layer during the backward pass, where gradients can "
    "be neither clipped nor accumulated; use 'adamw_torch' or 'adafactor'",
    "(paged_)?ademamix(_32bit|_8bit)?": "it is not implemented; see "
    "`optax.contrib.ademamix`, or use 'adamw_torch' or 'adamw_8bit'",
    "adamw_anyprecision": "its package, torchdistx, is not maintained, and no "
    "comparison was possible; use 'adamw_torch'",
    "grokadamw": _NOT_COMPARED,
    "stable_adamw": f"{_NOT_COMPARED} with `max_grad_norm`",
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
        "warmup_steps": settings["warmup_steps"],
        "shardings": shardings,
    }
    return algorithm.build(
        learning_rate,
        weight_decay=settings["weight_decay"],
        decay_mask=decay_mask,
        **{name: options[name] for name in algorithm.takes},
        **dict(settings["optim_args"]),
    )


def read_optim_args(optim: str, given: Any) -> tuple[tuple[str, Value], ...]:
    """Returns the value of `optim_args` as pairs, sorted by name.

    Args:
        optim: the optimizer's name.
        given: a mapping, pairs, or Transformers' string "momentum=0.9,nesterov=true".
            Values are parsed by the type of the argument: "False" is False.

    Raises:
        ValueError: if the string is malformed, a name occurs twice, or the optimizer
            has no such argument.
        TypeError: if a value does not have the type of its argument.
    """
    if isinstance(given, str):
        given = optim_args_from_string(given)
    try:
        named = dict(given or ())
    except (TypeError, ValueError) as error:
        raise TypeError(
            "`optim_args` must be a mapping from names to values, or a string "
            f'"name=value,name=value", got {given!r}.'
        ) from error
    kinds = ALGORITHMS[optim].all_args if optim in ALGORITHMS else {}
    for name in named:
        if name == "weight_decay":
            raise ValueError(
                "`optim_args` must not contain `weight_decay`, got "
                f"{named[name]!r}. Set the field `weight_decay` of the recipe instead."
            )
        if name not in kinds:
            listed = ", ".join(map(repr, kinds)) or "none"
            raise ValueError(
                f"`optim_args` must contain only arguments of {optim!r}, which are "
                f"{listed}, got {name!r}.{_checks.suggest(name, kinds)}"
            )
    return tuple(sorted((n, _read(n, value, kinds[n])) for n, value in named.items()))


def optim_args_from_string(given: str) -> dict[str, str]:
    """Returns the arguments of "name=value,name=value", as strings by name."""
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
                f"`optim_args` must name each argument once, got {name!r} twice in "
                f"{given!r}. Remove one."
            )
        named[name] = value
    return named


def _read(name: str, value: Any, kind: Kind) -> Value:
    # `bool("False")` is True, so that strings are compared with a list of words.
    if kind is bool:
        required = "true or false"
        word = str(value).lower() if isinstance(value, bool | str) else None
        if word in _TRUE + _FALSE:
            return word in _TRUE
    elif isinstance(kind, tuple):
        required = " or ".join(map(repr, kind))
        if value in kind:
            return str(value)
    elif kind is str:
        required = "a string"
        if isinstance(value, str):
            return value
    else:
        required = "a whole number" if kind is int else "a number"
        if isinstance(value, Real | str) and not isinstance(value, bool):
            with suppress(ValueError):
                number = float(value)
                if kind is float:
                    return number
                if number.is_integer():
                    return int(number)
    raise TypeError(
        f"`optim_args` must have {required} for `{name}`, got {value!r}. Correct the "
        "value."
    )
