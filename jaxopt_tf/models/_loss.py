"""The loss of a GPT-2, and new parameters for it."""

import contextlib
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from .. import _checks, training
from .._typing import PyTree
from ._config import GPT2Config
from ._model import GPT2, as_tokens, identity

# Padding at the end of a row.
_NO_TOKEN = -100


class LossFn(Protocol):
    """The loss of a language model."""

    def __call__(
        self, params: PyTree, batch: jax.Array, rng: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the summed loss and the number of predicted tokens; (), float32."""
        ...


def make_loss_fn(
    config: GPT2Config, seed: int, *, label_smoothing_factor: float = 0.0
) -> tuple[PyTree, LossFn]:
    """Returns the parameters of a new model and its loss.

    The loss takes parameters, a batch and, for training with dropout, a key. A batch is
    [B, T + 1] integers of which the first T predict the last T; T is at most
    `block_size`. A row that is shorter ends in -100, which is not predicted and counts
    nowhere. A token that is outside the vocabulary, or that follows a -100, makes the
    loss NaN. Without a key there is no dropout, as in an evaluation.

    With parameters in bfloat16 activations are bfloat16 too; norms, softmax and the
    loss are computed in float32.

    Args:
        config: the model's size.
        seed: of the parameters.
        label_smoothing_factor: share of the loss that is the mean over the vocabulary,
            at least 0 and less than 1.

    Returns:
        The parameters, a tree of dicts of float32 arrays; and the loss,
        (params, batch, rng=None) -> (summed loss, number of predicted tokens).

    Raises:
        ValueError, TypeError: if `label_smoothing_factor` is out of range; the loss, if
            a batch has another shape, is too long or holds no integers.
    """
    loss_fn = loss_of(config, label_smoothing_factor=label_smoothing_factor)
    return draw_params(config, seed), loss_fn


def draw_params(config: GPT2Config, seed: int) -> PyTree:
    """Draws the parameters of a new model, a tree of dicts of float32 arrays."""
    model = GPT2(config, rngs=nnx.Rngs(seed))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def loss_of(
    config: GPT2Config,
    *,
    label_smoothing_factor: float = 0.0,
    constrain: Callable[[jax.Array], jax.Array] = identity,
    matmul_precision: str | None = None,
) -> LossFn:
    """Returns the loss of `make_loss_fn` alone, without drawing parameters.

    Args:
        config: the model's size.
        label_smoothing_factor: as `make_loss_fn` takes it.
        constrain: constrains activations, [B, T, ...], to their sharding on a mesh.
        matmul_precision: of products, the gradient's too, as
            `jax.default_matmul_precision` takes it; None for the one in effect where
            the loss is called.

    Returns:
        (params, batch, rng=None) -> (summed loss, number of predicted tokens).

    Raises:
        ValueError, TypeError: as `make_loss_fn`.
    """
    _checks.fraction_below_one("label_smoothing_factor", label_smoothing_factor)
    model = nnx.eval_shape(lambda: GPT2(config, rngs=nnx.Rngs(0), constrain=constrain))
    graph = nnx.graphdef(model)

    def loss_fn(params, batch, rng=None):
        tokens = as_tokens("batch", batch, least=2).astype(jnp.int32)
        inputs, labels = tokens[:, :-1], tokens[:, 1:]
        is_missing = inputs == _NO_TOKEN
        # Padding at the end of a row is replaced by 0, which no later token sees. In
        # the middle of a row others would: the label -1 makes the loss NaN.
        labels = jnp.where(is_missing & (labels != _NO_TOKEN), -1, labels)
        with _products_in(matmul_precision):
            logits = nnx.merge(graph, params)(jnp.where(is_missing, 0, inputs), rng)
        return training.cross_entropy(
            logits,
            labels,
            label_smoothing_factor=label_smoothing_factor,
            ignore_index=_NO_TOKEN,
        )

    return loss_fn


def _products_in(precision: str | None) -> contextlib.AbstractContextManager:
    if precision is None:
        return contextlib.nullcontext()
    return jax.default_matmul_precision(precision)
