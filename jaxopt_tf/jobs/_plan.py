"""Memory and time estimates of a run for devices that need not be present."""

import dataclasses
import itertools
import math
from typing import Any

import jax

from .. import planning, sharding, training
from ._config import RunConfig
from ._setup import build_setup

_Mesh = Any  # `Mesh` or `AbstractMesh`; they have no common base class to annotate


def plan(
    config: RunConfig, *, devices: str, shapes_only: bool = False
) -> planning.Plan:
    """Computes the memory, traffic and time of a run's step on named devices.

        print_plan(plan(config, devices="v5e:4x4"))

    Args:
        config: all settings of the run. Without `mesh` the batch is sharded over all
            devices along `data`. If parameters, gradients and optimizer state do not
            fit into each device, the plan is one for `fsdp`, which shards them as well,
            and `remarks` contains a note.
        devices: name of a slice, as for `planning.named_slice`.
        shapes_only: whether compilation is skipped. Activations, traffic and time are
            then unknown. Compilation is also skipped if the compiler for the devices is
            missing.

    Raises:
        ValueError: if the name of the devices is unknown, or the mesh does not fit
            them.
    """
    slice_ = planning.named_slice(devices)
    axes = _axes(slice_, config)
    mesh, note = _mesh(slice_, axes)
    if shapes_only:
        note = "nothing was compiled, as requested."
    found = _plan_on(config, mesh, slice_, note)
    remarks = []
    if config.job.mesh is None and axes != _replicated(slice_):
        remarks.append(
            f"This is a plan with `mesh='{axes}'`: without `mesh` each device has all "
            "parameters, which do not fit. Set it for the run as well."
        )
    if found.fits is False:
        remarks.append(_remedies(config, axes, slice_))
    return dataclasses.replace(found, remarks=tuple(remarks))


def compare_plans(
    config: RunConfig, requested: planning.Plan
) -> dict[str, planning.Plan]:
    """Computes plans for AdamW and Adafactor, with and without ZeRO-1, for comparison.

    Args:
        config: all settings of the run, as for `plan`.
        requested: result of `plan`. The other plans are computed for the same devices,
            from shapes alone.

    Returns:
        The plans, `requested` first, by names for `planning.print_comparison`.
    """
    recipe, job, slice_ = config.recipe, config.job, requested.slice_
    mesh = sharding.abstract_mesh(_axes(slice_, config), slice_.num_devices)
    plans = {f"{_title(config)}, as requested": requested}
    for optim, zero_1 in itertools.product(("adamw_torch", "adafactor"), (False, True)):
        is_requested = (optim, zero_1) == (recipe.optim, job.zero_1)
        # ZeRO-1 has no effect along an axis of size 1.
        if is_requested or (zero_1 and mesh.shape.get("data", 1) == 1):
            continue
        # A recipe raises an error for `optim_args` of another optimizer. All groups
        # have the optimizer that is compared.
        args = recipe.optim_args if optim == recipe.optim else ()
        groups = [
            dataclasses.replace(group, optim=None, optim_args=None)
            for group in recipe.rate_groups
        ]
        other = dataclasses.replace(
            config,
            recipe=dataclasses.replace(
                recipe, optim=optim, optim_args=args, rate_groups=tuple(groups)
            ),
            job=dataclasses.replace(job, zero_1=zero_1),
        )
        plans[_title(other)] = _plan_on(other, mesh, slice_, note="for comparison")
    return plans


def _title(config: RunConfig) -> str:
    optim = config.recipe.optim
    return f"{optim}, ZeRO-1" if config.job.zero_1 else optim


def _replicated(slice_: planning.Slice) -> str:
    """Returns the axes of a mesh on which each device has all parameters."""
    return f"data={slice_.num_devices}"


def _axes(slice_: planning.Slice, config: RunConfig) -> str:
    """Returns the axes of the run's mesh, or those of a mesh on which it can fit."""
    axes = _replicated(slice_)
    if config.job.mesh is not None or slice_.num_devices == 1:
        return config.job.mesh or axes
    mesh = sharding.abstract_mesh(axes, slice_.num_devices)
    is_too_large = _plan_on(config, mesh, slice_, "shapes alone").fits is False
    return f"fsdp={slice_.num_devices}" if is_too_large else axes


def _remedies(config: RunConfig, axes: str, slice_: planning.Slice) -> str:
    """Returns a sentence with the settings that need less memory."""
    settings = []
    if slice_.num_devices > 1 and "fsdp" not in axes:
        settings.append(f"`mesh='fsdp={slice_.num_devices}'`")
    if not config.job.bf16:
        settings.append("`bf16`")
    if not config.model.gradient_checkpointing:
        settings.append("`gradient_checkpointing`")
    size = config.recipe.per_device_train_batch_size
    if size > 1:
        settings.append(f"a `per_device_train_batch_size` below {size}")
    if not settings:
        return "A larger slice, or shorter sequences (`block_size`), need less memory."
    return f"Settings that need less memory: {', '.join(settings)}."


def _mesh(slice_: planning.Slice, axes: str) -> tuple[_Mesh, str]:
    """Returns a mesh and a note; the mesh is abstract if the compiler is missing."""
    try:
        abstract = sharding.abstract_mesh(axes, slice_.num_devices)
        devices = planning.slice_devices(slice_)
    # Errors of `planning` name its argument `slice_`.
    except planning.CompilerMissingError as error:
        message = str(error).replace("`slice_`", "`devices`")
        return abstract, f"This was computed from shapes alone: {message}"
    except ValueError as error:
        message = str(error).replace("`slice_`", "`devices`")
        raise ValueError(
            f"{message} Alternatively, change `devices`, which is {slice_.name!r}."
        ) from error
    return sharding.make_mesh(axes, devices), ""


def _plan_on(
    config: RunConfig, mesh: _Mesh, slice_: planning.Slice, note: str
) -> planning.Plan:
    """Computes a plan of the compiled step, or of shapes alone if a note is given."""
    setup = build_setup(config, mesh)
    state, batch = setup.run_state.state, setup.batch
    parts = {
        "parameters": state.params,
        "optimizer state": state.opt_state,
        "gradients": state.params,
    }
    if jax.tree.leaves(setup.frozen):
        parts["frozen"] = setup.frozen
    if config.recipe.gradient_accumulation_steps > 1:
        # The sum is live during all micro-batches, in addition to the gradients of the
        # current one.
        parts["summed gradients"] = state.params
    rules = setup.model.all_sharding_rules(mesh)
    merged = training.merge_params(state.params, setup.frozen)
    unmet = sharding.unmet_rules(merged, mesh, rules)
    if note:
        return planning.plan_shapes(parts, slice_, note=note, unmet=unmet)
    shape = jax.tree.leaves(batch)[0].shape
    return planning.plan_step(
        setup.train_step,
        state,
        batch,
        slice_=slice_,
        parts=parts,
        num_items=math.prod(shape[:-1]) * (shape[-1] - 1),
        unmet=unmet,
    )
