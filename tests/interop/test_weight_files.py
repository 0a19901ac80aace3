"""Weight files as on the hub: read as by `from_pretrained`, or rejected."""

import json

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from jaxopt_tf.interop import (
    match_names,
    read_params,
    read_trainer_checkpoint,
    torch_model_from_config,
    torch_model_from_module,
    torch_model_from_shapes,
    unused_tensors,
)
from jaxopt_tf.interop._checkpoint_keys import LoadRules, match_keys
from jaxopt_tf.interop._model_weights import write_params
from jaxopt_tf.recipes import Recipe
from tests.references import torch_models

pytestmark = pytest.mark.usefixtures("compiled_quickly")

MASK = torch.ones(16, 16).tril().reshape(1, 1, 16, 16)
MODELS = {
    "gpt2": lambda: torch_models.gpt2(1),
    "bert": lambda: torch_models.bert(1),
    "t5": lambda: torch_models.t5(1),
}


class Folder:
    """A model of Transformers, saved by itself, and its leaves."""

    def __init__(self, path, module):
        self.path, self.module = path, module
        module.save_pretrained(path)
        leaves = torch_models.flax_leaves(module)
        self.params = torch_models.flax_tree(leaves)
        self.names = match_names(self.params, torch_model_from_config(path))
        self.tensors = load_file(path / "model.safetensors")

    def read(self):
        return read_params(self.path, self.params, self.names)

    def save(self, tensors):
        own = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        save_file(own, self.path / "model.safetensors", metadata={"format": "pt"})

    def is_read_as_transformers_does(self):
        theirs = type(self.module).from_pretrained(self.path)
        for name, p in self.module.named_parameters():
            assert torch.equal(theirs.get_parameter(name), p), name
        jax.tree.map(np.testing.assert_array_equal, self.read(), self.params)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Each model is built once."""
    made = {}

    def of(kind):
        if kind not in made:
            made[kind] = Folder(tmp_path_factory.mktemp(kind), MODELS[kind]())
        folder = made[kind]
        for path in folder.path.glob("*.bin*"):
            path.unlink()
        folder.save(folder.tensors)
        return folder

    return of


def renamed(tensors, old, new):
    return {name.replace(old, new): tensor for name, tensor in tensors.items()}


def test_reads_gpt2_as_stored_on_the_hub(folders):
    # Of `openai-community/gpt2`: no prefix, and the causal masks of version 2.
    folder = folders("gpt2")
    buffers = {"h.0.attn.bias": MASK, "h.0.attn.masked_bias": torch.tensor(-1e4)}
    folder.save(renamed(folder.tensors, "transformer.", "") | buffers)
    folder.is_read_as_transformers_does()
    assert unused_tensors(folder.path, folder.names) == tuple(buffers)


def test_reads_bert_as_stored_on_the_hub(folders):
    # Of `google-bert/bert-base-uncased`: TensorFlow's names, a pooler, positions.
    folder = folders("bert")
    tensors = renamed(folder.tensors, "LayerNorm.weight", "LayerNorm.gamma")
    tensors = renamed(tensors, "LayerNorm.bias", "LayerNorm.beta")
    unused = {
        "bert.embeddings.position_ids": torch.arange(512).reshape(1, 512),
    }
    folder.save(tensors | unused)
    folder.is_read_as_transformers_does()
    assert unused_tensors(folder.path, folder.names) == tuple(unused)
    pooler = {"bert.pooler.dense.weight": torch.ones(8, 8)}
    folder.save(tensors | pooler)
    with pytest.raises(ValueError, match=r"'bert.pooler.dense.weight' \[8, 8\] is not"):
        folder.read()


def test_reads_t5_as_stored_on_the_hub(folders):
    # Its aliases are in the file, and a bias that only version 2 had.
    folder = folders("t5")
    shared = folder.tensors["shared.weight"]
    aliases = {
        "encoder.embed_tokens.weight": shared,
        "decoder.embed_tokens.weight": shared,
    }
    bias = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    folder.save(folder.tensors | aliases | {bias: torch.ones(32, 2)})
    folder.is_read_as_transformers_does()
    assert unused_tensors(folder.path, folder.names) == (bias,)


def test_the_base_models_own_file_is_read(folders):
    folder = folders("bert")
    heads = {n: t for n, t in folder.tensors.items() if n.startswith("cls.")}
    inner = {n: t for n, t in folder.tensors.items() if n not in heads}
    folder.save(renamed(inner, "bert.", "") | heads)
    jax.tree.map(np.testing.assert_array_equal, folder.read(), folder.params)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"_fsdp_wrapped_module.{name}",
        lambda name: name.replace(".h.0.", ".h.0._checkpoint_wrapped_module."),
        lambda name: name.replace(".h.0.", ".h._orig_mod.0._fsdp_wrapped_module."),
        lambda name: f"base_model.model.{name}",
        lambda name: f"module.{name.replace('transformer.', '')}",
    ],
    ids=["DDP", "compile", "both", "FSDP", "checkpoint", "inner", "PEFT", "base"],
)
def test_prefixes_of_wrappers_are_removed(folders, wrapped):
    folder = folders("gpt2")
    folder.save({wrapped(name): tensor for name, tensor in folder.tensors.items()})
    jax.tree.map(np.testing.assert_array_equal, folder.read(), folder.params)


def test_weight_norm_of_older_versions_is_read():
    from transformers import HubertConfig, HubertModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 8, "conv_dim": (8,), "conv_stride": (2,)}
    config = HubertConfig(
        **sizes,
        conv_kernel=(3,),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    with torch.device("meta"):
        model = torch_model_from_module(HubertModel(config))
    name = "encoder.pos_conv_embed.conv.parametrizations.weight.original"
    names = [p.name for p in model.parameters]
    assert {f"{name}0", f"{name}1"} <= set(names)
    shapes = dict.fromkeys(names, ())
    old = {
        n.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): shape
        for n, shape in shapes.items()
    }
    keys = match_keys(old, names, model.load_rules)
    assert keys.problems == keys.unused == ()
    assert set(keys.by_param) == set(names)


def test_tensors_that_transformers_puts_together_are_refused_with_the_cure():
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    config = Qwen2MoeConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=2,
        moe_intermediate_size=4,
        shared_expert_intermediate_size=4,
        intermediate_size=8,
        vocab_size=8,
    )
    with torch.device("meta"):
        model = torch_model_from_module(Qwen2MoeForCausalLM(config))
    part = "model.layers.0.mlp.experts.0.gate_proj.weight"
    known = [p.name for p in model.parameters]
    (problem,) = match_keys({part: (4, 8)}, known, model.load_rules).problems
    assert problem.startswith(f"'{part}' and 0 more are parts of tensors")
    assert "save_original_format=False" in problem


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("h.0.attn.c_attn.lora_A.weight", "an adapter of PEFT.*merge_and_unload"),
        ("h.0.attn.c_attn.base_layer.weight", "an adapter of PEFT.*merge_and_unload"),
        ("h.0.attn.c_attn.weight.absmax", "a quantized model.*dequantize"),
        ("h.0.attn.c_attn.qweight", "a quantized model.*dequantize"),
        ("h.0.attn.c_attn.gain", r"is not in the model"),
        ("h.0.attn.bias", r"\[3\] is not in the model"),  # of no mask's shape
    ],
)
def test_other_tensors_are_refused_with_what_they_are(name, says):
    import re

    (problem,) = match_keys({name: (3,)}, ["a"], LoadRules()).problems
    assert re.search(says, problem)


def test_a_name_that_is_there_twice_must_have_equal_tensors(folders):
    folder = folders("gpt2")
    again = {"wpe.weight": folder.tensors["transformer.wpe.weight"]}
    folder.save(folder.tensors | again)
    jax.tree.map(np.testing.assert_array_equal, folder.read(), folder.params)
    folder.save(folder.tensors | {"wpe.weight": again["wpe.weight"] + 1})
    says = (
        "'transformer.wpe.weight' is not equal to 'wpe.weight'|'wpe.weight' is not eq"
    )
    with pytest.raises(ValueError, match=says):
        folder.read()


TIED = [
    ("gpt2", "transformer.wte.weight", "lm_head.weight"),
    (
        "bert",
        "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.weight",
    ),
    ("bert", "cls.predictions.bias", "cls.predictions.decoder.bias"),
    ("t5", "shared.weight", "encoder.embed_tokens.weight"),
    ("t5", "shared.weight", "decoder.embed_tokens.weight"),
    ("t5", "shared.weight", "lm_head.weight"),
]


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize(("model", "name", "alias"), TIED)
def test_tied_tensors_must_be_equal(folders, model, name, alias, kind):
    folder = folders(model)
    tensors = dict(folder.tensors)
    tensor = tensors.pop(alias) if alias in tensors else tensors[name]

    def save(other):
        # torch writes one storage for both.
        own = {name: tensor, alias: other}
        if kind == "safetensors":
            folder.save(tensors | own)
        else:
            (folder.path / "model.safetensors").unlink(missing_ok=True)
            torch.save(tensors | own, folder.path / "pytorch_model.bin")

    for equal in (tensor, tensor.clone(), tensor.double()):
        save(equal)
        jax.tree.map(np.testing.assert_array_equal, folder.read(), folder.params)
    other = tensor.clone()
    other.view(-1)[-1] += 1
    save(other)
    with pytest.raises(ValueError, match="is not equal to .* untie them") as error:
        folder.read()
    assert repr(name) in str(error.value)
    assert repr(alias) in str(error.value)
    save(tensor[..., :-1])
    with pytest.raises(ValueError, match=f"{alias}', for '.*', has shape .*, not"):
        folder.read()


def test_untied_tensors_are_read_apart(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 16}
    config = GPT2Config(**sizes, vocab_size=32, tie_word_embeddings=False)
    folder = Folder(tmp_path, GPT2LMHeadModel(config))
    read = folder.read()
    jax.tree.map(np.testing.assert_array_equal, read, folder.params)
    ours = read["lm_head"]["kernel"].T
    assert not np.array_equal(ours, read["transformer"]["wte"]["embedding"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_not_finite_are_named(folders, value, dtype):
    folder = folders("gpt2")
    tensors = {
        name: tensor.to(dtype, copy=True) for name, tensor in folder.tensors.items()
    }
    tensors["transformer.ln_f.bias"][3] = value
    folder.save(tensors)
    says = r"'transformer.ln_f.bias' in .*model.safetensors' must be finite, .* at 3\."
    with pytest.raises(ValueError, match=says):
        folder.read()


def sharded(folder, tensors, suffix):
    """Saves every tensor in a file of its own, with an index."""
    name = {"safetensors": "model", "bin": "pytorch_model"}[suffix]
    weight_map = {}
    for number, (key, tensor) in enumerate(tensors.items()):
        file = f"{name}-{number:05}-of-{len(tensors):05}.{suffix}"
        save = save_file if suffix == "safetensors" else torch.save
        save({key: tensor}, folder.path / file)
        weight_map[key] = file
    (folder.path / "model.safetensors").unlink(missing_ok=True)
    index = folder.path / f"{name}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index, weight_map


def test_shards_of_torch_are_read(folders):
    folder = folders("gpt2")
    index, weight_map = sharded(folder, folder.tensors, "bin")
    jax.tree.map(np.testing.assert_array_equal, folder.read(), folder.params)
    first, second = list(weight_map)[:2]
    swapped = weight_map | {first: weight_map[second]}
    index.write_text(json.dumps({"weight_map": swapped}))
    says = f"-00001-of-.*without {first!r} and 0 more"
    with pytest.raises(ValueError, match=says):
        folder.read()
    (folder.path / weight_map[second]).unlink()
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match="existing file, got .*-00001-of-"):
        folder.read()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"state_dict": {}}, "got a dict under 'state_dict'"),
        ({"epoch": 3}, "'epoch' in .* must be a tensor, got int"),
        ({3: torch.ones(2)}, "got the key 3"),
        ({"a": torch.ones(2).to_sparse()}, "'a' in .* must be a dense tensor"),
        ({"a": torch.ones(2).to(torch.float8_e4m3fn)}, "got torch.float8_e4m3fn"),
    ],
)
def test_files_of_torch_with_other_things_are_refused(folders, content, says):
    folder = folders("gpt2")
    (folder.path / "model.safetensors").unlink()
    torch.save(content, folder.path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=says) as error:
        folder.read()
    assert "pytorch_model.bin" in str(error.value)


def test_a_checkpoint_lists_what_was_left_out(folders):
    folder = folders("gpt2")
    folder.save(folder.tensors | {"transformer.h.0.attn.bias": MASK})
    (folder.path / "trainer_state.json").write_text('{"global_step": 0}')
    read = read_trainer_checkpoint(
        folder.path,
        folder.params,
        folder.names,
        recipe=Recipe(max_steps=2),
        without={"scheduler.pt"},
    )
    assert read.unused == ("transformer.h.0.attn.bias",)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_single_number_is_written_with_its_shape(tmp_path, file):
    params = {"factor": np.float32(2.0), "w": np.ones((2, 3), np.float32).T}
    names = match_names(params, torch_model_from_shapes({"factor": (), "w": (3, 2)}))
    write_params(tmp_path / file, params, names, {})
    load = load_file if file.endswith("safetensors") else torch.load
    found = load(tmp_path / file)
    assert {n: tuple(t.shape) for n, t in found.items()} == {"factor": (), "w": (3, 2)}
    jax.tree.map(
        np.testing.assert_array_equal, read_params(tmp_path, params, names), params
    )


def test_the_model_of_the_names_is_named(folders):
    folder = folders("gpt2")
    says = "of the torch model '.*config.json', got"
    with pytest.raises(ValueError, match=says):
        match_names({"a": np.ones(2)}, torch_model_from_config(folder.path))
