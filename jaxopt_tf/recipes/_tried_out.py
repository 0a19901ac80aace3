"""An optimizer tried out on a miniature of the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _pytrees
from .._typing import PyTree
from ..optimizers import get_learning_rate

# What is looked for after a warm-up is the same after one of these.
_MOST_STEPS = 10_000


class TriedOut:
    """An optimizer after its warm-up, to be asked what it makes of gradients."""

    def __init__(self, recipe, optimizer, params):
        self.params = params
        self.num_steps = min(recipe.num_warmup_steps, _MOST_STEPS) + 1
        self.zeros = jax.tree.map(jnp.zeros_like, params)
        value = jnp.float32(1.0)

        def update(grads, state):
            return optimizer.update(grads, state, params, value=value, grad=grads)

        def one_more(_, state):
            return update(self.zeros, state)[1]

        def warm():
            state = optimizer.init(params)
            return jax.lax.fori_loop(0, self.num_steps, one_more, state)

        self.state = jax.jit(warm)()
        self._update = jax.jit(update)

    def updates(self, grads):
        return floats(self._update(grads, self.state)[0])

    def rate_at(self, step):
        """Returns the rate that the optimizer uses when its schedule is at `step`."""

        def at_step(path, leaf):
            keys = _pytrees.path_keys(path)
            # A schedule can be in `optax.inject_hyperparams` too, which counts itself.
            is_step = keys[-1] == "step" or (
                keys[-1] == "count" and "hyperparams_states" in keys
            )
            return jnp.full_like(leaf, step) if is_step else leaf

        state = jax.tree_util.tree_map_with_path(at_step, self.state)
        return get_learning_rate(self._update(self.zeros, state)[1])

    def watched(self, grads):
        """What the gradients become: moments where there are any, else updates."""
        updates, state = self._update(grads, self.state)
        found = {
            name: np.asarray(leaf, np.float64)
            for name, leaf in moments(state, self.params)
        }
        return found or floats(updates)


def miniature(params: PyTree) -> PyTree:
    rng = np.random.default_rng(0)

    def small(leaf):
        shape = tuple(min(size, 4) for size in leaf.shape)
        values = rng.uniform(0.01, 0.03, shape) if _pytrees.is_floating(leaf) else 0
        return jnp.broadcast_to(jnp.asarray(values, leaf.dtype), shape)

    return jax.tree.map(small, params)


def floating_leaves(tree: PyTree) -> dict[str, Any]:
    return {
        name: leaf
        for name, leaf in _pytrees.named_leaves(tree)
        if _pytrees.is_floating(leaf) and leaf.size
    }


def floats(tree: PyTree) -> dict[str, np.ndarray]:
    leaves = floating_leaves(tree).items()
    return {name: np.asarray(leaf, np.float64) for name, leaf in leaves}


def moments(state: PyTree, params: PyTree) -> list[tuple[str, Any]]:
    """Leaves of the state that belong to a parameter, by their names in it."""
    names = tuple("." + name for name in _pytrees.leaf_names(params))
    return [
        (name, leaf)
        for name, leaf in _pytrees.named_leaves(state)
        if _pytrees.is_floating(leaf) and leaf.ndim and name.endswith(names)
    ]


def nodes(state: PyTree, kind: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(
        state, is_leaf=lambda node: isinstance(node, kind)
    )
    return [
        (_pytrees.path_name(p), node) for p, node in leaves if isinstance(node, kind)
    ]
