"""Generates the pages of the reference, the notebooks and the examples.

They are generated when the site is built, so that nothing is written twice and a new
sub-package, notebook or example has a page.
"""

import ast
import os
import re
import subprocess
import sys

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter
from sources import EXAMPLES, NAMES, NOTEBOOKS, PACKAGE, PAGES, SUB_PACKAGES, sentence

# A search finds the reference of a function before pages that mention it.
_BOOST = "---\nsearch:\n  boost: 3\n---\n"


def on_config(config: MkDocsConfig) -> None:
    """Lists the generated pages under their titles in `mkdocs.yml`."""
    made = {
        "Notebooks": [PAGES[path] for path in NOTEBOOKS],
        "Examples": [PAGES[path] for path in EXAMPLES],
        "Reference": ["api/index.md", *(f"api/{name}.md" for name in SUB_PACKAGES)],
    }
    for entry in config.nav:
        for title in made.keys() & entry.keys():
            entry[title] = made[title]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the generated pages, and the figures of the notebooks."""
    contents = {page: path.read_text() for path, page in PAGES.items()}
    contents["api/index.md"] = _overview()
    contents["commands.md"] = _commands()
    for sub_package in SUB_PACKAGES:
        contents[f"api/{sub_package}.md"] = _reference(sub_package)
    for path in EXAMPLES:
        title = path.read_text().removeprefix('"""').partition(":")[0]
        contents[PAGES[path]] = f"# {title}\n\n```python\n{path.read_text()}```\n"
    for path in NOTEBOOKS:
        text, resources = MarkdownExporter().from_filename(path)
        contents[PAGES[path]] = re.sub(r"\]\((output_)", rf"]({path.stem}/\1", text)
        for name, picture in resources["outputs"].items():
            contents[f"notebooks/{path.stem}/{name}"] = picture
    for name, content in contents.items():
        files.append(File.generated(config, name, content=content))


def _overview() -> str:
    lines = ["# Overview\n", sentence(PACKAGE), ""]
    lines += [
        f"- [`{name}`]({name}.md): {sentence(PACKAGE[name])}" for name in SUB_PACKAGES
    ]
    return "\n".join(lines)


def _reference(sub_package: str) -> str:
    module = PACKAGE[sub_package]
    paragraphs = map(_fenced_if_code, module.docstring.value.split("\n\n"))
    names = sorted(NAMES[sub_package], key=lambda name: _rank(module[name]))
    lines = [_BOOST, f"# {sub_package}\n", "\n\n".join(paragraphs), ""]
    for name in names:
        full_name = f"jaxopt_tf.{sub_package}.{name}"
        lines.append(f"- [`{name}`][{full_name}]: {sentence(module[name])}")
    lines += [f"\n::: jaxopt_tf.{sub_package}.{name}" for name in names]
    return "\n".join(lines)


def _rank(member: griffe.Alias) -> int:
    """Orders functions before records, and records before states and constants."""
    if member.is_function:
        return 0
    return 1 if member.is_class and not member.name.endswith("State") else 2


def _commands() -> str:
    """Returns a page with the help of each command, printed by the command itself."""
    usage = _help_text()
    lines = ["# Commands\n", usage]
    for name in re.findall(r"^  ([a-z-]+)  +\w", usage, re.MULTILINE):
        lines += [f"\n## {name}\n", _help_text(name)]
    return "\n".join(lines)


def _fenced_if_code(paragraph: str) -> str:
    try:
        ast.parse(paragraph)
    except SyntaxError:
        return paragraph
    return f"```python\n{paragraph}\n```"


def _help_text(*command: str) -> str:
    args = [*command, "--help"]
    text = subprocess.run(
        [sys.executable, "-c", f"from jaxopt_tf.cli import main; main({args})"],
        env={**os.environ, "COLUMNS": "88", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = [f"$ {' '.join(['jaxopt-tf', *args])}", *map(str.rstrip, text.splitlines())]
    return "\n".join(["\n```", *lines, "```"])
