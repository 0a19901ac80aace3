"""The pages that nobody writes: a reference page for each room, notebooks, examples.

They are made when the site is built, so that nothing stands in two places and a new
room, notebook or example has a page.
"""

import ast
import os
import re
import subprocess
import sys

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter
from sources import EXAMPLES, NAMES, NOTEBOOKS, PACKAGE, PAGES, ROOMS, sentence


def on_config(config: MkDocsConfig) -> None:
    """Lists the pages that are made under the titles that `mkdocs.yml` has for them."""
    made = {
        "Notebooks": [PAGES[path] for path in NOTEBOOKS],
        "Examples": [PAGES[path] for path in EXAMPLES],
        "Reference": ["api/index.md", *(f"api/{room}.md" for room in ROOMS)],
    }
    for entry in config.nav:
        for title in made.keys() & entry.keys():
            entry[title] = made[title]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the pages that are made, and the notebooks' pictures."""
    contents = {page: path.read_text() for path, page in PAGES.items()}
    contents["api/index.md"] = _overview()
    for room in ROOMS:
        contents[f"api/{room}.md"] = _reference(room)
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
    lines += [f"- [`{room}`]({room}.md): {sentence(PACKAGE[room])}" for room in ROOMS]
    return "\n".join(lines)


def _reference(room: str) -> str:
    module = PACKAGE[room]
    paragraphs = map(_fenced_if_code, module.docstring.value.split("\n\n"))
    lines = [f"# {room}\n", "\n\n".join(paragraphs), ""]
    for name in NAMES[room]:
        lines.append(f"- [`{name}`][jaxopt_tf.{room}.{name}]: {sentence(module[name])}")
    lines += [f"\n::: jaxopt_tf.{room}.{name}" for name in NAMES[room]]
    if room == "cli":
        lines += [_said_by_help(), _said_by_help("train")]
    return "\n".join(lines)


def _fenced_if_code(paragraph: str) -> str:
    try:
        ast.parse(paragraph)
    except SyntaxError:
        return paragraph
    return f"```python\n{paragraph}\n```"


def _said_by_help(*command: str) -> str:
    args = [*command, "--help"]
    said = subprocess.run(
        [sys.executable, "-c", f"from jaxopt_tf.cli import main; main({args})"],
        env={**os.environ, "COLUMNS": "88", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = [f"$ {' '.join(['jaxopt-tf', *args])}", *map(str.rstrip, said.splitlines())]
    return "\n".join(["\n```", *lines, "```"])
