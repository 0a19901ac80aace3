"""Rewrites links between files of the repository for the site."""

import pathlib
import posixpath
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page
from sources import PAGES, ROOT, home_of_names

MADE_FROM = {page: str(path.relative_to(ROOT)) for path, page in PAGES.items()}
SHOWN_AS = {
    "README.md": "index.md",  # which has its sections
    **{source: page for page, source in MADE_FROM.items()},
}
HOME = home_of_names()


def on_page_markdown(
    markdown: str, page: Page, config: MkDocsConfig, files: Files
) -> str:
    """Inserts sections of the README, and rewrites links between files to pages."""
    here = page.file.src_uri
    text = _on_site(markdown, MADE_FROM.get(here, f"docs/{here}"), here)
    return re.sub(
        r"<!-- README: (.+) -->",
        lambda title: _on_site(_section(title[1]), "README.md", here),
        text,
    )


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links each public name that is unambiguous to its reference."""
    is_reference = page.file.src_uri.startswith("api/")

    def linked(code: re.Match) -> str:
        # Outside of the reference `TrainState` may be that of Flax; names with an
        # underscore are unambiguous.
        if code[1] not in HOME or not (is_reference or "_" in code[1]):
            return code[0]
        return f'<autoref identifier="{HOME[code[1]]}">{code[0]}</autoref>'

    # Neither inside a link nor the name of an argument.
    return re.sub(r'(?<!">)(?<!<b>)<code>(\w+)</code>', linked, html)


def _on_site(text: str, source: str, here: str) -> str:
    """Returns `text` of the file `source` with links relative to the page `here`."""

    def rewritten(link: re.Match) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        target = SHOWN_AS.get(path, path.removeprefix("docs/"))
        if path == target:  # no page of the site
            return link[0]
        return f"]({posixpath.relpath(target, posixpath.dirname(here))}{link[2] or ''})"

    return re.sub(r"\]\(([\w./]+)(#[\w-]+)?\)", rewritten, text)


def _section(title: str) -> str:
    """What stands under a title of the README."""
    found = re.search(
        rf"^##? {re.escape(title)}\n(.+?)(?=^## |\Z)",
        pathlib.Path(ROOT, "README.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    if found is None:
        raise PluginError(f"The README has no section {title!r}.")
    return found[1].strip()
