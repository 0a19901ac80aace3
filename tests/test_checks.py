"""Argument checks."""

import numpy as np
import pytest

from jaxopt_tf import _checks


@pytest.mark.parametrize("value", [4, 4.0, np.int64(4), np.float32(4)])
def test_takes_a_whole_number_however_it_is_written(value):
    number = _checks.whole_number("size", value, minimum=1, maximum=4)
    assert (type(number), number) == (int, 4)


@pytest.mark.parametrize("value", [1.5, True, "3", None, float("nan")])
def test_refuses_what_is_not_a_whole_number(value):
    with pytest.raises(TypeError, match="`size` must be a whole number, got"):
        _checks.whole_number("size", value, minimum=1, maximum=4)


@pytest.mark.parametrize("value", [0, 5])
def test_refuses_a_number_out_of_bounds(value):
    with pytest.raises(ValueError, match=f"`size` must be from 1 to 4, got {value}"):
        _checks.whole_number("size", value, minimum=1, maximum=4)


def test_an_error_carries_problem_and_remedy_apart():
    error = _checks.ArgumentError(
        "rate", "`rate` must be positive, got -1.", "Drop it."
    )
    assert isinstance(error, ValueError)
    assert (error.argument, str(error)) == (
        "rate",
        "`rate` must be positive, got -1. Drop it.",
    )
    error.remedy = "Leave it out."
    assert str(error) == "`rate` must be positive, got -1. Leave it out."
    listed = _checks.ArgumentError("a", "two differences:\n  one\n  two", "Name them.")
    assert str(listed).splitlines()[-1] == "Name them."
