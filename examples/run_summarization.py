"""Transformers' `run_summarization.py` in JAX, with a folder as argument.

A tiny T5 summarizes the documentation of Python's functions by its first line.
"""

import inspect
import json
import pathlib
import sys

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from jaxopt_tf import jobs

MODULES = "argparse collections datetime decimal heapq logging os random re statistics"
SPECIAL = ["<pad>", "</s>", "<unk>"]


def documented():
    for name in MODULES.split():
        for _, value in sorted(vars(__import__(name)).items()):
            parts = vars(value).values() if inspect.isclass(value) else [value]
            for doc in map(inspect.getdoc, filter(callable, parts)):
                summary, _, text = (doc or "").partition("\n\n")
                if len(text) > 40:
                    yield {"text": text, "summary": summary}


def make_model(folder, texts):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>"
    ).save_pretrained(folder)
    config = transformers.T5Config(
        vocab_size=500, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    transformers.set_seed(0)
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)


folder, rows = pathlib.Path(sys.argv[1]), list(documented())
make_model(folder / "t5", [row["text"] for row in rows])
for name, part in ("train", rows[24:]), ("dev", rows[:24]):
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in part))
result = jobs.train_labelled({
    "model_name_or_path": folder / "t5", "output_dir": folder / "run",
    "train_file": [folder / "train.jsonl"], "validation_file": [folder / "dev.jsonl"],
    "max_length": 48, "max_target_length": 16, "source_prefix": "summarize: ",
    "predict_with_generate": True, "optim": "adafactor", "learning_rate": 3e-3,
    "label_smoothing_factor": 0.1, "num_train_epochs": 2, "group_by_length": True,
})  # fmt: skip
print(f"ROUGE-L {result.metrics.get('rougeL')}")
