"""Equal runs on labelled data: by Trainer, and by `jobs.train_labelled`."""

import itertools
import json
import logging
import random
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks._compared_runs import losses_and_evaluations, our_log
from jaxopt_tf import jobs

# Texts are cut at this number of tokens, and targets at the second one.
MAX_LENGTH, MAX_TARGET_LENGTH = 64, 16
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
# Settings of the runs that `TrainingArguments` and this package have in common.
SETTINGS: Mapping[str, Any] = {
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 10,
    "weight_decay": 0.1,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "load_best_model_at_end": True,
    "logging_steps": 1,
    "save_total_limit": 50,
}
_SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_GOOD = ("clever", "funny", "moving", "fine", "charming")
_BAD = ("dull", "grim", "flat", "tired", "clumsy")
_OTHER = (
    "the a of and film story actors scenes that never with its long plot sea night "
    "house road ending music light director finds keeps makes turns every some"
)


class Task(NamedTuple):
    """A model, its labelled data, and the parts of a Trainer."""

    name: str
    folder: Path  # model and tokenizer
    files: Mapping[str, Path]  # train_file and validation_file
    settings: Mapping[str, Any]  # further settings of this package
    arguments: Mapping[str, Any]  # further arguments of Trainer
    parts: Callable[[], dict[str, Any]]  # data, collator and metrics of Trainer
    auto_class: str


class Ended(NamedTuple):
    """Result of a run."""

    losses: dict[int, float]  # by step
    evaluations: dict[int, dict[str, float]]  # by step
    best_step: int | None


# Data


def rows_of(path: Path, num: int | None = None) -> list[dict[str, Any]]:
    """Returns the rows of a file of JSON Lines, or the first `num` of them."""
    with path.open(encoding="utf-8") as opened:
        return [json.loads(line) for line in itertools.islice(opened, num)]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes rows as JSON Lines."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def synthetic_reviews(num: int, seed: int) -> list[dict[str, Any]]:
    """Returns rows of words, of 3 to 40, with a label and a rating."""
    rng, rows = random.Random(seed), []
    for _ in range(num):
        length = min(40, 3 + int(rng.expovariate(1 / 12)))
        words = [rng.choice(_OTHER.split()) for _ in range(length)]
        rating = 0
        for i in rng.sample(range(length), min(3, length)):
            is_good = rng.random() < 0.5
            words[i] = rng.choice(_GOOD if is_good else _BAD)
            rating += 1 if is_good else -1
        label = "positive" if rating > 0 else "negative"
        text = " ".join(words)
        rows.append({"sentence": text, "label": label, "rating": float(rating)})
    return rows


def synthetic_summaries(num: int, seed: int) -> list[dict[str, Any]]:
    """Returns texts of 3 to 40 words, and their first words as a summary."""
    return [
        {"text": row["sentence"], "summary": " ".join(row["sentence"].split()[:4])}
        for row in synthetic_reviews(num, seed)
    ]


def digits(num: int, first: int = 0) -> list[dict[str, Any]]:
    """Returns images of 8 x 8 numbers from 0 to 16, with their digits."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = found.images.astype(int)[first : first + num].tolist()
    labels = found.target[first : first + num].tolist()
    return [{"image": x, "label": y} for x, y in zip(images, labels, strict=True)]


# Folders of models


def save_tokenizer(
    folder: Path, texts: Sequence[str], *, vocab_size: int, is_bert: bool
) -> Any:
    """Trains a tokenizer on texts, saves it, and reads it by Transformers."""
    import transformers
    from tokenizers import (
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=list(_SPECIAL.values()),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    single, pair = ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
    if not is_bert:
        single, pair = "$A [SEP]", "$A [SEP] $B [SEP]"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {} if is_bert else {"model_input_names": ["input_ids", "attention_mask"]}
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **_SPECIAL, **names
    )
    made.save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def bert_config(vocab_size: int, **sizes: Any) -> Any:
    """Returns the configuration of a BERT of 2 layers and width 32."""
    import transformers

    defaults = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": MAX_LENGTH,
    }
    return transformers.BertConfig(vocab_size=vocab_size, **defaults | sizes)


# Runs


def quiet() -> None:
    """Silences Transformers and torch."""
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    logging.getLogger("absl").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")


def here(
    task: Task, folder: Path, *, resume_from: Path | None = None, **settings: Any
) -> Ended:
    """Runs a task by `jobs.train_labelled`."""
    jobs.train_labelled(
        {
            "model_name_or_path": task.folder,
            **{name: (path,) for name, path in task.files.items()},
            "output_dir": folder,
            "report_to": "none",
            "resume_from_checkpoint": resume_from,
            **SETTINGS,
            **task.settings,
            **settings,
        }
    )
    log, best_step = our_log(folder)
    return Ended(*losses_and_evaluations(log), best_step)


def by_trainer(
    task: Task, folder: Path, *, resume_from: Path | None = None, **arguments: Any
) -> Ended:
    """Runs a task by the real Trainer."""
    import transformers

    class ExactSeq2SeqTrainer(transformers.Seq2SeqTrainer):
        # Seq2SeqTrainer gathers with `accelerator.gather`, so that the loss of a short
        # last batch has the weight of a full one. Trainer counts its rows.
        def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
            self.gather_function = self.accelerator.gather_for_metrics
            return super().evaluation_loop(*args, **kwargs)

    is_seq2seq = task.auto_class == "AutoModelForSeq2SeqLM"
    kind = ExactSeq2SeqTrainer if is_seq2seq else transformers.Trainer
    arguments_of = (
        transformers.Seq2SeqTrainingArguments
        if is_seq2seq
        else transformers.TrainingArguments
    )
    chosen = arguments_of(
        output_dir=str(folder),
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **{**SETTINGS, **task.arguments, **arguments},
    )
    transformers.set_seed(chosen.seed)
    module = getattr(transformers, task.auto_class).from_pretrained(task.folder)
    trainer = kind(module, chosen, **task.parts())
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train(resume_from_checkpoint=resume_from and str(resume_from))
    state = trainer.state
    shutil.rmtree(folder / "logs", ignore_errors=True)
    return Ended(*losses_and_evaluations(state.log_history), state.best_global_step)


def metric_difference(ours: Ended, theirs: Ended, names: Sequence[str]) -> float:
    """Returns the largest difference of metrics at all evaluations."""
    return max(
        float(np.abs(ours.evaluations[step][name] - found[name]))
        for step, found in theirs.evaluations.items()
        for name in names
    )
