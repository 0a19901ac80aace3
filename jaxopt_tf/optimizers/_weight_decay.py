"""Which leaves are decayed, and why.

Decay pulls weights towards 0. For biases and for the gains of normalisation layers
that is the wrong place to be pulled to, so every recipe leaves them out, and each finds
them in its own way. Names are dotted paths, `h.0.attn.c_attn.kernel`, the same for
Linen, NNX and torch.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from .. import _check, _tree
from .._typing import PyTree

# What Trainer looks for, in the lower-cased name.
_TRANSFORMERS_V5 = (
    r"bias",
    r"layernorm",
    r"rmsnorm",
    r"(?:^|\.)norm(?:$|\.)",
    r"_norm(?:$|\.)",
)
# Normalisation layers by the names that they are usually given: `norm1`, `LayerNorm_0`,
# `ln_f`, `bn2`; and their gain, which Flax calls `scale` whatever the layer is called.
_ANY_NORM = (
    r"norm_?\d*(?:$|\.)",
    r"(?:^|\.)norm_",
    r"(?:^|\.)(?:ln|bn)(?:_\w+|\d*)(?:$|\.)",
    r"(?:^|\.)scale$",
)
_EXAMPLES = ("bias", "LayerNorm.weight")
_RULES = ("default", "transformers_v5", "transformers_v4", "examples")

# Called norms, but they wrap a layer whose weight is to be decayed.
_NOT_NORMS = frozenset({"WeightNorm", "SpectralNorm"})

Rule = str | Sequence[str] | Callable[[str, Any], bool]


def decay_mask(
    params: PyTree, *, rule: Rule = "default", layer_norms: Sequence[str] = ()
) -> PyTree:
    """Says for each leaf whether weight decay applies to it.

    Args:
        params: a tree of parameters (Linen, NNX, Equinox, plain); or an NNX or Equinox
            module itself, whose layers are then recognised by their type. Stacked
            layers (an additional first axis) make no difference: names decide, not
            ranks.
        rule: what to leave out.
            "default": what Transformers 5 leaves out, and every normalisation layer.
            "transformers_v5": what `Trainer` leaves out since 4.50: names that hold
            `bias` or one of its spellings of a norm, and layers of type LayerNorm.
            "transformers_v4": what it left out before: names that hold `bias`, and
            normalisation layers by type.
            "examples": names that hold `bias` or `LayerNorm.weight`, case-sensitive, as
            the example scripts without Trainer have it.
            A sequence of regular expressions: names in which one of them is found.
            A callable `(name, leaf) -> bool`: True where decay applies.
        layer_norms: paths of modules that are normalisation layers, where types are not
            to be seen: with torch's names, say. All leaves below them are left out.

    Returns:
        A tree of bool with the structure of `params`, for `decay_mask=` of our
        optimizers or for `optax.masked`. For an NNX module, a nested dict with the
        structure of its `nnx.Param` state.

    Raises:
        ValueError: if `rule` is unknown, or if a pattern or a path of yours matches no
            leaf: it would silently decay what you meant to leave out.

    Source: transformers 5.23 `trainer.py`, `Trainer.get_decay_parameter_names`;
        4.44 likewise; `examples/pytorch/text-classification/run_glue_no_trainer.py`.
    Differs: the default also leaves out BatchNorm, GroupNorm and norms that Trainer's
        patterns miss (`norm1`, `ln_q`, `norm_f`): Trainer decays them by accident.
    """
    norm_paths, any_norm_paths = _norm_layers(params)
    params = _param_state(params)
    names = [name for name, _ in _tree.named_leaves(params)]
    for path in layer_norms:
        _matches_something("layer_norms", path, [_below(n, path) for n in names], names)
    norm_paths, any_norm_paths = (
        [*found, *layer_norms] for found in (norm_paths, any_norm_paths)
    )

    def is_decayed(name: str, leaf: Any) -> bool:
        if callable(rule):
            return bool(rule(name, leaf))
        if rule == "transformers_v4":
            return "bias" not in name and not _below_any(name, any_norm_paths)
        if rule == "examples":
            return not any(part in name for part in _EXAMPLES)
        if rule == "transformers_v5":
            exempt = _found(_TRANSFORMERS_V5, name.lower())
            return not exempt and not _below_any(name, norm_paths)
        if rule == "default":
            exempt = _found(_TRANSFORMERS_V5 + _ANY_NORM, name.lower())
            return not exempt and not _below_any(name, any_norm_paths)
        return not _found(rule, name)

    if isinstance(rule, str):
        _check.one_of("rule", rule, _RULES)
    elif not callable(rule):
        for pattern in rule:
            hits = [re.search(pattern, name) is not None for name in names]
            _matches_something("rule", pattern, hits, names)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: is_decayed(_tree.leaf_name(path), leaf), params
    )


def resolve_mask(
    mask: PyTree | Callable[[PyTree], PyTree] | None, params: PyTree
) -> PyTree:
    """The mask for `params` as a tree of bool: the default rule, a callable's or given.

    Leaves are matched by name: NNX wraps them in variables at one time and not at
    another, so that the same mask has two structures.
    """
    if mask is None:
        mask = decay_mask(params)
    elif callable(mask):
        mask = mask(params)
    decayed = dict(_tree.named_leaves(mask))
    names = _tree.leaf_names(params)
    missing = [name for name in names if name not in decayed]
    # `optax.multi_transform` shows each optimizer a part of the tree.
    is_part = any(map(_is_masked, jax.tree.leaves(params, is_leaf=_is_masked)))
    odd = [] if is_part else [name for name in decayed if name not in set(names)]
    if missing or odd:
        raise ValueError(
            "`decay_mask` must have the structure of `params`: "
            f"{len(missing)} parameters are not in it and {len(odd)} of its leaves are "
            f"no parameters, the first being {[*missing, *odd][0]!r}. Build it with "
            "`decay_mask(params)`, or pass a callable from params to mask."
        )
    for name in names:
        if not isinstance(decayed[name], bool | np.bool_):
            raise TypeError(
                f"`decay_mask` must hold a bool for every leaf, got {decayed[name]!r} "
                f"for {name!r}."
            )
    return jax.tree.unflatten(jax.tree.structure(params), [decayed[n] for n in names])


def _norm_layers(params: PyTree) -> tuple[list[str], list[str]]:
    """Paths of the modules of type LayerNorm, and of all normalisation layers."""
    nodes = jax.tree_util.tree_leaves_with_path(params, is_leaf=_is_norm)
    found = [(_tree.leaf_name(p), node) for p, node in nodes if _is_norm(node)]
    layer_norms = [name for name, node in found if "LayerNorm" in _type_names(node)]
    return layer_norms, [name for name, _ in found]


def _is_norm(node: Any) -> bool:
    names = _type_names(node)
    return any(n.endswith("Norm") for n in names) and not _NOT_NORMS & set(names)


def _type_names(node: Any) -> list[str]:
    return [cls.__name__ for cls in type(node).__mro__]


def _param_state(params: PyTree) -> PyTree:
    """The parameters of an NNX module; everything else as it is."""
    from flax import nnx  # not at the top: a plain tree does not need it

    if isinstance(params, nnx.Module):
        return nnx.to_pure_dict(nnx.state(params, nnx.Param))
    return params


def _found(patterns: Sequence[str], name: str) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _below(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")


def _below_any(name: str, paths: Sequence[str]) -> bool:
    return any(_below(name, path) for path in paths)


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _matches_something(
    argument: str, pattern: str, hits: Sequence[bool], names: Sequence[str]
) -> None:
    if not any(hits):
        example = f", such as {names[0]!r}" if names else ""
        raise ValueError(
            f"`{argument}` must match at least one leaf with each entry, but "
            f"{pattern!r} matches none of the {len(names)} names{example}."
        )
