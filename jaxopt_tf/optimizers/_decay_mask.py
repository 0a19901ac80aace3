"""Selection of the parameters that weight decay applies to.

Decay pulls weights towards 0, which is not a sensible value for biases and for the
gains of normalization layers. Recipes exclude such parameters by different rules.
Names are dotted paths such as `h.0.attn.c_attn.kernel` in Linen, NNX and torch.

The patterns of the default rule match the names of PyTorch and Flax. `_SIBLINGS` and
`_LIBRARY_PATTERNS` contain names from Haiku 0.0.17, Keras 3.15 and Penzai 0.2.5 that
they miss. A name that has other meanings in other libraries is recognized only if its
sibling exists: `b` beside a `w` with more axes, `beta` beside `gamma`.
"""

import collections
import functools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

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

# Maps the last part of a name to sibling names, of which at least one must exist.
_SIBLINGS = {
    "b": ("w", "w_i", "w_h"),  # Haiku's bias; w_i and w_h of its GRU
    "offset": ("scale",),  # Haiku's norms
    "gamma": ("beta",),  # Keras's norms
    "beta": ("gamma",),
}
_LIBRARY_PATTERNS = (
    r"normalization(?:_\d+)?\.(?:gamma|beta)$",  # Keras's norms with only one of them
    r"(?:^|\.)moving_(?:mean|variance)$",  # Keras's BatchNormalization
    r"(?:^|\.)scale\.weights(?:$|\.)",  # Penzai's norms
)
# Names of norms that wrap a layer whose weight is decayed.
_NOT_NORMS = frozenset({"WeightNorm", "SpectralNorm"})

Rule = str | Sequence[str] | Callable[[str, Any], bool]
# Paths of layer norms, or a mapping from such paths to their classes in torch.
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
            module, whose layers are then recognized by their type. The mask has no
            entry for leaves that are not arrays. Stacked layers have the same mask:
            it depends on names, not on ranks.
        rule: parameters to exclude.
            "default": those that Transformers 5 excludes, and every normalization
            layer.
            "transformers_v5": those that `Trainer` excludes since 4.56: names that
            contain `bias` or a spelling of a norm that it knows, and layers of type
            LayerNorm. "transformers_4_53" (4.53 to 4.55): the same, except that norms
            of some vision models, such as ConvNextLayerNorm, are not LayerNorm yet.
            "transformers_4_49" (4.49 to 4.52): names that contain `bias`, `layernorm`
            or `rmsnorm`, and the types that these versions count as layer norms.
            "transformers_4_40" (4.40 to 4.42), "transformers_4_43" (4.43 and 4.44),
            "transformers_4_45" (4.45), "transformers_4_46" (4.46 and 4.47),
            "transformers_4_48" (4.48): names that contain `bias`, and the types that
            these versions count as layer norms, LlamaRMSNorm and T5LayerNorm among
            them. `trainer_decay_rule` returns the rule of a version.
            "transformers_v4": names that contain `bias`, and normalization layers by
            type; with a mapping `layer_norms`, those of type LayerNorm.
            "examples": names that contain `bias` or `LayerNorm.weight`,
            case-sensitive, as in the example scripts without Trainer.
            "all": no parameter is excluded, as in `torch.optim.AdamW`.
            A sequence of regular expressions: names in which one of them is found.
            A callable `(name, leaf) -> bool`: True if decay applies.
        layer_norms: normalization layers, for trees without types. A sequence of paths
            of modules, which count as LayerNorm; or a mapping from such paths to the
            class in torch, such as "LayerNorm" or "LlamaRMSNorm", as returned by
            `match_names(params, model).layer_norms`. Parameters directly in these
            modules are excluded if the rule counts the class.
        names: names of the leaves in the order of `jax.tree.leaves`, for a tree without
            names. For a list of arrays from Keras, pass `[v.path for v in
            model.trainable_variables]`.

    Returns:
        A tree of bool with the structure of `params`, for the `decay_mask` argument of
        the optimizers or for `optax.masked`. For an NNX module, a nested dict with the
        structure of its `nnx.Param` state.

    Raises:
        ValueError, TypeError: if `rule` is none of these; if a class in `layer_norms`
            is not known; if a pattern or a path matches no leaf, because its parameters
            would be decayed silently; if `rule` is a string and a leaf has no name, as
            in a list or a bare array, where all keys of its path are indices.

    Examples:
        >>> params = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
        >>> decay_mask(params)
        {'dense': {'bias': False, 'kernel': True}}

    Source: transformers 4.40 to 4.57 and 5.0 to 5.24 `trainer.py`,
        `Trainer.get_decay_parameter_names`, and `pytorch_utils.py`,
        `ALL_LAYERNORM_LAYERS`;
        `examples/pytorch/text-classification/run_glue_no_trainer.py`.
    Differs: the default also excludes BatchNorm, GroupNorm and norms that Trainer's
        patterns miss (`norm1`, `ln_q`, `norm_f`). Trainer decays them by accident.
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
    """Returns for each leaf why `decay_mask` excludes it, or "" if it is decayed."""
    _check_rule(rule, layer_norms)
    norm_layers = _norm_layers(params)
    if _is_nnx_module(params):
        from flax import nnx

        params = nnx.to_pure_dict(nnx.state(params, nnx.Param))
    if names is not None:
        _check_names(names, params)
    elif isinstance(rule, str) and NAMED_RULES[rule].patterns:
        _check_has_names(params)
    leaf_names = _LeafNames(params, names)
    if not isinstance(rule, str) or layer_norms:
        _check_matches(rule, layer_norms, params, names)
    return _reasons(params, rule, layer_norms, norm_layers, leaf_names)


def _reasons(
    params: PyTree,
    rule: Rule,
    layer_norms: LayerNorms,
    norm_layers: Mapping[str, str],
    leaf_names: "_LeafNames",
) -> PyTree:
    if isinstance(rule, str):
        known = NAMED_RULES[rule]
        excluded = _excluded_layers(known, norm_layers, layer_norms)
    else:
        known = DecayRule(() if callable(rule) else tuple(rule))
        excluded = set()

    def reason(path: tuple[Any, ...], leaf: Any) -> str | None:
        if not hasattr(leaf, "shape"):
            return None  # JAX treats None as an empty subtree: the mask has no entry
        name = leaf_names.by_path[path]
        if callable(rule):
            return "" if rule(name, leaf) else "by your rule"
        searched = name.lower() if known.is_case_insensitive else name
        if rule == "default":
            searched = searched.replace("/", ".")  # the separator of Haiku and Keras
        for pattern in known.patterns:
            if found := re.search(pattern, searched):
                return f"{found.group().strip('.')!r} in its name"
        if name.rpartition(".")[0] in excluded:
            return "its layer is a norm"
        return leaf_names.library_reason(name) if rule == "default" else ""

    return jax.tree_util.tree_map_with_path(reason, params)


def resolve_mask(
    mask: PyTree | Callable[[PyTree], PyTree] | None,
    params: PyTree,
    weight_decay: Scalar,
) -> list[bool]:
    """Returns for each leaf of `params` whether it is decayed.

    Without a mask the default rule applies, and leaves without names are refused if
    `weight_decay` is known to be nonzero. A traced value may be 0, so it is accepted.
    Under `optax.inject_hyperparams`, `init` outside of `jit` has checked its value.

    A mask of another structure is matched by name, because NNX does not always wrap
    leaves in variables, and `optax.multi_transform` passes a part of the tree.
    """
    if mask is None:
        if _pytrees.unnamed_leaves(params):
            if _checks.is_concrete(weight_decay) and not is_zero(weight_decay):
                _check_has_names(params, weight_decay)
            return [True] * len(jax.tree.leaves(params))
        leaf_names = _LeafNames(params)
        reasons = _reasons(params, "default", (), _norm_layers(params), leaf_names)
        return [reason == "" for reason in jax.tree.leaves(reasons)]
    bools = [isinstance(leaf, bool | np.bool_) for leaf in jax.tree.leaves(mask)]
    if callable(mask) and not any(bools):
        mask = mask(params)  # a module of bools is callable too, but it is a mask
    structure: Any = jax.tree.structure(params)
    if jax.tree.structure(mask) == structure:
        return list(map(_checked_bool, jax.tree.leaves(mask)))
    names = _pytrees.leaf_names(params)
    decayed = dict(_pytrees.named_leaves(mask))
    missing = [name for name in names if name not in decayed]
    times = collections.Counter(names)
    extra = [name for name in times if times[name] > 1]  # ambiguous
    if not _pytrees.has_masked_nodes(params):
        extra += [name for name in decayed if name not in times]
    if missing or extra:
        raise ValueError(
            f"`decay_mask` must have the structure of `params`: {len(missing)} "
            f"parameters are not in it and {len(extra)} of its leaves "
            f"are not parameters, the first being {[*missing, *extra][0]!r}. Build it "
            "with `decay_mask(params)`, or pass a callable from params to mask."
        )
    return [_checked_bool(decayed[name]) for name in names]


class _LeafNames:
    """Names of the leaves of a tree, and their numbers of axes."""

    def __init__(self, params: PyTree, names: Sequence[str] | None = None) -> None:
        """Stores `names`, in the order of the leaves; None for names from the paths."""
        labels = {
            path: node.label
            for path, node in _flatten(params, _pytrees.is_labelled)
            if _pytrees.is_labelled(node) and not any(map(_pytrees.is_name, path))
        }
        given = iter(names or ())
        self.by_path: dict[tuple[Any, ...], str] = {}
        self._num_axes: dict[str, int | None] = {}  # by name; None if it is masked
        for path, leaf in _flatten(params, _pytrees.is_masked):
            label = (n for p, n in labels.items() if path[: len(p)] == p)
            name = next(label, None) or _pytrees.leaf_name(path)
            if names is not None and not _pytrees.is_masked(leaf):
                name = next(given)
            self.by_path[path] = name
            self._num_axes[name.replace("/", ".")] = getattr(leaf, "ndim", None)

    def library_reason(self, name: str) -> str:
        """Returns why a library gives this name to a bias or a norm, or "" if none."""
        name = name.replace("/", ".")
        parent, _, last = name.rpartition(".")
        for other in _SIBLINGS.get(last, ()):
            sibling = f"{parent}.{other}" if parent else other
            # A `b` with as many axes as its `w` may be a weight.
            if sibling in self._num_axes and (
                last != "b" or self._has_fewer_axes(name, sibling)
            ):
                return f"{last!r} beside {other!r} in its name"
        for pattern in _LIBRARY_PATTERNS:
            if found := re.search(pattern, name):
                return f"{found.group().strip('.')!r} in its name"
        return ""

    def _has_fewer_axes(self, name: str, other: str) -> bool:
        num, num_other = self._num_axes[name], self._num_axes[other]
        return num is None or num_other is None or num < num_other


def _flatten(tree: PyTree, is_leaf: Any) -> list[tuple[tuple[Any, ...], Any]]:
    return jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)


def _excluded_layers(
    rule: DecayRule, norm_layers: Mapping[str, str], layer_norms: LayerNorms
) -> set[str]:
    """Returns the paths of the normalization layers that a rule excludes."""
    given = layer_norms
    if not isinstance(given, Mapping):
        given = dict.fromkeys(given, LAYER_NORM)
    found = {p for p, t in norm_layers.items() if rule.any_norm or t in rule.norm_types}
    return found | {p for p, t in given.items() if t in rule.norm_types}


def _norm_layers(tree: PyTree, parent_path: tuple[Any, ...] = ()) -> dict[str, str]:
    """Returns the paths of modules whose type is a norm, with the type if known."""
    found = {}
    if _is_norm(tree):
        found[_pytrees.path_name(parent_path)] = norm_type(_type_names(type(tree)))
    for path, node in _flatten(tree, lambda n: n is not tree and _is_norm(n)):
        if _is_norm(node):
            found |= _norm_layers(node, (*parent_path, *path))
    return found


def _is_norm(node: Any) -> bool:
    node_type: Any = type(node)
    return _is_norm_type(node_type)


@functools.cache
def _is_norm_type(node_type: type) -> bool:
    names = _type_names(node_type)
    return any(n.endswith("Norm") for n in names) and not _NOT_NORMS & set(names)


def _type_names(node_type: type) -> list[str]:
    return [cls.__name__ for cls in node_type.__mro__]


def _is_nnx_module(params: Any) -> bool:
    # Importing `flax.nnx` takes as long as importing optax. NNX modules need it first.
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(params, nnx.Module)


def _checked_bool(leaf: Any) -> bool:
    if not isinstance(leaf, bool | np.bool_):
        raise TypeError(
            f"`decay_mask` must contain a bool for every leaf, got {leaf!r}. Build it "
            "with `decay_mask(params)`."
        )
    return bool(leaf)


def _check_names(names: Any, params: PyTree) -> None:
    is_list = isinstance(names, Sequence) and not isinstance(names, str)
    if not is_list or not all(isinstance(name, str) for name in names):
        raise TypeError(f"`names` must be a list of strings, got {names!r}.")
    num_leaves = len(jax.tree.leaves(params))
    if len(names) != num_leaves:
        raise ValueError(
            f"`names` must contain one name for each of the {num_leaves} leaves of "
            f"`params`, got {len(names)}. Pass them in the order of `jax.tree.leaves`."
        )


def _check_has_names(params: PyTree, weight_decay: Scalar | None = None) -> None:
    """Raises if a leaf has no name by which a rule could exclude it."""
    unnamed = _pytrees.unnamed_leaves(params)
    if not unnamed:
        return
    num_leaves = len(jax.tree.leaves(params))
    path, leaf = unnamed[0]
    given = "" if weight_decay is None else f" at weight_decay={float(weight_decay):g}"
    raise ValueError(
        "`params` must have names for the default `decay_mask`, which excludes biases "
        f"and norms by name, got {len(unnamed)} of {num_leaves} leaves without a name"
        f"{given}, the first being `params{path}` of shape {tuple(leaf.shape)}. "
        "Pass `decay_mask`: a tree of bool like `params`; a callable, such as `lambda "
        "params: jax.tree.map(lambda p: p.ndim > 1, params)`; or, from names, "
        "`decay_mask(params, names=[...])`, for Keras with `names=[v.path for v in "
        "model.trainable_variables]`."
    )


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
                    f"`rule` must contain regular expressions, got {pattern!r}: "
                    f"{error}. Escape special characters."
                ) from error


def _check_matches(
    rule: Rule, layer_norms: LayerNorms, params: PyTree, names: Sequence[str] | None
) -> None:
    """Raises if a path or a pattern matches no leaf, unless some leaves are masked."""
    if _pytrees.has_masked_nodes(params):
        return
    names = names or _pytrees.leaf_names(params)
    parents = {name.rpartition(".")[0] for name in names}
    matched = [("layer_norms", path, path in parents) for path in layer_norms]
    if not isinstance(rule, str) and not callable(rule):
        matched += [
            ("rule", pattern, any(re.search(pattern, name) for name in names))
            for pattern in rule
        ]
    for argument, entry, is_matched in matched:
        if not is_matched:
            example = f", such as {names[0]!r}" if names else ""
            raise ValueError(
                f"`{argument}` must match at least one leaf with each entry, but "
                f"{entry!r} matches none of the {len(names)} names{example}."
            )
