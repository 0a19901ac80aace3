"""Masked tokens, and shifted labels, against the collators of Transformers."""

import importlib
import types

import numpy as np
import pytest

from jaxopt_tf.data import (
    Encoder,
    ExampleBatches,
    MaskedTokens,
    PadToBuckets,
    Seq2SeqBatch,
    shift_right,
)


def masked(encoder, length, **options):
    return MaskedTokens(
        PadToBuckets([length], encoder.pad_values),
        mask_token_id=encoder.mask_token_id,
        vocab_size=encoder.vocab_size,
        special_token_ids=encoder.special_token_ids,
        **options,
    )


@pytest.mark.parametrize("probabilities", [(0.8, 0.1), (1.0, 0.0), (0.5, 0.5)])
def test_masks_are_those_of_transformers_for_the_same_numbers(
    tokenizer_folders, texts, probabilities
):
    transformers = pytest.importorskip("transformers", reason="it is the reference")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folders["bert"])
    encoder = Encoder(tokenizer_folders["bert"], max_length=20)
    examples = encoder.texts(texts[10:18])
    options = {
        "mlm_probability": 0.3,
        "mask_replace_prob": probabilities[0],
        "random_replace_prob": probabilities[1],
    }
    collator = transformers.DataCollatorForLanguageModeling(
        tokenizer, return_tensors="np", **options
    )
    state = np.random.get_state()
    np.random.seed(3)
    expected = collator([dict(x) for x in examples])
    np.random.seed(3)
    found = masked(encoder, expected["input_ids"].shape[1], **options)(examples)
    np.random.set_state(state)
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_masks_are_new_in_each_epoch_and_equal_when_read_again(
    tokenizer_folders, texts
):
    encoder = Encoder(tokenizer_folders["bert"], max_length=40)
    examples = encoder.texts(texts[20:]) * 20
    batches = ExampleBatches(
        examples, masked(encoder, 40), batch_size=400, seed=5, is_shuffled=False
    )
    (first,), (second,), (again,) = batches[0], batches[1], batches[0]
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    assert np.any(first["labels"] != second["labels"])
    # 8,000 tokens, of which 15 % are predicted: 80 % masked, 10 % random, 10 % kept.
    tokens = PadToBuckets([40], encoder.pad_values)(examples)["input_ids"]
    is_special = np.isin(tokens, encoder.special_token_ids)
    chosen = first["labels"] != -100
    np.testing.assert_array_equal(first["labels"][chosen], tokens[chosen])
    assert not np.any(chosen & is_special)
    num_chosen = chosen.sum()
    assert num_chosen / np.sum(~is_special) == pytest.approx(0.15, abs=0.01)
    is_mask = chosen & (first["input_ids"] == encoder.mask_token_id)
    assert is_mask.sum() / num_chosen == pytest.approx(0.8, abs=0.03)
    is_kept = chosen & (first["input_ids"] == tokens)
    assert is_kept.sum() / num_chosen == pytest.approx(0.1, abs=0.03)
    np.testing.assert_array_equal(first["input_ids"][~chosen], tokens[~chosen])


def test_masks_need_a_mask_token_and_probabilities(tokenizer_folders):
    encoder = Encoder(tokenizer_folders["t5"], max_length=40)
    with pytest.raises(ValueError, match="`mask_token_id` must be a token, got None"):
        masked(encoder, 8)
    encoder = Encoder(tokenizer_folders["bert"], max_length=40)
    with pytest.raises(ValueError, match="`mlm_probability` must be from 0 to 1"):
        masked(encoder, 8, mlm_probability=1.5)
    with pytest.raises(ValueError, match="`mask_replace_prob \\+ random_replace_prob`"):
        masked(encoder, 8, random_replace_prob=0.3)


class Shifted:
    """A model that only shifts labels, for `DataCollatorForSeq2Seq`."""

    config = types.SimpleNamespace(pad_token_id=0, decoder_start_token_id=2)

    def __init__(self, name):
        self.is_bart = name == "bart"

    def prepare_decoder_input_ids_from_labels(self, labels):
        if self.is_bart:
            bart = importlib.import_module("transformers.models.bart.modeling_bart")
            return bart.shift_tokens_right(labels, 0, 2)
        t5 = importlib.import_module("transformers.models.t5.modeling_t5")
        return t5.T5PreTrainedModel._shift_right(self, labels)


@pytest.mark.parametrize("name", ["t5", "bart"])
@pytest.mark.parametrize("ignored", [True, False])
def test_labels_are_shifted_as_by_the_models(tokenizer_folders, texts, name, ignored):
    transformers = pytest.importorskip("transformers", reason="it is the reference")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folders["bert"])
    encoder = Encoder(tokenizer_folders["bert"], max_length=20, max_target_length=9)
    targets = encoder.targets(texts[3:7])
    examples = [
        {"input_ids": x["input_ids"], "labels": target}
        for x, target in zip(encoder.texts(texts[5:9]), targets, strict=True)
    ]
    collator = transformers.DataCollatorForSeq2Seq(
        tokenizer,
        model=Shifted(name),
        label_pad_token_id=-100 if ignored else tokenizer.pad_token_id,
    )
    expected = collator([dict(x) for x in examples])
    lengths = expected["input_ids"].shape[1], expected["labels"].shape[1]
    collate = Seq2SeqBatch(
        [lengths, (64, 64)],
        pad_token_id=encoder.pad_token_id,
        decoder_start_token_id=2,
        ignore_pad_token_for_loss=ignored,
    )
    found = collate(examples)
    assert found.keys() == expected.keys()
    for column, array in found.items():
        np.testing.assert_array_equal(array, expected[column].numpy(), err_msg=column)


def test_a_batch_has_the_smallest_pair_of_lengths():
    collate = Seq2SeqBatch(
        [(8, 4), (8, 8), (16, 4), (16, 8)], pad_token_id=0, decoder_start_token_id=5
    )
    rows = [{"input_ids": [1] * 9, "labels": [2, 3]}, {"input_ids": [1], "labels": [4]}]
    batch = collate(rows)
    assert (batch["input_ids"].shape, batch["labels"].shape) == ((2, 16), (2, 4))
    assert batch["decoder_input_ids"].tolist() == [[5, 2, 3, 0], [5, 4, 0, 0]]
    assert collate([{"input_ids": [1]}]).keys() == {"input_ids", "attention_mask"}
    with pytest.raises(ValueError, match=r"at least \(1, 9\)"):
        collate([{"input_ids": [1], "labels": [2] * 9}])
    with pytest.raises(ValueError, match="`decoder_start_token_id` must be a token"):
        Seq2SeqBatch([(8, 8)], pad_token_id=0, decoder_start_token_id=None)
    shifted = shift_right(np.int32([[3, -100]]), start=7, pad_token_id=1)
    assert (shifted.tolist(), shifted.dtype) == ([[7, 3]], np.int32)
