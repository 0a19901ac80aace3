"""Architectures of Transformers in JAX by torchax, beside Trainer: a table.

    python -m benchmarks.torch_modules_in_jax            # 30 minutes on 2 cores
    python -m benchmarks.torch_modules_in_jax --smoke    # gpt2
    python -m benchmarks.torch_modules_in_jax bert clip  # some architectures

Each architecture is built small from its config, without dropout, and trained by the
real Trainer and by this package for 20 steps, on the same batches and with the same
recipe. The columns of the table:

    loss: loss of the first batch, relative difference to PyTorch's.
    gradient: largest difference of a gradient, relative to its largest element.
    20 steps: largest relative difference of a step's loss to Trainer's.
    PyTorch: the same for Trainer itself, in float32 against float64.
    decay set: whether the same parameters have weight decay on both sides.
    checkpoint: whether Trainer's last checkpoint, with its optimizer.pt and
        scheduler.pt, is equal in all bits after it is read and written here; and ours,
        after it is written, read again and loaded by `from_pretrained`. Weights of
        experts are saved again before, as one tensor per layer.
    compile: seconds of the first step, in which it is traced and compiled.
"""

import dataclasses
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks._architectures import (
    ARCHITECTURES,
    ROWS,
    Batch,
    build,
    has_experts,
    make_batches,
)
from benchmarks._compared_runs import carried, num_differing
from benchmarks._report import Row, main
from benchmarks._torch_module_runs import (
    Here,
    Plan,
    by_trainer,
    loss_difference,
    model_of,
    recipe_of,
    tensors,
    torch_inputs,
)
from jaxopt_tf.models import TorchaxModel
from jaxopt_tf.optimizers import decay_mask

NUM_STEPS = 20
PLAN = Plan(NUM_STEPS, save_steps=NUM_STEPS)
# Relative to Trainer's loss, the largest of all steps.
MAX_LOSS_DISTANCE = 1e-5
# Relative to the largest element of each gradient. Both compute in float32.
MAX_GRAD_DISTANCE = 1e-4
MIN_SHARE = 0.9  # 27 of 30


@dataclasses.dataclass(kw_only=True)
class Result:
    """Figures of one architecture; `error` is not "" if it failed."""

    name: str
    loss: float = float("nan")
    grad: float = float("nan")
    steps: float = float("nan")
    torch: float = float("nan")
    is_decay_equal: bool = False
    is_checkpoint_equal: bool = False
    compile_s: float = float("nan")
    error: str = ""

    @property
    def passes(self) -> bool:
        """Whether all figures are within their limits."""
        return (
            self.steps <= MAX_LOSS_DISTANCE
            and self.grad <= MAX_GRAD_DISTANCE
            and self.is_decay_equal
            and self.is_checkpoint_equal
        )


def rows(smoke: bool) -> Iterator[Row]:
    """Yields the distance of each architecture, and the share that passes."""
    given = [name for name in sys.argv[1:] if not name.startswith("--")]
    results = []
    for name in given or (["gpt2"] if smoke else ARCHITECTURES):
        result = _measured(name)
        results.append(result)
        yield Row(
            claim=f"{name}: losses of {NUM_STEPS} steps, difference to Trainer's",
            value=result.steps,
            unit="relative",
            limit=MAX_LOSS_DISTANCE,
            torch=result.torch,
            detail=result.error
            or f"gradient {result.grad:.1e}, compiled in {result.compile_s:.1f} s",
        )
    print_table(results)
    yield Row(
        claim="share of architectures whose figures are all within limits",
        value=sum(r.passes for r in results) / len(results),
        unit="of all",
        limit=MIN_SHARE,
        at_least=True,
        detail=f"{sum(r.passes for r in results)} of {len(results)}",
    )


def print_table(results: list[Result]) -> None:
    """Prints one row per architecture in Markdown, and the errors."""
    names = ("architecture", "loss", "gradient", "20 steps", "PyTorch")
    names += ("decay set", "checkpoint", "compile, s")
    print("|", " | ".join(names), "|")
    print("|", " | ".join(["---"] * len(names)), "|")
    for r in results:
        figures = [f"{x:.1e}" for x in (r.loss, r.grad, r.steps, r.torch)]
        flags = ["equal" if x else "NO" for x in (r.is_decay_equal,)]
        flags.append("equal" if r.is_checkpoint_equal else "NO")
        print("|", " | ".join([r.name, *figures, *flags, f"{r.compile_s:.1f}"]), "|")
    for r in results:
        if r.error:
            print(f"{r.name}: {r.error}")


def _measured(name: str) -> Result:
    """Measures one architecture, and records its error if it fails."""
    result = Result(name=name)
    try:
        with tempfile.TemporaryDirectory() as folder:
            _measure(result, Path(folder))
    except Exception as error:
        traceback.print_exc(limit=-3)
        result.error = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return result


def _measure(result: Result, work: Path) -> None:
    """Fills in the figures of one architecture, as far as they can be measured."""
    module = build(result.name)
    num_labels = module.config.num_labels
    batches = make_batches(result.name, num_labels, NUM_STEPS)
    theirs = by_trainer(build(result.name), batches, PLAN, work / "theirs")
    model = model_of(module)
    result.torch = _distance_of_torch(result.name, batches, theirs.losses, work)
    mask = decay_mask(
        model.shapes, rule="transformers_v5", layer_norms=model.layer_norms
    )
    is_trained = theirs.decayed & model.shapes.keys()
    result.is_decay_equal = {name for name in mask if mask[name]} == is_trained
    result.loss, result.grad = _first_gradient(model, batches[0])

    here = Here(model, recipe_of(PLAN, work, ROWS))
    state = here.start()
    begin = time.perf_counter()
    # Compiles on a copy of the state, because a step reuses the memory of its state.
    jax.block_until_ready(here.step(here.start(), batches[0]))
    result.compile_s = time.perf_counter() - begin
    losses, state = here.run(state, batches)
    result.steps = loss_difference(losses, theirs.losses)

    last = work / "theirs" / f"checkpoint-{NUM_STEPS}"
    if has_experts(module):
        # Trainer writes experts one by one. The error message of
        # `read_trainer_checkpoint` has this command.
        trained = type(module).from_pretrained(last)
        trained.save_pretrained(last, save_original_format=False)
    here.write(here.read(last), work / "returned", last)
    here.write(state, work / "written", last)
    loaded = dict(type(module).from_pretrained(work / "written").named_parameters())
    # The key is not part of Trainer's checkpoint.
    states = [
        carried(each, without=(".rng",))
        for each in (state, here.read(work / "written"))
    ]
    result.is_checkpoint_equal = (
        num_differing(tensors(last, model), tensors(work / "returned", model)) == 0
        and num_differing(*states) == 0
        and all(
            np.array_equal(loaded[name].detach(), x) for name, x in state.params.items()
        )
    )


def _first_gradient(model: TorchaxModel, batch: Batch) -> tuple[float, float]:
    """Returns the differences of the loss and the gradient of a batch to PyTorch's."""
    loss_fn = jax.jit(jax.value_and_grad(model.make_loss(), has_aux=True))
    # The key of the training mode: there is no dropout.
    (total, number), grads = loss_fn(model.init(0), batch, jax.random.key(0))
    theirs = _torch_loss(model.module, batch)
    theirs.backward()
    grad_distances = [
        np.abs(grads[name] / number - p.grad.numpy()).max() / p.grad.abs().max().item()
        for name, p in model.module.named_parameters()
        # The gradient of the bias of keys is 0 except for rounding errors.
        if name in grads and p.grad is not None and p.grad.abs().max() > 1e-6
    ]
    model.module.zero_grad()
    loss_distance = abs(float(total / number) / theirs.item() - 1)
    return loss_distance, float(max(grad_distances))


def _torch_loss(module: Any, batch: Batch) -> Any:
    """Returns the loss of a batch as the real Trainer computes it."""
    import torch
    import transformers

    inputs = torch_inputs(batch, torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder, use_cpu=True, report_to=[], disable_tqdm=True
        )
        trainer = transformers.Trainer(module, arguments)
    number = trainer._get_num_items_in_batch([inputs], "cpu")
    return trainer.compute_loss(module, inputs, num_items_in_batch=number)


def _distance_of_torch(
    name: str, batches: list[Batch], losses: dict[int, float], work: Path
) -> float:
    """Returns the difference of Trainer's losses to those of its run in float64."""
    module = build(name, dtype="float64")
    try:
        in_float64 = by_trainer(module, batches, PLAN, work / "float64")
    except RuntimeError as error:  # the module has a part in float32
        print(f"{name} in float64: {error}", file=sys.stderr)
        return float("nan")
    return loss_difference(losses, in_float64.losses)


if __name__ == "__main__":
    main("Torch modules in JAX", rows)
