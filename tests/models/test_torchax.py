"""Modules of torch and models of Transformers in JAX, by torchax."""

import concurrent.futures
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxopt_tf import Recipe, build_optimizer, interop, models, training
from jaxopt_tf.models import _torchax
from jaxopt_tf.models._torchax import embed
from jaxopt_tf.optimizers import adamw_tf
from jaxopt_tf.sharding import make_mesh, param_shardings

torch = pytest.importorskip("torch", reason="a module of torch is run in JAX")
TOLERANCE = 2e-6  # relative to the largest gradient; both compute in float32

needs_torchax = pytest.mark.usefixtures("torchax")


@pytest.fixture(scope="module")
def torchax():
    return pytest.importorskip(
        "torchax", reason="torchax is an optional, experimental extra"
    )


class TiedMLP(torch.nn.Module):
    """Embedding with padding, dropout, a frozen and a tied layer, a buffer."""

    def __init__(self, p=0.0):
        super().__init__()
        self.table = torch.nn.Embedding(16, 8, padding_idx=0)
        self.up = torch.nn.Linear(8, 24)
        self.drop = torch.nn.Dropout(p)
        self.down = torch.nn.Linear(24, 8)
        self.head = torch.nn.Linear(8, 16, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("scale", torch.tensor(0.5))
        self.shift = torch.linspace(0.0, 1.0, 8)  # neither parameter nor buffer
        self.down.bias.requires_grad = False

    def forward(self, ids):
        x = self.table(ids)
        return self.head(x + self.down(self.drop(self.up(x).relu())) * self.scale)


def summed_loss(module, batch):
    logits = module(batch["ids"]).flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, batch["y"].flatten().long())
    return loss * batch["y"].numel(), batch["y"].numel()


@pytest.fixture
def batch():
    ids = np.random.default_rng(0).integers(0, 16, (8, 6))
    return {"ids": jnp.asarray(ids), "y": jnp.asarray((ids + 1) % 16)}


def module(p=0.0):
    torch.manual_seed(0)
    return TiedMLP(p)


def on_torch(batch):
    return {name: torch.tensor(np.asarray(x)) for name, x in batch.items()}


@needs_torchax
def test_loss_and_gradient_are_those_of_torch(batch):
    inner = module()
    model = models.from_torch(inner, summed_loss)
    params = model.init(42)
    # Tied parameters are one leaf, and frozen ones none.
    names = ["table.weight", "up.weight", "up.bias", "down.weight"]
    assert sorted(params) == sorted(model.shapes) == sorted(names)
    assert list(model.frozen) == ["down.bias"]
    loss_fn = jax.jit(jax.value_and_grad(model.make_loss(), has_aux=True))
    (loss, number), grads = loss_fn(params, batch)
    theirs, _ = summed_loss(inner, on_torch(batch))
    theirs.backward()
    np.testing.assert_allclose(loss, theirs.item(), rtol=TOLERANCE)
    assert number == 48
    for name, p in inner.named_parameters():
        if p.requires_grad:
            scale = p.grad.abs().max().item()
            np.testing.assert_allclose(grads[name], p.grad, atol=TOLERANCE * scale)
    assert inner.training  # the mode is restored
    logits = jax.jit(model.make_logits())(params, batch["ids"])
    np.testing.assert_allclose(
        logits, inner(on_torch(batch)["ids"]).detach(), atol=1e-6
    )


@needs_torchax
def test_dropout_has_a_new_mask_in_each_step_and_one_trace(batch):
    traces = []

    def counted(module, batch):
        traces.append(module.training)
        return summed_loss(module, batch)

    model = models.from_torch(module(0.5), counted)
    step = training.make_train_step(model.make_loss(), optax.sgd(0.0))
    state = training.init_train_state(model.init(0), optax.sgd(0.0), rng=0)
    losses = []
    for _ in range(4):
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss))
    assert len(set(losses)) == 4
    assert traces == [True]
    # Without a key there is no dropout.
    loss, _ = jax.jit(model.make_loss())(model.init(0), batch)
    expected, _ = summed_loss(module(0.5).eval(), on_torch(batch))
    np.testing.assert_allclose(loss, expected.detach(), rtol=TOLERANCE)


@needs_torchax
def test_the_optimizer_has_no_state_of_frozen_parameters(batch):
    model = models.from_torch(module(), summed_loss)
    opt_state = adamw_tf(1e-3).init(model.init(0))
    moments = [name for name, _ in interop_names(opt_state) if "down.bias" in name]
    assert moments == []


def interop_names(tree):
    return [
        (jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


@needs_torchax
def test_weights_are_written_and_read_by_the_names_of_torch(tmp_path):
    inner = module()
    model = models.from_torch(inner, summed_loss)
    written = model.all_params(model.init(0))
    interop.write_weights(tmp_path, written, model.names, stored=None)
    read = interop.read_params(tmp_path, model.shapes, model.names)
    for name, p in inner.named_parameters():
        if p.requires_grad:
            np.testing.assert_array_equal(read[name], p.detach())


@needs_torchax
def test_a_checkpoint_of_trainer_contains_frozen_parameters(tmp_path):
    inner = module()
    inner.register_buffer("scale", inner.scale, persistent=False)
    model = models.from_torch(inner, summed_loss)
    recipe = Recipe(max_steps=4, weight_decay=0.1, decay_rule="transformers_v5")
    optimizer = build_optimizer(recipe, layer_norms=model.layer_norms)
    params = model.init(0)
    _, opt_state = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    interop.write_trainer_checkpoint(
        tmp_path / "checkpoint-1",
        params,
        opt_state,
        model.names,
        recipe=recipe,
        step=1,
        frozen=model.frozen,
    )
    state = interop.load_torch(tmp_path / "checkpoint-1" / "optimizer.pt")["state"]
    assert len(state) == len(params)  # no moments of the frozen bias
    read = interop.read_trainer_checkpoint(
        tmp_path / "checkpoint-1",
        {**params, **model.frozen},
        model.names,
        recipe=recipe,
    )
    for name, p in inner.named_parameters():
        np.testing.assert_array_equal(read.params[name], p.detach())


def test_the_padding_row_of_a_sharded_table_has_the_right_gradient(batch):
    # With torchax's own embedding, the largest difference is 12 under JAX 0.10.2.
    mesh = make_mesh("fsdp=8", jax.devices()[:8])
    sharded = NamedSharding(mesh, PartitionSpec("fsdp"))
    table = jax.random.normal(jax.random.key(0), (16, 8))
    weights = jax.random.normal(jax.random.key(1), (*batch["ids"].shape, 8))

    def loss(table, ids):
        return jnp.sum(jnp.tanh(embed(table, ids, 3) * weights) @ table.T)

    expected = jax.jit(jax.grad(loss))(table, batch["ids"])
    on_shards = jax.device_put((table, batch["ids"]), sharded)
    got = jax.jit(jax.grad(loss), out_shardings=sharded)(*on_shards)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    # Row 3 has only the gradient of the product, not of the lookup.
    rows = jnp.tanh(embed(table, batch["ids"]) * weights)
    np.testing.assert_allclose(expected[3], jnp.sum(rows, axis=(0, 1)), atol=1e-5)


@needs_torchax
@pytest.mark.parametrize("options", [{}, {"reduction": "sum"}, {"ignore_index": 3}])
def test_cross_entropy_and_its_gradient_are_those_of_torch(options):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 5)).astype(np.float32) * 4
    labels = np.array([0, 4, options.get("ignore_index", -100), 3, 2, 3])
    layer = torch.nn.Linear(5, 5)

    def loss_fn(module, batch):
        y = batch["x"] * module.weight[0]
        losses = torch.nn.functional.cross_entropy(y, batch["y"].long(), **options)
        return losses, 1

    model = models.from_torch(layer, loss_fn)
    batch = {"x": logits, "y": labels}
    (loss, _), grads = jax.value_and_grad(model.make_loss(), has_aux=True)(
        model.init(0), batch
    )
    theirs, _ = loss_fn(layer, on_torch(batch))
    theirs.backward()
    np.testing.assert_allclose(loss, theirs.item(), rtol=TOLERANCE)
    np.testing.assert_allclose(grads["weight"], layer.weight.grad, atol=1e-6)


@needs_torchax
def test_a_step_on_a_mesh_equals_one_on_a_single_device(batch):
    model = models.from_torch(module(), summed_loss)
    params = model.init(0)
    mesh = make_mesh("data=2,fsdp=2,tensor=2", jax.devices()[:8])
    rules = model.sharding_rules(mesh)
    shardings = param_shardings(params, mesh, rules)
    assert shardings["up.weight"].spec == PartitionSpec("tensor", "fsdp")
    assert shardings["down.weight"].spec == PartitionSpec("fsdp", "tensor")

    def gradient(mesh):
        return jax.jit(jax.value_and_grad(model.make_loss(mesh=mesh), has_aux=True))

    (loss, _), grads = gradient(None)(params, batch)
    on_mesh = gradient(mesh)(jax.device_put(params, shardings), batch)
    np.testing.assert_allclose(on_mesh[0][0], loss, rtol=1e-6)
    for name in params:
        np.testing.assert_allclose(on_mesh[1][name], grads[name], atol=3e-5)


class Head(torch.nn.Module):
    """Head of a BERT: a layer that is not the first of a pair, and a tied table."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(96, 64)
        self.transform, self.norm = torch.nn.Linear(64, 64), torch.nn.LayerNorm(64)
        self.head = torch.nn.Linear(64, 96, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        x = torch.nn.functional.gelu(self.transform(self.table(ids)))
        return self.head(self.norm(x))


@needs_torchax
def test_the_head_of_a_bert_has_the_right_gradient_on_three_axes():
    torch.manual_seed(0)
    model = models.from_torch(Head(), summed_loss)
    ids = np.random.default_rng(0).integers(0, 96, (8, 16))
    batch = {"ids": ids, "y": (ids * 7 + 1) % 96}
    params = model.init(0)
    mesh = make_mesh("data=2,fsdp=2,tensor=2", jax.devices()[:8])
    shardings = param_shardings(params, mesh, model.sharding_rules(mesh))

    def gradient(mesh, out_shardings=None):
        loss_fn = model.make_loss(mesh=mesh)
        return jax.jit(jax.grad(loss_fn, has_aux=True), out_shardings=out_shardings)

    grads, _ = gradient(None)(params, batch)
    on_mesh, _ = gradient(mesh, (shardings, None))(
        jax.device_put(params, shardings), batch
    )
    for name, grad in grads.items():
        atol = 1e-5 * np.abs(grad).max()
        np.testing.assert_allclose(on_mesh[name], grad, atol=atol, err_msg=name)


@needs_torchax
def test_a_rule_by_pattern_replaces_a_derived_one():
    rules = {r"up\..*": PartitionSpec("data")}
    model = models.from_torch(module(), summed_loss, sharding_rules=rules)
    on_mesh = model.sharding_rules(make_mesh("data=2", jax.devices()[:2]))
    assert on_mesh[r"up\.weight"] == PartitionSpec("data")
    with pytest.raises(ValueError, match="`sharding_rules` must match .* 'up'"):
        models.from_torch(
            module(), summed_loss, sharding_rules={"up": rules[r"up\..*"]}
        )


@needs_torchax
def test_buffers_that_change_in_training_are_refused():
    norm = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match=r"no buffer that changes .*'1.running_mean'"):
        models.from_torch(norm, summed_loss)

    class Counting(torch.nn.Linear):
        def __init__(self):
            super().__init__(4, 4)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls.add_(1.0)
            return super().forward(x)

    model = models.from_torch(Counting(), lambda m, x: (m(x).sum(), x.shape[0]))
    with pytest.raises(ValueError, match="must not change its buffers .* 'calls'"):
        jax.eval_shape(model.make_loss(), model.shapes, jnp.ones((2, 4)))


@needs_torchax
def test_a_module_that_cannot_be_traced_is_refused_by_its_line():
    class Branching(torch.nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            return y if y.sum() > 0 else -y

    loss = models.from_torch(
        Branching(4, 4), lambda m, x: (m(x).sum(), x.shape[0])
    ).make_loss()
    params = {"weight": jnp.ones((4, 4)), "bias": jnp.ones(4)}
    with pytest.raises(ValueError, match=r"must be traceable.*y if y.sum\(\) > 0"):
        jax.eval_shape(loss, params, jnp.ones((2, 4)))


@needs_torchax
def test_wrong_arguments_are_refused(batch):
    with pytest.raises(TypeError, match="`module` must be a torch.nn.Module, got int"):
        models.from_torch(1, summed_loss)
    with pytest.raises(TypeError, match="`loss_fn` must be a function .* got NoneType"):
        models.from_torch(module(), None)
    with pytest.raises(TypeError, match="`source` must be a PreTrainedModel .*TiedMLP"):
        models.from_transformers(module())
    with pytest.raises(ValueError, match="`source` must be a folder .*'nowhere'"):
        models.from_transformers("nowhere")
    model = models.from_torch(module(), lambda m, b: m(b["ids"]))
    with pytest.raises(ValueError, match="`loss_fn` must return two numbers"):
        jax.eval_shape(model.make_loss(), model.shapes, batch)
    params = {n: x for n, x in model.init(0).items() if n != "up.weight"}
    with pytest.raises(ValueError, match=r"1 are missing, the first being 'up.weight'"):
        model.make_loss()(params, batch)
    with pytest.raises(ValueError, match="`label_smoothing_factor` must be 0"):
        model.make_loss(label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="`model` must be a causal language model"):
        model.make_generate()


@pytest.mark.parametrize("found", ["nothing", "another version"])
def test_torchax_that_is_missing_or_does_not_fit_is_named(monkeypatch, found):
    def failing(name):
        if found == "nothing":
            raise ModuleNotFoundError("No module named 'torchax'", name="torchax")
        raise AttributeError("aten.prod has no overload name")

    monkeypatch.delitem(sys.modules, "torchax", raising=False)
    monkeypatch.setattr(_torchax.importlib, "import_module", failing)
    expected = {
        "nothing": r"torchax must be installed .*\.\[torchax\]",
        "another version": r"torchax must be of a version that fits torch, .*aten.prod",
    }
    with pytest.raises(ImportError, match=expected[found]):
        _torchax.import_torchax()


@pytest.fixture(scope="module")
def llama():
    transformers = pytest.importorskip("transformers", reason="its models are run")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=1,
    )
    return transformers.LlamaForCausalLM(config)


@needs_torchax
def test_a_model_of_transformers_counts_labels_as_trainer(llama):
    model = models.from_transformers(llama)
    ids = np.random.default_rng(0).integers(0, 64, (2, 9))
    labels = np.where(np.arange(9) < 6, ids, -100)
    params = model.init(0)
    loss_fn = jax.jit(model.make_loss(matmul_precision="highest"))
    loss, number = loss_fn(params, {"input_ids": ids, "labels": labels})
    assert number == 2 * 5  # the first label of each row is not predicted
    with torch.no_grad():
        theirs = llama(
            input_ids=torch.tensor(ids),
            labels=torch.tensor(labels),
            num_items_in_batch=torch.tensor(10),
        ).loss
    np.testing.assert_allclose(loss / number, theirs, rtol=TOLERANCE)
    # The same tokens as rows of a text.
    of_tokens, counted = loss_fn(params, np.where(np.arange(9) < 6, ids, -100))
    assert counted == number
    np.testing.assert_allclose(of_tokens, loss, rtol=TOLERANCE)
    assert model.names.model.parameters[0].name == "model.embed_tokens.weight"
    # Every parameter but the table: 6 FLOPs; attention: 12 * width * length.
    num_params = sum(p.size for p in model.shapes.values()) - 64 * 16
    assert model.flops_per_token == 6 * num_params + 12 * 16 * 32


@needs_torchax
def test_batches_that_a_model_of_transformers_does_not_take_are_refused(llama):
    loss_fn = models.from_transformers(llama).make_loss()
    with pytest.raises(ValueError, match=r"LlamaForCausalLM.forward takes.*'label'"):
        loss_fn({}, {"input_ids": np.ones((1, 4)), "label": np.ones((1, 4))})
    smoothed = models.from_transformers(llama).make_loss(label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="`batch` must have the key 'labels'"):
        smoothed({}, {"input_ids": np.ones((1, 4))})


@needs_torchax
def test_layers_that_are_dropped_at_random_are_refused():
    transformers = pytest.importorskip("transformers", reason="its models are run")
    config = transformers.BartConfig(
        d_model=16,
        vocab_size=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_layerdrop=0.1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
    )
    with pytest.raises(ValueError, match=r"dropped at random, got `encoder_layerdrop`"):
        models.from_transformers(transformers.BartForConditionalGeneration(config))


@needs_torchax
def test_threads_trace_one_module_in_turn(batch):
    """A run compiles its training step while it traces its evaluation."""
    inner = module(p=0.5)
    model = models.from_torch(inner, summed_loss)
    params, loss_fn = model.init(42), model.make_loss()
    filters, tensor = list(warnings.filters), inner.shift

    def has_dropout(key):
        traced = [jax.make_jaxpr(loss_fn)(params, batch, key) for _ in range(10)]
        return {"random_bits" in str(jaxpr) for jaxpr in traced}

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        found = list(threads.map(has_dropout, [None, jax.random.key(0)]))
    assert found == [{False}, {True}]
    assert warnings.filters == filters
    assert inner.shift is tensor
    assert inner.training
