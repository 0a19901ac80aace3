"""Codes and scales of bitsandbytes' AdamW, in a file that Trainer wrote."""

import copy
import itertools
import pathlib
import shutil

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
    torch_model_from_shapes,
    write_trainer_checkpoint,
)
from jaxopt_tf.jobs import RunConfig, export_run, import_run
from jaxopt_tf.models import build_model, settings_from_transformers_config
from jaxopt_tf.optimizers import (
    QuantizedMoment,
    TorchLayout,
    adamw_8bit_tf,
    adamw_tf,
)
from jaxopt_tf.recipes import Recipe

FILES = pathlib.Path(__file__).parents[1] / "files" / "bitsandbytes_checkpoint"
NESTED = "__bnb_optimizer_quant_state__"
HEAD = 15  # number of the head's weight in the file


@pytest.fixture(scope="module")
def saved():
    return load_torch(FILES / "optimizer.pt")


class Run:
    """The model of the file, and its names."""

    def __init__(self, *, scan_layers=True):
        settings = settings_from_transformers_config(FILES, None)
        settings |= {"scan_layers": scan_layers, "max_steps": 4, "text": ["unused.npy"]}
        model = build_model(RunConfig.from_dict(settings).model)
        self.layouts = model.layouts
        self.params = jax.tree.map(lambda p: np.zeros(p.shape, p.dtype), model.shapes)
        described = torch_model_from_config(FILES)
        self.names = match_names(self.params, described, layouts=model.layouts)

    def read(self, state_dict, build=adamw_8bit_tf, **options):
        options = {"layouts": self.layouts} | options
        layouts = options["layouts"]
        if build is adamw_tf:
            options = {}
        state = jax.eval_shape(build(1e-3, **options).init, self.params)
        return opt_state_from_torch(
            state, self.params, state_dict, self.names, layouts=layouts
        )

    def written(self, state, groups, **options):
        options = {"layouts": self.layouts} | options
        return torch_from_opt_state(state, self.params, self.names, groups, **options)


@pytest.fixture(scope="module")
def run():
    return Run()


def flat(state_dict):
    """Returns the state dict as bitsandbytes wrote it before 0.49.2."""
    entries = {
        number: {"step": entry["step"], **entry[NESTED]}
        for number, entry in state_dict["state"].items()
    }
    return state_dict | {"state": entries}


def damaged(saved, number, key, value):
    state_dict = copy.deepcopy(saved)
    state_dict["state"][number][NESTED][key] = value
    return state_dict


def by_name(tree):
    def is_quantized(node):
        return isinstance(node, QuantizedMoment)

    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_quantized)
    return {".".join(str(key.key) for key in path): leaf for path, leaf in found}


def assert_same_files(ours, theirs):
    assert ours["state"].keys() == theirs["state"].keys()
    for number, entry in theirs["state"].items():
        arrays = entry.get(NESTED, entry)
        new = ours["state"][number]
        assert new.keys() == entry.keys()
        assert new["step"] == entry["step"]
        assert type(new["step"]) is int
        new = new.get(NESTED, new)
        assert new.keys() == arrays.keys()
        for key in arrays.keys() - {"step"}:
            assert new[key].dtype == arrays[key].dtype
            assert torch.equal(new[key], arrays[key]), (number, key)
    for new, group in zip(ours["param_groups"], theirs["param_groups"], strict=True):
        assert {k: v for k, v in new.items() if k != "param_names"} == group


@pytest.mark.parametrize("scan_layers", [True, False], ids=["stacked", "layers"])
def test_codes_and_scales_are_those_of_the_file(saved, scan_layers):
    run = Run(scan_layers=scan_layers)
    state = run.read(saved)
    assert int(state.count) == 2
    num_quantized = 0
    groups = run.written(state, saved["param_groups"])["param_groups"]
    named = [zip(g["param_names"], g["params"], strict=True) for g in groups]
    numbers = dict(itertools.chain(*named))
    for field, k in (("mu", 1), ("nu", 2)):
        moments = by_name(getattr(state, field))
        for found in run.names.slices:
            ours = moments[found.leaf]
            arrays = saved["state"][numbers[found.torch_name]][NESTED]
            assert ("qmap1" in arrays) == isinstance(ours, QuantizedMoment)
            if isinstance(ours, QuantizedMoment):
                num_quantized += 1
                # Rows of down_proj in torch are blocks. Other blocks have several rows.
                is_row = "down_proj" in found.torch_name
                theirs = arrays[f"absmax{k}"].numpy().reshape([1, 32] if is_row else -1)
                scales = np.asarray(ours.scales)[found.stack_index]
                np.testing.assert_array_equal(scales, theirs, found.leaf)
                ours = ours.codes
            ours = np.asarray(
                found.layout.to_torch(np.asarray(ours))[found.stack_index]
            )
            theirs = arrays[f"state{k}"].numpy()
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs, found.leaf)
    assert num_quantized == 14


@pytest.mark.parametrize("layout", ["0.50", "0.49.1"])
def test_a_file_is_written_again_bit_for_bit(run, saved, layout, tmp_path):
    theirs = saved if layout == "0.50" else flat(saved)
    like = tmp_path / "like"
    shutil.copytree(FILES, like)
    save_torch(theirs, like / "optimizer.pt")
    recipe = Recipe(
        optim="adamw_8bit", learning_rate=1e-3, max_steps=4, weight_decay=0.1,
        lr_scheduler_type="cosine", decay_rule="transformers_v5",
    )  # fmt: skip
    state = run.read(theirs)
    write_trainer_checkpoint(
        tmp_path / "new", run.params, state, run.names,
        recipe=recipe, step=2, like=like, layouts=run.layouts,
    )  # fmt: skip
    ours = load_torch(tmp_path / "new" / "optimizer.pt")
    assert_same_files(ours, theirs)
    # Without `like` the layout is that of the newest version.
    assert_same_files(run.written(state, saved["param_groups"]), saved)
    again = run.read(ours)
    assert all(map(np.array_equal, jax.tree.leaves(again), jax.tree.leaves(state)))


@pytest.mark.usefixtures("compiled_once", "compiled_quickly")
def test_a_checkpoint_is_migrated_both_ways(saved, tmp_path):
    import transformers

    theirs = tmp_path / "theirs"
    shutil.copytree(FILES, theirs)
    arguments = torch.load(FILES / "training_args.bin", weights_only=False)
    optim = transformers.training_args.OptimizerNames.PAGED_ADAMW_8BIT
    arguments.optim = optim
    torch.save(arguments, theirs / "training_args.bin")
    transformers.set_seed(0)
    config = transformers.AutoConfig.from_pretrained(FILES)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(theirs)
    np.save(tmp_path / "text.npy", np.arange(4000, dtype=np.uint8) % 131)
    text = {"text": [str(tmp_path / "text.npy")], "eos_token_id": 0}
    imported = import_run(theirs, tmp_path / "run", settings=text)
    assert imported.config.recipe.optim == "paged_adamw_8bit"
    export_run(tmp_path / "run", tmp_path / "out")
    ours = load_torch(tmp_path / "out" / "optimizer.pt")
    assert_same_files(ours, saved)


def test_float32_states_of_bitsandbytes_are_read_and_written(run, saved):
    quantized = run.read(saved)
    rng = np.random.default_rng(0)
    moments = [
        jax.tree.map(lambda p: rng.random(p.shape, np.float32), run.params)
        for _ in range(2)
    ]
    state = quantized._replace(mu=moments[0], nu=moments[1])
    written = run.written(state, saved["param_groups"])
    entry = written["state"][HEAD]
    assert entry["step"] == 2
    assert entry[NESTED].keys() == {"state1", "state2"}
    np.testing.assert_array_equal(
        entry[NESTED]["state2"], moments[1]["lm_head"]["kernel"].T
    )
    for file in (written, flat(written)):
        again = run.read(file, adamw_tf)
        assert all(
            map(np.array_equal, jax.tree.leaves(again.mu), jax.tree.leaves(state.mu))
        )
        assert all(
            map(np.array_equal, jax.tree.leaves(again.nu), jax.tree.leaves(state.nu))
        )


def test_groups_without_entries_need_the_settings_of_bitsandbytes(run, saved):
    fresh = saved | {"state": {}}
    assert int(run.read(fresh).count) == 0
    groups = copy.deepcopy(saved["param_groups"])
    for group in groups:
        for key in ("alpha", "t_alpha", "t_beta3"):
            group.pop(key)
    old = saved | {"param_groups": groups}
    assert int(run.read(old).count) == 2
    # Groups of bitsandbytes' Lion have the same keys.
    with pytest.raises(ValueError, match="got an unknown format"):
        run.read(old | {"state": {}})


@pytest.mark.parametrize(
    ("key", "change", "says"),
    [
        ("qmap1", lambda m: m * (1 + 1e-5), "`qmap1` of 'lm_head.weight' must be the"),
        ("qmap2", lambda m: torch.linspace(0, 1, 256), "got 256 other levels, the f"),
        ("absmax1", lambda s: s.repeat_interleave(2), r"17 elements.* \[34\]"),
        ("absmax2", lambda s: s.double(), "must be float32 .* got float64"),
        ("absmax2", lambda s: s * float("nan"), "`absmax2` of 'lm_head.weight' must"),
        ("absmax1", lambda s: -s, "must be finite and at least 0"),
        ("state1", lambda c: c.float(), "must fit into the tree's uint8"),
        ("state2", lambda c: c[:-1], r"`state2` \[130, 32\]"),
    ],
)  # fmt: skip
def test_other_maps_and_blocks_are_refused(run, saved, key, change, says):
    value = change(saved["state"][HEAD][NESTED][key])
    with pytest.raises(ValueError, match=says):
        run.read(damaged(saved, HEAD, key, value))


def test_other_layouts_are_refused(run, saved):
    with pytest.raises(ValueError, match="`layouts` must give .* other elements"):
        run.read(saved, layouts=run.layouts | {r"lm_head\.kernel": TorchLayout()})
    state = run.read(saved)
    layouts = {r"lm_head\.kernel": TorchLayout.dense()}
    with pytest.raises(ValueError, match="`layouts` must give .* stacked axes differ"):
        run.written(state, saved["param_groups"], layouts=layouts)


def test_blocks_of_a_fused_leaf_are_refused(saved):
    params = {"qkv": {"kernel": np.zeros((64, 192), "f4")}}
    shapes = {f"{n}.weight": (64, 64) for n in "qkv"}
    names = match_names(
        params, torch_model_from_shapes(shapes), table={"qkv.kernel": [*shapes]}
    )
    layouts = {".*": TorchLayout.dense()}
    optimizer = adamw_8bit_tf(1e-3, layouts=layouts)
    state = jax.eval_shape(optimizer.init, params)
    says = (
        "must have float32 moments for 'qkv.kernel', .* cannot be split .*`keep_float"
    )
    with pytest.raises(ValueError, match=says):
        torch_from_opt_state(
            state, params, names, [{"lr": 0.1}], groups=[[*shapes]], layouts=layouts
        )


def test_leaves_must_have_the_bits_of_the_file(run, saved):
    def embedding_too(params):
        return jax.tree.map(lambda p: False, params)

    says = "must have float32 moments for 'model.embed_tokens.embedding'.* is True"
    with pytest.raises(ValueError, match=says):
        run.read(saved, keep_float32=embedding_too)
    says = "must have 8-bit moments of bitsandbytes for 'lm_head.kernel'.* is False"
    with pytest.raises(ValueError, match=says):
        run.read(saved, adamw_tf)


def test_variants_of_adamw_are_refused(run, saved):
    for key, name in (("gnorm_vec", "percentile_clipping"), ("unorm_vec", "max_unorm")):
        other = damaged(saved, HEAD, key, torch.zeros(1))
        with pytest.raises(ValueError, match=f"bitsandbytes AdamW with `{name}`"):
            run.read(other)
