"""What Adafactor's arguments must be."""

from typing import Any

from .. import _checks, _pytrees
from .._pytrees import shard_axes
from .._typing import PyTree
from . import _learning_rate


def check_rate(learning_rate: Any, relative_step: bool, warmup_init: bool) -> None:
    """Raises unless there is one source of the learning rate."""
    if learning_rate is not None:
        _learning_rate.check(learning_rate)
    if relative_step and learning_rate is not None:
        raise ValueError(
            "`learning_rate` must be None with `relative_step=True`, got "
            f"{learning_rate!r}. Pass `relative_step=False` to set the rate yourself."
        )
    if not relative_step and learning_rate is None:
        raise ValueError(
            "`learning_rate` must be given with `relative_step=False`, got None. Pass "
            "a float, a 0-d array or a schedule."
        )
    if warmup_init and not relative_step:
        raise ValueError(
            "`warmup_init` requires `relative_step=True`, got `relative_step=False`. "
            "Put the warmup into the schedule that you pass as `learning_rate`."
        )


def check_others(
    eps: Any, clip_threshold: Any, decay_rate: Any, beta1: Any, weight_decay: Any
) -> None:
    """Raises unless the other hyper-parameters are in their ranges."""
    _checks.pair("eps", eps)
    for i, value in enumerate(eps):
        _checks.non_negative(f"eps[{i}]", value)
    _checks.positive("clip_threshold", clip_threshold, allow_inf=True)
    _checks.finite("decay_rate", decay_rate)
    if _checks.is_concrete(decay_rate) and decay_rate > 0:
        raise ValueError(
            f"`decay_rate` must be at most 0, got {decay_rate!r}. It is the exponent "
            "of beta2 = 1 - t^decay_rate; optax writes it with the other sign."
        )
    if beta1 is not None:
        _checks.fraction_below_one("beta1", beta1)
    _checks.non_negative("weight_decay", weight_decay)


def check_whole(argument: str, tree: PyTree) -> None:
    """Raises if leaves are shards: which of their axes was cut cannot be seen."""
    shards = [
        (name, sorted(shard_axes(leaf)))
        for name, leaf in _pytrees.named_leaves(tree)
        if _pytrees.is_floating(leaf) and shard_axes(leaf)
    ]
    if shards:
        raise ValueError(
            f"`{argument}` must be whole arrays, whose means `adafactor_tf` takes, but "
            f"inside of `jax.shard_map` {len(shards)} leaves are shards, the first "
            f"being {shards[0][0]!r}, along {shards[0][1]}. Compute gradients there, "
            "but call `init` and `update` outside, under `jax.jit`, which divides "
            "them among the devices by itself."
        )
