"""Properties of the package as a whole."""

import ast
import graphlib
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
    # `flax.nnx` alone takes as long as optax: only its users load it.
    heavy = ["torch", "transformers", "matplotlib", "grain", "tyro", "orbax"]
    heavy += ["flax.nnx", "tensorboardX", "tokenizers", "safetensors", "datasets"]
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


def test_the_tree_in_contributing_names_every_sub_package():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    tree = text.partition("## Where the code is")[2]
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


def imported_modules(source, package, modules):
    """Our own modules that a source imports, also inside of its functions.

    `package` is that of its relative imports. A name that is no module is of the module
    in front of it.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            parts = package.split(".") if node.level else []
            parts = parts[: len(parts) - max(0, node.level - 1)]
            parent = ".".join([*parts, *filter(None, [node.module])])
            found = [f"{parent}.{alias.name}" for alias in node.names]
            yield from (name if name in modules else parent for name in found)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def circle(sources):
    """Modules that import each other in a circle, from their sources; [] for none.

    A package's own module is called `package.__init__`.
    """
    modules = {name.removesuffix(".__init__") for name in sources}
    graph = {}
    for name, source in sources.items():
        module = name.removesuffix(".__init__")
        package = name.rpartition(".")[0]
        found = imported_modules(source, package, modules)
        graph[module] = {other for other in found if other in modules - {module}}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_no_modules_import_each_other_in_a_circle():
    root = PACKAGE.parent
    sources = {
        ".".join(path.relative_to(root).with_suffix("").parts): path.read_text()
        for path in PACKAGE.rglob("*.py")
    }
    assert circle(sources) == []


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ({"p.a": "from . import b", "p.b": "from .c import x", "p.c": ""}, 0),
        ({"p.a": "from . import b", "p.b": "from .a import x"}, 2),
        ({"p.a": "from . import b", "p.b": "def f():\n    from .a import x"}, 2),
        ({"p.a": "if T:\n    from .b import y", "p.b": "import p.a"}, 2),
        ({"p.__init__": "from .a import x", "p.a": "from . import b", "p.b": ""}, 0),
        ({"p.q.__init__": "from .a import x", "p.q.a": "from .. import q"}, 2),
        ({"p.q.a": "from ..b import x", "p.b": "from p.q.a import y"}, 2),
    ],
)
def test_finds_circles_of_imports(sources, expected):
    assert len(set(circle(sources))) == expected
