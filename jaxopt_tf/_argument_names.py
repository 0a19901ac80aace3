"""Argument names of optax, torch and Transformers, and their names here.

A call with such a name ends in a TypeError that contains the name to write instead.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, NoReturn, ParamSpec, TypeVar

from . import _checks

# Arguments whose value can be callable, like a dtype, and that no schedule sets.
_STATIC = ("decay_mask", "moment_dtype")

_P = ParamSpec("_P")
_T = TypeVar("_T")

# Forms to write instead of other names. If a name has several forms, the
# first one is suggested whose argument the called function has.
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
# Options of single schedules, which `get_scheduler` takes in a dict.
_SCHEDULE_OPTIONS = (
    "lr_end max_lr min_lr min_lr_rate min_lr_ratio mode factor patience threshold "
    "threshold_mode cooldown eps warmup smooth window_size reset_start num_cycles "
    "power timescale num_decay_steps num_stable_steps warmup_type decay_type "
    "warmup_lr_rate"
)
# By name: the forms to write instead, those of the schedules' functions first and
# those of `Recipe`, whose field has another name than theirs, last.
OTHER_NAMES: dict[str, list[str]] = {}
for _form, _names in (
    ("scheduler_specific_kwargs={{{!r}: ...}}", _SCHEDULE_OPTIONS),
    *_FORMS,
    ("lr_scheduler_kwargs={{{!r}: ...}}", _SCHEDULE_OPTIONS),
):
    for _name in _names.split():
        OTHER_NAMES.setdefault(_name, []).append(_form.format(_name))

# Names without a counterpart, and why they have none.
_REASONS = [
    ("params", "`init` and `update` of the transformation take the parameters"),
    ("parameters", "`update` of the transformation takes the gradients"),
    ("amsgrad", "AMSGrad is not implemented"),
    ("maximize", "put `optax.scale(-1.0)` before the optimizer in `optax.chain`"),
    ("foreach fused capturable", "XLA compiles the update"),
    ("differentiable", "every update can be differentiated"),
    ("nesterov", "only `sgd_tf` has Nesterov momentum"),
    ("eps_root eps_in_sqrt", "eps is added to the root, as in torch"),
    ("correct_bias", "`adamw_hf_v4` has it"),
    ("bias_correction", "the reference in torch corrects no bias"),
    ("no_deprecation_warning", "there is no warning"),
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
    ("max_delta", "this bounds the norm of the tree, `optax.clip` each element"),
    ("last_epoch", "a schedule is a function of the step, which optimizers count"),
    ("verbose", "nothing is printed"),
    ("accumulation_size", "pass the mean of several evaluations as the metric"),
]
NO_COUNTERPART = {name: reason for names, reason in _REASONS for name in names.split()}


def checked_names(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Turns unknown arguments of `function` into an error with the known names.

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
        _check_names(called, kwargs, names)
        if len(args) > len(by_position):
            raise TypeError(
                f"`{called}` must be given only {_listed(by_position)} by position, "
                f"got {len(args)} values. Pass others by name, of {_listed(names)}."
            )
        return function(*args, **kwargs)

    if not set(_STATIC).isdisjoint(names):
        # `inspect` reads the attribute, which typeshed does not declare for functions.
        checked.__signature__ = _Signature.from_callable(function)  # type: ignore[attr-defined]
    return checked


def checked_fields(record: type[_T]) -> type[_T]:
    """Makes unknown fields of a dataclass an error that contains the known names."""
    dataclass: Any = record
    init = dataclass.__init__
    names = list(inspect.signature(record).parameters)

    @functools.wraps(init)
    def checked_init(self: _T, *args: Any, **kwargs: Any) -> None:
        _check_names(record.__name__, kwargs, names)
        init(self, *args, **kwargs)

    dataclass.__init__ = checked_init
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


def _check_names(called: str, given: Iterable[str], names: Sequence[str]) -> None:
    """Raises unless all arguments are in `names`; names those to pass instead."""
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
            hint = _checks.nearest(name, names, "`{}`")
            sentences.append(hint.strip() or f"It takes {_listed(names)}.")
    raise TypeError(
        f"`{called}` must be called with its own argument names, got "
        f"{_listed(unknown)}. {' '.join(sentences)}"
    )


def _listed(names: Sequence[str]) -> str:
    *others, last = (f"`{name}`" for name in names)
    return f"{', '.join(others)} and {last}" if others else last
