"""The examples in docstrings compute the results that they show."""

import doctest
import importlib
import inspect

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxopt_tf

SUB_PACKAGES = (
    "interop",
    "optimizers",
    "recipes",
    "schedules",
    "sharding",
    "training",
    "tuning",
)


def examples():
    finder = doctest.DocTestFinder(recurse=False)
    for sub_package in SUB_PACKAGES:
        module = importlib.import_module(f"jaxopt_tf.{sub_package}")
        names = {n: getattr(module, n) for n in dir(module) if n[:1] != "_"}
        for name, value in names.items():
            if inspect.isfunction(value) or inspect.isclass(value):
                tools = {n: getattr(jaxopt_tf, n) for n in dir(jaxopt_tf)}
                known = {**tools, **names, "jax": jax, "jnp": jnp, "optax": optax}
                for example in finder.find(value, f"{sub_package}.{name}", globs=known):
                    if example.examples:
                        yield pytest.param(example, id=example.name)


@pytest.mark.promotion_of_others
@pytest.mark.parametrize("example", list(examples()))
def test_an_example_computes_what_it_shows(example, capsys):
    result = doctest.DocTestRunner().run(example)
    assert result.failed == 0, capsys.readouterr().out
