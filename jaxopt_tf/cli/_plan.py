"""Subcommand `plan`: memory, memory traffic and time of a run on named devices."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from .. import jobs, planning
from ._flags import flag_kinds, with_flag_names
from ._run_flags import RunFlags, parse


@dataclass(frozen=True, kw_only=True)
class Plan(RunFlags):
    """Computes the memory, memory traffic and time of a run on named devices.

    The devices need not be present.

    Without a compiler for these devices, only memory is computed, from shapes.

    Example:
      jaxopt-tf plan --preset gpt2 --devices v5e:4x4 --mesh data=4,fsdp=4
      jaxopt-tf plan --model_name_or_path FOLDER --devices v5p-16 --bf16

    Attributes:
        devices: name of the devices: v5e:4x4 or v5e-16, v5p:2x2x2 or v5p-16, v6e:2x4
            or v6e-8, v4:2x2x4 or v4-32, h100, h100:8, cpu:8. Numbers after v4- and
            v5p- count TensorCores, two per chip.
        model: alias of --preset.
        shapes_only: compute memory from shapes, without compilation: in seconds instead
            of minutes, but without activations, memory traffic and time.
    """

    prog: ClassVar[str] = "jaxopt-tf plan"
    # Flags that the plan does not use: the fields of `Job`, except those below that
    # affect the compiled step; and `compilation_cache`, because programs for devices
    # that are not present cannot be read from the cache.
    unused: ClassVar[frozenset[str]] = frozenset(flag_kinds(jobs.Job)) - {
        *("model_name_or_path", "packing", "mesh", "zero_1", "bf16", "tf32"),
        *("on_non_finite", "max_skipped_in_a_row", "log_layers"),
        *("model_implementation", "freeze", "lora_r", "lora_alpha", "lora_dropout"),
        "lora_target_modules",
    } | {"compilation_cache"}

    devices: str = "cpu:1"
    model: str | None = None
    shapes_only: bool = False


def plan(args: Sequence[str]) -> int:
    """Runs `jaxopt-tf plan`.

    Args:
        args: command line after the name of the command.

    Returns:
        The exit status: 0; 1 if the run does not fit into memory.
    """
    # `--model` is an alias of `--preset`.
    args = [re.sub(r"^--model(?==|$)", "--preset", arg) for arg in args]
    flags = parse(Plan, args)
    with jobs.compilation_cache(enabled=False):
        requested_plan = jobs.plan(
            flags.run, devices=flags.devices, shapes_only=flags.shapes_only
        )
    flag_names = flag_kinds(Plan)
    requested_plan = dataclasses.replace(
        requested_plan,
        note=with_flag_names(requested_plan.note, flag_names),
        remarks=tuple(
            with_flag_names(remark, flag_names) for remark in requested_plan.remarks
        ),
    )
    planning.print_plan(requested_plan)
    print()
    planning.print_comparison(jobs.compare_plans(flags.run, requested_plan))
    return 1 if requested_plan.fits is False else 0
