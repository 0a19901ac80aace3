"""Matching of the leaves of a tree to the parameters of a torch model, by name."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from .. import _checks, _pytrees
from .._typing import PyTree
from ..optimizers import TorchLayout
from ._tensor_slices import (
    CONVENTIONS,
    NameMatch,
    TensorSlice,
    group_slices,
    resolve_slices,
)
from ._torch_model import TorchModel

Table = Mapping[str, str | Sequence[str]]
Rules = Sequence[tuple[str, str | Sequence[str]]]

# Flax's names of parameters that torch calls `weight`.
_WEIGHTS = frozenset({"kernel", "scale", "embedding"})


@dataclass(frozen=True, kw_only=True)
class ParamNames:
    """Correspondence between the leaves of a tree and the parameters of a torch model.

    Attributes:
        slices: ranges of leaves that equal ranges of torch tensors.
        model: the torch model.
    """

    slices: tuple[TensorSlice, ...]
    model: TorchModel

    @cached_property
    def by_leaf(self) -> dict[str, list[TensorSlice]]:
        """Slices of every leaf."""
        return group_slices(self.slices, "leaf")

    @cached_property
    def by_tensor(self) -> dict[str, list[TensorSlice]]:
        """Slices of every torch tensor."""
        return group_slices(self.slices, "torch_name")

    @property
    def layer_norms(self) -> dict[str, str]:
        """Class of every layer norm of the torch model, by the path of its leaves.

        Pass the result to `build_optimizer(recipe, layer_norms=...)`: Trainer excludes
        layer norms from weight decay by their class, and the classes depend on the
        version of Trainer.
        """
        norms = self.model.layer_norms
        return {
            found.leaf.rpartition(".")[0]: norms[parent]
            for found in self.slices
            if (parent := found.torch_name.rpartition(".")[0]) in norms
        }

    def with_frozen(self, leaves: Collection[str]) -> "ParamNames":
        """Returns the names for an optimizer that does not train these leaves.

        In Trainer's optimizer.pt no group contains a frozen parameter.

        Args:
            leaves: names of leaves.

        Raises:
            ValueError: if a torch parameter consists of frozen and of trained leaves.
        """
        frozen = set()
        for name, slices in self.by_tensor.items():
            parts = {found.leaf: found.leaf in leaves for found in slices}
            if len(set(parts.values())) > 1:
                raise ValueError(
                    f"`leaves` must freeze torch's parameter {name!r} as a whole, got "
                    f"{sorted(n for n in parts if parts[n])} without "
                    f"{sorted(n for n in parts if not parts[n])}. Freeze all of them "
                    "or none."
                )
            if all(parts.values()):
                frozen.add(name)
        parameters = tuple(
            p._replace(is_trainable=p.is_trainable and p.name not in frozen)
            for p in self.model.parameters
        )
        return replace(self, model=replace(self.model, parameters=parameters))


def match_names(
    params: PyTree,
    model: TorchModel,
    *,
    table: Table | None = None,
    rules: Rules = (),
    layouts: Mapping[str, TorchLayout] | None = None,
    convention: str = "linear",
) -> ParamNames:
    """Finds the torch parameters of every leaf, and their layouts.

    The torch name of a leaf is the one in `table`, else that of the first matching
    entry of `rules`, else the name by the convention of Transformers' former Flax
    models: the path of the leaf with `weight` in place of `kernel`, `scale` and
    `embedding`. One leading component may be added or removed if the result is unique.
    A path without the layer number of torch, such as `h.attn.c_attn.kernel`, denotes
    the stack of all layers along the first axis of the leaf.

    If a leaf has several torch names, their tensors are concatenated in this order
    along torch's output axis. If several leaves have the same torch name, its tensor is
    split among them in the order of `table`, of `rules`, or of the leaves.

    Args:
        params: the tree of parameters, or of `jax.ShapeDtypeStruct`.
        model: the torch model, from `torch_model_from_config` or a similar function.
        table: torch name or names by the name of a leaf.
        rules: pairs of a regular expression that matches the whole name of a leaf, and
            one or more templates of torch names for `re.Match.expand`.
        layouts: layouts by a pattern that matches the whole name of a leaf, as for
            `adafactor_tf`; required if name and shape allow several layouts.
        convention: orientation of kernels whose shape does not determine it. "linear":
            leaves are [in, out]; torch layers of unknown type are taken for Linear,
            whose weights are [out, in]. "conv1d": leaves are [in, out]; torch layers of
            unknown type are taken for Conv1D, whose weights are [in, out], as in GPT-2.
            "former_flax_gpt2": like "conv1d", but leaves for Conv1D are [out, in], as
            in the former Flax GPT-2.

    Returns:
        The correspondence, for functions that read and write parameters and optimizer
        states.

    Raises:
        ValueError: if leaves or torch parameters are unmatched or have other shapes
            (all are listed), if a pattern is not a regular expression, or if the
            convention is unknown.

    Source: transformers 4.44 `modeling_flax_pytorch_utils.py`,
        `rename_key_and_reshape_tensor`, for the names; `models/gpt2`.
    """
    _checks.one_of("convention", convention, CONVENTIONS)
    _check_patterns("rules", [pattern for pattern, _ in rules])
    _check_patterns("layouts", list(layouts or ()))
    table = dict(table or {})
    torch_params = {p.name: p for p in model.parameters}
    resolver = _Resolver(list(torch_params))
    shapes = {name: tuple(leaf.shape) for name, leaf in _pytrees.named_leaves(params)}
    problems = [f"`table`: {name!r} is no leaf" for name in table if name not in shapes]
    matches = []
    declared = {leaf: _declared(leaf, table, rules) for leaf in shapes}
    # The order determines which part of a split tensor belongs to which leaf.
    for leaf in sorted(shapes, key=lambda leaf: declared[leaf].order):
        found = _matched(leaf, shapes[leaf], declared[leaf].names, resolver)
        if isinstance(found, str):
            problems.append(f"{leaf!r} {list(shapes[leaf])}: {found}")
        else:
            matches.append(found)
    used = {name for match in matches for part in match.parts for name in part}
    problems += [
        f"torch's {p.name!r} {list(p.shape)}: no leaf"
        for p in model.parameters
        if p.name not in used
    ]
    slices, mismatches = resolve_slices(
        matches, torch_params, layouts or {}, convention
    )
    problems += mismatches
    if problems:
        listed = "\n  ".join(problems)
        raise _checks.ArgumentError(
            "params",
            f"`params` must be the parameters of the torch model {model.origin!r}, got "
            f"{len(problems)} differences:\n  {listed}",
            "Pass names of leaves in `table` or `rules`, and layouts in `layouts`.",
        )
    return ParamNames(slices=tuple(slices), model=model)


def _check_patterns(argument: str, patterns: list[Any]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"`{argument}` must have regular expressions as patterns, got "
                f"{pattern!r}: {error}."
            ) from error


class _Declared(NamedTuple):
    """Torch names of a leaf as declared, before `_Resolver` looks them up.

    There are several names if the leaf concatenates torch tensors.
    """

    order: tuple[int, int]  # sort key: leaves of the table, of the rules, then others
    names: tuple[str, ...]  # possibly without the prefix and the layer number


def _declared(leaf: str, table: Table, rules: Rules) -> _Declared:
    """Returns the torch names of a leaf by the table, the rules, or the convention."""
    if leaf in table:
        return _Declared((0, list(table).index(leaf)), _as_tuple(table[leaf]))
    for number, (pattern, names) in enumerate(rules):
        match = re.fullmatch(pattern, leaf)
        if match:
            expanded = tuple(match.expand(name) for name in _as_tuple(names))
            return _Declared((1, number), expanded)
    head, dot, last = leaf.rpartition(".")
    name = f"{head}{dot}weight" if last in _WEIGHTS else leaf
    return _Declared((2, 0), (name,))


def _as_tuple(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _matched(
    leaf: str, shape: tuple[int, ...], declared: tuple[str, ...], resolver: "_Resolver"
) -> NameMatch | str:
    """Returns the match of a leaf, or the reason why there is none."""
    parts: list[tuple[str, ...]] = []
    lengths: set[int | None] = set()  # of the stack; None for a single tensor
    for name in declared:
        found = resolver.resolve(name)
        if not found:
            return f"torch has no {name!r}"
        if len(found) > 1:
            return f"matches all of {found}"
        (one,) = found
        parts.append((one,) if isinstance(one, str) else one)
        lengths.add(None if isinstance(one, str) else len(one))
    if len(lengths) > 1:
        return f"{list(declared)} have different numbers of layers"
    (length,) = lengths
    if length is not None and shape[:1] != (length,):
        return f"torch has {length} layers of {list(declared)}"
    return NameMatch(leaf, shape, tuple(parts), length is not None)


class _Resolver:
    """Lookup of torch names: unchanged, as stacks of layers, or with another prefix."""

    def __init__(self, torch_names: Sequence[str]):
        self._prefixes = sorted({name.split(".")[0] for name in torch_names})
        # Numbered names, by the name without the number and the position of the number:
        # "h.0.mlp.1.bias" is layer 0 of ("h.mlp.1.bias", 1) and layer 1 of
        # ("h.0.mlp.bias", 3).
        layers_by_stem: dict[tuple[str, int], dict[int, str]] = {}
        for name in torch_names:
            parts = name.split(".")
            for index, part in enumerate(parts):
                if part.isdecimal():
                    stem = ".".join(parts[:index] + parts[index + 1 :])
                    layers_by_stem.setdefault((stem, index), {})[int(part)] = name
        self._found: dict[str, list[tuple[str, ...] | str]] = {}
        for (stem, _), layers in layers_by_stem.items():
            # Only complete sequences 0, 1, ... are stacks.
            if sorted(layers) == list(range(len(layers))):
                stack = tuple(layers[i] for i in range(len(layers)))
                self._found.setdefault(stem, []).append(stack)
        # A name that torch has takes precedence over a stack.
        self._found |= {name: [name] for name in torch_names}

    def resolve(self, name: str) -> list[tuple[str, ...] | str]:
        """Returns all possible torch names, and the layers of all possible stacks."""
        # An exact match takes precedence. Prefixes are tried only without one.
        if name in self._found:
            return self._found[name]
        rest = name.partition(".")[2]
        spellings = [f"{prefix}.{name}" for prefix in self._prefixes]
        spellings += [rest] if rest else []
        return [
            found for spelling in spellings for found in self._found.get(spelling, [])
        ]
