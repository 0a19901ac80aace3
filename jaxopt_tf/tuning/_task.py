"""Task of a search: loss, initial parameters and data of its runs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._typing import PyTree
from ..optimizers import LayerNorms, TorchLayout
from ..recipes import Recipe
from ..training import Batch, LossFn


@dataclass(frozen=True, kw_only=True)
class Task:
    """Loss, initial parameters and data of runs: everything except their recipes.

    Attributes:
        loss_fn: as for `make_train_step`: (params, batch) -> (summed loss, number of
            items). With `takes_key`, the third argument is a key.
        init: function that returns the initial parameters for a seed.
        batches: function that returns the training batches of a recipe, from the first
            one on. They may be infinite; at least `max_steps` batches are required, all
            of one shape. The function is called several times, and must return equal
            batches for equal seeds: runs of one seed share them. With gradient
            accumulation, batches have a first axis of micro-batches.
        eval_batches: evaluation batches. Runs are compared by their evaluation loss;
            without evaluation batches, by the training loss at their end.
        takes_key: whether `loss_fn` takes a key in training, for dropout.
        compute_dtype: as for `make_train_step`.
        layouts: as for `build_optimizer`.
        layer_norms: as for `build_optimizer`.
        frozen: nested dicts of arrays that all runs share and none trains, as for
            `make_train_step`; None for none. They are in memory once on each device.

    Raises:
        TypeError: if a function is not callable, or `eval_batches` is not a list or a
            tuple.
    """

    loss_fn: LossFn
    init: Callable[[int], PyTree]
    batches: Callable[[Recipe], Iterable[Batch]]
    eval_batches: Sequence[Batch] = ()
    takes_key: bool = False
    compute_dtype: Any = None
    layouts: Mapping[str, TorchLayout] | None = None
    layer_norms: LayerNorms | None = None
    frozen: PyTree | None = None

    def __post_init__(self) -> None:
        """Checks the types of the functions and of `eval_batches`."""
        # The functions are checked here, because they are called much later, while a
        # step is traced.
        functions = {
            "loss_fn": "(params, batch) -> (summed loss, number of items)",
            "init": "(seed) -> parameters",
            "batches": "(recipe) -> iterable of batches",
        }
        for name, signature in functions.items():
            value = getattr(self, name)
            if not callable(value):
                type_name = type(value).__name__
                raise TypeError(
                    f"`{name}` must be a function {signature}, got a {type_name}."
                )
        if not isinstance(self.eval_batches, list | tuple):
            type_name = type(self.eval_batches).__name__
            raise TypeError(
                f"`eval_batches` must be a list of batches, got a {type_name}. Put a "
                "single batch into a list."
            )
