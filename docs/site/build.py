"""Builds the site: `python docs/site/build.py`, or with `--serve` to show it.

Generates all pages in build/docs, converts them to build/site with Zensical, and
verifies the result. `--serve` shows the pages as they were when it was started.
"""

import pathlib
import shutil
import subprocess
import sys

import links
import pages
import verify
from sources import ROOT


def write_pages(folder: pathlib.Path) -> None:
    """Writes the Markdown pages and pictures of the site to a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    contents = pages.contents()
    for name, content in contents.items():
        if name.endswith(".md") and name != "SUMMARY.md":
            content = links.for_site(content, name)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def main() -> None:
    """Builds the site, or serves it."""
    docs, site = ROOT / "build/docs", ROOT / "build/site"
    write_pages(docs)
    if "--serve" in sys.argv:
        subprocess.run(["zensical", "serve"], cwd=ROOT, check=True)
        return
    shutil.rmtree(site, ignore_errors=True)
    # `--clean`: the cache would keep reference pages whose docstrings have changed.
    command = ["zensical", "build", "--clean", "--strict"]
    subprocess.run(command, cwd=ROOT, check=True)
    links.link_names(site)
    if problems := verify.problems(site):
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
