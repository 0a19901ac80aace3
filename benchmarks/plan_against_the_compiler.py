"""Bytes of a plan against those of the compiled program, for the default job as gpt2.

    python -m benchmarks.plan_against_the_compiler    # 2 to 10 minutes on 2 cores

Needs libtpu and jax-cuda12-plugin, but neither a TPU nor an H100. Compilers that are
not installed are left out.
"""

import os
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

from benchmarks._report import Row, main
from jaxopt_tf.jobs import Job, RunConfig, build_setup
from jaxopt_tf.models import gpt2_preset
from jaxopt_tf.planning import (
    CompilerMissingError,
    bytes_by_leaf,
    named_slice,
    plan_step,
    slice_devices,
)
from jaxopt_tf.recipes import Recipe
from jaxopt_tf.sharding import make_mesh

WHERE = {"cpu:8": "data=2,fsdp=4", "v5e:4x4": "data=4,fsdp=4", "h100": "data=1"}


def rows(smoke: bool) -> Iterator[Row]:
    model = gpt2_preset("nano" if smoke else "gpt2")
    recipe = Recipe(max_steps=1000, per_device_train_batch_size=2)
    for name, axes in WHERE.items():
        slice_ = named_slice(name)
        try:
            mesh = make_mesh(axes, slice_devices(slice_))
        except CompilerMissingError as error:
            print(error)
            continue
        config = RunConfig(recipe=recipe, model=model, job=Job(bf16=True))
        setup = build_setup(config, mesh)
        step, args = setup.train_step, (setup.run_state.state, setup.batch)
        plan = plan_step(step, *args, slice_=slice_)
        cost = plan.cost
        if cost is None:
            raise RuntimeError(f"{name}: {plan.note}")
        told = sum(leaf.on_device for leaf in bytes_by_leaf(args))
        state = sum(part.on_device for part in plan.parts[:1])
        for claim, planned, compiled in (
            ("arguments, plan's to compiler's", told, cost.arguments),
            ("state, plan's to what was donated", state, cost.aliased),
        ):
            yield Row(
                claim=f"{name}, {axes}: {claim}",
                value=100 * abs(planned / compiled - 1),
                unit="%",
                limit=1.0,
                detail=f"{planned / 1e6:.2f} and {compiled / 1e6:.2f} MB",
            )
        said = step.lower(*args).compile().memory_analysis()
        in_all = (
            said.argument_size_in_bytes
            + said.output_size_in_bytes
            - said.alias_size_in_bytes
            + said.temp_size_in_bytes
            + said.generated_code_size_in_bytes
        )
        yield Row(
            claim=f"{name}, {axes}: in all, plan's to that of another compilation",
            value=100 * abs(plan.on_device / in_all - 1),
            unit="%",
            limit=1.0,
            detail=f"{plan.on_device / 1e6:.0f} MB, {cost.temporary / 1e6:.0f} of them "
            "temporary",
        )


if __name__ == "__main__":
    main("The plan beside the compiled program", rows)
