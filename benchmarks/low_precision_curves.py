"""Training curves of 8-bit moments and of bfloat16 parameters, beside float32 AdamW.

    python -m benchmarks.low_precision_curves            # 10 minutes
    python -m benchmarks.low_precision_curves --smoke    # 20 steps, one seed

The GPT-2 and the text of the default job, `jaxopt-tf train`, for 600 steps from three
seeds, which choose the initial parameters and the order of the data. Parameters in
bfloat16 are cast to float32 for the loss, so that only their rounding differs.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._report import Row, main
from jaxopt_tf import Recipe, build_optimizer, init_train_state, make_train_step
from jaxopt_tf.data import Batches, evaluation_batches, standard_library
from jaxopt_tf.models import GPT2Config, build_model
from jaxopt_tf.optimizers import stochastic_rounding
from jaxopt_tf.training import make_eval_step, make_evaluate, train

LIMIT = 0.01


class Variant(NamedTuple):
    """An optimizer, and the dtype of the parameters."""

    title: str
    optim: str = "adamw_torch"
    dtype: str = "float32"
    is_stochastic: bool = False
    limit: float = LIMIT


PLAIN = Variant("AdamW in float32")
VARIANTS = (
    Variant("AdamW with moments of 8 bits", optim="adamw_8bit"),
    Variant(
        "bfloat16 parameters, stochastic rounding", "adamw_torch", "bfloat16", True
    ),
    # For comparison: small steps are lost when they are rounded.
    Variant("bfloat16 parameters, plain", dtype="bfloat16", limit=np.inf),
)


def rows(smoke: bool) -> Iterator[Row]:
    """Yields the distance of each variant's last evaluation loss."""
    seeds = range(1 if smoke else 3)
    num_steps = 20 if smoke else 600
    expected = [_last_loss(PLAIN, seed, num_steps) for seed in seeds]
    for variant in VARIANTS:
        losses = [_last_loss(variant, seed, num_steps) for seed in seeds]
        ratio = np.mean(losses) / np.mean(expected)
        yield Row(
            claim=f"{variant.title}: evaluation loss after {num_steps} steps, mean of "
            f"{len(losses)} seeds, distance from that of AdamW in float32",
            value=float(abs(ratio - 1)),
            unit="relative",
            limit=variant.limit,
            detail=f"{_numbers(losses)}; in float32 {_numbers(expected)}",
        )


def _numbers(losses: list[float]) -> str:
    return ", ".join(f"{loss:.4f}" for loss in losses)


def _last_loss(variant: Variant, seed: int, num_steps: int) -> float:
    model, corpus = build_model(GPT2Config()), standard_library()
    recipe = Recipe(
        optim=variant.optim,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=num_steps // 10,
        weight_decay=0.1,
        max_steps=num_steps,
        seed=seed,
    )
    optimizer = build_optimizer(
        recipe, layouts=model.layouts, layer_norms=model.layer_norms
    )
    if variant.is_stochastic:
        optimizer = stochastic_rounding(optimizer, seed=seed)
    params = jax.tree.map(lambda x: x.astype(variant.dtype), model.init(seed))
    loss_fn, sizes = model.make_loss(), {"block_size": GPT2Config().block_size}
    step = make_train_step(loss_fn, optimizer, compute_dtype=jnp.float32)
    batches = Batches(corpus, batch_size=8, seed=seed, **sizes).iter_from(0)
    state = init_train_state(params, optimizer)
    state = train(step, state, batches, max_steps=num_steps).state
    evaluate = make_evaluate(
        make_eval_step(loss_fn, compute_dtype=jnp.float32),
        evaluation_batches(corpus, batch_size=16, num_tokens=2**16, **sizes),
    )
    return evaluate(state.params)["loss"]


if __name__ == "__main__":
    main("Curves of low precision", rows)
