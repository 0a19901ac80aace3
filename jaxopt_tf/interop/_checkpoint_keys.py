"""Names in weight files, resolved to the parameters of a model of Transformers."""

import copy
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

# Parts that wrappers of a module add to a name.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_OUTER_WRAPPERS = ("module.", "base_model.model.")  # DistributedDataParallel, PEFT

# Buffers of older versions, whose names no parameter has: pattern and shape.
_FORMER_BUFFERS = (
    (r"(^|\.)(attn|attention)\.bias$", lambda s: len(s) == 4 and s[:2] == (1, 1)),
    (r"(^|\.)masked_bias$", lambda s: s in ((), (1,))),
    (r"(^|\.)position_ids$", lambda s: len(s) <= 2),
    (r"(^|\.)token_type_ids$", lambda s: len(s) <= 2),
    (r"(^|\.)(original_)?inv_freq$", lambda s: len(s) == 1),
)
# Endings of names that only another kind of file has; the kind, and the cure.
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
    """Rules by which Transformers reads the names in weight files of a model.

    Source: transformers 5.23 `core_model_loading.py`, `rename_source_key`;
        `modeling_utils.py`, `_adjust_missing_and_unexpected_keys`.
    """

    renamings: Sequence[Any] = ()  # Transformers' `WeightRenaming`, in order
    converters: Sequence[Any] = ()  # `WeightConverter`: several tensors become one
    ignored: tuple[str, ...] = ()  # patterns of names that the model does not use
    prefix: str = ""  # `base_model_prefix`: may be missing in a file, or too many


class Keys(NamedTuple):
    """Names in a weight file by their meaning."""

    of: Mapping[str, tuple[str, ...]]  # names in the file, by parameter or buffer
    unused: tuple[str, ...]  # names of buffers and others that the model does not use
    problems: tuple[str, ...]


def load_rules(module: Any) -> LoadRules:
    """Returns the rules of a model of Transformers; none for another module."""
    if "transformers" not in sys.modules:  # then it is not one of its models
        return LoadRules()
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
    """Resolves every name in a weight file, as `from_pretrained` does.

    Args:
        shapes: shape of every tensor in the file.
        known: names of the model's parameters and buffers, tied ones included.
        rules: rules of the model.

    Differs: `from_pretrained` drops names that the model does not have with a warning.
        They are problems here, except for those that Transformers ignores without a
        warning and for buffers of older versions.
    """
    in_model = dict.fromkeys(known, True)
    rules = copy.deepcopy(rules)  # they store the names that they were applied to
    # Several names in a file may become one: a former name beside today's.
    of: dict[str, list[str]] = {}
    unused, strange, fused = [], [], []
    # In the order in which Transformers reads them, which some renamings need.
    for key in sorted(shapes, key=_natural):
        name, is_part = first = _renamed(key, rules, in_model)
        # Unchanged first: a model may have a part that is called like a wrapper.
        if name not in in_model:
            inner = (_renamed(one, rules, in_model) for one in _unwrapped(key))
            found = (pair for pair in inner if pair[0] in in_model)
            name, is_part = next(found, first)
        if is_part:
            fused.append(key)
        elif name in in_model:
            of.setdefault(name, []).append(key)
        elif _is_unused(name, tuple(shapes[key]), rules):
            unused.append(key)
        else:
            strange.append(key)
    return Keys(
        {name: tuple(keys) for name, keys in of.items()},
        tuple(unused),
        tuple(_problems(strange, fused, shapes)),
    )


def _renamed(key: str, rules: LoadRules, known: dict[str, bool]) -> tuple[str, bool]:
    """Returns a name in the model; and whether the tensor is a part of the model's."""
    if not (rules.renamings or rules.converters or rules.prefix):
        return key, False
    from transformers.core_model_loading import rename_source_key

    found = rename_source_key(
        key, list(rules.renamings), list(rules.converters), rules.prefix, known
    )
    # A rule may rename a name that the model has: then it is not for this model.
    if found[0] not in known and key in known:
        found = rename_source_key(key, [], [], rules.prefix, known)
    return found[0], found[1] is not None


def _unwrapped(key: str) -> Iterator[str]:
    """Yields a name without the parts that wrappers add to it."""
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
    strange: Sequence[str], fused: Sequence[str], shapes: Mapping[str, Sequence[int]]
) -> Iterator[str]:
    for pattern, what in _OTHER_FILES:
        found = [key for key in strange if re.search(pattern, key)]
        if found:
            yield f"{found[0]!r} is of {what}"
            strange = [key for key in strange if key not in found]
    if fused:
        yield (
            f"{fused[0]!r} and {len(fused) - 1} more are parts of tensors that "
            "Transformers puts together. Save the model with "
            "`model.save_pretrained(folder, save_original_format=False)`"
        )
    for key in strange:
        yield f"{key!r} {list(shapes[key])} is not of the model"


def _natural(key: str) -> list[tuple[int, Any]]:
    """Sorts numbers in names by their value."""
    parts = key.split(".")
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]
