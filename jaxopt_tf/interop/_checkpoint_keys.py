"""Resolution of names in weight files to parameters of a Transformers model."""

import copy
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

# Components that wrappers insert into a name: torch.compile, FSDP and activation
# checkpointing.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_OUTER_WRAPPERS = ("module.", "base_model.model.")  # DistributedDataParallel, PEFT

# Buffers that older versions saved: a pattern of the name, and a test that is true for
# the shape of the buffer, and false for that of a parameter with such a name.
_FORMER_BUFFERS = (
    (r"(^|\.)(attn|attention)\.bias$", lambda s: len(s) == 4 and s[:2] == (1, 1)),
    (r"(^|\.)masked_bias$", lambda s: s in ((), (1,))),
    (r"(^|\.)position_ids$", lambda s: len(s) <= 2),
    (r"(^|\.)token_type_ids$", lambda s: len(s) <= 2),
    (r"(^|\.)(original_)?inv_freq$", lambda s: len(s) == 1),
)
# Patterns of names that occur only in another kind of file, with the kind and a remedy.
_OTHER_FILES = (
    (
        r"\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)\b|\.base_layer\.",
        "an adapter of PEFT, not merged. Save `model.merge_and_unload()`",
    ),
    (
        r"\.(SCB|absmax|quant_map|quant_state\.[\w.]+|qweight|qzeros|g_idx|weight_packed"
        r"|weight_scale_inv|weight_scale)$",
        "a quantized model. Save `model.dequantize()`",
    ),
)


class LoadRules(NamedTuple):
    """Rules by which Transformers resolves the names in weight files of a model.

    Source: transformers 5.23 `core_model_loading.py`, `rename_source_key`;
        `modeling_utils.py`, `_adjust_missing_and_unexpected_keys`.
    """

    renamings: Sequence[Any] = ()  # Transformers' `WeightRenaming`, in order
    converters: Sequence[Any] = ()  # `WeightConverter`: merge several tensors into one
    ignored: tuple[str, ...] = ()  # patterns of names that the model does not use
    prefix: str = ""  # `base_model_prefix`: the file may lack it, or the model may


class Keys(NamedTuple):
    """Resolved names of a weight file."""

    by_param: Mapping[str, tuple[str, ...]]  # names in the file, by parameter or buffer
    unused: tuple[str, ...]  # names of tensors that the model does not use
    problems: tuple[str, ...]  # descriptions of names that cannot be resolved


def load_rules(module: Any) -> LoadRules:
    """Returns the rules of a Transformers model; empty rules for another module."""
    if "transformers" not in sys.modules:  # `module` cannot be one of its models
        return LoadRules()
    # These modules exist since Transformers 5.
    try:
        from transformers import PreTrainedModel
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming
    except ImportError:
        return LoadRules()
    if not isinstance(module, PreTrainedModel):
        return LoadRules()
    transforms = get_model_conversion_mapping(module)
    return LoadRules(
        renamings=[t for t in transforms if isinstance(t, WeightRenaming)],
        converters=[t for t in transforms if not isinstance(t, WeightRenaming)],
        ignored=tuple(sorted(module._keys_to_ignore_on_load_unexpected or ())),
        prefix=module.base_model_prefix,
    )


def match_keys(
    shapes: Mapping[str, Sequence[int]], known: Iterable[str], rules: LoadRules
) -> Keys:
    """Resolves every name in a weight file as `from_pretrained` does.

    Args:
        shapes: shape of every tensor in the file.
        known: names of the model's parameters and buffers, including tied parameters.
        rules: rules of the model.

    Differs: `from_pretrained` drops names that the model does not have with a warning.
        Here they are problems, except names that Transformers ignores without a warning
        and buffers of older versions.
    """
    in_model = dict.fromkeys(known, True)
    rules = copy.deepcopy(rules)  # each rule records the names that it is applied to
    # Several names in a file may resolve to one parameter: a former name and today's.
    by_param: dict[str, list[str]] = {}
    unused, unknown, fused = [], [], []
    # Some renamings depend on the order, so the names are resolved in the order of
    # Transformers.
    for key in sorted(shapes, key=natural_key):
        name, is_part = first = _renamed(key, rules, in_model)
        # The unchanged name has precedence, because a module of the model may have the
        # name of a wrapper.
        if name not in in_model:
            inner = (_renamed(one, rules, in_model) for one in _unwrapped(key))
            found = (pair for pair in inner if pair[0] in in_model)
            name, is_part = next(found, first)
        if is_part:
            fused.append(key)
        elif name in in_model:
            by_param.setdefault(name, []).append(key)
        elif _is_unused(name, tuple(shapes[key]), rules):
            unused.append(key)
        else:
            unknown.append(key)
    return Keys(
        {name: tuple(keys) for name, keys in by_param.items()},
        tuple(unused),
        tuple(_problems(unknown, fused, shapes)),
    )


def _renamed(key: str, rules: LoadRules, known: dict[str, bool]) -> tuple[str, bool]:
    """Returns the model's name for a key, and True if a converter merges its tensor."""
    if not (rules.renamings or rules.converters):
        # The part of `rename_source_key` for prefixes, which needs no Transformers.
        short, long = key.removeprefix(f"{rules.prefix}."), f"{rules.prefix}.{key}"
        found = (name for name in (short, long) if name != key and name in known)
        return next(found, key) if rules.prefix else key, False
    from transformers.core_model_loading import rename_source_key

    renamed = rename_source_key(
        key, list(rules.renamings), list(rules.converters), rules.prefix, known
    )
    # A rule that renames a name which this model has is not meant for this model.
    if renamed[0] not in known and key in known:
        renamed = rename_source_key(key, [], [], rules.prefix, known)
    return renamed[0], renamed[1] is not None


def _unwrapped(key: str) -> Iterator[str]:
    """Yields the possible names without the components that wrappers add."""
    parts = [part for part in key.split(".") if part not in _WRAPPERS]
    inner = ".".join(parts)
    if inner != key:
        yield inner
    for prefix in _OUTER_WRAPPERS:
        if inner.startswith(prefix):
            yield inner.removeprefix(prefix)


def _is_unused(name: str, shape: tuple[int, ...], rules: LoadRules) -> bool:
    return any(re.search(pattern, name) for pattern in rules.ignored) or any(
        re.search(pattern, name) and fits(shape) for pattern, fits in _FORMER_BUFFERS
    )


def _problems(
    unknown: Sequence[str], fused: Sequence[str], shapes: Mapping[str, Sequence[int]]
) -> Iterator[str]:
    """Yields descriptions of unknown names, and of tensors that a converter merges."""
    for pattern, content in _OTHER_FILES:
        found = [key for key in unknown if re.search(pattern, key)]
        if found:
            yield f"{found[0]!r} belongs to {content}"
            unknown = [key for key in unknown if key not in found]
    if fused:
        yield (
            f"{fused[0]!r} and {len(fused) - 1} more are parts of tensors that "
            "Transformers merges. Save the model with `model.save_pretrained(folder, "
            "save_original_format=False)`"
        )
    for key in unknown:
        yield f"{key!r} {list(shapes[key])} is not in the model"


def natural_key(key: str) -> list[tuple[int, Any]]:
    """Returns a sort key that orders numbers in names by their value."""
    # As `dot_natural_key` of Transformers 5 for components that are numbers. The first
    # element of each pair prevents comparisons of numbers with strings.
    parts = key.split(".")
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]
