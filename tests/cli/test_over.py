"""`--over field=values`."""

import re

import pytest

from jaxopt_tf.cli._sweep import read_over
from jaxopt_tf.tuning import Uniform


def test_values_are_of_the_kind_of_their_field():
    words = ["learning-rate=1e-4,1e-3", "max_steps=10", "optim=sgd,adafactor"]
    assert read_over(words) == {
        "learning_rate": [1e-4, 1e-3],
        "max_steps": [10],
        "optim": ["sgd", "adafactor"],
    }


def test_ranges_have_bounds_and_a_scale():
    words = ["learning_rate=1e-5:1e-2", "weight_decay=0:0.3:linear"]
    assert read_over(words) == {
        "learning_rate": Uniform(1e-5, 1e-2),
        "weight_decay": Uniform(0, 0.3, "linear"),
    }


def test_values_of_a_field_that_takes_json_are_json():
    kwargs, args = '{"power": 1, "lr_end": 0},{"power": 2}', '{"momentum": 0.9},{}'
    assert read_over([f"lr_scheduler_kwargs={kwargs}", f"optim_args={args}"]) == {
        "lr_scheduler_kwargs": [{"power": 1, "lr_end": 0}, {"power": 2}],
        "optim_args": [{"momentum": 0.9}, {}],
    }


def test_a_field_without_values_is_left_to_the_grid_to_refuse():
    assert read_over(["learning_rate="]) == {"learning_rate": []}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            [],
            "`over` must name at least one field and its values, got none. An example",
        ),
        (["learning_rat=1"], "got 'learning_rat'. Did you mean 'learning_rate'?"),
        (["1e-3"], "`over` must be field=values, got '1e-3'. An example is --over"),
        (["seed=1", "seed=2"], "`over` must name a field once, but has 'seed' twice"),
        (["seed=2:1"], "`over` with 'seed=2:1': `high` must be greater than `low`"),
        (["seed=1:2:cubic"], "`scale` must be one of 'log', 'linear', got 'cubic'"),
        (["seed=0:2"], "`low` must be greater than 0 if `scale` is 'log'"),
    ],
)
def test_refuses_in_a_sentence(words, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        read_over(words)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("learning_rate=1e-3,,1", "`learning_rate` must be a number, got ''"),
        ("learning_rate=1:", "`learning_rate` must be a number, got ''"),
        ("optim_args=momentum=0.9", "must be JSON, got 'momentum=0.9'"),
    ],
)
def test_refuses_what_cannot_be_read(word, said):
    with pytest.raises(TypeError, match=re.escape(f"`over` with {word!r}: ")) as it:
        read_over([word])
    assert said in str(it.value)
