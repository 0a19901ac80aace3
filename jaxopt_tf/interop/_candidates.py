"""Which torch names a leaf's name may stand for.

Transformers' former Flax models had torch's dotted paths, with Flax's own last word:
`h.0.attn.c_attn.kernel` for `h.0.attn.c_attn.weight`. The prefix of the base model
(`transformer.`, `bert.`) may be there or not, and a stack has no number.
"""

import re
from collections.abc import Mapping, Sequence

# Flax's words for torch's `weight`.
_WEIGHTS = frozenset({"kernel", "scale", "embedding"})

Table = Mapping[str, str | Sequence[str]]
Rules = Sequence[tuple[str, str | Sequence[str]]]
# The torch names of a leaf, one for each of its fused parts.
Declared = tuple[str, ...]


def declared_names(leaf: str, table: Table, rules: Rules) -> Declared:
    """What the table, else the first rule, else Flax's convention calls the leaf."""
    if leaf in table:
        return _as_tuple(table[leaf])
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, leaf)
        if match:
            return tuple(match.expand(name) for name in _as_tuple(replacement))
    head, dot, last = leaf.rpartition(".")
    return (f"{head}{dot}weight" if last in _WEIGHTS else leaf,)


class Resolver:
    """Finds a name among torch's: as it is, as a stack, with or without a prefix."""

    def __init__(self, torch_names: Sequence[str]):
        """Notes which names are there and which are numbered alike."""
        self._there = frozenset(torch_names)
        self._stacks = _stacks(torch_names)
        self._prefixes = sorted({name.split(".")[0] for name in torch_names})

    def resolve(self, name: str) -> list[tuple[str, ...] | str]:
        """All that `name` may be: a torch name, or the names of a stack."""
        found = self._exactly(name)
        if found:
            return found
        _first, _, rest = name.partition(".")
        spellings = [f"{prefix}.{name}" for prefix in self._prefixes]
        if rest:
            spellings.append(rest)
        return [found for spelling in spellings for found in self._exactly(spelling)]

    def _exactly(self, name: str) -> list[tuple[str, ...] | str]:
        if name in self._there:
            return [name]
        return list(self._stacks.get(name, ()))


def _stacks(names: Sequence[str]) -> dict[str, list[tuple[str, ...]]]:
    """By the name without its number, names that are numbered 0, 1, ... there."""
    numbered: dict[tuple[str, int], dict[int, str]] = {}
    for name in names:
        parts = name.split(".")
        for place, part in enumerate(parts):
            if part.isdecimal():
                without = ".".join(parts[:place] + parts[place + 1 :])
                numbered.setdefault((without, place), {})[int(part)] = name
    stacks: dict[str, list[tuple[str, ...]]] = {}
    for (without, _), members in numbered.items():
        if sorted(members) == list(range(len(members))):
            stack = tuple(members[i] for i in range(len(members)))
            stacks.setdefault(without, []).append(stack)
    return stacks


def _as_tuple(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)
