"""Rotary position embeddings (RoPE), with the scalings of Transformers.

Each pair of elements of a query or key is rotated by an angle, the product of position
and inverse frequency. Scalings change the frequencies, so that a model can be used for
longer texts than it was trained on.

Source: Su et al., "RoFormer", 2021, arXiv 2104.09864; transformers 5.23
    `modeling_rope_utils.py`, `models/llama/modeling_llama.py`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _checks

# Parameters of each scaling: required ones, then optional ones.
_LENGTH = "original_max_position_embeddings"
_SCALINGS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", _LENGTH), ()),
    "yarn": (
        ("factor", _LENGTH),
        (
            *("attention_factor", "beta_fast", "beta_slow"),
            *("mscale", "mscale_all_dim", "truncate"),
        ),
    ),
    "longrope": (
        ("short_factor", "long_factor", "factor", _LENGTH),
        ("attention_factor",),
    ),
}
ROPE_TYPES = ("default", *_SCALINGS)
# Scalings that depend on the context length before the scaling.
_WITH_ORIGINAL_LENGTH = ("llama3", "yarn", "longrope")
# Scalings whose factor is the ratio of the context lengths if it is not given.
_WITH_LENGTH_RATIO = ("yarn", "longrope")


class Rotation(NamedTuple):
    """Cosines and sines of the angles, already multiplied by the attention factor."""

    cos: jax.Array  # [B or 1, T, D / 2], float32
    sin: jax.Array  # [B or 1, T, D / 2], float32


def check_rope_scaling(
    scaling: Mapping[str, Any] | None, *, head_dim: int, max_position_embeddings: int
) -> dict[str, Any] | None:
    """Returns a RoPE scaling with all required parameters; None without scaling.

    Args:
        scaling: parameters by the names of Transformers, with `rope_type`; or None.
        head_dim: D, number of elements of a query.
        max_position_embeddings: context length of the model.

    Raises:
        ValueError: if the scaling is unknown, or parameters are missing, unknown or out
            of range. The message names all of them.
    """
    if scaling is None:
        return None
    given = {name: value for name, value in scaling.items() if value is not None}
    rope_type = given.pop("rope_type", "default")
    _checks.one_of("rope_scaling.rope_type", rope_type, ROPE_TYPES)
    required, optional = _SCALINGS.get(rope_type, ((), ()))
    if rope_type in _WITH_ORIGINAL_LENGTH:
        given.setdefault(_LENGTH, max_position_embeddings)
    if rope_type in _WITH_LENGTH_RATIO and _is_number(given.get(_LENGTH)):
        given.setdefault("factor", max_position_embeddings / given[_LENGTH])
    problems = [f"`{n}` is missing" for n in required if n not in given]
    problems += [
        f"`{n}` {given[n]!r} is unknown" for n in given if n not in required + optional
    ]
    for name in (n for n in (*required, *optional) if n in given):
        problems += _value_problems(name, given[name], head_dim)
    if rope_type == "llama3" and not problems:
        low, high = given["low_freq_factor"], given["high_freq_factor"]
        if not low < high:
            problems.append(
                f"`high_freq_factor` must be greater than `low_freq_factor`, which is "
                f"{low!r}, got {high!r}"
            )
    if problems:
        listed = ", ".join((*required, *optional)) or "none"
        raise ValueError(
            f"`rope_scaling` must have the parameters of {rope_type!r} ({listed}), got "
            f"{dict(scaling)!r}: {'; '.join(problems)}. Correct config.json."
        )
    return None if rope_type == "default" else {"rope_type": rope_type, **given}


def inverse_frequencies(
    scaling: Mapping[str, Any] | None,
    *,
    theta: float,
    head_dim: int,
    max_position_embeddings: int,
    num_positions: int | jax.Array | None = None,
) -> tuple[np.ndarray | jax.Array, float]:
    """Returns the inverse frequencies and the attention factor of a scaling.

    Frequencies and factor are computed in float32 in the order of Transformers. Only
    "dynamic" and "longrope" depend on the length of the text.

    Args:
        scaling: result of `check_rope_scaling`.
        theta: base of the frequencies.
        head_dim: D, number of elements of a query; even.
        max_position_embeddings: context length of the model.
        num_positions: largest position of the batch plus 1, (), int32; None for texts
            that are not longer than the context before the scaling.

    Returns:
        The inverse frequencies, [D / 2], float32, and the factor of the cosines and
        sines.

    Source: transformers 5.23 `modeling_rope_utils.py`, `ROPE_INIT_FUNCTIONS`.
    Differs: with "dynamic", `LlamaRotaryEmbedding` keeps the frequencies of the longest
        text that it has processed for following shorter texts. Here the frequencies
        depend on the batch only.
    """
    exponents = np.arange(0, head_dim, 2).astype(np.float32) / np.float32(head_dim)
    # torch's float32 power is correctly rounded for nearly all arguments, NumPy's is
    # not. At position 8,192, one unit in the last place is an angle of 5e-4.
    powers = np.power(np.float64(theta), exponents.astype(np.float64))
    powers = powers.astype(np.float32)
    plain = 1 / powers
    rope_type = "default" if scaling is None else scaling["rope_type"]
    if scaling is None or rope_type == "default":
        return plain, 1.0
    if rope_type == "linear":
        return plain / np.float32(scaling["factor"]), 1.0
    if rope_type == "dynamic":
        if num_positions is None:
            return plain, 1.0
        longest = jnp.maximum(num_positions, max_position_embeddings)
        growth = jnp.float32(scaling["factor"]) * longest.astype(jnp.float32)
        growth = growth / max_position_embeddings - (scaling["factor"] - 1)
        base = theta * growth ** (head_dim / (head_dim - 2))
        return 1 / base**exponents, 1.0
    if rope_type == "llama3":
        return _llama3(plain, scaling), 1.0
    if rope_type == "yarn":
        return _yarn(powers, scaling, theta, head_dim), _yarn_attention_factor(scaling)
    return _longrope(powers, scaling, num_positions)


def rotation(
    position_ids: jax.Array, inv_freq: np.ndarray | jax.Array, factor: float
) -> Rotation:
    """Returns the cosines and sines for positions [B or 1, T]."""
    angles = position_ids[..., None].astype(jnp.float32) * inv_freq[None, None]
    return Rotation(jnp.cos(angles) * factor, jnp.sin(angles) * factor)


def rotate(x: jax.Array, rotation: Rotation) -> jax.Array:
    """Rotates queries or keys, [B, T, H, D], in float32; returns the dtype of `x`.

    Element i forms a pair with element i + D / 2, as in Transformers.
    """
    cos, sin = rotation.cos[:, :, None], rotation.sin[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def _llama3(plain: np.ndarray, scaling: Mapping[str, Any]) -> np.ndarray:
    """Divides low frequencies by the factor and interpolates the middle ones."""
    factor, length = scaling["factor"], scaling[_LENGTH]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelengths = np.float32(2 * math.pi) / plain
    scaled = np.where(wavelengths > length / low, plain / np.float32(factor), plain)
    fraction = (np.float32(length) / wavelengths - low) / (high - low)
    fraction = fraction.astype(np.float32)
    between = (1 - fraction) * scaled / np.float32(factor) + fraction * scaled
    is_middle = (wavelengths >= length / high) & (wavelengths <= length / low)
    return np.where(is_middle, between, scaled).astype(np.float32)


def _yarn(
    powers: np.ndarray, scaling: Mapping[str, Any], theta: float, head_dim: int
) -> np.ndarray:
    """Interpolates between unchanged high frequencies and divided low ones.

    Source: Peng et al., "YaRN", 2023, arXiv 2309.00071, section 3.2.
    """

    def index_of(num_rotations: float) -> float:
        # Index of the frequency with this number of rotations in the context.
        ratio = scaling[_LENGTH] / (num_rotations * 2 * math.pi)
        return head_dim * math.log(ratio) / (2 * math.log(theta))

    low = index_of(scaling.get("beta_fast") or 32)
    high = index_of(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # against a division by zero
    indices = np.arange(head_dim // 2, dtype=np.float32)
    unscaled = 1 - np.clip((indices - np.float32(low)) / np.float32(high - low), 0, 1)
    divided = 1 / (np.float32(scaling["factor"]) * powers)
    mixed = divided * (1 - unscaled) + 1 / powers * unscaled
    return mixed.astype(np.float32)


def _yarn_attention_factor(scaling: Mapping[str, Any]) -> float:
    given = scaling.get("attention_factor")
    if given is not None:
        return float(given)

    def growth(weight: float) -> float:
        factor = scaling["factor"]
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return growth(scaling["mscale"]) / growth(scaling["mscale_all_dim"])
    return growth(1.0)


def _longrope(
    powers: np.ndarray,
    scaling: Mapping[str, Any],
    num_positions: int | jax.Array | None,
) -> tuple[np.ndarray | jax.Array, float]:
    """Divides each frequency by its own factor; long texts have other factors."""
    short, long = (
        1 / (np.asarray(scaling[name], np.float32) * powers)
        for name in ("short_factor", "long_factor")
    )
    length, factor = scaling[_LENGTH], scaling["factor"]
    attention_factor = scaling.get("attention_factor")
    if attention_factor is None:
        grown = 1 + math.log(factor) / math.log(length) if factor > 1 else 1.0
        attention_factor = math.sqrt(grown)
    if num_positions is None:
        return short, attention_factor
    return jnp.where(num_positions > length, long, short), attention_factor


def _value_problems(name: str, value: Any, head_dim: int) -> list[str]:
    if name == "truncate":
        is_valid, required = isinstance(value, bool), "True or False"
    elif name in ("short_factor", "long_factor"):
        is_list = isinstance(value, Sequence) and len(value) == head_dim // 2
        is_valid = is_list and all(_is_number(x) and x > 0 for x in value)
        required = f"a list of {head_dim // 2} numbers greater than 0"
    else:
        minimum = 1 if name in ("factor", _LENGTH) else 0
        is_valid = _is_number(value) and value >= minimum
        required = f"a number of at least {minimum}"
    return [] if is_valid else [f"`{name}` must be {required}, got {value!r}"]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
