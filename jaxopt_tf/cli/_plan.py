"""`jaxopt-tf plan`: what a run needs on devices that nobody has to own yet."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .. import planning, sharding
from ..jobs import Job, RunConfig, build_setup
from ..models import GPT2Config, gpt2_rules
from ..recipes import Recipe
from ._flags import flag_kinds
from ._run_flags import RunFlags, parse


@dataclass(frozen=True, kw_only=True)
class Plan(RunFlags):
    """Computes the memory, traffic and time of a run on devices that are only named.

    Without the compiler of these devices, only shapes are counted.

    Example:
      jaxopt-tf plan --preset gpt2 --devices v5e:4x4 --mesh data=4,fsdp=4

    Attributes:
        devices: name of the devices: v5e:4x4, v5p:8x8x8, v6e:2x4, v4:2x2x2, h100,
            h100:8, cpu:8.
        model: another name for --preset.
        shapes_only: compiles nothing: this takes seconds instead of minutes, but leaves
            out activations, traffic and time.
    """

    prog: ClassVar[str] = "jaxopt-tf plan"
    # The others are of the loop, the data and the folder, not of the compiled step.
    unused: ClassVar[frozenset[str]] = frozenset(flag_kinds(Job)) - {
        *("mesh", "zero_1", "bf16", "tf32"),
        *("on_non_finite", "max_skipped_in_a_row", "log_layers"),
    }

    devices: str = "cpu:1"
    model: str | None = None
    shapes_only: bool = False


_Mesh = Any  # of devices; or of none, which type checkers tell apart and JAX does not


def plan(args: Sequence[str]) -> int:
    """Says what a run with these flags needs on the devices that are named.

    Args:
        args: what stands after the command's name.

    Returns:
        The exit status: 0; 1 if the run does not fit.
    """
    flags = parse(Plan, _with_preset(args))
    recipe, model, job = flags.run.recipe, flags.run.model, flags.run.job
    slice_ = planning.named_slice(flags.devices)
    axes = job.mesh or f"data={slice_.num_devices}"
    mesh, note = _mesh(slice_, axes)
    if flags.shapes_only:
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
