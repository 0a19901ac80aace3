"""Converts docstrings and comments of the package for the reference pages."""

import re
import textwrap
from collections.abc import Iterator

import griffe

# Sections of plain text: results, sources, differences.
_NOTES = re.compile(
    r"^(Returns|Yields|Source|Differs):[ \n]*(.*(?:\n+[ ]+\S.*)*)", re.MULTILINE
)


class Notes(griffe.Extension):
    """Uses the comments of fields as their docstrings, and keeps sections of text.

    The comment behind the declaration of a field has its shape and dtype. griffe would
    convert `Source:` and `Differs:` to admonitions titled by their first lines, and
    would parse text before a colon in `Returns:` as a type.
    """

    def on_package(self, *, pkg: griffe.Module, **kwargs) -> None:
        """Converts all objects of the package after it was loaded."""
        for obj in _within(pkg):
            if isinstance(obj, griffe.Attribute) and obj.parent.is_module:
                _give_comment(obj)
            if isinstance(obj, griffe.Class):
                _list_fields(obj)
            if obj.docstring is not None:
                obj.docstring.value = _NOTES.sub(_paragraph, obj.docstring.value)


def _within(obj: griffe.Object) -> Iterator[griffe.Object]:
    yield obj
    for member in obj.members.values():
        if not member.is_alias:
            yield from _within(member)


def _give_comment(constant: griffe.Attribute) -> None:
    comment = _comment(constant)
    if constant.docstring is None and comment:
        constant.docstring = griffe.Docstring(comment, parent=constant)


def _list_fields(record: griffe.Class) -> None:
    """Adds a section with the fields that have a comment."""
    fields = [
        a for a in record.attributes.values() if not a.is_alias and not a.docstring
    ]
    comments = {field.name: _comment(field) for field in fields}
    doc = record.docstring
    if (
        doc is not None
        and any(comments.values())
        and "\nAttributes:\n" not in doc.value
    ):
        lines = [f"    {name}: {text}" for name, text in comments.items() if text]
        doc.value += "\n\nAttributes:\n" + "\n".join(lines)


def _paragraph(note: re.Match) -> str:
    text = textwrap.dedent(re.sub(r"\A[ ]*(?=\S)", "    ", note[2]))
    return f"\n**{note[1]}:** {text}\n"


def _comment(declared: griffe.Attribute) -> str:
    """Returns the comment behind a declaration, or above it, in one line."""
    if declared.lineno is None or declared.endlineno is None:
        return ""
    module = declared.module
    lines = module.lines_collection[declared.filepath]
    behind = lines[declared.endlineno - 1].partition("  # ")[2]
    if behind:
        return behind
    above = []
    for line in reversed(lines[: declared.lineno - 1]):
        if not line.strip().startswith("# "):
            break
        above.insert(0, line.strip()[2:])
    return " ".join(above)
