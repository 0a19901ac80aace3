"""`repr` of curves, phases and schedules: the call that made them."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar, cast

from .._argument_names import checked_names

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Described:
    """A function whose `repr` is the call that made it."""

    def __init__(self, function: Callable[..., Any], text: str) -> None:
        """Takes the function and its `repr`."""
        self.function, self._text = function, text
        # Name and signature stay visible: JAX names a compiled program by them.
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return self._text


def shows_call(make: Callable[_P, _T]) -> Callable[_P, _T]:
    """Decorates `make` so that the `repr` of its result is the call that made it."""
    signature = inspect.signature(make)
    defaults = {name: p.default for name, p in signature.parameters.items()}
    # Arguments before *phases are positional only.
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    is_named = inspect.Parameter.VAR_POSITIONAL not in kinds

    @functools.wraps(make)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        made = make(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        if is_named:
            given = {k: v for k, v in given.items() if _text(v) != _text(defaults[k])}
            return described(made, make.__name__, given)
        first, *others = given.values()
        values = ", ".join(map(_text, (first, *(v for vs in others for v in vs))))
        return cast(_T, Described(cast(Any, made), f"{make.__name__}({values})"))

    return wrapper


def schedule_function(make: Callable[_P, _T]) -> Callable[_P, _T]:
    """Makes `make` refuse names of other libraries, and shows its call as `repr`."""
    return checked_names(shows_call(make))


def described(made: _T, name: str, arguments: Mapping[str, Any]) -> _T:
    """Returns a schedule, curve, or the tuple of one, with `name(arguments)` as `repr`.

    Of a `Phase` or `MetricDrivenSchedule` the first field carries the text.
    """
    listed = ", ".join(f"{key}={_text(value)}" for key, value in arguments.items())
    function: Any = made[0] if isinstance(made, tuple) else made
    if isinstance(function, Described):
        function = function.function
    shown: Any = Described(function, f"{name}({listed})")
    if isinstance(made, tuple):
        return cast(_T, type(made)._make((shown, *made[1:])))  # type: ignore[attr-defined]
    return cast(_T, shown)


def tuple_repr(fields: tuple[Any, ...]) -> str:
    """Returns the `repr` of a tuple by `described`, else that of any NamedTuple."""
    if isinstance(fields[0], Described):
        return repr(fields[0])
    return f"{type(fields).__name__}({', '.join(map(_text, fields))})"


def _text(value: Any) -> str:
    if isinstance(value, str | Described):
        return repr(value)
    # `str` writes a number of NumPy or JAX without its dtype.
    return str(getattr(value, "__name__", value))
