"""A site that lacks a public name, or asks another host for anything, is not built."""

import pathlib
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from sources import NAMES, PACKAGE, sentence

# What a browser fetches by itself; a link that a reader follows is none of these.
FETCHED = re.compile(r'<(?:script|img|iframe|link)\b[^>]*(?:src|href)="(?:https?:)?//')


def on_post_build(config: MkDocsConfig) -> None:
    """Raises with all that is missing, or that would be fetched from elsewhere."""
    site = pathlib.Path(config.site_dir)
    missing = []
    for room, names in NAMES.items():
        html = (site / "api" / room / "index.html").read_text()
        for name in names:
            is_there = f'id="jaxopt_tf.{room}.{name}"' in html
            if not is_there or not sentence(PACKAGE[room][name]):
                missing.append(f"{room}.{name}")
    if missing:
        raise PluginError(
            "Each public name must be on the site, with a docstring or, where it is a "
            f"constant, a comment; not so: {', '.join(missing)}."
        )
    fetching = [
        str(path.relative_to(site))
        for path in sorted(site.rglob("*.html"))
        if FETCHED.search(path.read_text())
    ]
    if fetching:
        raise PluginError(f"Pages that fetch from other hosts: {', '.join(fetching)}.")
