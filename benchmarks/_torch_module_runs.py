"""Equal runs of a module of Transformers: by Trainer, and here under torchax."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from benchmarks._architectures import Batch
from benchmarks._compared_runs import (
    Ended,
    arguments_of,
    optimizer_arrays,
    schedule_array,
    trained,
)
from jaxopt_tf import Recipe, build_optimizer, interop, training
from jaxopt_tf.models import TorchaxModel, from_torch, from_transformers


class Plan(NamedTuple):
    """Length of a run, and the step at which it is saved."""

    max_steps: int
    save_steps: int
    lr_scheduler_type: str = "constant"
    warmup_steps: int = 0


def model_of(module: Any) -> TorchaxModel:
    """Returns the module as a model; DeBERTa's own loss has data-dependent shapes."""
    import torch

    if module.config.model_type != "deberta-v2":
        return from_transformers(module)

    def loss_fn(module: Any, batch: Any) -> tuple[Any, Any]:
        inputs = {name: x for name, x in batch.items() if name != "labels"}
        logits = module(**inputs).logits.flatten(0, 1)
        labels = batch["labels"].flatten().long()
        sums = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        return sums, labels.ne(-100).sum()

    return from_torch(module, loss_fn)


def arguments(plan: Plan, folder: Path, num_rows: int) -> Any:
    """Returns the run as `TrainingArguments`."""
    return arguments_of(
        folder,
        max_steps=plan.max_steps,
        num_rows=num_rows,
        save_steps=plan.save_steps,
        lr_scheduler_type=plan.lr_scheduler_type,
        warmup_steps=plan.warmup_steps,
        remove_unused_columns=False,
    )


def recipe_of(plan: Plan, folder: Path, num_rows: int) -> Recipe:
    """Returns the run as a recipe."""
    return interop.recipe_from_transformers(arguments(plan, folder, num_rows)).recipe


def torch_inputs(batch: Mapping[str, np.ndarray], dtype: Any) -> dict[str, Any]:
    """Returns a batch as tensors: integers as int64, others in a dtype of torch."""
    import torch

    inputs: dict[str, Any] = {
        name: torch.tensor(x, dtype=torch.int64 if x.dtype.kind == "i" else dtype)
        for name, x in batch.items()
    }
    # CLIP's `forward` computes its loss only with this argument.
    return inputs if "labels" in batch else {**inputs, "return_loss": True}


def by_trainer(
    module: Any,
    batches: Sequence[Batch],
    plan: Plan,
    folder: Path,
    *,
    resume_from: Path | None = None,
) -> Ended:
    """Runs the real Trainer on one batch per step; the module is trained in place."""
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    num_rows = len(next(iter(batches[0].values())))
    rows = [
        {name: x[i] for name, x in batch.items()}
        for batch in batches
        for i in range(num_rows)
    ]

    def collate(chosen: list[Batch]) -> dict[str, Any]:
        stacked = {key: np.stack([row[key] for row in chosen]) for key in chosen[0]}
        return torch_inputs(stacked, module.dtype)

    trainer = transformers.Trainer(
        module,
        arguments(plan, folder, num_rows),
        data_collator=collate,
        train_dataset=rows,
    )
    with warnings.catch_warnings():
        # torch's notes on the scheduler of a resumed run, and on plain numbers.
        warnings.simplefilter("ignore")
        return trained(trainer, resume_from)


class Here:
    """Runs of the same recipe under torchax."""

    def __init__(self, model: TorchaxModel, recipe: Recipe):
        """Builds the optimizer and the step."""
        self.model, self.recipe = model, recipe
        self.optimizer = build_optimizer(recipe, layer_norms=model.layer_norms)
        self.step = training.make_train_step(model.make_loss(), self.optimizer)

    def start(self) -> training.TrainState:
        """Returns the state before the first step, with the weights of the module."""
        return training.init_train_state(self.model.init(0), self.optimizer, rng=0)

    def read(self, checkpoint: Path) -> training.TrainState:
        """Returns the state in a checkpoint folder of Trainer."""
        params = self.model.init(0)
        read = interop.read_trainer_checkpoint(
            checkpoint,
            params,
            self.model.names,
            recipe=self.recipe,
            opt_state=self.optimizer.init(params),
        )
        state = training.init_train_state(read.params, self.optimizer, rng=0)
        return state.replace(step=jnp.int32(read.step), opt_state=read.opt_state)

    def write(self, state: training.TrainState, folder: Path, like: Path) -> None:
        """Writes a state as a checkpoint folder from which Trainer resumes."""
        interop.write_trainer_checkpoint(
            folder,
            state.params,
            state.opt_state,
            self.model.names,
            recipe=self.recipe,
            step=int(state.step),
            # Trainer reads these instead of its arguments.
            trainer_state={"logging_steps": 1},
            like=like,
            frozen=self.model.frozen,
        )

    def run(
        self, state: training.TrainState, batches: Sequence[Batch]
    ) -> tuple[dict[int, float], training.TrainState]:
        """Trains on one batch per step; returns the losses by step, and the state."""
        losses = {}
        for batch in batches:
            state, metrics = self.step(state, batch)
            losses[int(state.step)] = float(metrics.loss)
        return losses, state


def loss_difference(a: Mapping[int, float], b: Mapping[int, float]) -> float:
    """Returns the largest relative difference of losses at common steps."""
    steps = a.keys() & b.keys()
    assert steps
    return max(abs(a[n] / b[n] - 1) for n in steps)


def tensors(checkpoint: Path, model: TorchaxModel) -> dict[str, np.ndarray]:
    """Returns the parameters, moments and counters of a checkpoint of Trainer.

    Parameters have the names of the module. For some architectures Trainer writes the
    names of older versions, such as those of ViT.
    """
    shapes = {**model.shapes, **model.function.frozen}
    found = dict(interop.read_params(checkpoint, shapes, model.names))
    found.update(optimizer_arrays(checkpoint))
    found["schedule"] = schedule_array(checkpoint)
    return found
