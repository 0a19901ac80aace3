"""Pages of the site: those in `docs/`, and generated ones.

The pages of the reference, the notebooks, the examples and the commands are generated
when the site is built, so that nothing is written twice and a new sub-package, notebook
or example has a page.
"""

import ast
import re

import griffe
from commands import commands_page
from nbconvert import MarkdownExporter
from sources import (
    EXAMPLES,
    NAMES,
    NOTEBOOKS,
    PACKAGE,
    PAGES,
    ROOT,
    SUB_PACKAGES,
    sentence,
)


def contents() -> dict[str, str | bytes]:
    """Returns the content of each file, by its path under the site's pages."""
    docs = ROOT / "docs"
    found: dict[str, str | bytes] = {
        str(path.relative_to(docs)): path.read_bytes()
        for path in [docs / "extra.css", *docs.glob("images/*")]
    }
    found |= {path.name: path.read_text() for path in docs.glob("*.md")}
    found |= {page: path.read_text() for path, page in PAGES.items()}
    found["commands.md"] = commands_page()
    found["api/index.md"] = _overview()
    for sub_package in SUB_PACKAGES:
        found[f"api/{sub_package}.md"] = _reference(sub_package)
    for path in EXAMPLES:
        title = path.read_text().removeprefix('"""').partition(":")[0]
        found[PAGES[path]] = f"# {title}\n\n```python\n{path.read_text()}```\n"
    for path in NOTEBOOKS:
        text, resources = MarkdownExporter().from_filename(path)
        found[PAGES[path]] = re.sub(r"\]\((output_)", rf"]({path.stem}/\1", text)
        for name, picture in resources["outputs"].items():
            found[f"notebooks/{path.stem}/{name}"] = picture
    found["SUMMARY.md"] = _navigation(found)
    return found


def _navigation(found: dict[str, str | bytes]) -> str:
    """Returns `docs/SUMMARY.md` with the pages of the folders that it names."""
    folders = {
        "notebooks/": [PAGES[path] for path in NOTEBOOKS],
        "examples/": [PAGES[path] for path in EXAMPLES],
        "api/": ["api/index.md", *(f"api/{name}.md" for name in SUB_PACKAGES)],
    }

    def listed(folder: re.Match) -> str:
        entries = [f"[{_title(found[page])}]({page})" for page in folders[folder[2]]]
        return "\n".join(folder[1] + entry for entry in entries)

    text = re.sub(r"^( *- )(\w+/)$", listed, found["SUMMARY.md"], flags=re.MULTILINE)
    missing = {
        name for name in found if name.endswith(".md") and f"({name})" not in text
    } - {"SUMMARY.md"}
    if missing:
        raise ValueError(f"docs/SUMMARY.md does not list {', '.join(sorted(missing))}.")
    return text


def _title(page: str) -> str:
    return re.search(r"^# (.+)", page, re.MULTILINE)[1].strip()


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
    lines = [f"# {sub_package}\n", "\n\n".join(paragraphs), ""]
    for name in names:
        full_name = f"jaxopt_tf.{sub_package}.{name}"
        lines.append(f"- [`{name}`][{full_name}]: {sentence(module[name])}")
    lines += [f"\n::: jaxopt_tf.{sub_package}.{name}" for name in names]
    return "\n".join(lines)


def _rank(member: griffe.Alias) -> int:
    """Orders the most used names before functions, records, states and constants."""
    if member.name in PACKAGE.members:
        return 0
    if member.is_function:
        return 1
    return 2 if member.is_class and not member.name.endswith("State") else 3


def _fenced_if_code(paragraph: str) -> str:
    try:
        ast.parse(paragraph)
    except SyntaxError:
        return paragraph
    return f"```python\n{paragraph}\n```"
