"""`repr` of curves, phases and schedules: the call that created them."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar, cast

from .._argument_names import checked_names

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Described:
    """Function whose `repr` is the call that created it."""

    def __init__(self, function: Callable[..., Any], text: str) -> None:
        """Wraps a function; `text` becomes its `repr`."""
        self.function, self._text = function, text
        # Copies name and signature. JAX names a compiled program after its function.
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return self._text


def with_call_repr(make: Callable[_P, _T]) -> Callable[_P, _T]:
    """Decorates `make` so that the `repr` of its result is the call of `make`."""
    signature = inspect.signature(make)
    defaults = {name: p.default for name, p in signature.parameters.items()}
    # Arguments before `*phases` can only be given positionally, and are shown without
    # their names.
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    is_named = inspect.Parameter.VAR_POSITIONAL not in kinds

    @functools.wraps(make)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        result = make(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        if is_named:
            # Compared as text: `!=` of a traced array has no truth value.
            given = {k: v for k, v in given.items() if _text(v) != _text(defaults[k])}
            return described(result, make.__name__, given)
        first, *phases = given.values()
        values = ", ".join(map(_text, (first, *(v for vs in phases for v in vs))))
        return cast(_T, Described(cast(Any, result), f"{make.__name__}({values})"))

    return wrapper


def schedule_function(make: Callable[_P, _T]) -> Callable[_P, _T]:
    """Decorates `make` with `checked_names` and `with_call_repr`."""
    return checked_names(with_call_repr(make))


def described(result: _T, name: str, arguments: Mapping[str, Any]) -> _T:
    """Returns a schedule, curve or phase with `name(arguments)` as its `repr`.

    For a `Phase` or a `MetricDrivenSchedule` the first field stores the text.
    """
    listed = ", ".join(f"{key}={_text(value)}" for key, value in arguments.items())
    function: Any = result[0] if isinstance(result, tuple) else result
    if isinstance(function, Described):
        function = function.function
    function_with_repr: Any = Described(function, f"{name}({listed})")
    if isinstance(result, tuple):
        return cast(_T, type(result)._make((function_with_repr, *result[1:])))  # type: ignore[attr-defined]  # a NamedTuple
    return cast(_T, function_with_repr)


def tuple_repr(fields: tuple[Any, ...]) -> str:
    """Returns the text that `described` has stored in a tuple, else the default."""
    if isinstance(fields[0], Described):
        return repr(fields[0])
    return f"{type(fields).__name__}({', '.join(map(_text, fields))})"


def _text(value: Any) -> str:
    if isinstance(value, str | Described):
        return repr(value)
    # `str`, since `repr` of a number of NumPy or JAX contains its type.
    return str(getattr(value, "__name__", value))
