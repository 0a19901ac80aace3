"""Named rules of weight decay: Trainer's, by version of Transformers, and our own.

A rule leaves a parameter out by its name or by the type of its normalization layer.
Trainer's list of types grew while modeling modules were imported: until 4.52 many of
them registered a norm of their own, so that the rule differs between architectures and
between minor versions. No rule changed between patch releases of one minor version.
"""

from collections.abc import Iterable
from typing import NamedTuple

from .. import _checks

LAYER_NORM = "LayerNorm"

# Classes that Trainer counts as layer norms besides torch's: from which minor version
# of 4.x on, and from which on no longer. The first kind was registered in
# `ALL_LAYERNORM_LAYERS`, which 4.53 gave up.
_ALWAYS = 1_000
_COUNTED = {
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
    # Subclasses of torch's LayerNorm since 4.56, and of Module before.
    "ConvNextLayerNorm": (56, _ALWAYS),
    "ConvNextV2LayerNorm": (56, _ALWAYS),
    "DeepseekVLHybridLayerNorm": (56, _ALWAYS),
    "GotOcr2LayerNorm": (56, _ALWAYS),
    "SamHQLayerNorm": (56, _ALWAYS),
    "SamLayerNorm": (56, _ALWAYS),
    "SegGptLayerNorm": (56, _ALWAYS),
}
# Types of norms that at least one rule knows.
NORM_TYPES = (LAYER_NORM, *_COUNTED)

# Patterns of Trainer since 4.53, for the lower-cased name.
_TRANSFORMERS_V5 = (
    r"bias",
    r"layernorm",
    r"rmsnorm",
    r"(?:^|\.)norm(?:$|\.)",
    r"_norm(?:$|\.)",
)
# Parameters directly in a normalization layer, by the names that these are usually
# given (`norm1`, `LayerNorm_0`, `ln_f`, `bn2`), but not those that a `PreNorm` wraps;
# and the gain, which Flax calls `scale` in every layer.
_ANY_NORM = (
    r"norm_?\d*\.[^.]+$",
    r"(?:^|\.)norm_\w+\.[^.]+$",
    r"(?:^|\.)(?:ln|bn)(?:_\w+|\d*)\.[^.]+$",
    r"(?:^|\.)scale$",
)


class DecayRule(NamedTuple):
    """Parameters that a rule leaves out."""

    patterns: tuple[str, ...]  # regular expressions, searched in the name
    lowers: bool = False  # whether the name is lower-cased first
    norm_types: frozenset[str] = frozenset()  # of `NORM_TYPES`
    any_norm: bool = False  # whether norms that only our own types show count too


def _norm_types(minor: int) -> frozenset[str]:
    """The classes that Trainer of 4.`minor` counts as layer norms."""
    counted = {n for n, (first, end) in _COUNTED.items() if first <= minor < end}
    return frozenset({LAYER_NORM, *counted})


def _trainer_rule(minor: int) -> DecayRule:
    """The rule of Transformers 4.`minor`; of a later one, the rule of version 5."""
    norm_types = _norm_types(minor)
    if minor < 49:
        return DecayRule(("bias",), norm_types=norm_types)
    if minor < 53:
        return DecayRule(("bias", "layernorm", "rmsnorm"), True, norm_types)
    return DecayRule(_TRANSFORMERS_V5, True, norm_types)


# First minor versions of 4.x that have a rule of their own, and the last change.
_FIRST_MINORS = (40, 43, 45, 46, 48, 49, 53)
_LAST_CHANGE = 56

# Rules of Trainer, newest first: the name, and the first version that has it.
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
# The rules of `decay_mask` that have a name.
DECAY_RULES = tuple(NAMED_RULES)
# Rules that know norms by their types more than by their names.
DECAY_RULES_BY_TYPE = (
    "transformers_v4",
    *(f"transformers_4_{minor}" for minor in _FIRST_MINORS if minor < 53),
)


def trainer_decay_rule(version: str) -> str:
    """Returns the name of the decay rule that Trainer of this version follows.

    Args:
        version: version of Transformers, such as "4.46.3".

    Returns:
        A rule of `decay_mask`: "transformers_4_40" for 4.40 to 4.42,
        "transformers_4_43" for 4.43 and 4.44, "transformers_4_45" for 4.45,
        "transformers_4_46" for 4.46 and 4.47, "transformers_4_48" for 4.48,
        "transformers_4_49" for 4.49 to 4.52, "transformers_4_53" for 4.53 to 4.55,
        "transformers_v5" from 4.56 on.

    Raises:
        ValueError: if `version` is not a version, or is older than 4.40.

    Source: transformers 4.40.0 to 4.57.6 and 5.0.0 to 5.24.0, first and last patch
        release of each minor version: `trainer.py`,
        `Trainer.get_decay_parameter_names`; `trainer_pt_utils.py`,
        `get_parameter_names`; `pytorch_utils.py` and `models/*/modeling_*.py`,
        `ALL_LAYERNORM_LAYERS`.
    """
    number = _checks.version("version", version)
    for name, first in TRAINER_DECAY_RULES.items():
        if number >= first:
            return name
    raise ValueError(
        f"`version` must be 4.40 or later, got {version!r}. Name a rule of "
        "`decay_mask` yourself."
    )


def norm_type(type_names: Iterable[str]) -> str:
    """Returns the first of `NORM_TYPES` among a class and its bases, "" for none."""
    return next((name for name in type_names if name in NORM_TYPES), "")
