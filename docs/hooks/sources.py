"""What the site is made from besides the pages in `docs/`."""

import collections
import pathlib

import griffe

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = griffe.load(
    "jaxopt_tf",
    search_paths=[ROOT],
    extensions=griffe.load_extensions(pathlib.Path(__file__).parent / "docstrings.py"),
)
ROOMS = sorted(path.parent.name for path in ROOT.glob("jaxopt_tf/[!_]*/__init__.py"))
NAMES = {
    room: [n for n, of in PACKAGE[room].members.items() if of.is_alias and n[0] != "_"]
    for room in ROOMS
}
NOTEBOOKS = sorted(
    ROOT.glob("notebooks/*.ipynb"), key=lambda path: (path.stem != "first_steps", path)
)
EXAMPLES = sorted(ROOT.glob("examples/*.py"))

# Where a file beside `docs/` is on the site.
PAGES = {
    **{path: f"notebooks/{path.stem}.md" for path in NOTEBOOKS},
    **{path: f"examples/{path.stem}.md" for path in EXAMPLES},
    ROOT / "benchmarks/README.md": "benchmarks.md",
    ROOT / "CHANGELOG.md": "changelog.md",
    ROOT / "CONTRIBUTING.md": "contributing.md",
}


def sentence(of: griffe.Object) -> str:
    """The first paragraph of a docstring, in one line; empty without one."""
    return (
        of.docstring.value.split("\n\n")[0].replace("\n", " ") if of.docstring else ""
    )


def home_of_names() -> dict[str, str]:
    """Full names of public names that one room alone has, and no sentence as a word."""
    rooms = collections.defaultdict(list)
    for room, names in NAMES.items():
        for name in names:
            rooms[name].append(room)
    return {
        name: f"jaxopt_tf.{homes[0]}.{name}"
        for name, homes in rooms.items()
        if len(homes) == 1 and ("_" in name or not name.islower())
    }
