"""Record of a checkpoint: metadata of the caller, and shape and dtype of each leaf.

The record is stored in the JSON file in which orbax describes the tree, so that it can
be read without orbax, and before any array is read. This module also converts leaves
that older versions of this package stored in another form.
"""

import functools
import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _pytrees
from .._typing import PyTree

# Name of orbax's description of a tree. `PyTreeSave(custom_metadata=...)` stores a dict
# in it, under the key "custom_metadata".
RECORD_FILE = "_METADATA"


# Fields of optimizer states that may be stored in bfloat16.
_MOMENT = re.compile(r"(?:^|\.)opt_state\.(?:.*\.)?(?:mu|mu_slow|nu)(?:\.|$)")


class LeafSpec(NamedTuple):
    """Properties that must be equal for a saved leaf and the leaf of `like`."""

    shape: list[int]
    dtype: str
    key: str | None  # implementation of a typed key, such as "threefry2x32"; else None

    def __str__(self) -> str:
        """Returns dtype and shape, such as `float32[3, 4]`."""
        return f"{self.dtype}{self.shape}"


class Record(NamedTuple):
    """Content of a checkpoint without its arrays."""

    metadata: dict[str, Any]  # metadata of the caller
    leaves: dict[str, LeafSpec]  # by name

    def to_json(self) -> dict[str, Any]:
        """Returns the content of the file, in which the metadata are "notes"."""
        return {"notes": self.metadata, "leaves": self.leaves}


def read_record(path: Path) -> Record:
    """Reads the record of a checkpoint.

    Raises:
        OSError, ValueError: if there is no record, or if it cannot be read.
    """
    try:
        record = json.loads((path / RECORD_FILE).read_bytes())["custom_metadata"]
        leaves = {name: LeafSpec(*spec) for name, spec in record["leaves"].items()}
        return Record(record["notes"], leaves)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{RECORD_FILE} has another format") from error


def is_python_number(leaf: Any) -> bool:
    """Returns whether a leaf is a Python number, which is stored as a 64-bit array."""
    # `np.float64` is a subclass of float, but is restored as a NumPy scalar.
    return isinstance(leaf, int | float) and not isinstance(leaf, np.generic)


def leaves_by_name(argument: str, tree: PyTree) -> dict[str, Any]:
    """Returns the leaves by name, in order; Python numbers are converted to arrays.

    Raises:
        ValueError: if two leaves have equal names.
        TypeError: if a leaf is neither an array nor a number.
    """
    tree = jax.tree.map(lambda x: np.asarray(x) if is_python_number(x) else x, tree)
    _pytrees.check_arrays(argument, tree)
    names = _pytrees.named_leaves(tree)
    leaves = dict(names)
    if len(leaves) < len(names):
        twice = max(leaves, key=[name for name, _ in names].count)
        raise ValueError(
            f"`{argument}` must have a different name for each leaf, got two leaves "
            f"{twice!r}. Rename a key that contains a dot."
        )
    return leaves


def is_key(leaf: Any) -> bool:
    """Returns whether a leaf is a typed PRNG key, or an array of keys."""
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def describe(leaves: Mapping[str, Any]) -> dict[str, LeafSpec]:
    """Returns the specification of each leaf."""

    def spec(leaf: Any) -> LeafSpec:
        key = str(jax.random.key_impl(leaf)) if is_key(leaf) else None
        return LeafSpec(list(leaf.shape), str(leaf.dtype), key)

    return {name: spec(leaf) for name, leaf in leaves.items()}


def check_compatible(
    path: Path, saved: Mapping[str, LeafSpec], expected: Mapping[str, Any]
) -> None:
    """Raises unless the saved leaves have the expected names, shapes and dtypes."""
    in_file, in_like = f"in {path.name}", "in `like`"
    # The implementation of a key need not be compared: its dtype, such as `key<fry>`,
    # contains it.
    expected_specs = {
        name: LeafSpec(list(leaf.shape), str(leaf.dtype), saved[name].key)
        for name, leaf in expected.items()
        if name in saved
    }
    unexpected = {
        f"only {in_file}": [name for name in saved if name not in expected],
        f"only {in_like}": [name for name in expected if name not in saved],
        "with another shape or dtype": [
            f"{name}: {saved[name]} {in_file}, {spec} {in_like}"
            for name, spec in expected_specs.items()
            if spec != saved[name]
        ],
    }
    listed = [
        f"{len(names)} {difference} ({names[0]})"
        for difference, names in unexpected.items()
        if names
    ]
    if listed:
        raise ValueError(
            f"`like` must have the same leaves as {str(path)!r}. Differences, with the "
            f"first of each kind in parentheses: {', '.join(listed)}. Build model, "
            "optimizer and schedule with the settings of the run, or start a new run "
            "in another folder."
        )


def changed_moments(
    saved: Mapping[str, LeafSpec], expected: Mapping[str, Any]
) -> dict[str, LeafSpec]:
    """Returns the saved moments that have another low precision in `expected`, by name.

    A moment of an optimizer may be float32 in one part of a run and bfloat16 in
    another: `mu_dtype` and `nu_dtype` may change.
    """
    return {
        name: saved[name]
        for name, leaf in expected.items()
        if name in saved
        and _MOMENT.search(name)
        and {saved[name].dtype, str(leaf.dtype)} == {"float32", "bfloat16"}
    }


class ConvertedLeaf(NamedTuple):
    """Leaf that is computed from saved leaves of an older format."""

    sources: list[str]  # names of the saved leaves from which it is computed
    convert: Callable[..., Any]  # arrays of `sources` -> array


def converted_leaves(
    saved: Collection[str], expected: Collection[str]
) -> dict[str, ConvertedLeaf]:
    """Returns the leaves of `expected` that are computed from saved leaves, by name.

    In older versions, optimizer states had no `rate_source`, and states with a constant
    learning rate had no `step`. States of metric-driven schedules were arrays of at
    most 32 bits.
    """
    found: dict[str, ConvertedLeaf] = {}
    for name in expected:
        prefix, _, field = name.rpartition(".")
        start = f"{prefix}." if prefix else ""
        if field == "rate_source" and name not in saved:
            counts = [n for n in saved if f"{n}.".startswith(f"{start}count.")]
            # In older versions, only a state with a schedule had a `step`. The value of
            # `rate_source` is 1 for a schedule, `SCHEDULE` of the optimizers, else 0.
            has_schedule = f"{start}step" in saved
            found[name] = ConvertedLeaf(counts, _full(int(has_schedule)))
            if not has_schedule and f"{start}step" in expected:
                found[f"{start}step"] = ConvertedLeaf(counts, _largest)
        elif field == "learning_rate" and f"{start}rate.exponent" in saved:
            found |= _converted_metric_state(start, saved, expected)
    return found


def _largest(*counts: Any) -> Any:
    # A state has one count for all parameters, or one count per parameter.
    return functools.reduce(np.maximum, map(np.asarray, counts))


def _full(value: int) -> Callable[..., Any]:
    return lambda *counts: np.full_like(_largest(*counts), value)


def _sum(high: Any, low: Any) -> Any:
    return np.float64(high) + np.float64(low)


# Fields of a metric-driven schedule that older versions stored as several arrays: the
# names of these arrays, and the function that computes the field.
_OLDER_FIELDS: dict[str, tuple[tuple[str, ...], Callable[..., Any]]] = {
    # A 64-bit significand in two uint32 and an exponent, which is an exact double.
    "learning_rate": (
        ("rate.high", "rate.low", "rate.exponent"),
        lambda high, low, exponent: np.float64(
            math.ldexp(int(high) << 32 | int(low), int(exponent) - 63)
        ),
    ),
    "best": (("best.high", "best.low"), _sum),
    "average.total": (("average.total.high", "average.total.low"), _sum),
    # A ring buffer, whose oldest value is at `place` once it is full. Now the oldest
    # value is first, after zeros if the buffer is not full.
    "average.values": (
        ("average.values.high", "average.values.low", "average.place"),
        lambda high, low, place: np.roll(_sum(high, low), -int(place)),
    ),
}


def _converted_metric_state(
    start: str, saved: Collection[str], expected: Collection[str]
) -> dict[str, ConvertedLeaf]:
    found = {}
    for name in expected:
        field = name.removeprefix(start)
        # Fields that are not in `_OLDER_FIELDS` are counters, which older versions
        # stored as int32.
        fields, convert = _OLDER_FIELDS.get(field, ((field,), np.int64))
        sources = [start + source for source in fields]
        if name.startswith(start) and set(sources) <= set(saved):
            found[name] = ConvertedLeaf(sources, convert)
    return found
