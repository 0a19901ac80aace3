"""Flax models of which some parameters are frozen."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import _pytrees, interop, training
from .._typing import PyTree
from ..optimizers import TorchLayout
from ._model import Model


@dataclass(frozen=True, kw_only=True)
class FrozenModel(Model):
    """A model of which only some parameters are trained.

    Its loss takes the tree of all parameters: `training.merge_params(params, frozen)`.

    Attributes:
        whole: the model with all parameters.
        patterns: patterns of the frozen leaves, as for `training.split_params`.
    """

    whole: Model
    patterns: tuple[str, ...]

    @functools.cached_property
    def shapes(self) -> PyTree:
        """Shapes and dtypes of the trainable parameters; nothing is computed."""
        return training.split_params(self.whole.shapes, self.patterns)[0]

    @functools.cached_property
    def frozen_shapes(self) -> PyTree:
        """Shapes and dtypes of the frozen parameters; nothing is computed."""
        return training.split_params(self.whole.shapes, self.patterns)[1]

    @functools.cached_property
    def names(self) -> interop.ParamNames:
        """Names of all parameters; PyTorch does not train those of frozen leaves."""
        return self.whole.names.with_frozen(_pytrees.leaf_names(self.frozen_shapes))

    @property
    def all_layouts(self) -> Mapping[str, TorchLayout] | None:
        """PyTorch layouts of trainable and frozen parameters."""
        return self.whole.layouts

    def init_frozen(self, seed: int) -> PyTree:
        """Returns the initial values of the frozen parameters."""
        return training.split_params(self.whole.init(seed), self.patterns)[1]


def freeze_params(model: Model, patterns: Sequence[str]) -> FrozenModel:
    """Freezes the parameters of a Flax model whose names match a pattern.

    Args:
        model: the model.
        patterns: regular expressions for whole names of leaves.

    Raises:
        ValueError: if a pattern matches no leaf, or all leaves are frozen.
    """
    trainable, _ = training.split_params(model.shapes, patterns)
    names = _pytrees.leaf_names(trainable)
    fields: dict[str, Any] = {f.name: getattr(model, f.name) for f in _FIELDS}
    return FrozenModel(
        **{
            **fields,
            "init": lambda seed: training.split_params(model.init(seed), patterns)[0],
            "layouts": _trained_layouts(model.layouts, names),
            "layer_norms": _trained_layer_norms(model.layer_norms, names),
        },
        whole=model,
        patterns=tuple(patterns),
    )


_FIELDS = dataclasses.fields(Model)


def _trained_layouts(layouts: Mapping[str, Any] | None, names: list[str]) -> Any:
    """Returns the layouts that match a trained leaf.

    A pattern that matches no leaf is an error elsewhere.
    """
    if layouts is None:
        return None
    return {p: x for p, x in layouts.items() if any(re.fullmatch(p, n) for n in names)}


def _trained_layer_norms(layer_norms: Any, names: list[str]) -> Any:
    """Returns the normalizations with trained parameters."""
    parents = {name.rpartition(".")[0] for name in names}
    if isinstance(layer_norms, Mapping):
        return {path: kind for path, kind in layer_norms.items() if path in parents}
    return [path for path in layer_norms or () if path in parents]
