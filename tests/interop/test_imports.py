"""Modules that `interop` imports, and the time of their import."""

import pathlib
import re
import subprocess
import sys
import zipfile

import numpy as np
import optax
import pytest

from jaxopt_tf import interop
from jaxopt_tf.recipes import Recipe, build_optimizer


def test_torch_and_transformers_are_loaded_by_what_needs_them_only():
    heavy = ["torch", "transformers", "accelerate"]
    listed = f"[m for m in {heavy} if m in sys.modules]"
    code = f"import jaxopt_tf.interop, sys; print({listed})"
    printed = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert printed.strip() == "[]"


def test_torch_and_transformers_are_imported_with_a_sentence_on_how_to_install_them():
    found = [
        f"{path.name}: {line.strip()}"
        for path in pathlib.Path(interop.__file__).parent.glob("*.py")
        for line in path.read_text().splitlines()
        if re.match(r"\s*import (torch|transformers)\b", line)
    ]
    assert found == []


PARAMS = {"w": np.ones(2, np.float32)}
RECIPE = Recipe(max_steps=2)


def names():
    return interop.match_names(PARAMS, interop.torch_model_from_shapes({"w": (2,)}))


@pytest.mark.parametrize(
    "call",
    [
        lambda folder: interop.load_torch(folder / "optimizer.pt"),
        lambda folder: interop.save_torch({}, folder / "new.pt"),
        lambda folder: interop.torch_model_from_config(folder),
        lambda folder: interop.torch_model_from_module(None),
        lambda folder: interop.torch_from_opt_state(
            optax.tree.set(build_optimizer(RECIPE).init(PARAMS), count=np.int32(1)),
            PARAMS,
            names(),
            [{"lr": 1e-3, "weight_decay": 0.0}],
            groups=[["w"]],
        ),
        lambda folder: interop.read_trainer_checkpoint(
            folder, PARAMS, names(), recipe=RECIPE
        ),
        lambda folder: interop.write_trainer_checkpoint(
            folder / "new",
            PARAMS,
            build_optimizer(RECIPE).init(PARAMS),
            names(),
            recipe=RECIPE,
            step=1,
        ),
    ],
    ids=[
        "load_torch",
        "save_torch",
        "torch_model_from_config",
        "torch_model_from_module",
        "torch_from_opt_state",
        "read_trainer_checkpoint",
        "write_trainer_checkpoint",
    ],
)
def test_what_needs_torch_names_the_command_that_installs_it(
    call, tmp_path, monkeypatch
):
    for name in ("optimizer.pt", "scheduler.pt", "model.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "trainer_state.json").write_text('{"global_step": 1}')
    (tmp_path / "config.json").write_text("{}")
    for name in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(ModuleNotFoundError, match=r'pip install -e "\.\[transformers'):
        call(tmp_path)


def test_a_recipe_is_read_without_torch(tmp_path, monkeypatch):
    path = tmp_path / "training_args.bin"
    with zipfile.ZipFile(path, "w") as archive:
        name = b"ctransformers.training_args\nTrainingArguments\n"
        pickled = name + b"(tR}S'max_steps'\nI5\nsb."
        archive.writestr("x/data.pkl", pickled)
    for name in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    assert interop.recipe_from_transformers(path).recipe.max_steps == 5
