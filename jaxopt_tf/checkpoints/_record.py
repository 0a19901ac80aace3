"""Record of a checkpoint: the caller's notes, and shape and dtype of each leaf.

It is part of the JSON file in which orbax describes the tree, so that it can be read
before any array is, and without orbax. Leaves that older versions stored differently
are found here, too, and their present values computed.
"""

import functools
import json
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _pytrees
from .._typing import PyTree

RECORD_FILE = "_METADATA"  # as orbax names it


class LeafSpec(NamedTuple):
    """Properties in which a leaf of `like` must equal the saved one."""

    shape: list[int]
    dtype: str
    key: str | None  # the implementation of a typed key, "threefry2x32"

    def __str__(self) -> str:
        """`float32[3, 4]`."""
        return f"{self.dtype}{self.shape}"


class Record(NamedTuple):
    """Everything but the arrays."""

    notes: dict[str, Any]
    leaves: dict[str, LeafSpec]  # by name


def read_record(path: Path) -> Record:
    """Reads the record of a checkpoint.

    Raises:
        OSError, ValueError: if there is none, or one that cannot be read.
    """
    try:
        record = json.loads((path / RECORD_FILE).read_bytes())["custom_metadata"]
        leaves = {name: LeafSpec(*kind) for name, kind in record["leaves"].items()}
        return Record(record["notes"], leaves)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{RECORD_FILE} has no record of ours") from error


def is_python_number(leaf: Any) -> bool:
    """Returns whether a leaf is a Python number: stored as an array of 64 bits."""
    return isinstance(leaf, int | float) and not isinstance(leaf, np.generic)


def named(argument: str, tree: PyTree) -> dict[str, Any]:
    """Returns every leaf by its name, in order; Python numbers as arrays.

    Raises:
        ValueError: if two leaves have one name.
        TypeError: if a leaf is neither an array nor a number.
    """
    tree = jax.tree.map(lambda x: np.asarray(x) if is_python_number(x) else x, tree)
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
    """Returns whether a leaf is a typed key, or an array of them."""
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def describe(leaves: Mapping[str, Any]) -> dict[str, LeafSpec]:
    """Returns the kind of each leaf."""

    def kind(leaf: Any) -> LeafSpec:
        key = str(jax.random.key_impl(leaf)) if is_key(leaf) else None
        return LeafSpec(list(leaf.shape), str(leaf.dtype), key)

    return {name: kind(leaf) for name, leaf in leaves.items()}


def check_compatible(
    path: Path, saved: Mapping[str, LeafSpec], wanted: Mapping[str, Any]
) -> None:
    """Raises unless the leaves of `wanted` are those that were saved."""
    here, there = f"in {path.name}", "in `like`"
    # The dtype of a key contains its implementation.
    kinds = {
        name: LeafSpec(list(leaf.shape), str(leaf.dtype), saved[name].key)
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


class OlderLeaf(NamedTuple):
    """A leaf that an older version stored differently."""

    sources: list[str]  # names of the saved leaves that it is computed from
    value: Callable[..., Any]  # arrays of `sources` -> array


def older_leaves(
    saved: Collection[str], wanted: Collection[str]
) -> dict[str, OlderLeaf]:
    """Returns the leaves of `wanted` that are computed from others, by name.

    Optimizer states had no `rate_source`, and those with a constant learning rate no
    `step`. States of schedules that a metric drives were arrays of at most 32 bits.
    """
    found: dict[str, OlderLeaf] = {}
    for name in wanted:
        prefix, _, field = name.rpartition(".")
        start = f"{prefix}." if prefix else ""
        if field == "rate_source" and name not in saved:
            counts = [n for n in saved if f"{n}.".startswith(f"{start}count.")]
            # A state with a `step` had a schedule: `SCHEDULE` in the optimizers is 1.
            has_schedule = f"{start}step" in saved
            found[name] = OlderLeaf(counts, _full(int(has_schedule)))
            if not has_schedule and f"{start}step" in wanted:
                found[f"{start}step"] = OlderLeaf(counts, _largest)
        elif field == "learning_rate" and f"{start}rate.exponent" in saved:
            found |= _older_metric_state(start, saved, wanted)
    return found


def _largest(*counts: Any) -> Any:
    # There is one count for all parameters, or one for each.
    return functools.reduce(np.maximum, map(np.asarray, counts))


def _full(value: int) -> Callable[..., Any]:
    return lambda *counts: np.full_like(_largest(*counts), value)


def _sum(high: Any, low: Any) -> Any:
    return np.float64(high) + np.float64(low)


# Fields of a state that a metric drives that were several arrays.
_PAIRS: dict[str, tuple[tuple[str, ...], Callable[..., Any]]] = {
    # The 53 bits of a double, rounded nowhere.
    "learning_rate": (
        ("rate.high", "rate.low", "rate.exponent"),
        lambda high, low, exponent: np.float64(
            math.ldexp(int(high) << 32 | int(low), int(exponent) - 63)
        ),
    ),
    "best": (("best.high", "best.low"), _sum),
    "average.total": (("average.total.high", "average.total.low"), _sum),
    # A ring, whose oldest value is at `place` once it is full. Zeros come first now.
    "average.values": (
        ("average.values.high", "average.values.low", "average.place"),
        lambda high, low, place: np.roll(_sum(high, low), -int(place)),
    ),
}


def _older_metric_state(
    start: str, saved: Collection[str], wanted: Collection[str]
) -> dict[str, OlderLeaf]:
    found = {}
    for name in wanted:
        field = name.removeprefix(start)
        fields, value = _PAIRS.get(field, ((field,), np.int64))
        sources = [start + source for source in fields]
        if name.startswith(start) and set(sources) <= set(saved):
            found[name] = OlderLeaf(sources, value)
    return found
