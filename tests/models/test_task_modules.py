"""Heads of labelled tasks, greedy decoding and label smoothing, as in Transformers."""

import jax
import numpy as np
import pytest

from jaxopt_tf import models
from jaxopt_tf.models import NUM_ITEMS

pytest.importorskip("torchax", reason="torchax is an optional, experimental extra")
torch = pytest.importorskip("torch", reason="it runs the reference")
transformers = pytest.importorskip("transformers", reason="it builds the models")

pytestmark = [
    pytest.mark.promotion_of_others,
    pytest.mark.filterwarnings("ignore"),  # of torch and Transformers
    pytest.mark.usefixtures("compiled_quickly"),
]

SMALL = {"vocab_size": 32, "d_model": 8}


def t5(**further):
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            **SMALL,
            d_kv=4,
            d_ff=16,
            num_layers=1,
            num_heads=2,
            decoder_start_token_id=0,
            dropout_rate=0.0,
            **further,
        )
    )


def bart():
    sizes = {
        f"{part}_{name}": value
        for part in ("encoder", "decoder")
        for name, value in (("layers", 1), ("attention_heads", 1), ("ffn_dim", 8))
    }
    config = transformers.BartConfig(**SMALL, **sizes, max_position_embeddings=16)
    return transformers.BartForConditionalGeneration(config)


def batch(rng):
    ids = rng.integers(3, 30, (5, 7)).astype(np.int32)
    mask = np.ones_like(ids)
    mask[1, 5:] = mask[2, 2:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("build", [t5, bart])
def test_greedy_decoding_has_the_tokens_of_generate(build, rng):
    module = build().eval()
    with torch.no_grad():
        for p in module.parameters():
            if p.ndim > 1:  # larger, so that rows differ and some of them end early
                p.copy_(torch.tensor(rng.normal(size=p.shape) * 0.7))
    inputs = batch(rng)
    theirs = module.generate(
        **{name: torch.tensor(x).long() for name, x in inputs.items()},
        num_beams=1,
        do_sample=False,
        max_length=12,
        # Of BART, a setting that the last token depends on.
        min_length=4,
    ).numpy()
    module.generation_config.min_length = 4
    model = models.from_transformers(module)
    decode = jax.jit(models.make_greedy(model, max_length=12))
    ours = np.asarray(decode(model.init(0), {**inputs, "labels": inputs["input_ids"]}))
    np.testing.assert_array_equal(ours[:, : theirs.shape[1]], theirs)
    assert np.unique(theirs).size > 4
    pad = module.config.pad_token_id
    np.testing.assert_array_equal(ours[:, theirs.shape[1] :], pad)


def test_settings_of_generation_that_are_not_supported_are_refused():
    module = t5()
    module.generation_config.no_repeat_ngram_size = 3
    model = models.from_transformers(module)
    with pytest.raises(ValueError, match="`no_repeat_ngram_size` 3. Remove them"):
        models.make_greedy(model, max_length=8)
    module.generation_config.no_repeat_ngram_size = None
    module.config.decoder_start_token_id = None
    module.generation_config.decoder_start_token_id = None
    with pytest.raises(ValueError, match="`decoder_start_token_id`.*got None and 0"):
        models.make_greedy(model, max_length=8)
    with pytest.raises(ValueError, match="`max_length` must be"):
        models.make_greedy(model, max_length=1)


@pytest.mark.parametrize("takes_number", [True, False])
def test_label_smoothing_is_that_of_trainer(takes_number, rng, monkeypatch):
    smoother = transformers.trainer_pt_utils.LabelSmoother(epsilon=0.1)
    module = t5().eval()
    module.accepts_loss_kwargs = takes_number
    labels = rng.integers(3, 30, (5, 4)).astype(np.int32)
    labels[0, 2:] = -100
    start = np.zeros((5, 1), np.int32)
    shifted = np.maximum(np.concatenate([start, labels[:, :-1]], axis=1), 0)
    inputs = {**batch(rng), "decoder_input_ids": shifted}
    on_torch = {name: torch.tensor(x).long() for name, x in inputs.items()}
    with torch.no_grad():
        outputs = module(**on_torch)
    # The update has another micro-batch of 22 labels.
    number = 40 if takes_number else None
    expected = smoother(outputs, torch.tensor(labels).long(), num_items_in_batch=number)
    model = models.from_transformers(module)
    loss_fn = jax.jit(model.make_loss(label_smoothing_factor=0.1))
    loss, items = loss_fn(
        model.init(0), {**inputs, "labels": labels, NUM_ITEMS: np.int32(40)}
    )
    # Of modules that do not take the number, Trainer adds the means.
    found = loss / 40 if takes_number else loss
    np.testing.assert_allclose(found, expected, rtol=2e-6)
    assert items == (18 if takes_number else 1)


def test_a_head_is_that_of_transformers_for_the_seed(tmp_path):
    config = transformers.BertConfig(
        vocab_size=32,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
    )
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    auto = "AutoModelForSequenceClassification"
    found = models.load_task_module(tmp_path, auto, classes=["b", "a", "c"], seed=7)
    assert found.new_params[-2:] == ("classifier.bias", "classifier.weight")
    assert found.module.config.id2label == {0: "b", 1: "a", 2: "c"}
    transformers.set_seed(7)
    expected = getattr(transformers, auto).from_pretrained(tmp_path, num_labels=3)
    for name, p in expected.named_parameters():
        assert torch.equal(p, found.module.get_parameter(name)), name
    found.module.save_pretrained(tmp_path / "three")
    with pytest.raises(ValueError, match="which is 2, got one of 3 .*Set `ignore_mism"):
        models.load_task_module(tmp_path / "three", auto, classes=["a", "b"])
    again = models.load_task_module(
        tmp_path / "three",
        auto,
        classes=["a", "b"],
        ignore_mismatched_sizes=True,
        freeze=["bert.*"],
    )
    assert again.new_params == ("classifier.bias", "classifier.weight")
    assert not again.module.bert.embeddings.word_embeddings.weight.requires_grad
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="cannot be read as BertForSequenceClass"):
        models.load_task_module(tmp_path, auto, classes=["a", "b"])
    assert models.num_positions(again.module) == 512
    roberta = transformers.RobertaConfig(
        **config.to_diff_dict() | {"model_type": "roberta", "pad_token_id": 1},
    )
    with torch.device("meta"):
        module = transformers.RobertaModel(roberta)
    assert models.num_positions(module) == 510
