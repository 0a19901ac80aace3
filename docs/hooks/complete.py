"""Verifies that the site has all public names and loads nothing from other hosts."""

import pathlib
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from sources import NAMES, PACKAGE, sentence

# Elements that a browser loads by itself, unlike links.
FETCHED = re.compile(r'<(?:script|img|iframe|link)\b[^>]*(?:src|href)="(?:https?:)?//')


def on_post_build(config: MkDocsConfig) -> None:
    """Raises an error for missing names, and for pages that load from other hosts."""
    site = pathlib.Path(config.site_dir)
    missing = []
    for sub_package, names in NAMES.items():
        html = (site / "api" / sub_package / "index.html").read_text()
        for name in names:
            is_present = f'id="jaxopt_tf.{sub_package}.{name}"' in html
            if not is_present or not sentence(PACKAGE[sub_package][name]):
                missing.append(f"{sub_package}.{name}")
    if missing:
        raise PluginError(
            "Each public name must be on the site, with a docstring or, for a "
            f"constant, a comment. Missing: {', '.join(missing)}."
        )
    fetching = [
        str(path.relative_to(site))
        for path in sorted(site.rglob("*.html"))
        if FETCHED.search(path.read_text())
    ]
    if fetching:
        raise PluginError(f"These pages load from other hosts: {', '.join(fetching)}.")
