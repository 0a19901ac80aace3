"""Sources of the site besides the pages in `docs/`."""

import collections
import pathlib

import griffe

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = griffe.load(
    "jaxopt_tf",
    search_paths=[ROOT],
    extensions=griffe.load_extensions(pathlib.Path(__file__).parent / "docstrings.py"),
)
SUB_PACKAGES = sorted(
    path.parent.name for path in ROOT.glob("jaxopt_tf/[!_]*/__init__.py")
)
NAMES = {
    sub_package: [
        n
        for n, of in PACKAGE[sub_package].members.items()
        if of.is_alias and n[0] != "_"
    ]
    for sub_package in SUB_PACKAGES
}
NOTEBOOKS = sorted(
    ROOT.glob("notebooks/*.ipynb"), key=lambda path: (path.stem != "first_steps", path)
)
EXAMPLES = sorted(ROOT.glob("examples/*.py"))

# Page of the site for each file outside of `docs/`.
PAGES = {
    **{path: f"notebooks/{path.stem}.md" for path in NOTEBOOKS},
    **{path: f"examples/{path.stem}.md" for path in EXAMPLES},
    ROOT / "benchmarks/README.md": "benchmarks.md",
    ROOT / "CHANGELOG.md": "changelog.md",
    ROOT / "CONTRIBUTING.md": "contributing.md",
}


def sentence(of: griffe.Object) -> str:
    """Returns the first paragraph of a docstring in one line, or an empty string."""
    return (
        of.docstring.value.split("\n\n")[0].replace("\n", " ") if of.docstring else ""
    )


def home_of_names() -> dict[str, str]:
    """Returns the full name of each public name that occurs in one sub-package only.

    Names that are also words of a sentence are left out.
    """
    sub_packages = collections.defaultdict(list)
    for sub_package, names in NAMES.items():
        for name in names:
            sub_packages[name].append(sub_package)
    return {
        name: f"jaxopt_tf.{homes[0]}.{name}"
        for name, homes in sub_packages.items()
        if len(homes) == 1 and ("_" in name or not name.islower())
    }
