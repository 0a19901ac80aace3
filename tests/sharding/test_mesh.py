"""Meshes from strings of axes, and their errors."""

import jax
import pytest

from jaxopt_tf.sharding import make_mesh


def test_reads_text_and_mappings():
    for axes in ("data=2, fsdp=4", {"data": 2.0, "fsdp": 4}):
        mesh = make_mesh(axes)
        assert dict(mesh.shape) == {"data": 2, "fsdp": 4}
        assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


def test_takes_some_of_the_devices():
    mesh = make_mesh("fsdp=2", jax.devices()[4:6])
    assert [device.id for device in mesh.devices] == [4, 5]


@pytest.mark.parametrize(
    ("axes", "error", "message"),
    [
        (
            "data=2,fsdp=3",
            ValueError,
            "the product of `axes` must .*data=2, fsdp=3, a product of 6 for 8 "
            "devices. It would fit with fsdp=4",
        ),
        ("data=3,fsdp=5", ValueError, "a product of 15 for 8 devices.$"),
        (
            {"data": 4},
            ValueError,
            "a product of 4 for 8 devices. It would fit with data=8",
        ),
        ("data", ValueError, "`axes` must be names and sizes as in 'data=2,fsdp=4'"),
        ("data=2,data=4", ValueError, "`axes` must contain at least one axis, and"),
        ({}, ValueError, "`axes` must contain at least one axis"),
        ("data=0", ValueError, "`axes data` must be from 1"),
        (
            8,
            TypeError,
            "`axes` must be a string or a mapping with names and sizes, got 8",
        ),
        ({"data": 1.5}, TypeError, "`axes data` must be a whole number, got 1.5"),
    ],
)
def test_refuses_what_does_not_fit(axes, error, message):
    with pytest.raises(error, match=message):
        make_mesh(axes)
