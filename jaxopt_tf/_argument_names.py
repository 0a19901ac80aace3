"""Arguments that optax, torch and Transformers call otherwise, and their names here.

A call with such a name ends in a TypeError that contains the name to write instead.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn, ParamSpec, TypeVar

from . import _checks

# Arguments whose value can be callable, like a dtype, and that no schedule sets.
_STATIC = ("decay_mask", "moment_dtype")

_P = ParamSpec("_P")
_T = TypeVar("_T")

_OF_SCHEDULES = (
    "lr_end",
    "max_lr",
    "min_lr",
    "min_lr_rate",
    "min_lr_ratio",
    "mode",
    "factor",
    "patience",
    "threshold",
    "threshold_mode",
    "cooldown",
    "eps",
    "warmup",
    "smooth",
    "window_size",
    "reset_start",
    "num_cycles",
    "power",
    "timescale",
    "num_decay_steps",
    "num_stable_steps",
    "warmup_type",
    "decay_type",
    "warmup_lr_rate",
)
# The first form whose argument the called function has is suggested.
OTHER_NAMES: dict[str, tuple[str, ...]] = {
    **{
        n: (
            f"scheduler_specific_kwargs={{{n!r}: ...}}",
            f"lr_scheduler_kwargs={{{n!r}: ...}}",
        )
        for n in _OF_SCHEDULES
    },
    "eps": ("scheduler_specific_kwargs={'eps': ...}", "adam_epsilon=..."),
    # Learning rates.
    "lr": ("learning_rate=...",),
    "rate": ("learning_rate=...",),
    "max_learning_rate": ("learning_rate=...",),
    "init_value": ("learning_rate=...",),
    "peak_value": ("learning_rate=...",),
    "initial_lr": ("learning_rate=...",),
    "base_lr": ("learning_rate=...",),
    "optimizer": ("learning_rate=...",),
    # Moments.
    "betas": ("adam_beta1=..., adam_beta2=...",),
    "b1": ("betas=(b1, b2)", "beta1=...", "adam_beta1=..."),
    "b2": ("betas=(b1, b2)", "adam_beta2=..."),
    "beta1": ("betas=(beta1, beta2)", "adam_beta1=..."),
    "beta2": ("betas=(beta1, beta2)", "adam_beta2=..."),
    "adam_beta1": ("betas=(adam_beta1, adam_beta2)",),
    "adam_beta2": ("betas=(adam_beta1, adam_beta2)",),
    "epsilon": ("eps=...", "adam_epsilon=..."),
    "adam_epsilon": ("eps=...",),
    "mu_dtype": ("moment_dtype=...",),
    "state_dtype": ("moment_dtype=...",),
    "dtype_momentum": ("moment_dtype=...",),
    "momentum": ("beta1=...", "betas=(momentum, ...)"),
    # Decay.
    "mask": ("decay_mask=...", "decay_rule=..."),
    "decay_mask": ("decay_rule=...",),
    "weight_decay_mask": ("decay_mask=...",),
    "wd": ("weight_decay=...",),
    "l2": ("weight_decay=...",),
    "weight_decay_rate": ("weight_decay=...",),
    # Adafactor.
    "beta2_decay": ("decay_rate=...",),
    "clipping_threshold": ("clip_threshold=...",),
    "d": ("clip_threshold=...",),
    "layout": ("layouts=...",),
    "multiply_by_parameter_scale": ("scale_parameter=...",),
    # RMSprop.
    "decay": ("alpha=...",),
    "rho": ("alpha=...",),
    # Clipping.
    "max_grad_norm": ("max_norm=...",),
    "clip_norm": ("max_norm=...", "max_grad_norm=..."),
    "max_norm": ("max_grad_norm=...",),
    # Schedules.
    "warmup_steps": ("num_warmup_steps=...",),
    "transition_begin": ("num_warmup_steps=...",),
    "max_steps": ("num_training_steps=...",),
    "num_training_steps": ("max_steps=...",),
    "num_warmup_steps": ("warmup_steps=...",),
    "warmup_ratio": ("warmup_steps=...",),
    "total_steps": ("num_training_steps=...", "max_steps=..."),
    "num_steps": ("num_training_steps=...", "max_steps=..."),
    "scheduler": ("lr_scheduler_type=...",),
    "scheduler_specific_kwargs": ("lr_scheduler_kwargs=...",),
    "batch_size": ("per_device_train_batch_size=...",),
    "decay_steps": ("num_training_steps=...",),
    "transition_steps": ("num_training_steps=...",),
    "end_value": (
        "lr_end=...",
        "min_lr=...",
        "scheduler_specific_kwargs={'lr_end': ...}",
    ),
    "exponent": ("power=...", "scheduler_specific_kwargs={'power': ...}"),
    "kwargs": ("scheduler_specific_kwargs=...",),
    "lr_scheduler_kwargs": ("scheduler_specific_kwargs=...",),
    "lr_scheduler_type": ("name=...",),
    "rtol": ("threshold=...",),
    "atol": ("threshold=..., threshold_mode='abs'",),
    "min_scale": ("min_lr=...",),
}

_COMPILED = "XLA compiles the update"
_IN_ROOT = "eps is added to the root, as in torch"
_FACTORED = "every leaf with two axes or more is factored, as in Transformers"
_IN_ADAFACTOR = "only `adafactor_tf` has it"
_FLOAT32 = "moments are accumulated in float32"
_ZEROS = "accumulators start with zeros"
# Reasons why an argument has no counterpart.
NO_COUNTERPART = {
    "params": "`init` and `update` of the transformation take the parameters",
    "parameters": "`update` of the transformation takes the gradients",
    "amsgrad": "AMSGrad is not implemented",
    "maximize": "put `optax.scale(-1.0)` in front of the optimizer in `optax.chain`",
    "foreach": _COMPILED,
    "fused": _COMPILED,
    "capturable": _COMPILED,
    "differentiable": "every update can be differentiated",
    "nesterov": "only `sgd_tf` has Nesterov momentum",
    "eps_root": _IN_ROOT,
    "eps_in_sqrt": _IN_ROOT,
    "correct_bias": "`adamw_hf_v4` has it",
    "bias_correction": "the reference in torch corrects no bias",
    "no_deprecation_warning": "there is no warning",
    "accumulator_dtype": _FLOAT32,
    "dtype_momentum": _FLOAT32,
    "mu_dtype": _FLOAT32,
    "initial_accumulator_value": _ZEROS,
    "initial_scale": _ZEROS,
    "multiply_by_parameter_scale": _IN_ADAFACTOR,
    "scale_parameter": _IN_ADAFACTOR,
    "relative_step": _IN_ADAFACTOR,
    "warmup_init": _IN_ADAFACTOR,
    "min_dim_size_to_factor": _FACTORED,
    "factored": _FACTORED,
    "decay_offset": "the exponent applies to `count` of the state",
    "norm_type": "the norm is Euclidean",
    "error_if_nonfinite": "`make_train_step` has `on_non_finite`",
    "max_delta": "`optax.clip` bounds each element, this bounds the norm of the tree",
    "last_epoch": "a schedule is a function of the step, which optimizers count",
    "verbose": "nothing is printed",
    "accumulation_size": "pass the mean of several evaluations as the metric",
}


def checked_names(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Makes unknown arguments of `function` an error that contains the known names.

    The signature stays visible to `inspect.signature`, as `optax.inject_hyperparams`
    requires, and to type checkers.
    """
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters]
    by_position = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    called = getattr(function, "__name__", "this function")

    @functools.wraps(function)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        for name, value in kwargs.items():
            if isinstance(value, _Static):
                kwargs[name] = value.value
        unknown = [name for name in kwargs if name not in names]
        if unknown:
            raise TypeError(_message(called, unknown, names))
        if len(args) > len(by_position):
            raise TypeError(
                f"`{called}` must be given only {_listed(by_position, 'and')} by "
                f"position, got {len(args)} values. Pass others by name, of "
                f"{_listed(names, 'and')}."
            )
        return function(*args, **kwargs)

    if not set(_STATIC).isdisjoint(names):
        # typeshed gives functions no `__signature__`, which `inspect` reads.
        checked.__signature__ = _Signature.from_callable(function)  # type: ignore[attr-defined]
    return checked


def checked_fields(record: type[_T]) -> type[_T]:
    """Makes unknown fields of a dataclass an error that contains the known names."""
    dataclass: Any = record
    init = dataclass.__init__
    names = list(inspect.signature(record).parameters)

    @functools.wraps(init)
    def __init__(self: _T, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        unknown = [name for name in kwargs if name not in names]
        if unknown:
            raise TypeError(_message(record.__name__, unknown, names))
        init(self, *args, **kwargs)

    dataclass.__init__ = __init__
    return record


class _Static(NamedTuple):
    """A callable that is an argument's value, not a schedule of it."""

    name: str
    value: Any

    def __call__(self, *_: Any) -> NoReturn:
        raise TypeError(
            f"`{self.name}` must be a static argument of `optax.inject_hyperparams`, "
            "which takes any other callable for a schedule, got "
            f"{self.value!r}. Write `optax.inject_hyperparams(..., "
            f'static_args="{self.name}")`.'
        )


class _Signature(inspect.Signature):
    """Signature that marks values of `_STATIC` which are callable.

    `optax.inject_hyperparams` binds its arguments to the signature and evaluates every
    callable that is not in `static_args` at each step. A mask would be given the number
    of the step: it fails somewhere in the user's function, or not at all.
    """

    def bind(self, /, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
        """Binds arguments as `inspect.Signature.bind` does."""
        bound = super().bind(*args, **kwargs)
        for name in set(_STATIC).intersection(self.parameters):
            value = bound.arguments.get(name, self.parameters[name].default)
            if callable(value) and not isinstance(value, _Static):
                bound.arguments[name] = _Static(name, value)
        return bound


def _message(called: str, unknown: Sequence[str], names: Sequence[str]) -> str:
    listed = _listed(unknown, "and")
    parts = [f"`{called}` must be called with its own argument names, got {listed}."]
    for name in unknown:
        forms = OTHER_NAMES.get(name, ())
        form = next((f for f in forms if f.partition("=")[0] in names), None)
        if form is not None:
            parts.append(f"Pass `{form}` instead of `{name}`.")
        elif name in NO_COUNTERPART:
            parts.append(f"Leave out `{name}`: {NO_COUNTERPART[name]}.")
        else:
            hint = _checks.nearest(name, names, "`{}`")
            parts.append(hint.strip() or f"It takes {_listed(names, 'and')}.")
    return " ".join(parts)


def _listed(names: Sequence[str], last: str) -> str:
    *others, end = (f"`{name}`" for name in names)
    return f"{', '.join(others)} {last} {end}" if others else end
