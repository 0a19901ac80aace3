"""Plans against the compiler and against counts made by hand."""

import dataclasses
import functools
import io

import jax
import jax.numpy as jnp
import pytest
import rich.console
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxopt_tf import adamw_tf, clip
from jaxopt_tf.optimizers import adafactor_tf
from jaxopt_tf.planning import (
    Plan,
    bytes_by_leaf,
    estimate,
    named_slice,
    plan_shapes,
    plan_step,
    print_comparison,
    print_plan,
)
from jaxopt_tf.sharding import (
    abstract_mesh,
    make_mesh,
    param_shardings,
    state_shardings,
    unmet_rules,
)

CPUS = named_slice("cpu:8")


@pytest.fixture(scope="module")
def mesh():
    return make_mesh("data=2,fsdp=4")


def leaf(mesh, shape, *spec, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))


def collectives(plan):
    return {each.kind: each for each in plan.cost.collectives}


def test_counts_bytes_of_shapes(mesh):
    tree = {
        "divided": leaf(mesh, (8, 3), "fsdp"),
        "half": leaf(mesh, (8,), "data", dtype=jnp.bfloat16),
        "key": jax.eval_shape(lambda: jax.random.key(0)),
        "repeated": leaf(mesh, (5,)),
    }
    found = {
        each.name: (each.on_device, each.global_bytes) for each in bytes_by_leaf(tree)
    }
    assert found["divided"] == (24, 96)
    assert found["half"] == (8, 16)
    assert found["key"] == (8, 8)
    assert found["repeated"] == (20, 20)


def test_a_pod_is_planned_from_shapes_alone():
    # A tenth of what could be allocated here would be too much.
    slice_ = named_slice("v5p:8x8x8")
    mesh = abstract_mesh("fsdp=512", 512)
    rules = {".*": P("fsdp")}
    params = {
        "tokens": jax.ShapeDtypeStruct((128_256, 8192), jnp.float32),
        "layers": jax.ShapeDtypeStruct((80, 8192, 28_672), jnp.float32),
    }
    state = jax.eval_shape(adafactor_tf().init, params)
    over = param_shardings(params, mesh, rules)
    lying = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        (params, state),
        (over, state_shardings(state, params, over)),
    )
    plan = plan_shapes(
        {"parameters": lying[0], "optimizer state": lying[1]},
        slice_,
        unmet=unmet_rules(params, mesh, rules),
    )
    assert plan.parts[0].on_device * 512 == plan.parts[0].global_bytes
    # They leave room, and activations are not counted.
    assert plan.memory_fraction < 0.2
    assert plan.fits is None
    # 512 does not divide 128,256: neither the embedding's rows nor their means.
    assert ("tokens", "fsdp", 0, 1) in plan.unmet
    part, row, extra = plan.replicated()[0]
    assert (part, row.name) == ("optimizer state", "nu_row.tokens")
    assert extra == pytest.approx(4 * 128_256 * 511 / 512)


def test_what_is_too_large_does_not_fit():
    tree = {"w": jax.ShapeDtypeStruct((5_000_000_000,), jnp.float32)}
    assert plan_shapes({"parameters": tree}, named_slice("v5e:4x4")).fits is False
    assert plan_shapes({"parameters": tree}, CPUS).fits is None


def test_only_a_compiled_step_is_said_to_fit(capsys):
    one = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    plan = plan_step(jax.jit(jnp.sum), one, slice_=named_slice("cpu:1"))
    compiled = dataclasses.replace(plan, slice_=named_slice("v5e:1x1"))
    shapes_only = dataclasses.replace(compiled, cost=None)
    assert (compiled.fits, shapes_only.fits) == (True, None)
    print_plan(compiled)
    assert "It fits: 0% of a device's memory." in capsys.readouterr().out
    print_plan(shapes_only)
    shown = " ".join(capsys.readouterr().out.split())
    assert "Argument 0 fit (0% of a device's memory); activations were not" in shown
    assert "It fits" not in shown


@functools.partial(jax.jit, donate_argnums=(0, 1))
def looped(state, unused, x):
    """Ten products in a loop, one result in the place of an argument."""

    def body(carried, _):
        return jnp.tanh(carried @ state["w"]), None

    x = jax.lax.scan(body, x, None, length=10)[0]
    return {"w": state["w"] + jnp.sum(x)}


def test_loops_count_as_often_as_they_run():
    one = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    plan = plan_step(looped, {"w": one}, {"v": one}, one, slice_=named_slice("cpu:1"))
    products = 10.0 * 2 * 64**3
    assert plan.cost.has_loops
    assert plan.cost.num_open_loops == 0
    assert plan.cost.matmul_flops == (0.0, products, 0.0, 0.0)
    assert plan.cost.flops < products / 5  # XLA counts one round
    assert plan.cost.work == products
    assert plan.cost.hbm_bytes > 10 * 2 * 4 * 64**2


def test_reports_donated_arguments_that_are_not_reused():
    one = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    plan = plan_step(looped, {"w": one}, {"v": one}, one, slice_=named_slice("cpu:1"))
    assert plan.cost.unused_donations == ("unused['v']",)
    assert plan.cost.aliased == 4 * 64**2


def test_loops_of_unknown_length_are_reported():
    def until(x):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 9.0, lambda x: x @ x, x)

    one = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    plan = plan_step(jax.jit(until), one, slice_=named_slice("cpu:1"))
    assert plan.cost.num_open_loops == 1


def test_counts_what_devices_send(mesh):
    def step(w, x):
        gathered = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P()))
        return jnp.sum(x * x), gathered + 1.0

    w, x = leaf(mesh, (64, 8), "fsdp"), leaf(mesh, (64,), ("data", "fsdp"))
    found = collectives(plan_step(jax.jit(step), w, x, slice_=CPUS))
    # One gathering of the whole array among 4, one sum among 8.
    assert found["all-gather"].num_runs == 1
    assert found["all-gather"].bytes == found["all-gather"].largest == 4 * 64 * 8
    assert found["all-gather"].sent == 4 * 64 * 8 * 3 / 4
    assert found["all-reduce"].bytes == 4
    assert found["all-reduce"].sent == 2 * 4 * 7 / 8


def test_collectives_in_a_loop_count_each_round(mesh):
    def step(x):
        def body(total, _):
            return total * 0.5 + jnp.sum(x * total), None

        return jax.lax.scan(body, jnp.float32(1), None, length=7)[0]

    plan = plan_step(jax.jit(step), leaf(mesh, (64,), "fsdp"), slice_=CPUS)
    assert collectives(plan)["all-reduce"].num_runs == 7


@pytest.mark.parametrize("zero_axis", [None, "data"])
def test_state_bytes_match_the_compiler(mesh, zero_axis):
    optimizer = adamw_tf(1e-3, weight_decay=0.1)
    shapes = {"w": (512, 256), "v": (250, 64), "b": (256,)}
    params = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()}
    state = jax.eval_shape(optimizer.init, params)
    over = param_shardings(params, mesh, {".*": P("fsdp")})
    of_state = state_shardings(state, params, over, zero_axis=zero_axis)
    params, state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        (params, state),
        (over, of_state),
    )
    update = jax.jit(optimizer.update, out_shardings=(over, of_state))
    parts = {"gradients": params, "optimizer state": state, "parameters": params}
    plan = plan_step(update, params, state, params, slice_=CPUS, parts=parts)
    assert plan.cost.arguments == sum(part.on_device for part in plan.parts)


def test_estimates_from_peaks():
    one = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    plan = plan_step(jax.jit(jnp.matmul), one, one, slice_=named_slice("cpu:1"))
    chip = named_slice("v5e:1x1").chip
    roof = estimate(plan.cost, chip)
    assert roof.arithmetic == plan.cost.flops / 197e12
    assert roof.memory == plan.cost.hbm_bytes / 819e9
    assert roof.seconds == max(roof)
    assert roof.limit == "memory"
    assert plan.estimate is None  # of a CPU nothing is published


@pytest.mark.parametrize(
    ("dtype", "precision", "on_v5e", "on_h100"),
    [
        ("bfloat16", None, 1, 1),
        ("float32", None, 1, 2),
        ("float32", "high", 3, 2),
        ("float32", "highest", 6, 989.4 / 66.9),
        ("float32", "F32_F32_F32", 1, 2),  # the least that it can be
    ],
)
def test_a_precise_product_takes_longer(dtype, precision, on_v5e, on_h100):
    def layers(xs, w):
        def half(x):
            return jax.lax.cond(x[0, 0] > 0, lambda x: x, product, x)

        product = functools.partial(jnp.matmul, w, precision=precision)
        return jax.lax.map(half, xs)

    xs = jax.ShapeDtypeStruct((3, 64, 64), dtype)
    w = jax.ShapeDtypeStruct((64, 64), dtype)
    plan = plan_step(jax.jit(layers), xs, w, slice_=named_slice("cpu:1"))
    cost = plan.cost._replace(flops=float("nan"))
    assert cost.work == 3 * 2 * 64**3
    for name, fp32_slowdown in (("v5e:1x1", on_v5e), ("h100", on_h100)):
        chip = named_slice(name).chip
        expected = fp32_slowdown * cost.work / chip.flops
        assert estimate(cost, chip).arithmetic == pytest.approx(expected)


def test_a_step_that_its_compiler_refuses_does_not_fit():
    class Refusing:
        def trace(self, x):
            return self

        def lower(self):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 49G exceed 15G\n...")

    one = jax.ShapeDtypeStruct((8,), jnp.float32)
    plan = plan_step(Refusing(), one, slice_=named_slice("cpu:1"))
    assert plan.fits is False
    assert plan.note.endswith("RESOURCE_EXHAUSTED: 49G exceed 15G")


def test_prints_tables(mesh, capsys):
    w = leaf(mesh, (64, 8), "fsdp")
    tx = clip(1.0)
    step = jax.jit(lambda g: tx.update(g, tx.init(g)))
    plan = plan_step(step, {"w": w}, slice_=CPUS, parts={"gradients": {"w": w}})
    print_plan(plan)
    print_comparison({"this": plan, "shapes": plan_shapes({"gradients": w}, CPUS)})
    shown = capsys.readouterr().out
    for words in (
        "cpu:8: 8 x CPU",
        "total of the step",
        "all-reduce",
        "512 B",
        "donated",
    ):
        assert words in shown
    assert isinstance(plan, Plan)


def test_a_name_in_a_narrow_comparison_goes_on_in_the_next_line(mesh):
    parts = {f"a part of a step {i}": leaf(mesh, (8,)) for i in range(4)}
    shown = rich.console.Console(width=80, file=io.StringIO())
    name = "adamw_torch_on_a_mesh_of_fsdp=8"
    print_comparison({name: plan_shapes(parts, CPUS)}, console=shown)
    lines = shown.file.getvalue().splitlines()
    assert name in "".join(line.split()[0] for line in lines if line.strip())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda mesh: plan_step(lambda x: x, leaf(mesh, (8,)), slice_=CPUS),
            TypeError,
            "`step` must be a jitted function, got .* Wrap it in `jax.jit`",
        ),
        (
            lambda mesh: plan_shapes({"w": leaf(mesh, (8,))}, named_slice("v5e:4x4")),
            ValueError,
            "`parts w` must be placed on the 16 devices of 'v5e.*is placed on 8",
        ),
        (
            lambda mesh: bytes_by_leaf({"w": 1.0}),
            TypeError,
            "`tree` must contain only arrays, got float for 'w'",
        ),
    ],
)
def test_refuses_what_does_not_fit(mesh, call, error, message):
    with pytest.raises(error, match=message):
        call(mesh)


def test_where_the_compiler_counts_no_work_products_do():
    one = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    plan = plan_step(jax.jit(jnp.matmul), one, one, slice_=named_slice("cpu:1"))
    assert plan.cost._replace(flops=float("nan")).work == 2 * 64**3
    assert plan.cost.work == plan.cost.flops
