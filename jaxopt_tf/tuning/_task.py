"""Task: loss, parameters and data of runs; all that is not in a recipe."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._typing import PyTree
from ..optimizers import LayerNorms, TorchLayout
from ..recipes import Recipe
from ..training import Batch, LossFn


@dataclass(frozen=True, kw_only=True)
class Task:
    """Loss, parameters and data of runs.

    Attributes:
        loss_fn: as `make_train_step` takes it: (params, batch) -> (summed loss, number
            of items); with `takes_key` a key is its third argument.
        init: returns the initial parameters for a seed.
        batches: returns the training batches of a recipe from the first on, endless or
            at least `max_steps` of them, all of one shape. It is called again for each
            pass over the data, and must return the same ones; runs of one seed share
            them. With accumulation they have a first axis of micro-batches.
        held_out: evaluation batches, for the loss by which runs are compared; without
            any, runs are compared by the training loss at their ends.
        takes_key: whether `loss_fn` takes a key in training, for dropout.
        compute_dtype: as `make_train_step` takes it.
        layouts: as `build_optimizer` takes them.
        layer_norms: as `build_optimizer` takes them.

    Raises:
        TypeError: if a function is not callable, or `held_out` is no list.
    """

    loss_fn: LossFn
    init: Callable[[int], PyTree]
    batches: Callable[[Recipe], Iterable[Batch]]
    held_out: Sequence[Batch] = ()
    takes_key: bool = False
    compute_dtype: Any = None
    layouts: Mapping[str, TorchLayout] | None = None
    layer_norms: LayerNorms | None = None

    def __post_init__(self) -> None:
        """Checks what is called later, where an error would be far from its cause."""
        functions = {
            "loss_fn": "of parameters and a batch",
            "init": "of a seed, that gives parameters",
            "batches": "of a recipe, that gives batches from the first on",
        }
        for name, of in functions.items():
            value = getattr(self, name)
            if not callable(value):
                kind = type(value).__name__
                raise TypeError(f"`{name}` must be a function {of}, got a {kind}.")
        if not isinstance(self.held_out, list | tuple):
            kind = type(self.held_out).__name__
            raise TypeError(
                f"`held_out` must be a list of batches, got a {kind}. Put a single "
                "batch into a list."
            )
