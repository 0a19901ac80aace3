"""Folders of small tokenizers, as `save_pretrained` of Transformers writes them."""

import json

import pytest

TEXT = (
    "a funny and moving film with two fine actors that never finds its story but "
    "keeps the audience laughing through ninety minutes of clever scenes"
)


@pytest.fixture(scope="session")
def texts():
    """40 texts of 0 to 39 words."""
    words = TEXT.split()
    return [
        " ".join(words[(3 * i + j) % len(words)] for j in range(i)) for i in range(40)
    ]


@pytest.fixture(scope="session")
def tokenizer_folders(tmp_path_factory, texts):
    """Tokenizers of BERT, T5 and RoBERTa, by name."""
    from tokenizers import (
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    def save(name, tokenizer, trainer, processor, config):
        tokenizer.train_from_iterator(texts, trainer)
        tokenizer.post_processor = processor(tokenizer)
        folder = tmp_path_factory.mktemp(name)
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return folder

    bert = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    bert.normalizer = normalizers.BertNormalizer()
    bert.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    bert.decoder = decoders.WordPiece()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    kinds = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    t5 = Tokenizer(models.Unigram())
    t5.pre_tokenizer = pre_tokenizers.Metaspace()
    t5.decoder = decoders.Metaspace()
    roberta = Tokenizer(models.BPE(unk_token="<unk>"))
    roberta.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    roberta.decoder = decoders.ByteLevel()
    roberta_names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    return {
        "bert": save(
            "bert",
            bert,
            trainers.WordPieceTrainer(
                vocab_size=90, special_tokens=names, show_progress=False
            ),
            lambda t: processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2)),
            {
                "tokenizer_class": "BertTokenizer",
                **dict(zip(kinds, names, strict=True)),
            },
        ),
        "t5": save(
            "t5",
            t5,
            trainers.UnigramTrainer(
                vocab_size=80,
                special_tokens=["<pad>", "</s>", "<unk>"],
                unk_token="<unk>",
                show_progress=False,
            ),
            lambda t: processors.TemplateProcessing(
                single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
            ),
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "pad_token": "<pad>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "model_input_names": ["input_ids", "attention_mask"],
            },
        ),
        "roberta": save(
            "roberta",
            roberta,
            trainers.BpeTrainer(
                vocab_size=300,
                special_tokens=roberta_names,
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            ),
            lambda t: processors.RobertaProcessing(("</s>", 2), ("<s>", 0)),
            {
                "tokenizer_class": "RobertaTokenizer",
                "model_input_names": ["input_ids", "attention_mask"],
                "padding_side": "left",
                "truncation_side": "left",
                "model_max_length": 30,
                "bos_token": "<s>",
                "pad_token": "<pad>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "mask_token": "<mask>",
            },
        ),
    }
