"""Checkpoints of nine versions of Trainer are read, continued and given back.

    python -m benchmarks.trainer_versions                    # some minutes on 2 cores
    python -m benchmarks.trainer_versions --versions 4.46 5.0
    python -m benchmarks.trainer_versions --smoke            # the installed version

Makes an environment for each version, in `--environments` (150 MB each, kept for the
next run; by default in the user's cache). There Trainer trains a small Llama, T5, BERT,
Qwen2 and GPT-2 for five steps. At step 3 it is given gradients in place of its own, and
`read_trainer_checkpoint` of step 2, with one update from the same gradients, has to
come to the same parameters. Both are then written by `write_trainer_checkpoint`, and
Trainer of the same version resumes from them.
"""

import argparse
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
from jaxopt_tf import _tree, build_optimizer
from jaxopt_tf.interop import (
    ParamNames,
    TrainerCheckpoint,
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
from tests.twins import torch_models

_BEFORE = script.GIVEN_STEP - 1


class Ours(NamedTuple):
    """A checkpoint of step 2 as it was read, and after one update."""

    recipe: Recipe
    names: ParamNames
    read: TrainerCheckpoint
    params: Any
    opt_state: Any


def rows(versions: Sequence[str], environments: Path) -> Iterator[Row]:
    for version in versions:
        is_installed = version == installed_version()
        python = (
            Path(sys.executable) if is_installed else python_of(version, environments)
        )
        with tempfile.TemporaryDirectory() as folder:
            yield from _version(version, python, Path(folder))


def _version(version: str, python: Path, work: Path) -> Iterator[Row]:
    plan = [_entry(work, model, "run") for model in script.MODELS]
    _by_trainer(python, work, plan)
    ended = {model: _ended(work, model, "run") for model in script.MODELS}
    title = f"Trainer {version}"

    def row(claim: str, unit: str, limit: float, measure: Callable, **more: Any) -> Row:
        values, details = {}, []
        for model in script.MODELS:
            try:
                if "error" in ended[model]:
                    raise RuntimeError(ended[model]["error"])
                values[model] = float(measure(model))
            except Exception as error:  # a model that fails must not hide the others
                values[model] = math.nan
                details.append(f"{model}: {_brief(error)}")
        numbers = ", ".join(f"{model} {value:.3g}" for model, value in values.items())
        return Row(
            claim=f"{title}: {claim}",
            value=float(np.max(list(values.values()))),  # NaN, if there is one
            unit=unit,
            limit=limit,
            detail="; ".join([numbers, *details]),
            **more,
        )

    def decayed(model: str) -> int:
        return len(_decayed(work / model / "run") ^ _decayed_by_trainer(ended[model]))

    yield row("decayed by one side only", "parameters", 0, decayed)
    ours: dict[str, Ours] = {}

    def update(model: str) -> float:
        ours[model] = _one_update(work / model)
        _give_back(work / model, ours[model])
        truth = _in_float64(work / model, ended[model], ours[model])
        theirs, new = (
            _weights(work / model / run / f"checkpoint-{script.GIVEN_STEP}")
            for run in ("run", "given")
        )
        return _distance(new, truth) / _distance(theirs, truth)

    yield row(
        "one more update: largest distance to float64, in torch's own",
        "of torch's noise",
        1.15,
        update,
        torch=1.0,
    )

    yield row(
        "fields of the folder that this version does not write, or does",
        "fields",
        0,
        lambda model: len(_fields_that_differ(work / model, ours[model])),
    )
    given = work / "{}" / "given"
    resumed = {
        "again": work / "{}" / "run" / f"checkpoint-{_BEFORE}",
        "as read": given / f"checkpoint-{_BEFORE}",
        "updated": given / f"checkpoint-{script.GIVEN_STEP}",
    }
    plan = [
        _entry(work, model, name, str(folder).format(model))
        for model in ours
        for name, folder in resumed.items()
    ]
    _by_trainer(python, work, plan)

    def unlike(model: str, name: str) -> int:
        return _unlike(work, model, name, "again")

    yield row(
        "resumed from the folder written back: losses and parameters with other bits "
        "than when resumed from its own",
        "numbers",
        0,
        lambda model: unlike(model, "as read"),
    )
    yield row(
        "resumed after the update: largest relative difference of a loss to its own run",
        "relative",
        1e-5,
        lambda model: _loss_difference(work, model, "updated"),
    )


def _entry(work: Path, model: str, name: str, resume_from: str | None = None) -> Any:
    output_dir = str(work / model / name)
    return {"model": model, "output_dir": output_dir, "resume_from": resume_from}


def _by_trainer(python: Path, work: Path, plan: Sequence[Any]) -> None:
    """Makes the runs of a plan; what fails in one of them is in its `ended.json`."""
    path = work / "plan.json"
    path.write_text(json.dumps(plan))
    environment = {
        **os.environ,
        # torch 2.6 changed the default of torch.load. Trainer before 4.48 does not pass
        # `weights_only=False` for its rng_state.pth, in which there are NumPy arrays.
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",  # so that sums are made in one order
    }
    environment.pop("PYTHONPATH", None)  # the packages of the running environment
    command = [str(python), "-P", script.__file__, str(path)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")


def _ended(work: Path, model: str, name: str) -> dict[str, Any]:
    return json.loads((work / model / name / "ended.json").read_text())


def _decayed_by_trainer(ended: dict[str, Any]) -> set[str]:
    pairs = zip(ended["groups"], ended["weight_decay"], strict=True)
    return {name for group, decay in pairs if decay for name in group}


def _tree_of(checkpoint: Path) -> tuple[Any, ParamNames]:
    """The model's parameters as Flax would have them, and their names in torch."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(str(checkpoint))
    module = getattr(transformers, config.architectures[0])(config)
    tree = torch_models.flax_tree(torch_models.flax_leaves(module))
    return tree, match_names(tree, torch_model_from_config(checkpoint))


def _recipe(checkpoint: Path) -> Recipe:
    arguments = checkpoint / "training_args.bin"
    return recipe_from_transformers(arguments, max_steps=script.MAX_STEPS).recipe


def _decayed(run: Path) -> set[str]:
    checkpoint = run / f"checkpoint-{_BEFORE}"
    params, names = _tree_of(checkpoint)
    rule = _recipe(checkpoint).decay_rule
    mask = decay_mask(params, rule=rule, layer_norms=names.layer_norms)
    decayed = {name for name, is_decayed in _tree.named_leaves(mask) if is_decayed}
    return {piece.torch_name for piece in names.pieces if piece.leaf in decayed}


def _one_update(work: Path) -> Ours:
    checkpoint = work / "run" / f"checkpoint-{_BEFORE}"
    params, names = _tree_of(checkpoint)
    recipe = _recipe(checkpoint)
    optimizer = build_optimizer(recipe, layer_norms=names.layer_norms)
    read = read_trainer_checkpoint(
        checkpoint, params, names, recipe=recipe, opt_state=optimizer.init(params)
    )

    @jax.jit
    def step(params: Any, opt_state: Any, gradients: Any) -> Any:
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    gradients = _given_gradients(work, params, names)
    return Ours(recipe, names, read, *step(read.params, read.opt_state, gradients))


def _given_gradients(work: Path, params: Any, names: ParamNames) -> Any:
    """The gradients of step 3 as the leaves of our tree: read as parameters are."""
    from safetensors.numpy import save_file

    folder = work / "gradients"
    folder.mkdir()
    given = {p.name: script.given_gradient(*p[:2]) for p in names.model.parameters}
    save_file(given, folder / "model.safetensors")
    return read_params(folder, params, names)


def _in_float64(work: Path, ended: dict[str, Any], ours: Ours) -> dict[str, Any]:
    """The same update by torch in float64, by torch's names."""
    import torch
    from safetensors.torch import load_file

    checkpoint = work / "run" / f"checkpoint-{_BEFORE}"
    weights = load_file(checkpoint / "model.safetensors")
    tensors = {}
    for p in ours.names.model.parameters:
        tied = [alias for alias, name in ours.names.model.tied if name == p.name]
        (found, *_) = [name for name in (p.name, *tied) if name in weights]
        tensors[p.name] = torch.nn.Parameter(weights[found].double())
        gradient = script.given_gradient(p.name, p.shape)
        tensors[p.name].grad = torch.from_numpy(gradient).double()
    groups = [{"params": [tensors[name] for name in g]} for g in ended["groups"]]
    optimizer = torch.optim.AdamW(groups)
    optimizer.load_state_dict(load_torch(checkpoint / "optimizer.pt"))
    max_norm = ours.recipe.max_grad_norm
    torch.nn.utils.clip_grad_norm_(list(tensors.values()), max_norm)
    optimizer.step()
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def _distance(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """The largest difference of an element; a tied tensor may have either name."""
    both = ours.keys() & theirs.keys()
    assert len(both) >= min(len(ours), len(theirs)) - 1, sorted(ours)
    return float(
        max(np.abs(np.float64(ours[n]) - np.float64(theirs[n])).max() for n in both)
    )


def _weights(checkpoint: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(checkpoint / "model.safetensors")


def _give_back(work: Path, ours: Ours) -> None:
    """Writes the checkpoint as it was read, and the one after our update."""
    read, given = ours.read, work / "given"
    given.mkdir()
    for step, params, opt_state in (
        (_BEFORE, read.params, read.opt_state),
        (script.GIVEN_STEP, ours.params, ours.opt_state),
    ):
        write_trainer_checkpoint(
            given / f"checkpoint-{step}",
            params,
            opt_state,
            ours.names,
            recipe=ours.recipe,
            step=step,
            trainer_state=read.trainer_state,
            like=work / "run" / f"checkpoint-{_BEFORE}",
        )


def _fields_that_differ(work: Path, ours: Ours) -> set[tuple[str, str]]:
    theirs = _fields(work / "run" / f"checkpoint-{_BEFORE}")
    return theirs ^ _fields(work / "given" / f"checkpoint-{_BEFORE}")


def _fields(folder: Path) -> set[tuple[str, str]]:
    """The names of the files, and of what is in those that are not weights."""
    fields = {("", path.name) for path in folder.iterdir()}
    fields -= {("", "rng_state.pth")}  # not written: of the state of one moment
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
    # Ours has names, which torch hands on and no optimizer reads.
    return fields - {("optimizer.pt", "param_names")}


def _unlike(work: Path, model: str, name: str, other: str) -> int:
    """The number of losses and of parameters' elements that are not bit for bit."""
    losses = [_losses(work, model, run) for run in (name, other)]
    last = f"checkpoint-{script.MAX_STEPS}"
    ours, theirs = (_weights(work / model / run / last) for run in (name, other))
    if ours.keys() != theirs.keys() or losses[0].keys() != losses[1].keys():
        raise ValueError(f"other parameters or steps: {losses}")
    unlike = sum(losses[0][step] != losses[1][step] for step in losses[0])
    return unlike + sum(int(np.sum(ours[key] != theirs[key])) for key in ours)


def _loss_difference(work: Path, model: str, name: str) -> float:
    losses, own = _losses(work, model, name), _losses(work, model, "run")
    steps = range(script.GIVEN_STEP + 1, script.MAX_STEPS + 1)
    return max(abs(losses[str(n)] / own[str(n)] - 1) for n in steps)


def _losses(work: Path, model: str, name: str) -> dict[str, float]:
    ended = _ended(work, model, name)
    if "error" in ended:
        raise RuntimeError(ended["error"])
    return ended["losses"]


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
    title = "Checkpoints of Trainer by version"
    sys.exit(0 if report(title, rows(versions, args.environments)) else 1)


if __name__ == "__main__":
    _main()
