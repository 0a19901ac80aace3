"""What a run says at its beginning and at its end."""

import signal
from pathlib import Path

import jax

from .. import training
from .._typing import PyTree
from ..data import Corpus
from ..models import GPT2Config
from ..recipes import Recipe


def introduce(
    recipe: Recipe,
    model: GPT2Config,
    corpus: Corpus,
    params: PyTree,
    mesh: jax.sharding.Mesh,
    num_sequences: int,
    folder: Path,
    step: int,
) -> None:
    """Prints what is going to be trained, on what, and where."""
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    batch = f"{num_sequences} x {model.block_size}"
    if recipe.gradient_accumulation_steps > 1:
        batch = f"{recipe.gradient_accumulation_steps} x {batch}"
    print(
        f"text    {corpus.num_documents:,} documents: {len(corpus.training):,} "
        f"{corpus.unit} to train on, {len(corpus.held_out):,} held out\n"
        + (f"        {corpus.left_out}\n" if corpus.left_out.num_files else "")
        + f"model   GPT-2: {model.n_layer} layers, width {model.n_embd}, "
        f"{num_params:,} parameters\n"
        f"recipe  {recipe.optim}, learning rate {recipe.learning_rate:g} "
        f"({recipe.lr_scheduler_type}, {recipe.num_warmup_steps} steps of warm-up), "
        f"{recipe.max_steps:,} steps of {batch} {corpus.unit}\n"
        + _devices(mesh)
        + f"folder  {folder}"
        + (f", from its step {step:,} on" if step else "")
    )


def conclude(
    losses: tuple[float, float],
    folder: Path,
    metrics: Path,
    trained: training.Trained,
    stopped_by: int | None,
    max_steps: int,
    unit: str,
) -> None:
    """Prints what has come of it."""
    step = int(trained.state.step)
    if stopped_by is not None:
        name = signal.Signals(stopped_by).name
        print(
            f"stopped by {name} after step {step:,} of {max_steps:,}; the same command "
            f"with --output_dir {folder}, and without "
            "--resume_from_checkpoint, goes on"
        )
        return
    if trained.ended == "patience":
        print(f"ended early, after step {step:,}: the held-out loss got no better")
    print(
        f"metrics {metrics}\n"
        f"curves  {folder / 'curves.png'}\n"
        f"held-out loss {losses[0]:.2f} -> {losses[1]:.3f} "
        f"nats per {unit.removesuffix('s')}"
    )


def _devices(mesh: jax.sharding.Mesh) -> str:
    """A line on where it runs; "" for the one device that there is."""
    num_all = len(jax.devices())
    if num_all == 1:
        return ""
    if mesh.size == 1:
        return f"mesh    1 of {num_all} devices; --mesh data={num_all} takes all\n"
    axes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
    kind = mesh.devices.flat[0].device_kind
    processes = jax.process_count()
    where = f" in {processes} processes" if processes > 1 else ""
    return f"mesh    {axes}: {mesh.size} of {kind}{where}\n"
