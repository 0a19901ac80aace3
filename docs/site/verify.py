"""Verifies the pages of the site after it was built.

Zensical verifies links between pages; this verifies the files that it wrote.
"""

import html.parser
import pathlib
import posixpath
import urllib.parse

from sources import NAMES, PACKAGE, sentence


class _Page(html.parser.HTMLParser):
    """Anchors of a page, its links, and what a browser loads with it."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Records the attributes that name anchors and files."""
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a":
            self.links.append(given.get("href", ""))
        elif tag in ("script", "img", "iframe", "link"):
            self.loaded.append(given.get("src", given.get("href", "")))


def problems(site: pathlib.Path) -> list[str]:
    """Returns a sentence for each missing name, file or anchor, and foreign host."""
    pages = {
        str(path.relative_to(site)): _Page(path.read_text())
        for path in sorted(site.rglob("*.html"))
        if path.name != "404.html"  # which is served at any address
    }
    found = []
    for sub_package, names in NAMES.items():
        anchors = pages[f"api/{sub_package}/index.html"].anchors
        for name in names:
            full_name = f"jaxopt_tf.{sub_package}.{name}"
            if full_name not in anchors:
                found.append(f"{full_name} is not on its page of the reference.")
            if not sentence(PACKAGE[sub_package][name]):
                found.append(f"{full_name} has no docstring and no comment.")
    for here, page in pages.items():
        for target in page.loaded:
            if urllib.parse.urlsplit(target).netloc:
                found.append(f"{here} loads from another host: {target}.")
        for target in page.links + page.loaded:
            if not _is_found(target, here, pages, site):
                found.append(f"{here} links to {target}, which is missing.")
    return found


def _is_found(
    target: str, here: str, pages: dict[str, _Page], site: pathlib.Path
) -> bool:
    parts = urllib.parse.urlsplit(target)
    if parts.scheme or parts.netloc:
        return True
    if parts.path.startswith("/"):
        return False  # a site may be served from a folder of its host
    path = here
    if parts.path:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), parts.path))
        if (site / path).is_dir():
            path = posixpath.normpath(posixpath.join(path, "index.html"))
    if not (site / path).is_file():
        return False
    anchor = urllib.parse.unquote(parts.fragment)
    return path not in pages or not anchor or anchor in pages[path].anchors
