"""`jaxopt-tf plan`: what a run needs on devices that nobody has to own yet."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

from .. import planning, sharding
from ..jobs import Job, RunConfig, build_setup
from ..models import GPT2Config, gpt2_rules
from ..recipes import Recipe
from ._flags import Flag
from ._train import PRESET, parse_with

_PROG = "jaxopt-tf plan"
_DEVICES = Flag(
    "devices",
    "NAME",
    is_several=False,
    is_optional=False,
    help="where the run is to be: v5e:4x4, v5p:8x8x8, v6e:2x4, v4:2x2x2, h100, h100:8, "
    "cpu:8.",
    default="cpu:1",
)
_MODEL = PRESET._replace(name="model", help="another name for --preset.", default=None)
_SHAPES = Flag(
    "shapes_only",
    "",
    is_several=False,
    is_optional=False,
    help="whether nothing is compiled: seconds, not minutes; activations, traffic and "
    "time are then not known.",
    default=False,
)
_Mesh = Any  # of devices; or of none, which type checkers tell apart and JAX does not


def plan(args: Sequence[str]) -> int:
    """Says what a run with these flags needs on the devices that are named.

    Args:
        args: what stands after the command's name.

    Returns:
        The exit status: 0; 1 if the run does not fit.
    """
    (recipe, model, job), own = parse_with(
        {flag.name: flag for flag in (_DEVICES, _MODEL, _SHAPES)},
        _with_preset(args),
        prog=_PROG,
        description="Says what a run that these flags would train needs on devices "
        "that are only named. Their compiler must be installed, or shapes alone speak.",
    )
    slice_ = planning.named_slice(own.get("devices", _DEVICES.default))
    axes = job.mesh or f"data={slice_.num_devices}"
    mesh, note = _mesh(slice_, axes)
    if own.get("shapes_only"):
        note = "nothing was compiled, as asked."
    asked = _planned(recipe, model, job, mesh, slice_, note)
    planning.print_plan(asked)
    print()
    planning.print_comparison(_compared(recipe, model, job, mesh, slice_, asked))
    return 1 if asked.fits is False else 0


def _with_preset(args: Sequence[str]) -> list[str]:
    """`--model gpt2` and `--model=gpt2` as `--preset`."""
    return [
        "--preset" + arg.removeprefix("--model")
        if arg == "--model" or arg.startswith("--model=")
        else arg
        for arg in args
    ]


def _mesh(slice_: planning.Slice, axes: str) -> tuple[_Mesh, str]:
    """A mesh of the slice's devices; without their compiler, of none, and why."""
    try:
        return sharding.make_mesh(axes, planning.slice_devices(slice_)), ""
    except planning.CompilerMissingError as error:
        return sharding.make_shapes_mesh(axes, slice_.num_devices), (
            f"This is from shapes alone: {error}"
        )


def _planned(
    recipe: Recipe,
    model: GPT2Config,
    job: Job,
    mesh: _Mesh,
    slice_: planning.Slice,
    note: str,
) -> planning.Plan:
    """With the compiled step, unless a note says why not."""
    config = RunConfig(recipe=recipe, model=model, job=job)
    setup = build_setup(config, mesh)
    state = setup.position.state
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
    num_sequences = math.prod(setup.batch.shape[:-1])
    return planning.plan_step(
        setup.train_step,
        state,
        setup.batch,
        slice_=slice_,
        parts=parts,
        num_items=num_sequences * (setup.batch.shape[-1] - 1),
        moved=moved,
    )


def _compared(
    recipe: Recipe,
    model: GPT2Config,
    job: Job,
    mesh: _Mesh,
    slice_: planning.Slice,
    asked: planning.Plan,
) -> dict[str, planning.Plan]:
    """What was asked for, and AdamW and Adafactor with ZeRO-1 or not, from shapes."""
    plans = {f"{_told(recipe.optim, job.zero_1)}, as asked": asked}
    for optim, zero_1 in itertools.product(("adamw_torch", "adafactor"), (False, True)):
        is_asked = (optim, zero_1) == (recipe.optim, job.zero_1)
        if is_asked or (zero_1 and mesh.shape.get("data", 1) == 1):
            continue
        args = recipe.optim_args if optim == recipe.optim else ()
        plans[_told(optim, zero_1)] = _planned(
            dataclasses.replace(recipe, optim=optim, optim_args=args),
            model,
            dataclasses.replace(job, zero_1=zero_1),
            mesh,
            slice_,
            note="for comparison",
        )
    return plans


def _told(optim: str, zero_1: bool) -> str:
    return f"{optim}, ZeRO-1" if zero_1 else optim
