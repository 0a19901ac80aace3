"""Loss function and initial parameters of a GPT-2."""

from collections.abc import Callable
from typing import Protocol

import jax
from flax import nnx

from .. import _checks, training
from .._typing import PyTree
from ._attention import AttentionFn
from ._gpt2 import GPT2
from ._gpt2_config import GPT2Config
from ._inputs import IGNORE_INDEX, Batch, inputs_and_labels
from ._layers import identity, use_matmul_precision


class LossFn(Protocol):
    """Loss function of a language model."""

    def __call__(
        self, params: PyTree, batch: Batch, rng: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns float32 scalars: the summed loss, the number of predicted tokens."""
        ...


def make_loss_fn(
    config: GPT2Config, seed: int, *, label_smoothing_factor: float = 0.0
) -> tuple[PyTree, LossFn]:
    """Returns the initial parameters of a model and its loss function.

    The loss function takes parameters, a batch and, for training with dropout, a key. A
    batch is [B, T + 1] integers, of which the first T predict the last T; T is at most
    `block_size`. Shorter rows are padded with -100, which is not predicted and not
    counted. A batch may also be a dict of arrays [B, T + 1]: `input_ids`, `labels`, and
    optionally `segment_ids` and `position_ids`, as in `make_decoder_loss`. The loss is
    NaN if a token is outside the vocabulary or follows a -100. Without a key there is
    no dropout, as in an evaluation.

    With parameters in bfloat16, the activations are bfloat16. Layer normalization,
    softmax and the loss are computed in float32.

    Args:
        config: configuration of the model.
        seed: seed of the parameters.
        label_smoothing_factor: weight of the mean loss over the vocabulary, at least 0
            and less than 1.

    Returns:
        The parameters, a tree of dicts of float32 arrays; and the loss function,
        (params, batch, rng=None) -> (summed loss, number of predicted tokens).

    Raises:
        ValueError: if `label_smoothing_factor` is out of range. The loss function
            raises it if a batch has the wrong shape or is too long.
        TypeError: if an argument has the wrong type. The loss function raises it if a
            batch does not contain integers.
    """
    loss_fn = make_gpt2_loss(config, label_smoothing_factor=label_smoothing_factor)
    return draw_params(config, seed), loss_fn


def draw_params(config: GPT2Config, seed: int) -> PyTree:
    """Returns random initial parameters, a tree of dicts of float32 arrays."""
    model = GPT2(config, rngs=nnx.Rngs(seed))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def make_gpt2_loss(
    config: GPT2Config,
    *,
    label_smoothing_factor: float = 0.0,
    constrain: Callable[[jax.Array], jax.Array] = identity,
    matmul_precision: str | None = None,
    attend: AttentionFn | None = None,
) -> LossFn:
    """Returns the loss function of `make_loss_fn` without initial parameters.

    Args:
        config: configuration of the model.
        label_smoothing_factor: as for `make_loss_fn`.
        constrain: function that constrains activations, [B, T, ...], to their sharding
            on a mesh.
        matmul_precision: precision of matrix products in the forward and backward pass,
            as for `jax.default_matmul_precision`; None for the precision that is
            configured where the loss is called.
        attend: attention function; None for `gpt2_attention()`.

    Returns:
        (params, batch, rng=None) -> (summed loss, number of predicted tokens).

    Raises:
        ValueError, TypeError: as for `make_loss_fn`.
    """
    _checks.fraction_below_one("label_smoothing_factor", label_smoothing_factor)

    def model() -> GPT2:
        return GPT2(config, rngs=nnx.Rngs(0), constrain=constrain, attend=attend)

    graph = nnx.graphdef(nnx.eval_shape(model))

    def loss_fn(params, batch, rng=None):
        inputs, labels = inputs_and_labels(batch, config.block_size)
        with use_matmul_precision(matmul_precision):
            logits = nnx.merge(graph, params)(inputs, rng)
        return training.cross_entropy(
            logits,
            labels,
            label_smoothing_factor=label_smoothing_factor,
            ignore_index=IGNORE_INDEX,
        )

    return loss_fn
