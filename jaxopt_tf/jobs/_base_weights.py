"""Frozen parameters of a run, which its checkpoints do not contain.

These parameters are read again at each start, from the folder `model_name_or_path`. A
run without such a folder initializes them again from its seed.
"""

import functools
import hashlib
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from .. import _io
from .._typing import PyTree
from ..models import LoraSettings, Model, ModelConfig, build_model
from ._config import BASE, RunConfig
from ._job import Job
from ._model_folder import read_folder_params

# Number and size of the parts of a weight file that the fingerprint covers.
_NUM_SAMPLES, _SAMPLE = 256, 2**14
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def run_model(model: ModelConfig, job: Job) -> Model:
    """Returns the model of a run: with an adapter, or with frozen parameters.

    Raises:
        ValueError: if a layer of `lora_target_modules` does not exist, or a pattern of
            `freeze` matches no parameter or all of them.
        ImportError: if the model needs torchax or PEFT, and it is missing or does not
            fit.
    """
    lora = None
    if job.lora_r is not None:
        lora = LoraSettings(
            r=job.lora_r,
            lora_alpha=job.lora_alpha,
            lora_dropout=job.lora_dropout,
            target_modules=job.lora_target_modules,
            base=str(job.model_name_or_path),
        )
    try:
        return build_model(model, lora=lora, freeze=job.freeze)
    except ValueError as error:  # it names the argument of `split_params`
        message = str(error)
        if not message.startswith("`patterns`"):
            raise
        raise ValueError(message.replace("`patterns`", "`freeze`", 1)) from error


def read_frozen(model: Model, shapes: PyTree, config: RunConfig) -> PyTree:
    """Returns the frozen parameters of a run, placed as in `shapes`.

    Args:
        model: the model of the run.
        shapes: frozen parameters, as `jax.ShapeDtypeStruct`s with shardings.
        config: settings of the run.

    Raises:
        ValueError: if the weights in `model_name_or_path` are missing, damaged or those
            of another model.
    """
    if not jax.tree.leaves(shapes):
        return shapes
    folder = _base_folder(config.job)
    if folder is not None:
        return read_folder_params(folder, shapes, model.base_names)
    shardings = jax.tree.map(operator.attrgetter("sharding"), shapes)
    # Compiled on one device, too, so that a run that resumes on a mesh computes equal
    # numbers: operations that are not compiled may round differently.
    init = functools.partial(model.init_frozen, config.recipe.seed)
    if model.draws_on_host:
        return jax.device_put(init(), shardings)
    return jax.jit(init, out_shardings=shardings)()


def on_first_device(shapes: PyTree) -> PyTree:
    """Returns shapes that are placed on the first device of this process."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=sharding), shapes
    )


def with_base(job: Job) -> dict[str, str]:
    """Returns a digest of the weights that a run reads again; {} if there are none.

    The digest covers the sizes and 4 MiB of each weight file, evenly spread: other
    weights of an equal model differ almost everywhere, and files of many gigabytes are
    not read twice.

    Raises:
        ValueError: if the folder of the weights does not exist or has none.
    """
    folder = _base_folder(job)
    if folder is None or (job.lora_r is None and not job.freeze):
        return {}
    files = sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern))
    if not files:
        raise ValueError(
            "`model_name_or_path` must contain the frozen weights of the run, which "
            f"its checkpoints do not contain, got {str(folder)!r} without weights. "
            "Copy the folder back."
        )
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        for part in _samples(path):
            digest.update(part)
    _io.check_equal_across_processes({BASE: digest.hexdigest()})
    return {BASE: digest.hexdigest()}


def check_base(job: Job, saved: Mapping[str, Any]) -> None:
    """Raises unless `model_name_or_path` has the weights with which a run was saved.

    Args:
        job: the job of the run.
        saved: settings in a checkpoint of the run.
    """
    if with_base(job).get(BASE) != saved.get(BASE):
        raise ValueError(
            "`model_name_or_path` must contain the frozen weights of the run, but "
            f"those in {str(job.model_name_or_path)!r} have changed. Copy the folder "
            "back."
        )


def _samples(path: Path) -> Any:
    """Yields parts of a file, or the whole file if it is small."""
    step = max(_SAMPLE, path.stat().st_size // _NUM_SAMPLES)
    with path.open("rb") as file:
        for start in range(0, path.stat().st_size, step):
            file.seek(start)
            yield file.read(_SAMPLE)


def _base_folder(job: Job) -> Path | None:
    return None if job.from_scratch else job.model_name_or_path
