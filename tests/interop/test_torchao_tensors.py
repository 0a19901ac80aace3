"""Moments of torchao's AdamW with 8 and 4 bits, read and written without torchao.

The files are those of tests/files/record_optimizer_files.py, which torchao wrote.
"""

import functools
import importlib.util
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
import torch

from jaxopt_tf.interop import (
    load_torch,
    match_names,
    opt_state_from_torch,
    save_torch,
    torch_from_opt_state,
    torch_model_from_config,
    torch_model_from_module,
    write_trainer_checkpoint,
)
from jaxopt_tf.interop._scheduler_state import (
    metric_state_from_torch,
    torch_from_schedule_step,
)
from jaxopt_tf.interop._torchao_tensors import _stand_in, torchao_bits
from jaxopt_tf.jobs import RunConfig, export_run, import_run
from jaxopt_tf.models import build_model, settings_from_transformers_config
from jaxopt_tf.optimizers import (
    QuantizedMoment,
    TorchLayout,
    _low_bit,
    adamw_4bit_tf,
    adamw_8bit_tf,
)
from jaxopt_tf.recipes import Recipe
from tests.files.record_optimizer_files import module

FILES = pathlib.Path(__file__).parents[1] / "files" / "optimizer_files"
LLAMA = pathlib.Path(__file__).parents[1] / "files" / "bitsandbytes_checkpoint"
BUILDS = {8: functools.partial(adamw_8bit_tf, library="torchao"), 4: adamw_4bit_tf}
QUANTIZERS = {8: _low_bit.TORCHAO_8_BIT, 4: _low_bit.TORCHAO_4_BIT}
both = pytest.mark.parametrize("bits", BUILDS, ids="{} bits".format)


def file_of(bits):
    return FILES / f"adamw_torch_{bits}bit.pt"


def recipe(bits, **options):
    return Recipe(
        **{
            "max_steps": 10, "optim": f"adamw_torch_{bits}bit", "learning_rate": 3e-4,
            "lr_scheduler_type": "cosine", "weight_decay": 0.1,
            "decay_rule": "transformers_v5",
        } | options
    )  # fmt: skip


def read(state_dict, bits, build=None):
    params = {"0": {"kernel": np.zeros((128, 32), "f4"), "bias": np.zeros(32, "f4")}}
    names = match_names(params, torch_model_from_module(module()))
    layouts = {"0.kernel": TorchLayout.dense()}
    state = jax.eval_shape((build or BUILDS[bits])(1e-3, layouts=layouts).init, params)
    groups = [["0.weight"], ["0.bias"]]
    return opt_state_from_torch(
        state, params, state_dict, names, groups=groups, layouts=layouts
    )


def changed(value, **attributes):
    """Returns a tensor of torchao with other attributes."""
    new = torch.Tensor._make_wrapper_subclass(
        type(value), value.shape, dtype=value.dtype
    )
    vars(new).update(vars(value) | attributes)
    return new


def pickled(path):
    with zipfile.ZipFile(path) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
        return archive.read(name)


def crcs(path):
    """Returns the checksums of the data of all tensors."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    return [record.CRC for record in records if "/data/" in record.filename]


@both
def test_a_file_is_written_as_torchao_writes_it(bits, tmp_path):
    # Names of classes, order of attributes and all else, byte for byte.
    path = tmp_path / "optimizer.pt"
    save_torch(load_torch(file_of(bits)), path)
    assert pickled(path) == pickled(file_of(bits))
    moment = load_torch(path)["state"][0]["exp_avg"]
    assert torchao_bits(moment) == bits
    assert "signed=True, " in repr(moment)


@both
def test_a_damaged_record_is_named(bits, tmp_path):
    path = tmp_path / "optimizer.pt"
    content = bytearray(file_of(bits).read_bytes())
    with zipfile.ZipFile(file_of(bits)) as archive:
        records = {record.filename: record for record in archive.infolist()}
    (name,) = (name for name in records if name.endswith("/data/1"))
    content[records[name].header_offset + 200] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"tensor 'state.0.exp_avg.codes', is damaged"):
        load_torch(path)


@both
def test_a_stand_in_cannot_be_computed_with(bits):
    name, file = f"OptimState{bits}bit", f"torchao.optim.subclass_{bits}bit"
    value = load_torch(file_of(bits))["state"][0]["exp_avg"]
    arrays = [vars(value)[key] for key in ("codes", "scale", "qmap", "signed")]
    shape = [value.shape] if bits == 4 else []
    stand_in = _stand_in(file, name)(*arrays, *shape, dtype=torch.float32)
    assert vars(stand_in).keys() == vars(value).keys()
    assert torchao_bits(stand_in) == bits
    with pytest.raises(ValueError, match="Install torchao with .*torchao==0.18.0"):
        stand_in + 1
    with pytest.raises((pickle.PicklingError, ModuleNotFoundError), match="torchao"):
        torch.save(stand_in, "/dev/null")


@both
@pytest.mark.parametrize(
    ("key", "attributes", "says"),
    [
        ("exp_avg", {"qmap": lambda q: q * (1 + 1e-5)}, "`qmap` of `exp_avg` of '0.w"),
        ("exp_avg_sq", {"qmap": lambda q: q[1:]}, "for . bits, without a sign, got "),
        ("exp_avg_sq", {"signed": lambda s: True}, "levels with a sign, the first"),
        ("exp_avg", {"scale": lambda s: s.repeat_interleave(2)}, r"16 elem.*\[32\]"),
        ("exp_avg", {"scale": lambda s: s.double()}, "`scale` in .* torch.float32, as"),
        ("exp_avg_sq", {"scale": lambda s: -s}, "must be finite and at least 0"),
        ("exp_avg", {"codes": lambda c: c[:-1]}, "`codes` in .* for a parameter of"),
        ("exp_avg", {"codes": lambda c: c.int()}, "must be torch.uint8"),
        ("exp_avg", {"codes": lambda c: None}, "`codes` in .* must be a tensor, got N"),
    ],
)  # fmt: skip
def test_other_levels_and_blocks_are_refused(bits, key, attributes, says):
    saved = load_torch(file_of(bits))
    entry = saved["state"][0]
    new = {name: change(vars(entry[key])[name]) for name, change in attributes.items()}
    entry[key] = changed(entry[key], **new)
    with pytest.raises(ValueError, match=says):
        read(saved, bits)


def test_one_moment_of_float32_is_refused():
    saved = load_torch(file_of(8))
    saved["state"][0]["exp_avg"] = torch.zeros(32, 128)
    with pytest.raises(ValueError, match="must be a tensor of torchao as the other"):
        read(saved, 8)


@both
def test_a_file_with_another_number_of_bits_is_refused(bits):
    says = f"must have {bits}-bit moments of torchao for '0.kernel', .* got {12 - bits}"
    with pytest.raises(ValueError, match=says):
        read(load_torch(file_of(bits)), 12 - bits)


def test_a_file_of_another_library_is_refused():
    says = "8-bit moments of torchao for .* got 8-bit moments of bitsandbytes.*library"
    with pytest.raises(ValueError, match=says):
        read(load_torch(file_of(8)), 8, adamw_8bit_tf)


# Stacked layers and blocks of several rows.


class Llama:
    """A Llama of two layers, with codes and scales of random numbers."""

    def __init__(self, bits, *, scan_layers=True):
        settings = settings_from_transformers_config(LLAMA, None)
        settings |= {"scan_layers": scan_layers, "max_steps": 4, "text": ["unused.npy"]}
        model = build_model(RunConfig.from_dict(settings).model)
        self.layouts = model.layouts
        rng = np.random.default_rng(0)
        self.params = jax.tree.map(
            lambda p: rng.normal(size=p.shape).astype(p.dtype), model.shapes
        )
        described = torch_model_from_config(LLAMA)
        self.names = match_names(self.params, described, layouts=model.layouts)
        optimizer = BUILDS[bits](1e-3, layouts=self.layouts)
        self.empty = jax.eval_shape(optimizer.init, self.params)

        def moment(like):
            if like.dtype == np.uint8:
                return rng.integers(0, 256, like.shape, np.uint8)
            return rng.random(like.shape, np.float32)

        moments = [jax.tree.map(moment, m) for m in (self.empty.mu, self.empty.nu)]
        counters = {"count": np.int32(2), "step": np.int32(2)}
        rate = np.float32(2e-4)
        self.state = self.empty._replace(
            mu=moments[0], nu=moments[1], learning_rate=rate, **counters
        )

    def written(self, groups):
        return torch_from_opt_state(
            self.state, self.params, self.names, groups, layouts=self.layouts
        )


def by_name(tree):
    def is_quantized(node):
        return isinstance(node, QuantizedMoment)

    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_quantized)
    return {".".join(str(key.key) for key in path): leaf for path, leaf in found}


def dequantized(value):
    """Returns the moment of a tensor, computed as torchao does."""
    codes = value.codes
    if torchao_bits(value) == 4:
        codes = torch.stack([codes >> 4, codes & 15], -1)
    moment = value.qmap[codes.int()].view(len(value.scale), -1) * value.scale[:, None]
    return moment.view(value.shape).numpy()


@both
@pytest.mark.parametrize("scan_layers", [True, False], ids=["stacked", "layers"])
def test_moments_are_those_of_torchs_tensors(bits, scan_layers):
    run = Llama(bits, scan_layers=scan_layers)
    written = run.written([{"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8,
                            "weight_decay": d} for d in (0.1, 0.0)])  # fmt: skip
    numbers = {}
    for group in written["param_groups"]:
        numbers |= dict(zip(group["param_names"], group["params"], strict=True))
    quantizer, num_quantized = QUANTIZERS[bits], 0
    for field, levels in (("mu", quantizer.signed), ("nu", quantizer.unsigned)):
        moments, shapes = by_name(getattr(run.state, field)), by_name(run.params)
        for found in run.names.slices:
            ours, shape = moments[found.leaf], shapes[found.leaf].shape
            if not isinstance(ours, QuantizedMoment):
                continue
            num_quantized += 1
            blocks = quantizer.blocks(shape, found.layout)
            codes = blocks.unpacked(ours.codes) if levels.are_paired else ours.codes
            decoded = levels.look_up(codes) * blocks.spread(ours.scales)
            ours = found.layout.to_torch(np.asarray(decoded))[found.stack_index]
            key = {"mu": "exp_avg", "nu": "exp_avg_sq"}[field]
            theirs = written["state"][numbers[found.torch_name]][key]
            np.testing.assert_array_equal(ours, dequantized(theirs), found.torch_name)
    assert num_quantized == 12
    again = opt_state_from_torch(
        run.empty, run.params, written, run.names, layouts=run.layouts
    )
    jax.tree.map(np.testing.assert_array_equal, again.mu, run.state.mu)
    jax.tree.map(np.testing.assert_array_equal, again.nu, run.state.nu)


# Checkpoints of Trainer.


@both
@pytest.mark.usefixtures("compiled_once", "compiled_quickly")
def test_a_checkpoint_is_migrated_both_ways(bits, tmp_path):
    import transformers

    run, theirs = Llama(bits), tmp_path / "theirs"
    write_trainer_checkpoint(
        theirs, run.params, run.state, run.names,
        recipe=recipe(bits, max_steps=4), step=2, layouts=run.layouts,
    )  # fmt: skip
    shutil.copy(LLAMA / "config.json", theirs)
    arguments = torch.load(LLAMA / "training_args.bin", weights_only=False)
    arguments.optim = transformers.training_args.OptimizerNames(
        f"adamw_torch_{bits}bit"
    )
    arguments.learning_rate = 3e-4
    torch.save(arguments, theirs / "training_args.bin")
    np.save(tmp_path / "text.npy", np.arange(4000, dtype=np.uint8) % 131)
    text = {"text": [str(tmp_path / "text.npy")], "eos_token_id": 0}
    imported = import_run(theirs, tmp_path / "run", settings=text)
    assert imported.config.recipe.optim == f"adamw_torch_{bits}bit"
    export_run(tmp_path / "run", tmp_path / "out")
    for file in ("optimizer.pt", "scheduler.pt"):
        before, after = theirs / file, tmp_path / "out" / file
        assert pickled(before) == pickled(after)
        assert crcs(before) == crcs(after)
    groups = load_torch(tmp_path / "out" / "optimizer.pt")["param_groups"]
    assert all(torch.is_tensor(g["lr"]) and torch.is_tensor(g["initial_lr"])
               for g in groups)  # fmt: skip


def test_rates_of_the_schedule_are_tensors_as_in_trainer():
    state = torch_from_schedule_step(5, recipe(8, warmup_steps=2, max_steps=12))
    rates = [*state["base_lrs"], *state["_last_lr"]]
    assert {rate.dtype for rate in rates} == {torch.float32}
    # torch multiplies the float32 rate, not the double 3e-4, and rounds the product.
    factor = 0.5 * (1 + np.cos(0.3 * np.pi))
    assert state["_last_lr"] == [torch.tensor(3e-4) * factor] * 2
    assert state["base_lrs"] == [torch.tensor(3e-4)] * 2


def test_tensors_are_read_as_rates_of_a_metric_driven_schedule():
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": torch.tensor(3e-4)}
        for _ in range(2)
    ]
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(torch.optim.SGD(groups))
    plateau.step(1.0)
    state = metric_state_from_torch(plateau.state_dict(), "reduce_lr_on_plateau", {})
    assert state.learning_rate == np.float32(3e-4)


_RESUMES = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
from torchao.optim import AdamW{bits}bit
from tests.files.record_optimizer_files import module
found = []
for path in sys.argv[1:]:
    weight, bias = module().parameters()
    groups = [{{"params": [weight]}}, {{"params": [bias]}}]
    optimizer = AdamW{bits}bit(groups, block_size=256)
    optimizer.load_state_dict(torch.load(path, weights_only=True))
    for step in range(2):
        weight.grad, bias.grad = torch.ones(32, 128), torch.ones(32)
        optimizer.step()
    state = optimizer.state[weight]
    found += [[weight, bias, state["exp_avg"].codes, state["exp_avg_sq"].scale]]
assert all(map(torch.equal, *found))
print("equal", float(found[0][0].sum()))
"""


@both
@pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="torchao is not installed"
)
def test_torchao_resumes_from_a_file_that_was_written_here(bits, tmp_path):
    saved = load_torch(file_of(bits))
    names = torch_model_from_module(module())
    params = {"0": {"kernel": np.zeros((128, 32), "f4"), "bias": np.zeros(32, "f4")}}
    written = torch_from_opt_state(
        read(saved, bits), params, match_names(params, names), saved["param_groups"],
        groups=[["0.weight"], ["0.bias"]], layouts={"0.kernel": TorchLayout.dense()},
    )  # fmt: skip
    save_torch(written, tmp_path / "optimizer.pt")
    program = _RESUMES.format(bits=bits)
    files = [str(file_of(bits)), str(tmp_path / "optimizer.pt")]
    done = subprocess.run(
        [sys.executable, "-c", program, *files],
        capture_output=True, text=True, check=False,
        env={**os.environ, "TORCHDYNAMO_DISABLE": "1", "PYTHONPATH": "."},
    )  # fmt: skip
    assert "equal" in done.stdout, done.stderr
