"""Losses of torch modules under torchax on meshes of 8 devices, also after a kill.

    python -m benchmarks.torch_modules_on_meshes            # 15 minutes on 2 cores
    python -m benchmarks.torch_modules_on_meshes --smoke    # a BERT, 6 steps

A BERT, whose embedding of words has a padding token, a T5 and a Llama train for 50
steps on 8 CPU devices with the axes data, fsdp and tensor. Each loss is compared with
the one on a single device. A run that is killed on one mesh is resumed from its
checkpoint on another one.
"""

import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks._report import Row, main
from jaxopt_tf import Recipe, build_optimizer, training
from jaxopt_tf.models import from_transformers
from jaxopt_tf.sharding import make_mesh, param_shardings, state_shardings

LIMIT = 5e-5  # relative difference of the loss
ROWS, LENGTH, VOCABULARY = 8, 16, 96
MESHES = (
    "data=8",
    "fsdp=8",
    "tensor=8",
    "data=2,fsdp=4",
    "data=2,fsdp=2,tensor=2",
)
ALONE = "data=1"
KILLED_ON, RESUMED_ON = "fsdp=4,tensor=2", "data=2,fsdp=4"
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore"}
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 64,
    "d_kv": 8,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 8,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.0,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("AutoModelForMaskedLM", SIZES | NO_DROPOUT),
    "t5": ("AutoModelForSeq2SeqLM", T5),
    "llama": ("AutoModelForCausalLM", SIZES | {"num_key_value_heads": 4}),
}


def rows(smoke: bool) -> Iterator[Row]:
    """Yields the differences of each model on each mesh, and after a kill."""
    steps = 6 if smoke else 50
    meshes = MESHES[-1:] if smoke else MESHES
    for name in ["bert"] if smoke else MODELS:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            _run(
                _command(name, steps, {mesh: work / mesh for mesh in (ALONE, *meshes)})
            )
            alone = _losses(work / ALONE)
            for mesh in meshes:
                yield Row(
                    claim=f"{name} on {mesh}: loss of {steps} steps",
                    value=_difference(_losses(work / mesh), alone, steps),
                    unit="of that on one device",
                    limit=LIMIT,
                    detail=f"{alone[1]:.3f} to {alone[steps]:.3f}",
                )
            last = _kill(name, steps, work / "killed")
            _run(_command(name, steps, {RESUMED_ON: work / "killed"}))
            yield Row(
                claim=f"{name}: killed on {KILLED_ON}, resumed on {RESUMED_ON}: loss",
                value=_difference(_losses(work / "killed"), alone, steps),
                unit="of that on one device",
                limit=LIMIT,
                detail=f"killed after step {last}",
            )


def _difference(ours: dict[int, float], alone: dict[int, float], steps: int) -> float:
    assert ours.keys() == alone.keys() == set(range(1, steps + 1))
    return max(abs(ours[n] / alone[n] - 1) for n in alone)


def _losses(run: Path) -> dict[int, float]:
    """Returns the last loss of each step; a resumed run repeats some steps."""
    lines = (run / "losses.jsonl").read_text().splitlines()
    return dict(map(json.loads, lines))


def _command(name: str, steps: int, runs: dict[str, Path]) -> list[str]:
    """Returns the command of a process that trains on each mesh, in its folder."""
    worker = [sys.executable, "-m", "benchmarks.torch_modules_on_meshes", "--worker"]
    return [*worker, name, str(steps), *(f"{m}:{run}" for m, run in runs.items())]


def _run(command: list[str]) -> None:
    subprocess.run(command, env=ENVIRONMENT, check=True)


def _kill(name: str, steps: int, run: Path) -> int:
    """Kills a run when its second checkpoint is complete; returns its last step."""
    process = subprocess.Popen(_command(name, steps, {KILLED_ON: run}), env=ENVIRONMENT)
    while not (run / f"checkpoint-{2 * _save_steps(steps)}").exists():
        if process.poll() is not None:
            raise RuntimeError(f"the run ended with {process.returncode}")
        time.sleep(0.05)
    process.kill()
    process.wait()
    last = max(_losses(run))
    if last == steps:
        raise RuntimeError("the run ended before it was killed")
    return last


def _save_steps(steps: int) -> int:
    return steps // 5 or 1


# A run, in a process of its own


def _batch(name: str, step: int) -> dict[str, np.ndarray]:
    """Returns the batch of a step; token 0 is padding."""
    rng = np.random.default_rng(step)
    ids = rng.integers(1, VOCABULARY, (ROWS, LENGTH)).astype(np.int32)
    is_token = np.arange(LENGTH) < rng.integers(LENGTH // 2, LENGTH + 1, (ROWS, 1))
    labels = (ids * 7 + 1) % VOCABULARY if name != "llama" else ids
    return {
        "input_ids": np.where(is_token, ids, 0),
        "attention_mask": is_token.astype(np.int32),
        "labels": np.where(is_token, labels, -100).astype(np.int32),
    }


def _work(name: str, steps: int, runs: dict[str, Path]) -> None:
    """Trains a model on each mesh, from the newest checkpoint of its folder."""
    jax.config.update("jax_num_cpu_devices", 8)
    import torch
    import transformers

    kind, sizes = MODELS[name]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(name, **sizes)
    model = from_transformers(getattr(transformers, kind).from_config(config))
    recipe = Recipe(
        learning_rate=3e-3,
        max_steps=steps,
        warmup_steps=5,
        weight_decay=0.1,
        max_grad_norm=0.5,
    )
    optimizer = build_optimizer(recipe, layer_norms=model.layer_norms)
    for axes, folder in runs.items():
        num_devices = math.prod(int(n) for n in re.findall(r"\d+", axes))
        mesh = make_mesh(axes, jax.devices()[:num_devices])
        state = training.init_train_state(model.init(0), optimizer, rng=0)
        by_param = param_shardings(state.params, mesh, model.sharding_rules(mesh))
        replicated = NamedSharding(mesh, PartitionSpec())
        shardings = jax.tree.map(lambda _, r=replicated: r, state).replace(
            params=by_param,
            opt_state=state_shardings(state.opt_state, state.params, by_param),
        )
        step = training.make_train_step(
            model.make_loss(mesh=mesh), optimizer, state_shardings=shardings
        )
        state = jax.device_put(state, shardings)
        with training.resumable(folder, state) as run:
            training.train(
                _recorded(step, folder / "losses.jsonl"),
                run.start,
                (_batch(name, n) for n in range(run.step, steps)),
                max_steps=steps,
                save=run.save,
                save_steps=_save_steps(steps),
            )


def _recorded(step: training.TrainStep, file: Path) -> training.TrainStep:
    """Returns a step that also appends its number and loss to a file."""

    def recorded(state, batch):
        state, metrics = step(state, batch)
        with file.open("a") as log:
            log.write(json.dumps([int(state.step), float(metrics.loss)]) + "\n")
        return state, metrics

    return recorded


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        _, name, steps, *runs = sys.argv[1:]
        _work(name, int(steps), {m: Path(f) for m, f in (r.split(":") for r in runs)})
    else:
        main("Torch modules on meshes", rows)
