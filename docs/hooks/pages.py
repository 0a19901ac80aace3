"""Generates the pages of the reference, the notebooks and the examples.

They are generated when the site is built, so that nothing is written twice and a new
sub-package, notebook or example has a page.
"""

import ast
import os
import re
import subprocess
import sys

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter
from sources import EXAMPLES, NAMES, NOTEBOOKS, PACKAGE, PAGES, SUB_PACKAGES, sentence


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
    lines = [f"# {sub_package}\n", "\n\n".join(paragraphs), ""]
    for name in NAMES[sub_package]:
        full_name = f"jaxopt_tf.{sub_package}.{name}"
        lines.append(f"- [`{name}`][{full_name}]: {sentence(module[name])}")
    lines += [f"\n::: jaxopt_tf.{sub_package}.{name}" for name in NAMES[sub_package]]
    if sub_package == "cli":
        lines += [_help_text(), _help_text("train")]
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
