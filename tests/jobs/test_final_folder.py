"""Final folder of a run, loaded by Transformers."""

import dataclasses
import functools
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxopt_tf import interop, sharding
from jaxopt_tf.interop import _weight_shards
from jaxopt_tf.interop._checkpoint_keys import LoadRules
from jaxopt_tf.jobs._final_folder import write_transformers_folder
from jaxopt_tf.models import GPT2Config, build_model, settings_from_transformers_config
from jaxopt_tf.models._decoder_config import DecoderConfig
from tests import references
from tests.references import decoders

pytestmark = [
    pytest.mark.promotion_of_others,  # flax's layers
    pytest.mark.usefixtures("compiled_quickly"),
    references.needs_transformers,
]

GPT2 = {
    **{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 16},
    **{"n_positions": 32, "attn_pdrop": 0.0, "initializer_range": 0.2},
}
CASES = {
    "gpt2": GPT2,
    "llama": {"model_type": "llama"},
    "llama, tied": {"model_type": "llama", "tie_word_embeddings": True},
}
TOKENS = np.arange(40).reshape(2, 20) % 90


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Returns the folder of a case that Transformers wrote in a dtype."""
    import torch

    @functools.cache
    def save(case, dtype="float32"):
        folder = tmp_path_factory.mktemp("saved")
        model = decoders.model_of(CASES[case])
        model.to(getattr(torch, dtype)).save_pretrained(folder)
        (folder / "tokenizer.json").write_text('{"model": 1}')
        (folder / "chat_template.jinja").write_text("{{ messages }}")
        return folder

    return save


def model_in(folder, **changes):
    settings = settings_from_transformers_config(folder) | changes
    kind = DecoderConfig if "model_type" in settings else GPT2Config
    return build_model(kind(**settings))


def on_mesh(model, axes="fsdp=2,tensor=2"):
    mesh = sharding.make_mesh(axes, jax.devices()[:4])
    shardings = sharding.param_shardings(model.shapes, mesh, model.sharding_rules(mesh))
    return jax.tree.map(
        lambda p, s: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=s),
        model.shapes,
        shardings,
    )


def logits_of(folder):
    import torch
    from transformers import AutoModelForCausalLM

    loaded, report = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        return loaded(torch.tensor(TOKENS)).logits.float().numpy()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_weights_round_trip_bit_for_bit(saved, tmp_path, case, dtype):
    like = saved(case, dtype)
    model = model_in(like, scan_layers=dtype == "float32")
    params = interop.read_params(like, on_mesh(model), model.names)
    write_transformers_folder(tmp_path, model, params, like=like)
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {path.name for path in like.iterdir()}
    # The same bytes: names, dtypes, order and numbers.
    for name in ("model.safetensors", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (like / name).read_bytes(), name
    ours, theirs = (
        json.loads((f / "config.json").read_text()) for f in (tmp_path, like)
    )
    assert {name: ours.get(name) for name in theirs} == theirs
    np.testing.assert_array_equal(logits_of(tmp_path), logits_of(like))


@pytest.mark.parametrize(
    ("case", "scan_layers"), [("gpt2", True), ("llama", False), ("llama, tied", True)]
)
def test_a_model_without_a_folder_is_loaded(saved, tmp_path, case, scan_layers):
    model = model_in(saved(case), scan_layers=scan_layers)
    params = model.init(3)
    tokenizer = saved(case) / "tokenizer.json"
    write_transformers_folder(tmp_path / "run", model, params, tokenizer=tokenizer)
    found = load_file(tmp_path / "run/model.safetensors")
    assert ("lm_head.weight" in found) == (case == "llama")
    assert (tmp_path / "run/chat_template.jinja").exists()
    read = interop.read_params(tmp_path / "run", model.shapes, model.names)
    jax.tree.map(np.testing.assert_array_equal, read, params)
    if scan_layers and case != "gpt2":  # to compile a loss takes seconds
        ours = make_gpt2_loss(model, params)
        assert ours == pytest.approx(torch_loss(tmp_path / "run"), rel=1e-5)
    else:
        assert np.isfinite(logits_of(tmp_path / "run")).all()


def make_gpt2_loss(model, params):
    batch = TOKENS.astype(np.int32)
    total, count = jax.jit(model.make_loss())(params, batch)
    return float(total / count)


def torch_loss(folder):
    logits = jnp.asarray(logits_of(folder)[:, :-1])
    picked = jnp.take_along_axis(
        jax.nn.log_softmax(logits), TOKENS[:, 1:, None], axis=-1
    )
    return -float(picked.mean())


def test_numbers_are_rounded_to_the_nearest(saved, tmp_path):
    like = saved("llama", "bfloat16")
    model = model_in(like)
    params = interop.read_params(like, model.shapes, model.names)
    # Half of the distance between neighbors and a little more or less.
    shift = {"up": 1 + 2**-8 + 2**-12, "down": 1 + 2**-8 - 2**-12}
    scale = jnp.array([*shift.values()] * 16, jnp.float32)
    params["model"]["norm"]["scale"] = scale
    write_transformers_folder(tmp_path, model, params, like=like)
    found = load_file(tmp_path / "model.safetensors")["model.norm.weight"]
    np.testing.assert_array_equal(found.astype(np.float32), [1 + 2**-7, 1.0] * 16)


def test_numbers_that_do_not_fit_are_refused(saved, tmp_path):
    like = saved("llama", "float16")
    model = model_in(like)
    params = interop.read_params(like, model.shapes, model.names)
    params["model"]["norm"]["scale"] = jnp.full(32, 1e5)
    says = "got 32 numbers in 'model.norm.weight' that are too large for float16"
    with pytest.raises(ValueError, match=says):
        write_transformers_folder(tmp_path, model, params, like=like)
    assert not list(tmp_path.glob("*model*"))
    assert not (tmp_path / "config.json").exists()


def written_in_shards(folder, model, params, size):
    interop.write_weights(folder, params, model.names, max_shard_size=size)


def test_shards_are_those_of_transformers(saved, tmp_path):
    from huggingface_hub import split_torch_state_dict_into_shards
    from transformers import AutoModelForCausalLM

    like = saved("llama")
    theirs = AutoModelForCausalLM.from_pretrained(like)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=20_000)
    model = model_in(like)
    params = interop.read_params(like, model.shapes, model.names)
    (tmp_path / "config.json").write_bytes((like / "config.json").read_bytes())
    written_in_shards(tmp_path, model, params, 20_000)
    state = {key: theirs.state_dict()[key] for key in sorted(theirs.state_dict())}
    split = split_torch_state_dict_into_shards(state, max_shard_size=20_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == split.tensor_to_filename
    expected = tmp_path / "theirs/model.safetensors.index.json"
    assert index["metadata"] == json.loads(expected.read_text())["metadata"]
    np.testing.assert_array_equal(logits_of(tmp_path), logits_of(like))
    # Fewer shards, then a single file: nothing of the earlier ones is left.
    for size, num_files in ((30_000, None), (10**9, 1)):
        written_in_shards(tmp_path, model, params, size)
        found = sorted(path.name for path in tmp_path.glob("model*.safetensors"))
        assert len(found) == (num_files or int(found[0][-17:-12]))
        assert (tmp_path / "model.safetensors.index.json").exists() == (not num_files)
        np.testing.assert_array_equal(logits_of(tmp_path), logits_of(like))


class _KilledError(BaseException):
    pass


def killed(calls, function, *args, **kwargs):
    if next(calls, None) is None:
        raise _KilledError
    return function(*args, **kwargs)


@pytest.mark.parametrize("size", [20_000, 10**9])
def test_a_killed_process_leaves_old_new_or_no_weights(
    saved, tmp_path, monkeypatch, size
):
    like = saved("llama")
    model = model_in(like)
    old = interop.read_params(like, model.shapes, model.names)
    new = jax.tree.map(lambda p: p + 1, old)
    outcomes = set()
    # The process is killed before each of its renamings and deletions, and after it
    # nothing is cleaned up.
    for stop in range(40):
        written_in_shards(tmp_path, model, old, 20_000)
        with monkeypatch.context() as patch:
            calls = iter(range(stop))
            for name in ("replace", "unlink"):
                own = functools.partial(killed, calls, getattr(os, name))
                patch.setattr(os, name, own)
            try:
                written_in_shards(tmp_path, model, new, size)
                finished = True
            except _KilledError:
                finished = False
        try:
            found = interop.read_params(tmp_path, model.shapes, model.names)
        except ValueError:
            outcomes.add("none")
        else:
            wanted = {"old": old, "new": new}
            same = [k for k, v in wanted.items() if jax.tree.all(equal(found, v))]
            assert len(same) == 1
            outcomes.update(same)
        if finished:
            break
    assert finished
    assert outcomes == ({"old", "none", "new"} if size < 10**9 else {"old", "new"})


def equal(one, two):
    return jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), one, two)


def test_a_changed_configuration_is_removed_before_the_weights(
    saved, tmp_path, monkeypatch
):
    like = saved("llama")
    model = model_in(like)
    params = model.init(0)
    (tmp_path / "config.json").write_text("{}")

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(_weight_shards, "_save", fails)
    with pytest.raises(OSError, match="disk full"):
        write_transformers_folder(tmp_path, model, params, like=like)
    assert not (tmp_path / "config.json").exists()


def test_names_of_the_folder_are_kept(saved, tmp_path):
    # A tied tensor may be stored under the name of the head.
    like = saved("llama, tied")
    tensors = load_file(like / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_bytes((like / "config.json").read_bytes())
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    model = model_in(other)
    params = interop.read_params(other, model.shapes, model.names)
    write_transformers_folder(tmp_path / "run", model, params, like=other)
    assert load_file(tmp_path / "run/model.safetensors").keys() == tensors.keys()


def test_a_gpt2_without_the_prefix_is_written_without_it(saved, tmp_path):
    # As `openai-community/gpt2`.
    like = saved("gpt2")
    tensors = load_file(like / "model.safetensors")
    tensors = {n.removeprefix("transformer."): t for n, t in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = model_in(like)
    rules = LoadRules(prefix="transformer")
    described = dataclasses.replace(model.names.model, load_rules=rules)
    names = dataclasses.replace(model.names, model=described)
    params = interop.read_params(tmp_path, model.shapes, names)
    (tmp_path / "run").mkdir()
    stored = interop.stored_tensors(tmp_path, names)
    interop.write_weights(tmp_path / "run", params, names, stored=stored)
    file = "run/model.safetensors"
    assert (tmp_path / file).read_bytes() == (tmp_path / file[4:]).read_bytes()


def test_a_damaged_folder_is_refused_before_anything_is_written(saved, tmp_path):
    like = saved("llama")
    model = model_in(like)
    params = model.init(0)
    run, empty = tmp_path / "run", tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="`like` must hold a readable config.json"):
        write_transformers_folder(run, model, params, like=empty)
    (empty / "config.json").write_bytes((like / "config.json").read_bytes())
    with pytest.raises(ValueError, match="must contain model.safetensors or"):
        write_transformers_folder(run, model, params, like=empty)
    with pytest.raises(ValueError, match=r"`tokenizer` must be an existing tokenizer"):
        write_transformers_folder(run, model, params, tokenizer=empty / "a.json")
    other = build_model(dataclasses.replace(model.config, scan_layers=False))
    with pytest.raises(ValueError, match="`params` must have the leaves of `names`"):
        interop.write_weights(empty, params, other.names)
    assert not run.exists()
