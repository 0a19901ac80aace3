"""Reading of weights onto the shards of a mesh."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
from safetensors.numpy import save_file

from jaxopt_tf.interop import (
    _weight_files,
    match_names,
    read_params,
    torch_model_from_shapes,
)
from jaxopt_tf.interop._sharded_leaves import leaf_on_devices
from jaxopt_tf.sharding import make_mesh

pytestmark = pytest.mark.usefixtures("compiled_quickly")

LAYERS = 4
SHAPES = {"embed.weight": (32, 16), "norm.weight": (16,), "factor": ()}
SHAPES |= {f"layers.{i}.up.weight": (24, 16) for i in range(LAYERS)}
SHAPES |= {f"layers.{i}.norm.weight": (16,) for i in range(LAYERS)}
# Queries [16, 2, 4] have merged axes in torch; keys and values are fused in a leaf.
SHAPES |= {f"layers.{i}.q.weight": (8, 16) for i in range(LAYERS)}
SHAPES |= {f"layers.{i}.{kind}.weight": (8, 16) for i in range(LAYERS) for kind in "kv"}
# Two leaves have parts of one tensor.
SHAPES |= {"both.weight": (24, 8)}
LEAVES = {
    "embed.embedding": ((32, 16), ("tensor", "fsdp")),
    "norm.scale": ((16,), ()),
    "factor": ((), ()),
    "a.kernel": ((8, 8), ("tensor", "fsdp")),
    "b.kernel": ((8, 16), ("fsdp", "tensor")),
    "layers.up.kernel": ((LAYERS, 16, 24), (None, "fsdp", "tensor")),
    "layers.norm.scale": ((LAYERS, 16), (None, "fsdp")),
    "layers.q.kernel": ((LAYERS, 16, 2, 4), (None, "fsdp", "tensor")),
    "layers.kv.kernel": ((LAYERS, 16, 16), (None, "fsdp", "tensor")),
}
MESHES = ["fsdp=8", "fsdp=4,tensor=2", "data=2,fsdp=2,tensor=2", "layers=4,fsdp=2"]


def tree(make):
    root = {}
    for name, (shape, spec) in LEAVES.items():
        *path, last = name.split(".")
        node = root
        for part in path:
            node = node.setdefault(part, {})
        node[last] = make(shape, spec)
    return root


def plain(shape, _):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def on_mesh(axes, dtype=jnp.float32):
    mesh = make_mesh(axes)

    def make(shape, spec):
        # With an axis for layers, stacks are divided along them.
        names = [n if n in mesh.shape else None for n in spec]
        if "layers" in mesh.shape and len(shape) > 1 and shape[0] == LAYERS:
            names[0] = "layers"
        sharding = NamedSharding(mesh, PartitionSpec(*names))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    return tree(make)


NAMES = match_names(
    tree(plain),
    torch_model_from_shapes(SHAPES),
    rules=[
        (r"a\.kernel", "both.weight"),
        (r"b\.kernel", "both.weight"),
        (r"layers\.kv\.kernel", ("layers.k.weight", "layers.v.weight")),
    ],
)


@pytest.fixture
def tensors(rng):
    return {
        name: np.asarray(rng.standard_normal(shape), np.float32)
        for name, shape in SHAPES.items()
    }


@pytest.fixture
def folder(tmp_path, tensors):
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def expected(tensors):
    def stack(kind):
        return np.stack([tensors[f"layers.{i}.{kind}.weight"] for i in range(LAYERS)])

    kv = np.concatenate([stack("k"), stack("v")], axis=1)
    return {
        "embed": {"embedding": tensors["embed.weight"]},
        "norm": {"scale": tensors["norm.weight"]},
        "factor": tensors["factor"],
        "a": {"kernel": tensors["both.weight"][:8].T},
        "b": {"kernel": tensors["both.weight"][8:].T},
        "layers": {
            "up": {"kernel": stack("up").swapaxes(1, 2)},
            "norm": {"scale": stack("norm")},
            "q": {"kernel": stack("q").swapaxes(1, 2).reshape(LAYERS, 16, 2, 4)},
            "kv": {"kernel": kv.swapaxes(1, 2)},
        },
    }


@pytest.fixture(params=[False, True], ids=["on the host", "on the devices"])
def assembled(request, monkeypatch):
    """Stacks are assembled on the host, or layer by layer on the devices."""
    if request.param:
        largest = property(lambda _: 1)
        monkeypatch.setattr(_weight_files.WeightFiles, "largest", largest)
    # Several blocks for each tensor.
    monkeypatch.setattr(_weight_files, "_BLOCK", 256)


@pytest.mark.usefixtures("assembled")
@pytest.mark.parametrize("axes", MESHES)
def test_each_device_has_its_part(folder, tensors, axes):
    like = on_mesh(axes)
    read = read_params(folder, like, NAMES)
    jax.tree.map(np.testing.assert_array_equal, read, expected(tensors))
    for leaf, wanted in zip(jax.tree.leaves(read), jax.tree.leaves(like), strict=True):
        assert leaf.sharding == wanted.sharding
        assert leaf.dtype == wanted.dtype


@pytest.mark.usefixtures("assembled")
def test_without_a_mesh(folder, tensors):
    read = read_params(folder, tree(plain), NAMES)
    jax.tree.map(np.testing.assert_array_equal, read, expected(tensors))
    assert all(not leaf.committed for leaf in jax.tree.leaves(read))
    last = SingleDeviceSharding(jax.devices()[-1])
    read = read_params(folder, jax.device_put(read, last), NAMES)
    jax.tree.map(np.testing.assert_array_equal, read, expected(tensors))
    assert all(leaf.sharding == last for leaf in jax.tree.leaves(read))


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_smaller_dtypes_are_widened_exactly(folder, tensors, dtype):
    tensors = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors")
    read = read_params(folder, on_mesh("fsdp=8"), NAMES)
    wide = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    jax.tree.map(np.testing.assert_array_equal, read, expected(wide))
    read = read_params(folder, on_mesh("fsdp=8", dtype), NAMES)
    jax.tree.map(np.testing.assert_array_equal, read, expected(tensors))


def test_a_process_reads_only_the_parts_of_its_devices(tensors, monkeypatch):
    # A sharding whose other devices belong to another process.
    mesh = make_mesh("fsdp=4,tensor=2")
    mine = set(mesh.devices[1].flat)
    devices = NamedSharding.addressable_devices_indices_map
    made = jax.make_array_from_single_device_arrays
    num_read, given = dict.fromkeys(SHAPES, 0), {}

    def read(name, index):
        part = tensors[name][index]
        num_read[name] += part.size
        return part

    def only_mine(self, shape):
        return {d: i for d, i in devices(self, shape).items() if d in mine}

    def with_others(shape, sharding, arrays, dtype):
        given[len(given)] = arrays
        others = [
            jax.device_put(np.zeros(sharding.shard_shape(shape), dtype), d)
            for d in mesh.devices.flat
            if d not in mine
        ]
        return made(shape, sharding, [*arrays, *others], dtype=dtype)

    monkeypatch.setattr(NamedSharding, "addressable_devices_indices_map", only_mine)
    monkeypatch.setattr(jax, "make_array_from_single_device_arrays", with_others)
    for name, path in (
        ("embed.embedding", ("embed", "embedding")),
        ("layers.up.kernel", ("layers", "up", "kernel")),
        ("layers.kv.kernel", ("layers", "kv", "kernel")),
    ):
        like = on_mesh("fsdp=4,tensor=2")
        for part in path:
            like = like[part]
        for max_bytes in (1, 2**20):
            num_read.update(dict.fromkeys(SHAPES, 0))
            leaf_on_devices(NAMES.by_leaf[name], read, like, max_bytes=max_bytes)
            assert sum(num_read.values()) == math.prod(like.shape) / 4


@pytest.mark.parametrize("kernel", ["layers.2.up.weight", "layers.1.q.weight"])
def test_numbers_that_are_not_finite_are_counted_in_the_tensor(folder, tensors, kernel):
    tensors[kernel][5, 3:5] = np.nan
    save_file(tensors, folder / "model.safetensors")
    size = tensors[kernel].size
    says = f"'{kernel}' in .* must be finite, got 2 of {size} numbers .* at 83"
    with pytest.raises(ValueError, match=says):
        read_params(folder, on_mesh("fsdp=4,tensor=2"), NAMES)


def test_damaged_folders_are_refused(tmp_path, folder, tensors):
    like, index = on_mesh("fsdp=8"), "model.safetensors.index.json"
    file = folder / "model.safetensors"
    tensors["norm.weight"] = tensors["norm.weight"].astype(np.int64)
    save_file(tensors, file)
    says = "'norm.weight' in .* must fit into the tree's float32, got int64"
    with pytest.raises(ValueError, match=says):
        read_params(folder, like, NAMES)
    tensors["norm.weight"] = np.ones(8, np.float32)
    del tensors["embed.weight"]
    save_file(tensors, file)
    with pytest.raises(ValueError, match="has 2 differences") as error:
        read_params(folder, like, NAMES)
    assert r"'embed.weight' [32, 16] is missing" in str(error.value)
    assert r"'norm.weight' has shape [8], not [16]" in str(error.value)
    shard = folder / "model-00001-of-00002.safetensors"
    file.rename(shard)
    weight_map = ", ".join(f'"{name}": "{shard.name}"' for name in tensors)
    lost = '"embed.weight": "model-00002-of-00002.safetensors"'
    (folder / index).write_text(f'{{"weight_map": {{{weight_map}, {lost}}}}}')
    says = "a complete safetensors file, got .*model-00002-of-00002.safetensors'"
    with pytest.raises(ValueError, match=says):
        read_params(folder, like, NAMES)
    (folder / index).write_text(f'{{"weight_map": {{{weight_map}}}}}')
    shard.write_bytes(shard.read_bytes()[:-1])
    says = "a complete safetensors file, got .*model-00001-of-00002.safetensors'"
    with pytest.raises(ValueError, match=says):
        read_params(folder, like, NAMES)
    shard.unlink()
    (folder / index).unlink()
    with pytest.raises(ValueError, match=r"must contain model.safetensors or .* none"):
        read_params(folder, like, NAMES)


def test_ties_are_compared_in_blocks(folder, tensors, monkeypatch):
    monkeypatch.setattr(_weight_files, "_BLOCK", 256)
    save_file(tensors | {"a": tensors["embed.weight"]}, folder / "model.safetensors")
    files = _weight_files.WeightFiles(folder)
    assert files.are_equal("embed.weight", "a")
    assert not files.are_equal("embed.weight", "norm.weight")
    changed = tensors["embed.weight"].copy()
    changed[-1, -1] += 1
    save_file(tensors | {"a": changed}, folder / "model.safetensors")
    assert not _weight_files.WeightFiles(folder).are_equal("embed.weight", "a")
