"""Gradient accumulation against one large batch, in numbers and in memory.

    python -m benchmarks.accumulation_equals_one_batch

Micro-batches have unequal numbers of tokens (others are -100), and the last window is
short. The result of a mean of means is printed too.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks._report import Row, main
from jaxopt_tf import adamw_tf, clip, init_train_state, make_train_step
from jaxopt_tf.models import GPT2, GPT2Config
from jaxopt_tf.training import cross_entropy

# An optimizer that stores its gradients and changes no parameter.
READER = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda grads, state, params=None: (jax.tree.map(jnp.zeros_like, grads), grads),
)


def rows(smoke: bool) -> Iterator[Row]:
    config = GPT2Config(n_layer=1, n_embd=32, n_head=2) if smoke else GPT2Config()
    graph, params = nnx.split(GPT2(config, rngs=nnx.Rngs(0)), nnx.Param)

    def loss_fn(params, batch):
        tokens, labels = batch
        return cross_entropy(nnx.merge(graph, params)(tokens), labels)

    # Compiled once for each window length, and used for all seeds.
    steps = {
        num_micro: make_train_step(
            loss_fn, READER, gradient_accumulation_steps=num_micro
        )
        for num_micro in (1, 8)
    }

    def gradient(batch, num_micro):
        state = init_train_state(jax.tree.map(jnp.copy, params), READER)
        state, metrics = steps[num_micro](state, batch)
        return state.opt_state, float(metrics.loss)

    worst = {"gradient": 0.0, "loss": 0.0, "mean of means": 0.0}
    for seed in range(4 if smoke else 20):
        # Every fourth window is the short last window of an epoch.
        num_micro = 3 if seed % 4 == 3 else 8
        micro = _unequal(config, num_micro, seed)
        whole = tuple(part.reshape(-1, part.shape[-1]) for part in micro)
        summed, loss = gradient(micro, 8)
        expected, expected_loss = gradient(whole, 1)
        each = [
            gradient(tuple(part[i] for part in micro), 1)[0] for i in range(num_micro)
        ]
        means = jax.tree.map(lambda *g: sum(g) / len(g), *each)
        for name, value in (
            ("gradient", _distance(summed, expected)),
            ("loss", abs(loss - expected_loss) / expected_loss),
            ("mean of means", _distance(means, expected)),
        ):
            worst[name] = max(worst[name], value)
    yield Row(
        claim="accumulated gradient against that of one large batch, unequal lengths, "
        "short last windows (beside it: the mean of the micro-batches' means)",
        value=worst["gradient"],
        optax=worst["mean of means"],
        unit="of its norm",
        limit=1e-6,
    )
    yield Row(
        claim="the loss, likewise", value=worst["loss"], unit="relative", limit=1e-6
    )
    yield from _memory(loss_fn, params, config)


def _unequal(config, num_micro, seed):
    """Returns tokens and labels, [k, 8, T] each, with 1 to T labels per row."""
    rng = np.random.default_rng(seed)
    shape = (num_micro, 8, config.block_size)
    tokens = rng.integers(0, config.vocab_size, shape).astype(np.int32)
    lengths = rng.integers(1, config.block_size + 1, (num_micro, 8, 1))
    lengths //= rng.integers(1, 9, (num_micro, 1, 1))
    is_there = np.arange(config.block_size) < np.maximum(lengths, 1)
    return tokens, np.where(is_there, np.roll(tokens, -1, axis=-1), -100)


def _distance(tree, other) -> float:
    difference = jax.tree.map(lambda a, b: a - b, tree, other)
    return float(optax.global_norm(difference) / optax.global_norm(other))


def _memory(loss_fn, params, config) -> Iterator[Row]:
    optimizer = optax.chain(clip(1.0), adamw_tf(1e-3, weight_decay=0.1))
    state = jax.eval_shape(lambda p: init_train_state(p, optimizer), params)

    def temporary(num_micro):
        shape = (8, config.block_size)
        shape = shape if num_micro == 1 else (num_micro, *shape)
        batch = (jax.ShapeDtypeStruct(shape, jnp.int32),) * 2
        step = make_train_step(
            loss_fn, optimizer, gradient_accumulation_steps=num_micro
        )
        compiled = step.lower(state, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    copy = sum(leaf.size * 4 for leaf in jax.tree.leaves(params))
    yield Row(
        claim="temporary memory of a step over 8 micro-batches, above that of a step "
        "over one",
        value=(temporary(8) - temporary(1)) / copy,
        unit="float32 copies of the gradients",
        limit=1.05,
    )


if __name__ == "__main__":
    main("Accumulation", rows)
