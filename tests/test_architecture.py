"""What holds for the package as a whole."""

import importlib
import inspect
import pathlib
import re
import subprocess
import sys

import pytest

import jaxopt_tf

PACKAGE = pathlib.Path(jaxopt_tf.__file__).parent
STATIONS = sorted(path.parent.name for path in PACKAGE.glob("[!_]*/__init__.py"))


def public_names(module):
    return [name for name in vars(module) if not name.startswith("_")]


def test_the_core_loads_neither_torch_nor_transformers_nor_what_a_job_needs():
    heavy = ["torch", "transformers", "matplotlib", "grain", "tyro", "orbax"]
    code = f"import jaxopt_tf, sys; print([m for m in {heavy} if m in sys.modules])"
    printed = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert printed.strip() == "[]"


@pytest.mark.parametrize("station", STATIONS)
def test_every_public_name_is_documented(station):
    module = importlib.import_module(f"jaxopt_tf.{station}")
    assert inspect.getdoc(module)
    for name in public_names(module):
        value = getattr(module, name)
        if inspect.isfunction(value) or inspect.isclass(value):
            assert inspect.getdoc(value), f"{station}.{name}"
            # A NamedTuple without a docstring has one that lists its fields.
            assert not inspect.getdoc(value).startswith(f"{name}("), name


@pytest.mark.parametrize("station", ["optimizers", "schedules"])
def test_every_public_transformation_and_schedule_names_its_source(station):
    module = importlib.import_module(f"jaxopt_tf.{station}")
    for name in public_names(module):
        if (
            name.startswith(("get_", "adam", "ada", "clip"))
            and "learning_rate" not in name
        ):
            assert "Source:" in inspect.getdoc(getattr(module, name)), name


def test_no_file_is_longer_than_a_page_or_two():
    long = {
        path.name: lines
        for path in PACKAGE.rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 400
    }
    assert long == {}


def test_the_tree_in_the_readme_names_every_room():
    tree = (
        (PACKAGE.parent / "README.md").read_text().partition("## Where things are")[2]
    )
    assert [s for s in STATIONS if f"─ {s}/ " not in tree] == []


def test_the_root_lists_names_that_stations_list():
    # What type checkers and the documentation read, and what is imported.
    source = (PACKAGE / "__init__.py").read_text()
    written = re.findall(r"from \.(\w+) import (\w+) as \2$", source, re.M)
    assert sorted(name for _, name in written) == [
        n for n in dir(jaxopt_tf) if n[0] != "_"
    ]
    for home, name in written:
        value = getattr(jaxopt_tf, name)
        assert getattr(importlib.import_module(f"jaxopt_tf.{home}"), name) is value
    assert not hasattr(jaxopt_tf, "adamw")


def test_help_of_the_command_imports_nothing_heavy():
    heavy = ["jax", "numpy", "tyro", "rich", "flax"]
    code = (
        "from jaxopt_tf.cli import main; import sys; main(['--help']);"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert printed.splitlines()[-1] == "[]"


def test_stations_import_stations_and_never_a_file_of_one():
    pattern = re.compile(r"from \.\.(?:\w+)\._|from \.\.\w+ import _")
    found = [
        f"{path.name}: {line}"
        for path in PACKAGE.glob("*/*.py")
        for line in path.read_text().splitlines()
        if pattern.match(line)
    ]
    assert found == []
