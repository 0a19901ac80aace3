"""`jaxopt-tf plan`: memory, traffic and time of a run on named devices."""

import dataclasses
from collections.abc import Sequence

from .. import jobs, planning
from ._errors import in_flags
from ._flags import Flag
from ._train import PRESET, parse_with

_PROG = "jaxopt-tf plan"
_DEVICES = Flag(
    "devices",
    "NAME",
    is_several=False,
    is_optional=False,
    help="devices of the run: v5e:4x4, v5p:8x8x8, v6e:2x4, v4:2x2x2, h100, h100:8, "
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


def plan(args: Sequence[str]) -> int:
    """Prints what a run with these flags needs on the named devices.

    Args:
        args: the arguments after the command's name.

    Returns:
        The exit status: 0; 1 if the run does not fit.
    """
    (recipe, model, job), own = parse_with(
        {flag.name: flag for flag in (_DEVICES, _MODEL, _SHAPES)},
        _with_preset(args),
        prog=_PROG,
        description="Prints what a run that these flags would train needs on devices "
        "that are only named. Without their compiler it is computed from shapes alone.",
    )
    config = jobs.RunConfig(recipe=recipe, model=model, job=job)
    asked = jobs.plan(
        config,
        devices=own.get("devices", _DEVICES.default),
        shapes_only=own.get("shapes_only", False),
    )
    asked = dataclasses.replace(asked, note=in_flags(asked.note, "plan"))
    planning.print_plan(asked)
    print()
    planning.print_comparison(jobs.compare_plans(config, asked))
    return 1 if asked.fits is False else 0


def _with_preset(args: Sequence[str]) -> list[str]:
    """`--model gpt2` and `--model=gpt2` as `--preset`."""
    return [
        "--preset" + arg.removeprefix("--model")
        if arg == "--model" or arg.startswith("--model=")
        else arg
        for arg in args
    ]
