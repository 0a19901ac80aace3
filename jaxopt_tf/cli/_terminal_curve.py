"""Curves drawn in the terminal with Braille or ASCII characters."""

import numpy as np

# A Braille character is U+2800 plus one bit per dot. These are the bits of its 4 x 2
# dots. The lowest row has the highest bits, since it was added to the code last.
_BRAILLE = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
# ASCII character for each combination of three dots in a column; bit 0 is the upper
# dot. Two dots are shown as the upper one alone, three dots as a bar.
_ASCII = " '-'.'-|"


def terminal_curve(
    steps: np.ndarray,
    values: np.ndarray,
    *,
    top: float,
    width: int,
    height: int,
    encoding: str,
) -> list[str]:
    """Draws values over steps, from 0 to `top`, with both axes labelled.

    Args:
        steps: [n], in increasing order.
        values: [n], at least 0; they are connected by straight lines.
        top: value at the upper edge; greater than 0.
        width: width of the lines in characters, including the labels.
        height: height of the curve in characters.
        encoding: encoding of the terminal. ASCII characters are used if it does not
            support Braille.

    Returns:
        The lines of text, `height` + 1 of them.
    """
    is_braille = can_show("⣿│└─", encoding)
    labels = [f"{top:.4g}", *(height - 2) * [""], "0"] if height > 1 else [f"{top:.4g}"]
    margin = max(map(len, labels))
    columns = max(width - margin - 2, 10)
    down, across = (4, 2) if is_braille else (3, 1)
    dots = _dots(steps, values / top, columns * across, height * down)
    # [height, columns, down, across]: the dots of each character.
    cells = dots.reshape(height, down, columns, across).swapaxes(1, 2)
    rows = _braille(cells) if is_braille else _ascii(cells)
    side, corner, floor = "│└─" if is_braille else "|+-"
    lines = [
        f"{label:>{margin}} {side}{row}".rstrip()
        for label, row in zip(labels, rows, strict=True)
    ]
    first, last = f"{steps[0]:,}", f"{steps[-1]:,}"
    between = floor * max(columns - len(first) - len(last), 1)
    return [*lines, f"{'':{margin}} {corner}{first}{between}{last}"]


def can_show(text: str, encoding: str) -> bool:
    """Returns True if the encoding supports all characters of the text."""
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _dots(
    steps: np.ndarray, fractions: np.ndarray, columns: int, rows: int
) -> np.ndarray:
    """Returns the dots of the line, [rows, columns] of bool, from top to bottom."""
    edges = np.linspace(steps[0], steps[-1], columns + 1)
    at_edges = np.interp(edges, steps, fractions)
    # A column shows all values within it, and the interpolated ones at both its edges,
    # so that the dots of neighbouring columns are connected.
    inside = np.clip(np.searchsorted(edges, steps, "right") - 1, 0, columns - 1)
    all_columns = np.arange(columns)
    column = np.concatenate([inside, all_columns, all_columns])
    values = np.concatenate([fractions, at_edges[:-1], at_edges[1:]])
    # Row of each value; row 0 is the upper edge, where the fraction is 1.
    value_rows = np.clip(np.floor((1 - values) * rows), 0, rows - 1).astype(int)
    highest, lowest = np.full(columns, rows - 1), np.zeros(columns, int)
    np.minimum.at(highest, column, value_rows)
    np.maximum.at(lowest, column, value_rows)
    # In each column, all dots between the lowest and the highest value are set.
    row = np.arange(rows)[:, None]
    return (row >= highest) & (row <= lowest)


def _braille(cells: np.ndarray) -> list[str]:
    """Returns a string for each row of [height, columns, 4, 2] dots."""
    codes = 0x2800 + (cells * _BRAILLE).sum(axis=(2, 3))
    # An empty cell is a space instead of U+2800: `rstrip` removes only spaces.
    return [
        "".join(chr(code) if code > 0x2800 else " " for code in row) for row in codes
    ]


def _ascii(cells: np.ndarray) -> list[str]:
    """Returns a string for each row of [height, columns, 3, 1] dots."""
    codes = (cells[:, :, :, 0] * [1, 2, 4]).sum(axis=2)
    return ["".join(_ASCII[code] for code in row) for row in codes]
