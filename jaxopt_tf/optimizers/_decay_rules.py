"""Named rules for weight decay: those of Trainer, by version, and additional ones.

A rule excludes a parameter by its name or by the type of its normalization layer.
Until 4.52 many modeling modules of Transformers added their own norm to Trainer's list
of types when they were imported, so that the rule differs between architectures and
between minor versions. No rule changed between patch releases of one minor version.
"""

from collections.abc import Iterable
from typing import NamedTuple

from .. import _checks

LAYER_NORM = "LayerNorm"

# Classes that Trainer counts as layer norms besides `torch.nn.LayerNorm`, with the
# first minor version of 4.x that does so and the first one that no longer does. Classes
# in the first block were registered in `ALL_LAYERNORM_LAYERS`, which Trainer has not
# read since 4.53.
_NO_END = 1_000
_NORM_VERSIONS = {
    "ChameleonRMSNorm": (43, 53),
    "CohereLayerNorm": (40, 48),
    "GemmaRMSNorm": (40, 45),
    "GraniteMoeRMSNorm": (45, 53),
    "GraniteRMSNorm": (45, 48),
    "IdeficsRMSNorm": (40, 53),
    "LlamaRMSNorm": (40, 53),
    "LongT5LayerNorm": (40, 53),
    "MegaSequenceNorm": (40, 53),
    "MoshiRMSNorm": (46, 53),
    "OlmoLayerNorm": (40, 48),
    "OlmoeRMSNorm": (45, 53),
    "Pix2StructLayerNorm": (40, 53),
    "Pop2PianoLayerNorm": (40, 53),
    "RecurrentGemmaRMSNorm": (40, 53),
    "SwitchTransformersLayerNorm": (40, 53),
    "T5LayerNorm": (40, 53),
    "ZambaRMSNorm": (46, 53),
    # Subclasses of `torch.nn.LayerNorm` since 4.56, and of `torch.nn.Module` before.
    "ConvNextLayerNorm": (56, _NO_END),
    "ConvNextV2LayerNorm": (56, _NO_END),
    "DeepseekVLHybridLayerNorm": (56, _NO_END),
    "GotOcr2LayerNorm": (56, _NO_END),
    "SamHQLayerNorm": (56, _NO_END),
    "SamLayerNorm": (56, _NO_END),
    "SegGptLayerNorm": (56, _NO_END),
}
# All classes that at least one rule counts as norms.
NORM_TYPES = (LAYER_NORM, *_NORM_VERSIONS)

# Patterns of Trainer since 4.53, which are searched in the lowercase name.
_TRANSFORMERS_V5 = (
    r"bias",
    r"layernorm",
    r"rmsnorm",
    r"(?:^|\.)norm(?:$|\.)",
    r"_norm(?:$|\.)",
)
# Parameters directly in a normalization layer with a common name, such as `norm1`,
# `LayerNorm_0`, `ln_f` or `bn2`; and the gain, which Flax calls `scale` in every layer.
# `[^.]+$` restricts a match to direct members: a `PreNorm` also wraps layers that are
# decayed.
_ANY_NORM = (
    r"norm_?\d*\.[^.]+$",
    r"(?:^|\.)norm_\w+\.[^.]+$",
    r"(?:^|\.)(?:ln|bn)(?:_\w+|\d*)\.[^.]+$",
    r"(?:^|\.)scale$",
)


class DecayRule(NamedTuple):
    """Criteria for the parameters that a rule excludes."""

    patterns: tuple[str, ...]  # regular expressions, searched in the name
    is_case_insensitive: bool = False  # whether the name is lowercased first
    norm_types: frozenset[str] = frozenset()  # names from `NORM_TYPES`
    any_norm: bool = False  # whether every module type with a name `...Norm` counts


def _norm_types(minor: int) -> frozenset[str]:
    """Returns the classes that Trainer of 4.`minor` counts as layer norms."""
    names = {n for n, (first, end) in _NORM_VERSIONS.items() if first <= minor < end}
    return frozenset({LAYER_NORM, *names})


def _trainer_rule(minor: int) -> DecayRule:
    """Returns the rule of Transformers 4.`minor`; version 5 uses that of 4.56."""
    norm_types = _norm_types(minor)
    if minor < 49:
        return DecayRule(("bias",), norm_types=norm_types)
    if minor < 53:
        return DecayRule(("bias", "layernorm", "rmsnorm"), True, norm_types)
    return DecayRule(_TRANSFORMERS_V5, True, norm_types)


# Minor versions of 4.x that introduced a rule; 40 is the oldest supported version. The
# rule of 4.56 is still in use, under the name "transformers_v5".
_FIRST_MINORS = (40, 43, 45, 46, 48, 49, 53)
_LAST_CHANGE = 56

# Rules of Trainer, newest first, each with the first version that uses it.
TRAINER_DECAY_RULES: dict[str, tuple[int, int]] = {
    "transformers_v5": (4, _LAST_CHANGE),
    **{f"transformers_4_{m}": (4, m) for m in reversed(_FIRST_MINORS)},
}

NAMED_RULES: dict[str, DecayRule] = {
    "default": DecayRule(
        _TRANSFORMERS_V5 + _ANY_NORM, True, frozenset(NORM_TYPES), any_norm=True
    ),
    "transformers_v5": _trainer_rule(_LAST_CHANGE),
    "transformers_v4": DecayRule(
        ("bias",), norm_types=_norm_types(_LAST_CHANGE), any_norm=True
    ),
    "examples": DecayRule(("bias", r"LayerNorm\.weight")),
    "all": DecayRule(()),
    **{f"transformers_4_{minor}": _trainer_rule(minor) for minor in _FIRST_MINORS},
}
# Names that `decay_mask` accepts as `rule`.
DECAY_RULES = tuple(NAMED_RULES)
# Rules that recognize norms by type rather than by name.
DECAY_RULES_BY_TYPE = (
    "transformers_v4",
    *(f"transformers_4_{minor}" for minor in _FIRST_MINORS if minor < 53),
)


def trainer_decay_rule(version: str) -> str:
    """Returns the name of the decay rule that Trainer follows in a version.

    Args:
        version: version of Transformers, such as "4.46.3".

    Returns:
        A rule of `decay_mask`: "transformers_4_40" for 4.40 to 4.42,
        "transformers_4_43" for 4.43 and 4.44, "transformers_4_45" for 4.45,
        "transformers_4_46" for 4.46 and 4.47, "transformers_4_48" for 4.48,
        "transformers_4_49" for 4.49 to 4.52, "transformers_4_53" for 4.53 to 4.55,
        "transformers_v5" for 4.56 and later.

    Raises:
        ValueError: if `version` is not a version, or is older than 4.40.

    Source: transformers 4.40.0 to 4.57.6 and 5.0.0 to 5.24.0, first and last patch
        release of each minor version: `trainer.py`,
        `Trainer.get_decay_parameter_names`; `trainer_pt_utils.py`,
        `get_parameter_names`; `pytorch_utils.py` and `models/*/modeling_*.py`,
        `ALL_LAYERNORM_LAYERS`.
    """
    major_minor = _checks.version("version", version)
    for name, first_version in TRAINER_DECAY_RULES.items():
        if major_minor >= first_version:
            return name
    raise ValueError(
        f"`version` must be 4.40 or later, got {version!r}. Pass a rule of "
        "`decay_mask` explicitly."
    )


def norm_type(type_names: Iterable[str]) -> str:
    """Returns the first of `NORM_TYPES` among a class and its bases, or ""."""
    return next((name for name in type_names if name in NORM_TYPES), "")
