"""Reads, continues and writes checkpoints of nine versions of Trainer.

    python -m benchmarks.trainer_versions                    # some minutes on 2 cores
    python -m benchmarks.trainer_versions --versions 4.46 5.0
    python -m benchmarks.trainer_versions --smoke            # the installed version

The benchmark creates an environment for each version, in `--environments` (150 MB each,
kept for the next run; by default in the user's cache). In it, Trainer trains a small
Llama, T5, BERT, Qwen2 and GPT-2 for five steps. Its gradients at step 3 are replaced by
given ones. `read_trainer_checkpoint` of step 2 and one update with the same gradients
must result in the same parameters. Both states are then written by
`write_trainer_checkpoint`, and Trainer of the same version resumes from them.
"""

import argparse
import functools
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from benchmarks import _trainer_script as script
from benchmarks._report import Row, report
from benchmarks._trainer_environments import PINS, installed_version, python_of
from jaxopt_tf import build_optimizer
from jaxopt_tf._pytrees import _tree
from jaxopt_tf.interop import (
    ParamNames,
    load_torch,
    match_names,
    read_params,
    read_trainer_checkpoint,
    recipe_from_transformers,
    torch_model_from_config,
    write_trainer_checkpoint,
)
from jaxopt_tf.optimizers import decay_mask
from jaxopt_tf.recipes import Recipe
from tests.references import torch_models

_BEFORE = script.GIVEN_STEP - 1


_LAST = f"checkpoint-{script.MAX_STEPS}"
# Folders of a model: by Trainer, the same written back, and after our update.
_OWN = f"run/checkpoint-{_BEFORE}"
_AS_READ = f"given/checkpoint-{_BEFORE}"
_UPDATED = f"given/checkpoint-{script.GIVEN_STEP}"
_RESUMED = {"own": _OWN, "as read": _AS_READ, "updated": _UPDATED}


class Update(NamedTuple):
    """Comparison of one update with the same update by torch."""

    distance: float  # largest distance to float64, relative to torch's
    share_equal: float  # fraction of elements that are bitwise equal to torch's


def rows(
    versions: Sequence[str], models: Sequence[str], environments: Path
) -> Iterator[Row]:
    for version in versions:
        is_installed = version == installed_version()
        python = (
            Path(sys.executable) if is_installed else python_of(version, environments)
        )
        with tempfile.TemporaryDirectory() as folder:
            yield from _version(version, models, python, Path(folder))


def _version(
    version: str, models: Sequence[str], python: Path, work: Path
) -> Iterator[Row]:
    def row(claim: str, unit: str, limit: float, measure: Callable, **more: Any) -> Row:
        """Returns the worst result of all models; NaN if one of them fails."""
        values, details = {}, []
        for model in models:
            try:
                values[model] = float(measure(work / model))
            except Exception as error:  # must not hide other results
                values[model] = math.nan
                details.append(f"{model}: {_brief(error)}")
        worst = np.min if more.get("at_least") else np.max
        numbers = ", ".join(f"{model} {value:.3g}" for model, value in values.items())
        return Row(
            claim=f"Trainer {version}: {claim}",
            value=float(worst(list(values.values()))),
            unit=unit,
            limit=limit,
            detail="; ".join([numbers, *details]),
            **more,
        )

    _by_trainer(python, work, [_entry(work / model, "run") for model in models])
    yield row("decayed by one side only", "parameters", 0, _num_decayed_by_one_side)

    updates = {}

    def update(work: Path) -> Update:
        if work not in updates:
            updates[work] = _one_update(work)
        return updates[work]

    yield row(
        "one more update: largest distance to float64, in torch's own",
        "of torch's noise",
        1.15,
        lambda work: update(work).distance,
        torch=1.0,
    )
    yield row(
        "one more update: parameters equal to torch bit for bit",
        "of elements",
        0.69,
        lambda work: update(work).share_equal,
        at_least=True,
    )
    yield row(
        "fields in the folder written back that this version does not write, or does",
        "fields",
        0,
        lambda work: len(_fields(work / _OWN) ^ _fields(work / _AS_READ)),
    )
    plan = [
        _entry(work / model, name, work / model / folder)
        for model in models
        for name, folder in _RESUMED.items()
    ]
    _by_trainer(python, work, plan)
    yield row(
        "resumed from the folder written back: losses and parameters with other bits "
        "than when resumed from its own",
        "numbers",
        0,
        lambda work: _num_unlike(work / "as read", work / "own"),
    )
    yield row(
        "resumed after our update: largest difference of a loss to its own run's",
        "relative",
        1e-5,
        lambda work: _loss_difference(work / "updated", work / "run"),
    )


def _entry(work: Path, name: str, resume_from: Path | None = None) -> dict[str, Any]:
    return {
        "model": work.name,
        "output_dir": str(work / name),
        "resume_from": None if resume_from is None else str(resume_from),
    }


def _by_trainer(python: Path, work: Path, plan: Sequence[Any]) -> None:
    """Executes the runs of a plan, whose errors are in their `ended.json`."""
    path = work / "plan.json"
    path.write_text(json.dumps(plan))
    environment = {
        **os.environ,
        # torch 2.6 changed the default of torch.load. Trainer before 4.47 does not
        # allow the NumPy arrays in its own rng_state.pth.
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",  # so that sums have a fixed order
    }
    environment.pop("PYTHONPATH", None)  # packages of the running environment
    command = [str(python), "-P", script.__file__, str(path)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")


def _ended(run: Path) -> dict[str, Any]:
    ended = json.loads((run / "ended.json").read_text())
    if "error" in ended:
        raise RuntimeError(ended["error"])
    return ended


def _num_decayed_by_one_side(work: Path) -> int:
    ended, (params, names) = _ended(work / "run"), _tree_of(work / _OWN)
    pairs = zip(ended["groups"], ended["weight_decay"], strict=True)
    theirs = {name for group, decay in pairs if decay for name in group}
    rule = _recipe(work / _OWN).decay_rule
    mask = dict(
        _tree.named_leaves(decay_mask(params, rule=rule, layer_norms=names.layer_norms))
    )
    ours = {found.torch_name for found in names.slices if mask[found.leaf]}
    return len(ours ^ theirs)


@functools.cache
def _tree_of(checkpoint: Path) -> tuple[Any, ParamNames]:
    """Returns the parameters as Flax would store them, and their torch names."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(str(checkpoint))
    module = getattr(transformers, config.architectures[0])(config)
    tree = torch_models.flax_tree(torch_models.flax_leaves(module))
    return tree, match_names(tree, torch_model_from_config(checkpoint))


def _recipe(checkpoint: Path) -> Recipe:
    arguments = checkpoint / "training_args.bin"
    return recipe_from_transformers(arguments, max_steps=script.MAX_STEPS).recipe


def _one_update(work: Path) -> Update:
    """Takes step 3 from Trainer's checkpoint, and writes back both states."""
    params, names = _tree_of(work / _OWN)
    recipe = _recipe(work / _OWN)
    optimizer = build_optimizer(recipe, layer_norms=names.layer_norms)
    read = read_trainer_checkpoint(
        work / _OWN, params, names, recipe=recipe, opt_state=optimizer.init(params)
    )

    @jax.jit
    def step(params: Any, opt_state: Any, gradients: Any) -> Any:
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    gradients = _given_gradients(work, params, names)
    updated = step(read.params, read.opt_state, gradients)
    (work / "given").mkdir()
    for folder, number, state in (
        (_AS_READ, _BEFORE, (read.params, read.opt_state)),
        (_UPDATED, script.GIVEN_STEP, updated),
    ):
        write_trainer_checkpoint(
            work / folder,
            *state,
            names,
            recipe=recipe,
            step=number,
            trainer_state=read.trainer_state,
            like=work / _OWN,
        )
    ours = _weights(work / _UPDATED)
    theirs = _weights(work / "run" / f"checkpoint-{script.GIVEN_STEP}")
    truth = _in_float64(work, names, recipe.max_grad_norm)
    equal = [(ours[name] == theirs[name]).ravel() for name in truth]
    return Update(
        distance=_distance(ours, truth) / _distance(theirs, truth),
        share_equal=float(np.mean(np.concatenate(equal))),
    )


def _given_gradients(work: Path, params: Any, names: ParamNames) -> Any:
    """Returns the gradients of step 3 as leaves, read in the way of parameters."""
    from safetensors.numpy import save_file

    folder = work / "gradients"
    folder.mkdir()
    given = {p.name: script.given_gradient(*p[:2]) for p in names.model.parameters}
    save_file(given, folder / "model.safetensors")
    return read_params(folder, params, names)


def _in_float64(
    work: Path, names: ParamNames, max_norm: float
) -> dict[str, np.ndarray]:
    """Runs step 3 by torch in float64; returns parameters by names in the files."""
    import torch

    weights = _weights(work / _OWN)
    aliases = dict(names.model.tied)
    tensors = {}
    for name, weight in weights.items():
        of = aliases.get(name, name)
        if of == name or of not in weights:
            gradient = script.given_gradient(of, weight.shape)
            tensors[of] = torch.nn.Parameter(torch.tensor(weight).double())
            tensors[of].grad = torch.from_numpy(gradient).double()
    groups = [
        {"params": [tensors[n] for n in g]} for g in _ended(work / "run")["groups"]
    ]
    optimizer = torch.optim.AdamW(groups)
    optimizer.load_state_dict(load_torch(work / _OWN / "optimizer.pt"))
    torch.nn.utils.clip_grad_norm_(list(tensors.values()), max_norm)
    optimizer.step()
    return {name: tensors[aliases.get(name, name)].detach().numpy() for name in weights}


def _distance(weights: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> float:
    return float(max(np.abs(np.float64(weights[n]) - truth[n]).max() for n in truth))


def _weights(checkpoint: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    if (checkpoint / "model.safetensors").is_file():
        return load_file(checkpoint / "model.safetensors")
    tensors = load_torch(checkpoint / "pytorch_model.bin")
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _fields(folder: Path) -> set[tuple[str, str]]:
    """Returns names of the files, and names in those that are not weights."""
    fields = {("", path.name) for path in folder.iterdir()}
    fields -= {("", "rng_state.pth")}  # not written: transient state
    state = json.loads((folder / "trainer_state.json").read_text())
    control = state.get("stateful_callbacks", {}).get("TrainerControl", {})
    optimizer = load_torch(folder / "optimizer.pt")
    found = {
        "trainer_state.json": state,
        "TrainerControl": control.get("args", {}),
        "optimizer.pt": optimizer["param_groups"][0],
        "scheduler.pt": load_torch(folder / "scheduler.pt"),
    }
    fields |= {(name, str(key)) for name, value in found.items() for key in value}
    # Our file has names, which torch preserves and no optimizer reads.
    return fields - {("optimizer.pt", "param_names")}


def _num_unlike(run: Path, other: Path) -> int:
    """Returns the number of losses and parameter elements that differ."""
    losses, theirs = _ended(run)["losses"], _ended(other)["losses"]
    weights, their_weights = _weights(run / _LAST), _weights(other / _LAST)
    assert losses.keys() == theirs.keys()
    assert weights.keys() == their_weights.keys()
    unlike = sum(losses[step] != theirs[step] for step in losses)
    return unlike + sum(
        int(np.sum(weights[name] != their_weights[name])) for name in weights
    )


def _loss_difference(run: Path, other: Path) -> float:
    losses, theirs = _ended(run)["losses"], _ended(other)["losses"]
    return max(abs(losses[step] / theirs[step] - 1) for step in losses)


def _brief(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {(lines or [''])[-1]:.200}"


def _main() -> None:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser = argparse.ArgumentParser("python -m benchmarks.trainer_versions")
    parser.add_argument("--smoke", action="store_true", help="the installed version")
    parser.add_argument(
        "--versions", nargs="+", choices=PINS, default=list(PINS), metavar="VERSION"
    )
    parser.add_argument(
        "--environments",
        type=Path,
        default=cache / "jaxopt_tf" / "trainer_versions",
        help="folder of the environments (default: %(default)s)",
    )
    args = parser.parse_args()
    versions = [installed_version()] if args.smoke else args.versions
    models = ["Llama", "GPT-2"] if args.smoke else list(script.MODELS)
    title = "Checkpoints of Trainer by version"
    found = rows(versions, models, args.environments)
    sys.exit(0 if report(title, found) else 1)


if __name__ == "__main__":
    _main()
