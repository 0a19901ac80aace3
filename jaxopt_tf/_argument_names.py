"""Argument names of optax, torch and Transformers, and the names used in this package.

A call with an argument name of another library raises a TypeError that contains the
name to use instead.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, NoReturn, ParamSpec, TypeVar

from . import _checks

# Arguments whose value may be a callable that is not a schedule: a mask function, or a
# dtype such as `jnp.bfloat16`.
_STATIC = ("decay_mask", "moment_dtype")

_P = ParamSpec("_P")
_T = TypeVar("_T")

# Each entry has the form to suggest and the names that it replaces. If a name has
# several forms, the first form whose argument the called function accepts is suggested.
_FORMS = [
    (
        "learning_rate=...",
        "lr rate max_learning_rate init_value peak_value initial_lr base_lr optimizer",
    ),
    ("betas=(b1, b2)", "b1 b2"),
    ("betas=(beta1, beta2)", "beta1 beta2"),
    ("betas=(adam_beta1, adam_beta2)", "adam_beta1 adam_beta2"),
    ("beta1=...", "b1 momentum"),
    ("betas=(momentum, ...)", "momentum"),
    ("eps=...", "epsilon adam_epsilon"),
    ("moment_dtype=...", "mu_dtype state_dtype dtype_momentum"),
    ("decay_mask=...", "mask weight_decay_mask"),
    ("weight_decay=...", "wd l2 weight_decay_rate"),
    ("decay_rate=...", "beta2_decay"),
    ("clip_threshold=...", "clipping_threshold d"),
    ("scale_parameter=...", "multiply_by_parameter_scale"),
    ("alpha=...", "decay rho"),
    ("max_norm=...", "max_grad_norm clip_norm"),
    ("num_warmup_steps=...", "warmup_steps transition_begin"),
    (
        "num_training_steps=...",
        "max_steps total_steps num_steps decay_steps transition_steps",
    ),
    ("lr_end=...", "end_value"),
    ("min_lr=...", "end_value min_scale"),
    ("scheduler_specific_kwargs={{'lr_end': ...}}", "end_value"),
    ("power=...", "exponent"),
    ("scheduler_specific_kwargs={{'power': ...}}", "exponent"),
    ("scheduler_specific_kwargs=...", "kwargs lr_scheduler_kwargs"),
    ("name=...", "lr_scheduler_type"),
    ("threshold=...", "rtol"),
    ("threshold=..., threshold_mode='abs'", "atol"),
    ("layouts=...", "layout"),
    # Fields of `Recipe`.
    ("adam_beta1=..., adam_beta2=...", "betas"),
    ("adam_beta1=...", "b1 beta1"),
    ("adam_beta2=...", "b2 beta2"),
    ("adam_epsilon=...", "epsilon eps"),
    ("decay_rule=...", "mask decay_mask"),
    ("max_grad_norm=...", "clip_norm max_norm"),
    ("max_steps=...", "num_training_steps total_steps num_steps"),
    ("warmup_steps=...", "num_warmup_steps warmup_ratio"),
    ("lr_scheduler_type=...", "scheduler"),
    ("lr_scheduler_kwargs=...", "scheduler_specific_kwargs"),
    ("per_device_train_batch_size=...", "batch_size"),
]
# Options of individual schedules, which `get_scheduler` accepts in a dict.
_SCHEDULE_OPTIONS = (
    "lr_end max_lr min_lr min_lr_rate min_lr_ratio mode factor patience threshold "
    "threshold_mode cooldown eps warmup smooth window_size reset_start num_cycles "
    "power timescale num_decay_steps num_stable_steps warmup_type decay_type "
    "warmup_lr_rate"
)
# Maps a name of another library to the forms to suggest. The order decides: forms of
# `get_scheduler` are tried first. Those of `Recipe`, whose field for the options has
# another name, are tried last.
OTHER_NAMES: dict[str, list[str]] = {}
for _form, _names in (
    ("scheduler_specific_kwargs={{{!r}: ...}}", _SCHEDULE_OPTIONS),
    *_FORMS,
    ("lr_scheduler_kwargs={{{!r}: ...}}", _SCHEDULE_OPTIONS),
):
    for _name in _names.split():
        OTHER_NAMES.setdefault(_name, []).append(_form.format(_name))

# Names without a counterpart in this package, and the reason.
_REASONS = [
    ("params", "`init` and `update` of the transformation receive the parameters"),
    ("parameters", "`update` of the transformation receives the gradients"),
    ("amsgrad", "AMSGrad is not implemented"),
    ("maximize", "put `optax.scale(-1.0)` before the optimizer in `optax.chain`"),
    ("foreach fused capturable", "XLA compiles the update"),
    ("differentiable", "every update can be differentiated"),
    ("nesterov", "only `sgd_tf` has Nesterov momentum"),
    ("eps_root eps_in_sqrt", "eps is added to the root, as in torch"),
    ("correct_bias", "`adamw_hf_v4` has it"),
    ("bias_correction", "the reference implementation in torch has no bias correction"),
    ("no_deprecation_warning", "no warning is issued"),
    (
        "accumulator_dtype dtype_momentum mu_dtype",
        "moments are accumulated in float32",
    ),
    ("initial_accumulator_value initial_scale", "accumulators start with zeros"),
    (
        "multiply_by_parameter_scale scale_parameter relative_step warmup_init",
        "only `adafactor_tf` has it",
    ),
    (
        "min_dim_size_to_factor factored",
        "every leaf with two axes or more is factored, as in Transformers",
    ),
    ("decay_offset", "the exponent applies to `count` of the state"),
    ("norm_type", "the norm is Euclidean"),
    ("error_if_nonfinite", "`make_train_step` has `on_non_finite`"),
    ("max_delta", "`clip` limits the global norm, `optax.clip` each element"),
    ("last_epoch", "a schedule is a function of the step, which optimizers count"),
    ("verbose", "nothing is printed"),
    ("accumulation_size", "pass the mean of several evaluations as the metric"),
]
NO_COUNTERPART = {name: reason for names, reason in _REASONS for name in names.split()}


def checked_names(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Wraps `function` so that unknown arguments raise an error with the known names.

    The signature remains visible to type checkers and to `inspect.signature`, which
    `optax.inject_hyperparams` calls.
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
        _check_names(called, kwargs, names)
        if len(args) > len(by_position):
            raise TypeError(
                f"`{called}` accepts only {_listed(by_position)} by position, but "
                f"{len(args)} were given. Pass the others by name: {_listed(names)}."
            )
        return function(*args, **kwargs)

    if not set(_STATIC).isdisjoint(names):
        # `inspect.signature` returns this attribute if it exists.
        signature = _Signature.from_callable(function)
        checked.__signature__ = signature  # type: ignore[attr-defined]  # not in typeshed
    return checked


def checked_fields(record: type[_T]) -> type[_T]:
    """Wraps a dataclass so that unknown fields raise an error with the known names."""
    dataclass: Any = record
    init = dataclass.__init__  # replaced in place, so that the class stays the same
    names = list(inspect.signature(record).parameters)

    @functools.wraps(init)
    def checked_init(self: _T, *args: Any, **kwargs: Any) -> None:
        _check_names(record.__name__, kwargs, names)
        init(self, *args, **kwargs)

    dataclass.__init__ = checked_init
    return record


class _Static(NamedTuple):
    """Callable value of an argument, which must not be evaluated as a schedule."""

    name: str  # name of the argument
    value: Any  # the callable

    def __call__(self, *_: Any) -> NoReturn:
        raise TypeError(
            f"`{self.name}` must be a static argument of `optax.inject_hyperparams`, "
            "which evaluates every other callable as a schedule, got "
            f"{self.value!r}. Write `optax.inject_hyperparams(..., "
            f'static_args="{self.name}")`.'
        )


class _Signature(inspect.Signature):
    """Signature whose `bind` wraps callable values of the arguments in `_STATIC`.

    `optax.inject_hyperparams` binds its arguments to the signature and evaluates every
    callable that is not in `static_args` at each step. A mask function would receive
    the step instead of the parameters, and fail inside of the user's code or not at
    all. The wrapped value raises an error that names `static_args`.
    """

    def bind(self, /, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
        """Binds arguments as `inspect.Signature.bind` does."""
        bound = super().bind(*args, **kwargs)
        for name in set(_STATIC).intersection(self.parameters):
            value = bound.arguments.get(name, self.parameters[name].default)
            if callable(value) and not isinstance(value, _Static):
                bound.arguments[name] = _Static(name, value)
        return bound


def _check_names(called: str, given: Iterable[str], names: Sequence[str]) -> None:
    """Raises an error with the argument names to use unless all are in `names`."""
    unknown = [name for name in given if name not in names]
    if not unknown:
        return
    sentences = []
    for name in unknown:
        forms = OTHER_NAMES.get(name, ())
        form = next((f for f in forms if f.partition("=")[0] in names), None)
        if form is not None:
            sentences.append(f"Pass `{form}` instead of `{name}`.")
        elif name in NO_COUNTERPART:
            sentences.append(f"Leave out `{name}`: {NO_COUNTERPART[name]}.")
        else:
            hint = _checks.suggest(name, names, "`{}`")
            sentences.append(hint.strip() or f"It accepts {_listed(names)}.")
    raise TypeError(
        f"`{called}` must be called with its own argument names, got "
        f"{_listed(unknown)}. {' '.join(sentences)}"
    )


def _listed(names: Sequence[str]) -> str:
    *others, last = (f"`{name}`" for name in names)
    return f"{', '.join(others)} and {last}" if others else last
