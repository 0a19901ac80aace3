"""Names of parameters: the torch parameters of every leaf, with slices and layouts."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

# Flax's words for torch's `weight`.
_WEIGHTS = frozenset({"kernel", "scale", "embedding"})


@dataclass(frozen=True, kw_only=True)
class ParamNames:
    """Correspondence of the leaves of a tree and the parameters of a torch model.

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
        """Paths of the leaves' modules that are layer norms in torch, and their class.

        For `build_optimizer(recipe, layer_norms=...)`: Trainer excludes these classes
        from weight decay. Which classes it excludes depends on its version.
        """
        norms = self.model.layer_norms
        return {
            found.leaf.rpartition(".")[0]: norms[parent]
            for found in self.slices
            if (parent := found.torch_name.rpartition(".")[0]) in norms
        }


def match_names(
    params: PyTree,
    model: TorchModel,
    *,
    table: Table | None = None,
    rules: Rules = (),
    layouts: Mapping[str, TorchLayout] | None = None,
    convention: str = "linear",
) -> ParamNames:
    """Finds the torch parameters of every leaf, and the layouts between them.

    The torch name of a leaf comes from `table`, else from the first of `rules` that
    matches, else from the convention of Transformers' former Flax models: the leaf's
    path, with `weight` for `kernel`, `scale` and `embedding`. A prefix of one word may
    be missing or added if only one is possible. A path without the number that torch
    has, `h.attn.c_attn.kernel`, is a stack of all of them along the leaf's first axis.

    Several torch names for one leaf are fused in it, in this order, along torch's axis
    of outputs. One torch name for several leaves is split into them, in the order of
    `table`, of `rules`, or of the leaves.

    Args:
        params: the tree of parameters, or of `jax.ShapeDtypeStruct`.
        model: the torch model, from `torch_model_from_config` or a similar function.
        table: torch name or names by the name of a leaf.
        rules: pairs of a regular expression for the whole name of a leaf, and the torch
            name or names as `re.Match.expand` takes them.
        layouts: layouts by a pattern for the whole name of a leaf, for leaves whose
            name and shape leave several possible; as for `adafactor_tf`.
        convention: orientation of kernels whose shape leaves it open. "linear": leaves
            are [in, out], as torch's Conv1D; layers of unknown type are Linear,
            [out, in]. "conv1d": the same, but layers of unknown type are Conv1D, as all
            of GPT-2's. "former_flax_gpt2": leaves for Conv1D are [out, in], as in the
            former Flax GPT-2.

    Returns:
        The names, for the functions that read and write parameters and optimizer
        states.

    Raises:
        ValueError: if a leaf or a torch parameter is left over or has another shape
            (all are listed), if a pattern is no regular expression, or if the
            convention is unknown.

    Source: transformers 4.44 `modeling_flax_pytorch_utils.py`,
        `rename_key_and_reshape_tensor`, for the words; `models/gpt2`.
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
    # The order decides which part of a split tensor a leaf is.
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
    slices, misfits = resolve_slices(matches, torch_params, layouts or {}, convention)
    problems += misfits
    if problems:
        listed = "\n  ".join(problems)
        raise _checks.ArgumentError(
            "params",
            f"`params` must be the parameters of the torch model {model.origin!r}, got "
            f"{len(problems)} differences:\n  {listed}",
            "Name leaves by `table` or `rules`, shapes by `layouts`.",
        )
    return ParamNames(slices=tuple(slices), model=model)


def _check_patterns(argument: str, patterns: list[Any]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"`{argument}` must have regular expressions for patterns, got "
                f"{pattern!r}: {error}."
            ) from error


class _Declared(NamedTuple):
    """Torch name of each fused part of a leaf, before it is looked up."""

    order: tuple[int, int]  # those of the table first, then those of the rules
    names: tuple[str, ...]


def _declared(leaf: str, table: Table, rules: Rules) -> _Declared:
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
    """Returns the match of a leaf; or the reason for none."""
    parts: list[tuple[str, ...]] = []
    lengths: set[int | None] = set()  # of the stack; None for a single tensor
    for name in declared:
        found = resolver.resolve(name)
        if not found:
            return f"torch has no {name!r}"
        if len(found) > 1:
            return f"may be any of {found}"
        (one,) = found
        parts.append((one,) if isinstance(one, str) else one)
        lengths.add(None if isinstance(one, str) else len(one))
    if len(lengths) > 1:
        return f"{list(declared)} are not stacked alike"
    (length,) = lengths
    if length is not None and shape[:1] != (length,):
        return f"torch has {length} of {list(declared)}"
    return NameMatch(leaf, shape, tuple(parts), length is not None)


class _Resolver:
    """Looks a name up among torch's: unchanged, as a stack, or with another prefix."""

    def __init__(self, torch_names: Sequence[str]):
        self._prefixes = sorted({name.split(".")[0] for name in torch_names})
        # Names that are numbered 0, 1, ..., by the name without the number and the
        # place of the number: "h.0.mlp.1.bias" is a layer of "h.mlp.1.bias" and of
        # "h.0.mlp.bias".
        numbered: dict[tuple[str, int], dict[int, str]] = {}
        for name in torch_names:
            parts = name.split(".")
            for place, part in enumerate(parts):
                if part.isdecimal():
                    without = ".".join(parts[:place] + parts[place + 1 :])
                    numbered.setdefault((without, place), {})[int(part)] = name
        self._found: dict[str, list[tuple[str, ...] | str]] = {}
        for (without, _), layers in numbered.items():
            if sorted(layers) == list(range(len(layers))):
                stack = tuple(layers[i] for i in range(len(layers)))
                self._found.setdefault(without, []).append(stack)
        # A name of torch's wins over a stack.
        self._found |= {name: [name] for name in torch_names}

    def resolve(self, name: str) -> list[tuple[str, ...] | str]:
        """Returns all possible torch names, and the names of all possible stacks."""
        # An exact name wins: a prefix is tried only if there is none.
        if name in self._found:
            return self._found[name]
        rest = name.partition(".")[2]
        spellings = [f"{prefix}.{name}" for prefix in self._prefixes]
        spellings += [rest] if rest else []
        return [
            found for spelling in spellings for found in self._found.get(spelling, [])
        ]
