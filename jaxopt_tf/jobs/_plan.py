"""Plans of a run on devices that are only named."""

import dataclasses
import itertools
import math
from typing import Any

from .. import planning, sharding
from ..models import gpt2_rules
from ._config import RunConfig
from ._job import Job
from ._setup import build_setup

_Mesh = Any  # `Mesh` or `AbstractMesh`, which JAX uses alike and type checkers do not


def plan(
    config: RunConfig, *, devices: str, shapes_only: bool = False
) -> planning.Plan:
    """Returns the memory, traffic and time of a run's step on named devices.

        print_plan(plan(config, devices="v5e:4x4"))

    Args:
        config: all settings of the run. Without `mesh` the batch is divided by all
            devices.
        devices: the name of a slice, as for `planning.named_slice`.
        shapes_only: whether nothing is compiled. Activations, traffic and time are then
            not known; so it is, too, if the compiler for the devices is missing.

    Raises:
        ValueError: if there are no such devices, or the mesh is not one of them.
    """
    slice_ = planning.named_slice(devices)
    mesh, note = _mesh(slice_, config.job)
    if shapes_only:
        note = "nothing was compiled, as asked."
    return _plan_on(config, mesh, slice_, note)


def compare_plans(config: RunConfig, asked: planning.Plan) -> dict[str, planning.Plan]:
    """Returns a plan beside those of AdamW and Adafactor, with and without ZeRO-1.

    Args:
        config: as for `plan`.
        asked: from `plan`; the others are of the same devices, and from shapes alone.

    Returns:
        Plans by names for `planning.print_comparison`.
    """
    recipe, job, slice_ = config.recipe, config.job, asked.slice_
    axes = job.mesh or f"data={slice_.num_devices}"
    mesh = sharding.abstract_mesh(axes, slice_.num_devices)
    plans = {f"{_title(config)}, as asked": asked}
    for optim, zero_1 in itertools.product(("adamw_torch", "adafactor"), (False, True)):
        is_asked = (optim, zero_1) == (recipe.optim, job.zero_1)
        # Along an axis of one device ZeRO-1 changes nothing.
        if is_asked or (zero_1 and mesh.shape.get("data", 1) == 1):
            continue
        # Each optimizer refuses arguments of another.
        args = recipe.optim_args if optim == recipe.optim else ()
        other = dataclasses.replace(
            config,
            recipe=dataclasses.replace(recipe, optim=optim, optim_args=args),
            job=dataclasses.replace(job, zero_1=zero_1),
        )
        plans[_title(other)] = _plan_on(other, mesh, slice_, note="for comparison")
    return plans


def _title(config: RunConfig) -> str:
    optim = config.recipe.optim
    return f"{optim}, ZeRO-1" if config.job.zero_1 else optim


def _mesh(slice_: planning.Slice, job: Job) -> tuple[_Mesh, str]:
    """Returns a mesh of the slice; without a compiler, one of no devices and a note."""
    axes = job.mesh or f"data={slice_.num_devices}"
    try:
        abstract = sharding.abstract_mesh(axes, slice_.num_devices)
        devices = planning.slice_devices(slice_)
    except planning.CompilerMissingError as error:
        message = str(error).replace("`slice_`", "`devices`")
        return abstract, f"This is from shapes alone: {message}"
    except ValueError as error:
        message = str(error).replace("`slice_`", "`devices`")
        raise ValueError(
            f"{message} Or change `devices`, which is {slice_.name!r}."
        ) from error
    return sharding.make_mesh(axes, devices), ""


def _plan_on(
    config: RunConfig, mesh: _Mesh, slice_: planning.Slice, note: str
) -> planning.Plan:
    """Plans the compiled step, or, with a note, its shapes alone."""
    setup = build_setup(config, mesh)
    state, batch = setup.position.state, setup.batch
    parts = {
        "parameters": state.params,
        "optimizer state": state.opt_state,
        "gradients": state.params,
    }
    if config.recipe.gradient_accumulation_steps > 1:
        # Kept over all micro-batches, besides the gradients of the current one.
        parts["summed gradients"] = state.params
    rules = gpt2_rules(config.model, mesh)
    unmet = sharding.unmet_rules(state.params, mesh, rules)
    if note:
        return planning.plan_shapes(parts, slice_, note=note, unmet=unmet)
    return planning.plan_step(
        setup.train_step,
        state,
        batch,
        slice_=slice_,
        parts=parts,
        num_items=math.prod(batch.shape[:-1]) * (batch.shape[-1] - 1),
        unmet=unmet,
    )
