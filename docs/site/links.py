"""Rewrites links between files of the repository for the site."""

import functools
import pathlib
import posixpath
import re

from sources import PAGES, ROOT, home_of_names

MADE_FROM = {page: str(path.relative_to(ROOT)) for path, page in PAGES.items()}
SHOWN_AS = {
    "README.md": "index.md",  # which has its sections
    **{source: page for page, source in MADE_FROM.items()},
}
HOME = home_of_names()


def for_site(markdown: str, here: str) -> str:
    """Inserts sections of the README into a page, and rewrites its links."""
    text = _on_site(markdown, MADE_FROM.get(here, f"docs/{here}"), here)
    return re.sub(
        r"<!-- README: (.+) -->",
        lambda title: _on_site(_section(title[1]), "README.md", here),
        text,
    )


def link_names(site: pathlib.Path) -> None:
    """Links each public name that is unambiguous to its reference, in all pages."""
    for path in site.rglob("*.html"):
        here = str(path.parent.relative_to(site))
        start, article, end = re.split(
            r"(<article.*?</article>)", path.read_text(), maxsplit=1, flags=re.DOTALL
        )
        # Neither inside a link nor the name of an argument.
        linked = re.sub(
            r'(?<!">)(?<!<b>)<code>(\w+)</code>',
            functools.partial(_linked, here=here),
            article,
        )
        path.write_text(start + linked + end)


def _linked(code: re.Match, here: str) -> str:
    name = code[1]
    # Outside of the reference `TrainState` may be that of Flax; names with an
    # underscore are unambiguous.
    if name not in HOME or not (here.startswith("api/") or "_" in name):
        return code[0]
    sub_package = HOME[name].split(".")[1]
    page = posixpath.relpath(f"api/{sub_package}", here)
    return f'<a href="{page}/#{HOME[name]}">{code[0]}</a>'


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
    """Returns the text under a title of the README."""
    found = re.search(
        rf"^##? {re.escape(title)}\n(.+?)(?=^## |\Z)",
        pathlib.Path(ROOT, "README.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    if found is None:
        raise ValueError(f"The README has no section {title!r}.")
    return found[1].strip()
