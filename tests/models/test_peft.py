"""Models of PEFT under torchax: only the adapter is trained and saved."""

import json
import warnings

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxopt_tf import interop, models, training
from jaxopt_tf.models import _peft
from jaxopt_tf.optimizers import adamw_tf
from jaxopt_tf.sharding import make_mesh, param_shardings

torch = pytest.importorskip("torch", reason="a module of torch is run in JAX")
pytest.importorskip("torchax", reason="torchax is an optional, experimental extra")
peft = pytest.importorskip("peft", reason="it inserts the adapters")
transformers = pytest.importorskip("transformers", reason="it builds the base model")

pytestmark = [
    pytest.mark.promotion_of_others,
    # PEFT 0.21 reads an attribute that Transformers 5.23 renames.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]
TOLERANCE = 2e-6  # relative to the largest gradient; both compute in float32
Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"


def base(width=32):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
    )
    return transformers.LlamaForCausalLM(config)


def with_lora(width=32, **settings):
    # Random instead of zero, so that both matrices have gradients.
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, init_lora_weights=False, **settings
    )
    return peft.get_peft_model(base(width), config)


@pytest.fixture(scope="module")
def batch():
    ids = np.random.default_rng(0).integers(0, 64, (4, 16))
    return {"input_ids": ids, "labels": ids}


def as_torch(batch):
    return {name: torch.tensor(x) for name, x in batch.items()}


def test_trains_the_adapter_with_gradients_of_torch(batch):
    module = with_lora(modules_to_save=["lm_head"])
    model = models.from_transformers(module)
    optimizer = adamw_tf(1e-3)
    params = model.init(0)
    trained = {n for n, p in module.named_parameters() if p.requires_grad}
    assert params.keys() == trained
    merged = {n for n, _ in module.named_parameters()}
    assert params.keys() | model.frozen.keys() == merged
    # Two moments per number of the adapter; none of the base model.
    state = training.init_train_state(params, optimizer, rng=0)
    num_moments = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
    assert num_moments == 2 * sum(p.size for p in params.values())
    step = training.make_train_step(model.make_loss(), optimizer, frozen=model.frozen)
    text = step.lower(state, batch).as_text()
    constants = [line for line in text.splitlines() if "constant dense" in line]
    assert not any("32x32xf32" in line for line in constants)

    def mean(params, frozen):
        total, number = model.make_loss()({**params, **frozen}, batch)
        return total / number

    loss, grads = jax.jit(jax.value_and_grad(mean))(params, model.frozen)
    theirs = module(**as_torch(batch)).loss
    theirs.backward()
    np.testing.assert_allclose(loss, theirs.item(), rtol=TOLERANCE)
    for name, p in module.named_parameters():
        if p.requires_grad:
            scale = p.grad.abs().max().item()
            np.testing.assert_allclose(grads[name], p.grad, atol=TOLERANCE * scale)


def test_dropout_of_the_adapter_depends_on_the_key_of_the_step(batch):
    model = models.from_transformers(with_lora(lora_dropout=0.5))
    loss_fn, merged = jax.jit(model.make_loss()), {**model.init(0), **model.frozen}
    keys = [jax.random.key(0), jax.random.key(1), jax.random.key(0)]
    first, other, again = (float(loss_fn(merged, batch, key)[0]) for key in keys)
    assert first == again != other


def test_an_adapter_folder_is_exchanged_with_peft(tmp_path, batch):
    module = with_lora(target_modules=["q_proj", "down_proj"])
    model = models.from_transformers(module)
    params = {name: x + 0.01 for name, x in model.init(0).items()}
    interop.write_adapter(tmp_path / "ours", params, model.names)
    loaded = peft.PeftModel.from_pretrained(base(), tmp_path / "ours")
    ids = batch["input_ids"]
    logits = jax.jit(model.make_logits())(
        {**params, **model.frozen}, {"input_ids": ids}
    )
    theirs = loaded(torch.tensor(ids)).logits.detach()
    np.testing.assert_allclose(logits, theirs, atol=1e-5)
    module.save_pretrained(tmp_path / "theirs")
    ours, saved = (
        json.loads((tmp_path / name / "adapter_config.json").read_text())
        for name in ("ours", "theirs")
    )
    for content in (ours, saved):
        content["target_modules"].sort()  # a set
    assert ours == saved
    read = interop.read_params(tmp_path / "theirs", model.shapes, model.names)
    for name, x in model.init(0).items():
        np.testing.assert_array_equal(read[name], x)


def test_refuses_the_adapter_of_another_base_or_with_other_settings(tmp_path):
    model = models.from_transformers(with_lora())
    with_lora(width=40).save_pretrained(tmp_path / "wide")
    with pytest.raises(
        ValueError, match=r"has shape \[4, 40\][^$]*The adapter was trained on the base"
    ):
        interop.read_params(tmp_path / "wide", model.shapes, model.names)
    with_lora(lora_alpha=32).save_pretrained(tmp_path / "alpha")
    with pytest.raises(ValueError, match="`lora_alpha` 32 instead of 8"):
        interop.read_params(tmp_path / "alpha", model.shapes, model.names)
    names = models.from_transformers(base()).names
    with pytest.raises(ValueError, match="`names` must be those of a PEFT model"):
        interop.write_adapter(tmp_path, model.init(0), names)


def test_frozen_parameters_are_sharded_by_the_rules_of_trainable_ones():
    model = models.from_transformers(with_lora())
    mesh = make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])
    everything = {**model.shapes, **model.frozen_shapes}
    rules = model.all_sharding_rules(mesh)
    shardings = param_shardings(everything, mesh, rules)
    spec = shardings[f"{Q_PROJ}.base_layer.weight"].spec
    assert spec == PartitionSpec("tensor", "fsdp")
    plain = models.from_transformers(base())
    of_plain = param_shardings(plain.shapes, mesh, plain.sharding_rules(mesh))
    for name, sharding in of_plain.items():
        inner = f"base_model.model.{name}"
        if inner not in shardings:
            inner = inner.replace(".weight", ".base_layer.weight")
        assert shardings[inner].spec == sharding.spec, name


def test_refuses_adapters_that_peft_does_not_save_as_they_are_trained():
    module = with_lora()
    module.base_model.model.model.norm.weight.requires_grad = True
    with pytest.raises(ValueError, match=r"only trained or only saved.*norm.weight"):
        models.from_transformers(module)
    module = with_lora()
    module.add_adapter("other", peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"one adapter, got \['default', 'other'\]"):
        models.from_transformers(module)


def test_refuses_targets_that_match_nothing():
    settings = _peft.LoraSettings(r=4, target_modules=("q_prj",))
    with pytest.raises(ValueError, match=r"`lora_target_modules`.*'q_prj'.*'q_proj'"):
        _peft.add_lora(base(), settings)
    settings = _peft.LoraSettings(r=4, target_modules=("norm",))
    with pytest.raises(ValueError, match=r"`lora_target_modules`.*got \('norm',\)"):
        _peft.add_lora(base(), settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _peft.add_lora(base(), _peft.LoraSettings(r=4))


def test_says_how_to_install_peft(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ModuleNotFoundError, match=r"peft must be installed.*\[torchax"):
        _peft.add_lora(base(), _peft.LoraSettings(r=4))
