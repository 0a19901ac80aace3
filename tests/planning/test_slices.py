"""Named slices, and devices for compilation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxopt_tf.planning import (
    CompilerMissingError,
    _slices,
    is_compiler_installed,
    named_slice,
    peak_flops,
    slice_devices,
)
from jaxopt_tf.sharding import abstract_mesh, make_mesh


def compiler_of(name):
    return pytest.mark.skipif(
        not is_compiler_installed(named_slice(name)),
        reason=f"the compiler for {name} is not installed",
    )


@pytest.mark.parametrize(
    ("name", "num_devices", "flops"),
    [
        ("v5e:4x4", 16, 197e12),
        ("V5P:8x8x8", 512, 459e12),
        ("v5p:4x4x384", 6144, 459e12),
        ("v4:2x2x1", 4, 275e12),
        ("v6e:1x1", 1, 918e12),
        ("h100", 1, 989.4e12),
        ("h100:8", 8, 989.4e12),
    ],
)
def test_knows_slices_by_their_names_alone(name, num_devices, flops):
    slice_ = named_slice(name)
    assert (slice_.num_devices, slice_.chip.flops) == (num_devices, flops)
    assert slice_.family == name.lower().partition(":")[0]


@pytest.mark.parametrize(
    ("name", "slice_name", "num_devices"),
    [
        ("v5e-256", "v5e:16x16", 256),
        ("v5litepod-16", "v5e:4x4", 16),
        ("v6e-8", "v6e:2x4", 8),
        # Two TensorCores per chip.
        ("V5P-16", "v5p:2x2x2", 8),
        ("v4-32", "v4:2x2x4", 16),
        # Not 4x4x64 or 4x8x32.
        ("v5p-2048", "v5p:8x8x16", 1024),
        ("h100-8", "h100:8", 8),
        ("cpu-4", "cpu:4", 4),
    ],
)
def test_knows_names_with_a_number_of_cores(name, slice_name, num_devices):
    slice_ = named_slice(name)
    assert (slice_.name, slice_.num_devices) == (slice_name, num_devices)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5p-12", "nearest is 'v5p-16', which is 'v5p:2x2x2'.* count TensorCores"),
        ("v5e-12", "nearest is 'v5e-16', which is 'v5e:4x4'.* count chips"),
        ("v6e-8x", "nearest is 'v6e-8'"),
        ("v5p-", "nearest is 'v5p-8'"),
        ("h100-3", "nearest is 'h100:4'"),
    ],
)
def test_a_number_of_cores_that_does_not_exist_names_the_nearest(name, words):
    with pytest.raises(ValueError, match=f"`name` must .* got '{name}'.*{words}"):
        named_slice(name)


def test_this_machine_has_no_published_peak():
    assert named_slice("cpu:8").num_devices == 8
    assert np.isnan(named_slice("cpu:8").chip.flops)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("v5e:3x3", "v5e:2x4"),
        ("v5e:16", "v5e:4x4"),
        ("v5e:32x16", "v5e:16x16"),
        ("v6e:2x2x2", "v6e:2x4"),
        ("v5p:16x8x8", "v5p:8x8x16"),
        ("v5p:9x9x9", "v5p:8x8x12"),
        ("v5p:24x24x24", "v5p:16x16x24"),
        ("v4:20x20x20", "v4:16x16x16"),
        ("h100:16", "h100:8"),
        ("cpu:0", "cpu:1"),
    ],
)
def test_a_slice_that_does_not_exist_names_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"`name` must .* got '{name}'.*'{nearest}'"):
        named_slice(name)


def test_a_device_that_does_not_exist_names_the_nearest():
    forms = r"'h200'. Known forms: v5e:4x4 or v5e-16 .*v5p-16 .*v4-32, h100.*cpu:8\."
    with pytest.raises(ValueError, match=rf"{forms} Did you mean 'h100'\?"):
        named_slice("h200")
    with pytest.raises(TypeError, match="`name` must be a string"):
        named_slice(8)


@pytest.mark.parametrize(
    ("device_kind", "peak"),
    [
        ("cpu", None),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA GeForce RTX 3090", None),
    ],
)
def test_knows_the_peak_of_devices(device_kind, peak):
    assert peak_flops(device_kind) == peak


@pytest.mark.parametrize(
    ("kind", "name"), [("TPU v5 lite", "v5e:1x1"), ("NVIDIA H100 80GB HBM3", "h100")]
)
def test_a_slice_has_the_peak_of_its_devices(kind, name):
    assert named_slice(name).chip.flops == peak_flops(kind)


@pytest.mark.parametrize(("name", "package"), [("v5e:4x4", "tpu"), ("h100", "cuda12")])
def test_a_missing_compiler_says_what_to_install(monkeypatch, name, package):
    monkeypatch.setattr(_slices, "is_compiler_installed", lambda slice_: False)
    with pytest.raises(CompilerMissingError) as raised:
        slice_devices(named_slice(name))
    assert f'pip install "jax[{package}]=={jax.__version__}"' in str(raised.value)


def test_cpu_devices_are_this_machines():
    assert slice_devices(named_slice("cpu:4")) == jax.devices()[:4]


def test_more_cpu_devices_than_there_are_say_how_to_get_them():
    with pytest.raises(ValueError, match="'cpu:9999' and 8. Set JAX_NUM_CPU_DEVICES"):
        slice_devices(named_slice("cpu:9999"))


def test_arrays_are_described_on_a_mesh_of_no_devices():
    mesh = abstract_mesh("data=4,fsdp=128", 512)
    assert NamedSharding(mesh, P("fsdp")).shard_shape((256, 3)) == (2, 3)
    with pytest.raises(ValueError, match="a product of 12 for 8 devices"):
        abstract_mesh("data=2,fsdp=6", 8)


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        pytest.param("v5e:4x4", "data=2,fsdp=8", marks=compiler_of("v5e:4x4")),
        pytest.param("v5e:1x1", "data=1", marks=compiler_of("v5e:1x1")),
        pytest.param("v4:2x2x1", "data=4", marks=compiler_of("v4:2x2x1")),
        pytest.param("h100:8", "data=8", marks=compiler_of("h100:8")),
    ],
)
def test_compiles_for_absent_devices(name, axes):
    # fsdp=8 is no product of sides of 4 x 4.
    mesh = make_mesh(axes, slice_devices(named_slice(name)))
    over = NamedSharding(mesh, P(mesh.axis_names))
    x = jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=over)
    program = jax.jit(lambda x: 2.0 * x).lower(x).compile()
    assert program.memory_analysis().argument_size_in_bytes >= 4
