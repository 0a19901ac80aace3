"""The run: text, model, recipe, step and monitors tied together."""

from pathlib import Path
from typing import NamedTuple

import jax

from .. import _check, training
from ..recipes import Recipe, build_optimizer
from ._model import GPT2Config, make_loss_fn
from ._text import Text, held_out_batches, training_batches


class Outcome(NamedTuple):
    """What a run leaves behind."""

    first_loss: float  # held-out loss before the first step, in nats per byte
    last_loss: float  # and after the last one
    metrics: Path  # JSON lines: every step, every evaluation
    curves: Path  # a picture of them


def pretrain(
    recipe: Recipe,
    config: GPT2Config,
    text: Text,
    *,
    per_device_train_batch_size: int,
    eval_steps: int,
    output_dir: Path,
) -> Outcome:
    """Trains a GPT-2 from nothing, and says how it goes on the console.

    The same arguments give the same losses, bit for bit, on the same machine.

    Args:
        recipe: the numbers of the run.
        config: the model's size.
        text: from `standard_library` or `read_text`.
        per_device_train_batch_size: windows of `block_size` bytes in a batch.
        eval_steps: steps from one held-out evaluation to the next.
        output_dir: where `metrics.jsonl` and `curves.png` are written.

    Raises:
        ValueError: if the text is too short, or `output_dir` holds a run already.
        FloatingPointError: if the loss is no longer finite.
    """
    # Under the names that the user gave, and before anything is written.
    _check.positive("per_device_train_batch_size", per_device_train_batch_size)
    _check.positive("eval_steps", eval_steps)
    windows = {
        "block_size": config.block_size,
        "batch_size": per_device_train_batch_size,
    }
    batches = training_batches(text, **windows, seed=recipe.seed)
    held_out = held_out_batches(text, **windows)
    params, loss_fn = make_loss_fn(config, recipe.seed)
    optimizer = build_optimizer(recipe)
    metrics, curves = _new_files(output_dir)
    _introduce(recipe, config, text, per_device_train_batch_size, params)

    evaluations: list[training.Evaluation] = []
    training.train(
        training.make_train_step(loss_fn, optimizer),
        training.init_train_state(params, optimizer),
        batches,
        num_steps=recipe.max_steps,
        monitors=[
            training.console(recipe.max_steps, unit="bytes"),
            training.json_lines(metrics),
            training.curves(curves, unit="nats per byte"),
            training.Monitor(lambda _: None, evaluations.append, lambda: None),
        ],
        evaluate=training.make_evaluate(training.make_eval_step(loss_fn), held_out),
        eval_steps=eval_steps,
    )
    outcome = Outcome(evaluations[0].loss, evaluations[-1].loss, metrics, curves)
    _conclude(outcome)
    return outcome


def _new_files(output_dir: Path) -> tuple[Path, Path]:
    metrics, curves = output_dir / "metrics.jsonl", output_dir / "curves.png"
    if metrics.exists():
        raise ValueError(
            f"`output_dir` must not hold a run yet, but {str(metrics)!r} exists. Name "
            "another folder, or delete this one."
        )
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"`output_dir` must be a folder that can be made, got {str(output_dir)!r}: "
            f"{error.strerror}."
        ) from error
    return metrics, curves


def _introduce(
    recipe: Recipe, config: GPT2Config, text: Text, batch_size: int, params
) -> None:
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(
        f"text    {text.num_files:,} files: {len(text.training):,} bytes to train on, "
        f"{len(text.held_out):,} held out\n"
        f"model   GPT-2: {config.n_layer} layers, width {config.n_embd}, "
        f"{num_params:,} parameters\n"
        f"recipe  {recipe.optim}, learning rate {recipe.learning_rate:g} "
        f"({recipe.lr_scheduler_type}, {recipe.warmup_steps} steps of warm-up), "
        f"{recipe.max_steps:,} steps of {batch_size} x {config.block_size} bytes"
    )


def _conclude(outcome: Outcome) -> None:
    print(
        f"held-out loss {outcome.first_loss:.2f} -> {outcome.last_loss:.3f} "
        f"nats per byte\nmetrics {outcome.metrics}\ncurves  {outcome.curves}"
    )
