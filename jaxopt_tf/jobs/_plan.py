"""Plans of a job on devices that are only named."""

import dataclasses
import itertools
import math
from typing import Any

from .. import planning, sharding
from ..models import GPT2Config
from ..recipes import Recipe
from ._placed import gpt2_rules, place, run_steps
from ._settings import Job

_Mesh = Any  # `Mesh` or `AbstractMesh`, which JAX uses alike and type checkers do not


def plan(
    recipe: Recipe,
    model: GPT2Config,
    job: Job,
    *,
    devices: str,
    shapes_only: bool = False,
) -> planning.Plan:
    """Returns the memory, traffic and time of a job's step on named devices.

        print_plan(plan(recipe, model, job, devices="v5e:4x4"))

    Args:
        recipe: the numbers of the updates.
        model: its size.
        job: `mesh`, `zero_1` and all else that decides the step. Without `mesh` the
            batch is divided by all devices.
        devices: the name of a slice, as for `planning.named_slice`.
        shapes_only: whether nothing is compiled. Activations, traffic and time are then
            not known; so it is, too, if the compiler for the devices is missing.

    Raises:
        ValueError: if there are no such devices, or the mesh is not one of them.
    """
    slice_ = planning.named_slice(devices)
    mesh, note = _mesh(slice_, job)
    if shapes_only:
        note = "nothing was compiled, as asked."
    return _plan_on(recipe, model, job, mesh, slice_, note)


def compare_plans(
    recipe: Recipe, model: GPT2Config, job: Job, asked: planning.Plan
) -> dict[str, planning.Plan]:
    """Returns a plan beside those of AdamW and Adafactor, with and without ZeRO-1.

    Args:
        recipe: the numbers of the updates.
        model: its size.
        job: as for `plan`.
        asked: from `plan`; the others are of the same devices, and from shapes alone.

    Returns:
        Plans by names for `planning.print_comparison`.
    """
    slice_ = asked.slice_
    mesh = sharding.make_shapes_mesh(_axes(slice_, job), slice_.num_devices)
    plans = {f"{_title(recipe, job)}, as asked": asked}
    for optim, zero_1 in itertools.product(("adamw_torch", "adafactor"), (False, True)):
        is_asked = (optim, zero_1) == (recipe.optim, job.zero_1)
        if is_asked or (zero_1 and mesh.shape.get("data", 1) == 1):
            continue
        args = recipe.optim_args if optim == recipe.optim else ()
        other = dataclasses.replace(recipe, optim=optim, optim_args=args)
        other_job = dataclasses.replace(job, zero_1=zero_1)
        plans[_title(other, other_job)] = _plan_on(
            other, model, other_job, mesh, slice_, note="for comparison"
        )
    return plans


def _title(recipe: Recipe, job: Job) -> str:
    return f"{recipe.optim}, ZeRO-1" if job.zero_1 else recipe.optim


def _axes(slice_: planning.Slice, job: Job) -> str:
    return job.mesh or f"data={slice_.num_devices}"


def _mesh(slice_: planning.Slice, job: Job) -> tuple[_Mesh, str]:
    """Returns a mesh of the slice; without a compiler, one of no devices and a note."""
    axes = _axes(slice_, job)
    try:
        abstract = sharding.make_shapes_mesh(axes, slice_.num_devices)
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
    recipe: Recipe,
    model: GPT2Config,
    job: Job,
    mesh: _Mesh,
    slice_: planning.Slice,
    note: str,
) -> planning.Plan:
    """Plans the compiled step, or, with a note, its shapes alone."""
    placed = place(recipe, model, job, mesh)
    state = placed.position.state
    parts = {
        "parameters": state.params,
        "optimizer state": state.opt_state,
        "gradients": state.params,
    }
    if recipe.gradient_accumulation_steps > 1:
        parts["summed gradients"] = state.params
    moved = sharding.moved_axes(state.params, mesh, gpt2_rules(model, mesh))
    if note:
        return planning.plan_shapes(parts, slice_, note=note, moved=moved)
    step, _ = run_steps(recipe, model, job, placed)
    num_sequences = math.prod(placed.batch.shape[:-1])
    return planning.plan_step(
        step,
        state,
        placed.batch,
        slice_=slice_,
        parts=parts,
        num_items=num_sequences * (placed.batch.shape[-1] - 1),
        moved=moved,
    )
