"""A leaf's path and its torch name, with the transformation in between."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import _checks, _pytrees
from .._typing import PyTree
from ..optimizers import TorchLayout
from ._candidates import Declared, Resolver, Rules, Table, declared_names
from ._cutting import Match, cut
from ._layouts import CONVENTIONS
from ._pieces import Piece
from ._torch_model import TorchModel


@dataclass(frozen=True, kw_only=True)
class ParamNames:
    """Which leaf is which torch parameter, both ways.

    Attributes:
        pieces: what each leaf and each torch tensor have in common.
        model: the torch side.
    """

    pieces: tuple[Piece, ...]
    model: TorchModel

    @property
    def layer_norms(self) -> dict[str, str]:
        """Paths of the leaves' modules that are layer norms in torch, and their class.

        For `build_optimizer(recipe, layer_norms=...)`: Trainer goes by these classes,
        and which of them count depends on the version of Transformers.
        """
        norms = self.model.layer_norms
        return {
            piece.leaf.rpartition(".")[0]: norms[parent]
            for piece in self.pieces
            if (parent := piece.torch_name.rpartition(".")[0]) in norms
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
    """Finds the torch parameter of every leaf, and what lies between the two.

    A leaf is called by `table`, else by the first of `rules` that matches, else as
    Transformers' former Flax models were: its own path, with `weight` for `kernel`,
    `scale` and `embedding`. A prefix of one word may be missing or too many where only
    one is possible. A path without the number that torch has, `h.attn.c_attn.kernel`,
    is a stack of all of them along the leaf's first axis.

    Several torch names for a leaf are fused in it, in this order, along torch's axis of
    outputs; one torch name for several leaves is split into them, in the order of
    `table`, of `rules`, or of the leaves.

    Args:
        params: the tree of parameters, or of `jax.ShapeDtypeStruct`.
        model: the torch side, from `torch_model_from_config` and its like.
        table: for names of leaves, the torch name or names.
        rules: pairs of a regular expression for a whole name of a leaf and what
            `re.Match.expand` makes the torch name or names of.
        layouts: for patterns that match whole names of leaves, how torch sees the leaf,
            where names and shapes do not tell; as for `adafactor_tf`.
        convention: which way round kernels stand, where shapes cannot tell. "linear":
            leaves are [in, out], and so is torch's Conv1D; layers whose type is not
            known are Linear, [out, in]. "conv1d": as this, but they are Conv1D, as all
            of GPT-2's. "former_flax_gpt2": leaves for Conv1D are [out, in], as the
            former Flax GPT-2 had them.

    Returns:
        The names, for the functions that carry parameters and optimizer states over.

    Raises:
        ValueError: if a name or a shape is left over on either side: all are listed; if
            a pattern is no regular expression, or the convention is unknown.

    Source: transformers 4.44 `modeling_flax_pytorch_utils.py`,
        `rename_key_and_reshape_tensor`, for the words; `models/gpt2`.
    """
    _checks.one_of("convention", convention, CONVENTIONS)
    _check_patterns("rules", [pattern for pattern, _ in rules])
    _check_patterns("layouts", list(layouts or ()))
    table = dict(table or {})
    torch_params = {p.name: p for p in model.parameters}
    resolver = Resolver(list(torch_params))
    shapes = {name: tuple(leaf.shape) for name, leaf in _pytrees.named_leaves(params)}
    order = {name: i for i, name in enumerate(table)}
    leaves = sorted(shapes, key=lambda name: _rank(name, order, rules))

    problems = [f"`table`: {name!r} is no leaf" for name in table if name not in shapes]
    matches = []
    for leaf in leaves:
        declared = declared_names(leaf, table, rules)
        found = _matched(leaf, shapes[leaf], declared, resolver)
        if isinstance(found, str):
            problems.append(found)
        else:
            matches.append(found)
    used = {name for match in matches for part in match.parts for name in part}
    problems += [
        f"torch's {p.name!r} {list(p.shape)}: no leaf"
        for p in model.parameters
        if p.name not in used
    ]
    pieces, misfits = cut(matches, torch_params, layouts or {}, convention)
    problems += misfits
    if problems:
        listed = "\n  ".join(problems)
        raise ValueError(
            f"`params` must be the parameters of the torch model {model.origin!r}, got "
            f"{len(problems)} differences:\n  {listed}\nName leaves by `table` or "
            "`rules`, shapes by `layouts`."
        )
    return ParamNames(pieces=tuple(pieces), model=model)


def _matched(
    leaf: str, shape: tuple[int, ...], declared: Declared, resolver: Resolver
) -> Match | str:
    """The torch names of a leaf; or why there are none."""
    parts: list[tuple[str, ...]] = []
    stacks = set()
    for name in declared:
        found = resolver.resolve(name)
        if not found:
            return f"{leaf!r} {list(shape)}: torch has no {name!r}"
        if len(found) > 1:
            return f"{leaf!r} {list(shape)}: may be any of {found}"
        (one,) = found
        parts.append((one,) if isinstance(one, str) else one)
        stacks.add(None if isinstance(one, str) else len(one))
    if len(stacks) > 1:
        return f"{leaf!r} {list(shape)}: {list(declared)} are not stacked alike"
    (length,) = stacks
    if length is not None and shape[:1] != (length,):
        return f"{leaf!r} {list(shape)}: torch has {length} of {list(declared)}"
    return Match(leaf, shape, tuple(parts), length is not None)


def _rank(leaf: str, order: Mapping[str, int], rules: Rules) -> tuple[int, int]:
    """Tables before rules before the rest; within each, their own order."""
    if leaf in order:
        return 0, order[leaf]
    for i, (pattern, _) in enumerate(rules):
        if re.fullmatch(pattern, leaf):
            return 1, i
    return 2, 0


def _check_patterns(argument: str, patterns: list[Any]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"`{argument}` must have regular expressions for patterns, got "
                f"{pattern!r}: {error}."
            ) from error
