"""Transformers' `run_glue.py` in JAX: `python examples/run_glue.py FOLDER`.

A tiny BERT learns whether a review is positive. Model, tokenizer and rows are made in
FOLDER. On the command line this is `jaxopt-tf train` with the settings as flags.
"""

import json
import pathlib
import random
import sys

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from jaxopt_tf import jobs

GOOD, BAD = ["fine", "moving", "witty", "warm"], ["dull", "grim", "flat", "loud"]
OTHERS = ["a", "the", "film", "story", "and", "with", "its", "scenes", "of", "sea"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def make_rows(path, number, seed):
    rng = random.Random(seed)
    with path.open("w") as file:
        for _ in range(number):
            label, words = rng.choice([("good", GOOD), ("bad", BAD)])
            sentence = [*rng.choices(OTHERS, k=rng.randint(3, 8)), rng.choice(words)]
            rng.shuffle(sentence)
            row = {"sentence": " ".join(sentence), "label": label}
            file.write(json.dumps(row) + "\n")


def make_model(folder):
    ids = {word: i for i, word in enumerate([*SPECIAL, *OTHERS, *GOOD, *BAD])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", model_max_length=32
    ).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(ids), hidden_size=32, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=64, max_position_embeddings=32,
    )  # fmt: skip
    transformers.set_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)


folder = pathlib.Path(sys.argv[1])
make_model(folder / "bert")
for name, number in ("train", 500), ("dev", 100), ("test", 20):
    make_rows(folder / f"{name}.jsonl", number, seed=number)
result = jobs.train_labelled({
    "model_name_or_path": folder / "bert", "output_dir": folder / "run",
    "train_file": [folder / "train.jsonl"], "validation_file": [folder / "dev.jsonl"],
    "test_file": folder / "test.jsonl", "num_train_epochs": 2, "learning_rate": 3e-3,
    "weight_decay": 0.01, "decay_rule": "examples",  # as `run_glue_no_trainer.py`
    "metric_for_best_model": "f1", "load_best_model_at_end": True,
})  # fmt: skip
print(f"accuracy {result.metrics.get('accuracy')}")
