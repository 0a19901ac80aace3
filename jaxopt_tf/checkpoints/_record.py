"""What a checkpoint says about itself: the caller's notes, and the kind of each leaf.

It stands in the JSON file in which orbax describes the tree, so that it can be read
before any array is, and without orbax.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import _pytrees
from .._typing import PyTree

RECORD_FILE = "_METADATA"  # as orbax names it


class LeafKind(NamedTuple):
    """What must be the same for a leaf to take another's place."""

    shape: list[int]
    dtype: str
    key: str | None  # the implementation of a typed key, "threefry2x32"

    def __str__(self) -> str:
        """`float32[3, 4]`."""
        return f"{self.dtype}{self.shape}"


class Record(NamedTuple):
    """Everything but the arrays."""

    notes: dict[str, Any]
    leaves: dict[str, LeafKind]  # by name


def read_record(path: Path) -> Record:
    """The record of a checkpoint.

    Raises:
        OSError, ValueError: if there is none, or one that cannot be read.
    """
    try:
        record = json.loads((path / RECORD_FILE).read_bytes())["custom_metadata"]
        leaves = {name: LeafKind(*kind) for name, kind in record["leaves"].items()}
        return Record(record["notes"], leaves)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{RECORD_FILE} has no record of ours") from error


def named(argument: str, tree: PyTree) -> dict[str, Any]:
    """Every leaf by its name, in order.

    Raises:
        ValueError: if two leaves have one name.
        TypeError: if a leaf is no array.
    """
    _pytrees.check_arrays(argument, tree)
    names = _pytrees.named_leaves(tree)
    leaves = dict(names)
    if len(leaves) < len(names):
        twice = max(leaves, key=[name for name, _ in names].count)
        raise ValueError(
            f"`{argument}` must have a name for each leaf, got two leaves {twice!r}. "
            "Rename a key that holds a dot."
        )
    return leaves


def is_key(leaf: Any) -> bool:
    """Whether it is a typed key, or an array of them."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def describe(leaves: Mapping[str, jax.Array]) -> dict[str, LeafKind]:
    """The kind of each leaf."""

    def kind(leaf: jax.Array) -> LeafKind:
        key = str(jax.random.key_impl(leaf)) if is_key(leaf) else None
        return LeafKind(list(leaf.shape), str(leaf.dtype), key)

    return {name: kind(leaf) for name, leaf in leaves.items()}


def check_fit(
    path: Path, saved: Mapping[str, LeafKind], wanted: Mapping[str, Any]
) -> None:
    """Raises unless the leaves that are wanted are those that were saved."""
    here, there = f"in {path.name}", "in `like`"
    # The dtype of a key tells its implementation.
    kinds = {
        name: LeafKind(list(leaf.shape), str(leaf.dtype), saved[name].key)
        for name, leaf in wanted.items()
        if name in saved
    }
    odd = {
        f"only {here}": [name for name in saved if name not in wanted],
        f"only {there}": [name for name in wanted if name not in saved],
        "of another shape or dtype": [
            f"{name}: {saved[name]} {here}, {kind} {there}"
            for name, kind in kinds.items()
            if kind != saved[name]
        ],
    }
    listed = [f"{len(of)} {what} ({of[0]})" for what, of in odd.items() if of]
    if listed:
        raise ValueError(
            f"`like` must have the leaves of {str(path)!r}. With the first of each in "
            f"brackets, there are {', '.join(listed)}. Build model, optimizer and "
            "schedule with the numbers that the run was started with, or start a new "
            "one in another folder."
        )
