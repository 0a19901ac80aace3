"""Which leaves are decayed, and why.

Decay pulls weights towards 0. For biases and for the gains of normalisation layers
that is the wrong place to be pulled to, so every recipe leaves them out, and each finds
them in its own way. Names are dotted paths, `h.0.attn.c_attn.kernel`, the same for
Linen, NNX and torch.
"""

import collections
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from .. import _checks, _pytrees
from .._numerics import is_zero
from .._typing import PyTree, Scalar
from ._decay_rules import (
    DECAY_RULES,
    LAYER_NORM,
    NAMED_RULES,
    NORM_TYPES,
    DecayRule,
    norm_type,
)
from ._leaf_names import LeafNames, check_names, checked_names, with_dots

# Called norms, but they wrap a layer whose weight is to be decayed.
_NOT_NORMS = frozenset({"WeightNorm", "SpectralNorm"})

Rule = str | Sequence[str] | Callable[[str, Any], bool]
# Paths of layer norms; or with each path the class that torch has there.
LayerNorms = Sequence[str] | Mapping[str, str]


def decay_mask(
    params: PyTree,
    *,
    rule: Rule = "default",
    layer_norms: LayerNorms = (),
    names: Sequence[str] | None = None,
) -> PyTree:
    """Returns for each leaf whether weight decay applies to it.

    Args:
        params: a tree of parameters (Linen, NNX, Equinox, plain); or an NNX or Equinox
            module itself, whose layers are then recognised by their type. Leaves that
            are no arrays have no place in the mask. Stacked layers (an additional
            first axis) make no difference: names decide, not ranks.
        rule: parameters to leave out.
            "default": those that Transformers 5 leaves out, and every normalization
            layer.
            "transformers_v5": those that `Trainer` leaves out since 4.56: names that
            contain `bias` or one of its spellings of a norm, and layers of type
            LayerNorm. "transformers_4_53" (4.53 to 4.55): these, but some vision
            models' norms, such as ConvNextLayerNorm, are no LayerNorm yet.
            "transformers_4_49" (4.49 to 4.52): names that contain `bias`, `layernorm`
            or `rmsnorm`, and the types that these versions count as layer norms.
            "transformers_4_40" (4.40 to 4.42), "transformers_4_43" (4.43 and 4.44),
            "transformers_4_45" (4.45), "transformers_4_46" (4.46 and 4.47),
            "transformers_4_48" (4.48): names that contain `bias`, and the types that
            these versions count as layer norms, LlamaRMSNorm and T5LayerNorm among
            them. `trainer_decay_rule` returns the rule of a version.
            "transformers_v4": names that contain `bias`, and normalization layers by
            type; of a mapping `layer_norms`, those of type LayerNorm. This is the rule
            of no version with a Llama or a T5.
            "examples": names that contain `bias` or `LayerNorm.weight`,
            case-sensitive, as in the example scripts without Trainer.
            "all": none; every parameter is decayed, as `AdamW(model.parameters())` of
            torch does.
            A sequence of regular expressions: names in which one of them is found.
            A callable `(name, leaf) -> bool`: True where decay applies.
        layer_norms: normalization layers, for trees that do not show types. A sequence
            of paths of modules, which count as LayerNorm; or a mapping from such paths
            to the class that torch has there, "LayerNorm" or "LlamaRMSNorm" for
            example, as `match_names(params, model).layer_norms` returns it. Parameters
            directly in these modules are left out, if the rule counts the class.
        names: names of the leaves in the order of `jax.tree.leaves`, for a tree that
            has none: a list of arrays from Keras with `[v.path for v in
            model.trainable_variables]`.

    Returns:
        A tree of bool with the structure of `params`, for `decay_mask=` of our
        optimizers or for `optax.masked`. For an NNX module, a nested dict with the
        structure of its `nnx.Param` state.

    Raises:
        ValueError, TypeError: if `rule` is none of these, if a class in `layer_norms`
            is not known, or if a pattern or a path matches no leaf: parameters meant
            to be left out would be decayed silently. If `rule` has a name and a leaf
            has none: all keys of its path are indices, as in a list or a bare array.

    Source: transformers 4.40 to 4.57 and 5.0 to 5.24 `trainer.py`,
        `Trainer.get_decay_parameter_names`, and `pytorch_utils.py`,
        `ALL_LAYERNORM_LAYERS`;
        `examples/pytorch/text-classification/run_glue_no_trainer.py`.
    Differs: the default also leaves out BatchNorm, GroupNorm and norms that Trainer's
        patterns miss (`norm1`, `ln_q`, `norm_f`): Trainer decays them by accident.
    """
    reasons = decay_reasons(params, rule=rule, layer_norms=layer_norms, names=names)
    return jax.tree.map(lambda reason: reason == "", reasons)


def decay_reasons(
    params: PyTree,
    *,
    rule: Rule = "default",
    layer_norms: LayerNorms = (),
    names: Sequence[str] | None = None,
) -> PyTree:
    """Returns for each leaf why it is not decayed, "" where it is; as `decay_mask`."""
    _check_rule(rule, layer_norms)
    own_types = _norm_layers(params)
    if isinstance(params, nnx.Module):
        params = nnx.to_pure_dict(nnx.state(params, nnx.Param))
    if names is not None:
        names = checked_names(names, params)
    elif isinstance(rule, str) and NAMED_RULES[rule].patterns:
        check_names(params)
    names_by_path = LeafNames(params, names)
    if not _pytrees.is_part(params):
        names = names or _pytrees.leaf_names(params)
        parents = {_parent(name) for name in names}
        for path in layer_norms:
            _matches_something("layer_norms", path, path in parents, names)
        for pattern in () if isinstance(rule, str) or callable(rule) else rule:
            _matches_something("rule", pattern, _found_in(pattern, names), names)
    if isinstance(rule, str):
        known = NAMED_RULES[rule]
        left_out = _left_out(known, own_types, layer_norms)
    else:
        known = DecayRule(() if callable(rule) else tuple(rule))
        left_out = set()

    def reason(path: tuple, leaf: Any) -> str | None:
        if not hasattr(leaf, "shape"):
            return None
        name = names_by_path[path]
        if callable(rule):
            return "" if rule(name, leaf) else "by your rule"
        searched = name.lower() if known.lowers else name
        if rule == "default":
            searched = with_dots(searched)
        for pattern in known.patterns:
            if found := re.search(pattern, searched):
                return f"{found.group().strip('.')!r} in its name"
        if _parent(name) in left_out:
            return "its layer is a norm"
        return names_by_path.library_reason(name) if rule == "default" else ""

    return jax.tree_util.tree_map_with_path(reason, params)


def resolve_mask(
    mask: PyTree | Callable[[PyTree], PyTree] | None,
    params: PyTree,
    weight_decay: Scalar,
) -> PyTree:
    """The mask for `params` as a tree of bool: the default rule, a callable's or given.

    Without a mask, leaves without names are refused if `weight_decay` is known not to
    be 0. A traced one may be the default 0 under `optax.inject_hyperparams`, and is let
    through: `init` outside of `jit` has seen its value.

    A mask of another structure is matched by name: NNX wraps leaves in variables at one
    time and not at another, and `optax.multi_transform` shows a part of the tree.
    """
    if mask is None and _pytrees.nameless_leaves(params):
        if _checks.is_concrete(weight_decay) and not is_zero(weight_decay):
            check_names(params, weight_decay)
        mask = jax.tree.map(lambda _: True, params)
    elif mask is None:
        mask = decay_mask(params)
    elif callable(mask) and not any(map(_is_bool, jax.tree.leaves(mask))):
        mask = mask(params)  # a module of bools can be called too
    names = _pytrees.leaf_names(params)
    structure: Any = jax.tree.structure(params)
    if jax.tree.structure(mask) == structure:
        return jax.tree.map(_checked, mask)
    decayed = dict(_pytrees.named_leaves(mask))
    missing = [name for name in names if name not in decayed]
    times = collections.Counter(names)
    odd = [name for name in times if times[name] > 1]  # a name for two tells nothing
    if not _pytrees.is_part(params):
        odd += [name for name in decayed if name not in times]
    if missing or odd:
        raise ValueError(
            "`decay_mask` must have the structure of `params`: "
            f"{len(missing)} parameters are not in it and {len(odd)} of its leaves are "
            f"no parameters, the first being {[*missing, *odd][0]!r}. Build it with "
            "`decay_mask(params)`, or pass a callable from params to mask."
        )
    return jax.tree.unflatten(structure, [_checked(decayed[name]) for name in names])


def _left_out(
    rule: DecayRule, own_types: Mapping[str, str], layer_norms: LayerNorms
) -> set[str]:
    """Paths of the normalization layers that a rule leaves out."""
    given = layer_norms
    if not isinstance(given, Mapping):
        given = dict.fromkeys(given, LAYER_NORM)
    own = {p for p, t in own_types.items() if rule.any_norm or t in rule.norm_types}
    return own | {p for p, t in given.items() if t in rule.norm_types}


def _norm_layers(tree: PyTree, above: tuple = ()) -> dict[str, str]:
    """Paths of all modules that are norms by type; the type if Trainer knows it."""
    found = {}
    if _is_norm(tree):
        found[_pytrees.path_name(above)] = norm_type(_type_names(tree))
    inside = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda node: node is not tree and _is_norm(node)
    )
    for path, node in inside:
        if _is_norm(node):
            found |= _norm_layers(node, (*above, *path))
    return found


def _is_norm(node: Any) -> bool:
    names = _type_names(node)
    return any(n.endswith("Norm") for n in names) and not _NOT_NORMS & set(names)


def _type_names(node: Any) -> list[str]:
    return [cls.__name__ for cls in type(node).__mro__]


def _found_in(pattern: str, names: Sequence[str]) -> bool:
    return any(re.search(pattern, name) for name in names)


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _is_bool(leaf: Any) -> bool:
    return isinstance(leaf, bool | np.bool_)


def _checked(leaf: Any) -> bool:
    if not _is_bool(leaf):
        raise TypeError(
            f"`decay_mask` must hold a bool for every leaf, got {leaf!r}. Build it "
            "with `decay_mask(params)`."
        )
    return bool(leaf)


def _check_rule(rule: Any, layer_norms: Any) -> None:
    for name, value in (("rule", rule), ("layer_norms", layer_norms)):
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        is_single = name == "rule" and (isinstance(value, str) or callable(value))
        is_mapping = name == "layer_norms" and isinstance(value, Mapping)
        if not is_list and not is_single and not is_mapping:
            raise TypeError(f"`{name}` must be a list of strings, got {value!r}.")
    if isinstance(layer_norms, Mapping):
        for kind in layer_norms.values():
            _checks.one_of("layer_norms", kind, NORM_TYPES)
    if isinstance(rule, str):
        _checks.one_of("rule", rule, DECAY_RULES)
    elif not callable(rule):
        for pattern in rule:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    "`rule` must hold regular expressions, got "
                    f"{pattern!r}: {error}. Escape what is meant to the letter."
                ) from error


def _matches_something(
    argument: str, pattern: str, matches: bool, names: Sequence[str]
) -> None:
    if not matches:
        example = f", such as {names[0]!r}" if names else ""
        raise ValueError(
            f"`{argument}` must match at least one leaf with each entry, but "
            f"{pattern!r} matches none of the {len(names)} names{example}."
        )
