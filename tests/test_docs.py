"""What is written beside the code: links lead somewhere, and code blocks are code.

That every public name has its place on the site is seen to where it is built.
"""

import ast
import importlib.util
import inspect
import pathlib
import re
import urllib.parse

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TEXTS = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")]
    if path.name != "SUMMARY.md"  # its links lead to pages that the site's build makes
)


def read(name):
    return (ROOT / name).read_text()


def links(name):
    without_code = re.sub(r"^```.*?^```|`[^`\n]*`", "", read(name), flags=re.M | re.S)
    return re.findall(r"\]\(([^)]*)\)", without_code)


def anchors(text):
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles}


@pytest.mark.parametrize("name", TEXTS)
def test_links_within_the_repository_lead_to_a_file_and_to_a_title_in_it(name):
    for link in links(name):
        path, _, anchor = link.partition("#")
        if "//" in path or path.startswith("api/"):  # made when the site is built
            continue
        there = (ROOT / name).parent / path if path else ROOT / name
        assert there.is_file(), link
        if anchor:
            assert anchor in anchors(there.read_text()), link


@pytest.mark.parametrize("name", TEXTS)
def test_links_to_elsewhere_are_well_formed(name):
    # Whether they are answered is not asked: tests need no network.
    for link in links(name):
        if "//" in link:
            parts = urllib.parse.urlsplit(link)
            assert parts.scheme == "https", link
            assert re.fullmatch(r"(?:[\w-]+\.)+[a-z]{2,}", parts.netloc), link
            assert not re.search(r"[\s<>]", link), link


@pytest.mark.parametrize("name", TEXTS)
def test_code_blocks_are_code_and_import_what_there_is(name):
    for block in re.findall(r"^```python\n(.*?)^```", read(name), re.M | re.S):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("jaxopt_tf"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    is_room = importlib.util.find_spec(f"{node.module}.{alias.name}")
                    assert hasattr(module, alias.name) or is_room, alias.name


@pytest.mark.promotion_of_others
@pytest.mark.usefixtures("compiled_quickly")
def test_the_first_code_of_the_readme_trains():
    block = re.findall(r"^```python\n(.*?)^```", read("README.md"), re.M | re.S)[0]
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    params = names["params"]
    assert abs(params["kernel"] + params["bias"] - 2).max() < 0.05


@pytest.mark.promotion_of_others
@pytest.mark.usefixtures("compiled_quickly")
def test_the_page_for_optax_reads_and_changes_rates_as_it_shows():
    page = read("docs/from_optax.md").partition("## Reading and changing")[2]
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    exec(compile(block, "docs/from_optax.md", "exec"), {})


def test_the_page_for_optax_names_arguments_that_there_are():
    page = read("docs/from_optax.md").partition("## Argument names")[2]
    page = page.partition("\n## ")[0]
    known = {
        name
        for room in ("optimizers", "schedules")
        for function in vars(importlib.import_module(f"jaxopt_tf.{room}")).values()
        if inspect.isfunction(function)
        for name in inspect.signature(function).parameters
    }
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line[:1] == "|"][2:]
    assert len(rows) > 15
    for row in rows:
        for name in re.findall(r"`([a-z_]+)(?:=[^`]*)?`", row[2]):
            is_function = name in ("adamw_tf", "adamw_hf_v4", "get_scheduler")
            assert is_function or name in known, name
