"""Models, data and settings of the jobs of `end_to_end.py`.

A GPT-2 as `jaxopt-tf train` has it by default, a Llama of 30 million parameters and a
BERT-base that classifies sentences. Each job is a folder, which all sides read.
"""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import _labelled_runs as labelled
from jaxopt_tf.models import GPT2Config

NUM_ROWS = 8  # of a batch
MAX_LENGTH = 128  # tokens of a sentence
EVAL_ROWS = 16  # sentences
# Settings that `TrainingArguments` and `jaxopt-tf train` have in common.
SETTINGS: Mapping[str, Any] = {
    "learning_rate": 1e-4,
    "weight_decay": 0.1,
    "warmup_steps": 100,
    "max_steps": 100_000,
    "per_device_train_batch_size": NUM_ROWS,
    "logging_steps": 10,
    "eval_strategy": "steps",
    "save_strategy": "steps",
}
_GPT2 = GPT2Config()
_LLAMA = {
    "vocab_size": 32_000,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 11,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}


class Job(NamedTuple):
    """A job, and the number of steps in each part of its measurement."""

    name: str  # "gpt2", "llama" or "bert"
    title: str
    block_size: int  # tokens in a row
    num_steps: int  # of each side in a round
    num_rounds: int
    limit: float  # least tokens per second, of Trainer's

    @property
    def is_labelled(self) -> bool:
        """Whether rows have labels, and are not windows of tokens."""
        return self.name == "bert"


JOBS = {
    job.name: job
    for job in (
        Job("gpt2", "the default GPT-2", _GPT2.block_size, 50, 8, 1.8),
        Job("llama", "a Llama of 30M parameters", 256, 2, 6, 1.3),
        Job("bert", "BERT-base with labels", MAX_LENGTH, 1, 5, 1.4),
    )
}


def write(job: Job, folder: Path) -> None:
    """Writes model and data of a job by Transformers, with random weights."""
    import transformers

    labelled.quiet()
    transformers.set_seed(0)
    folder.mkdir(parents=True)
    model: Any
    if job.name == "bert":
        rows = _sentences(400, 0), _sentences(EVAL_ROWS, 1)
        for name, found in zip(("train", "dev"), rows, strict=True):
            labelled.write_rows(folder / f"{name}.jsonl", found)
        texts = [row["sentence"] for row in rows[0]]
        labelled.save_tokenizer(folder, texts, vocab_size=500, is_bert=True)
        config = transformers.BertConfig(architectures=[_class_name(job)])
        model = transformers.BertForSequenceClassification(config)
    else:
        config = _config(job)
        tokens = np.random.default_rng(0).integers(
            0, config.vocab_size, 2**21 if job.name == "gpt2" else 2**16, np.uint16
        )
        np.save(folder / "tokens.npy", tokens)
        model = getattr(transformers, _class_name(job))(config)
    model.save_pretrained(folder)


def torch_model(job: Job, folder: Path) -> Any:
    """Returns the model that Trainer trains."""
    import transformers

    labelled.quiet()
    return getattr(transformers, _class_name(job)).from_pretrained(folder)


def data_settings(job: Job, folder: Path) -> dict[str, Any]:
    """Returns the settings of `jaxopt-tf train` for model and data."""
    tokens = {"text": [str(folder / "tokens.npy")]}
    if job.name == "gpt2":  # the default sizes
        return {**tokens, "vocab_size": _GPT2.vocab_size}
    model: dict[str, Any] = {"model_name_or_path": str(folder)}
    if job.is_labelled:
        files = {"train_file": "train.jsonl", "validation_file": "dev.jsonl"}
        named = {name: [str(folder / file)] for name, file in files.items()}
        return {**model, **named, "max_length": MAX_LENGTH}
    # On CPUs a scan over the layers copies the activations of all layers.
    sizes = {"block_size": job.block_size, "scan_layers": False}
    return {**model, **tokens, **sizes}


def rows_of_tokens(job: Job, folder: Path, part: str) -> np.ndarray:
    """Returns windows of tokens for "training" or "evaluation", [N, T]; a view.

    Args:
        job: a job without labels.
        folder: of the job.
        part: as `jaxopt-tf train` divides the file: the last tenth is for evaluation.
    """
    tokens = np.load(folder / "tokens.npy", mmap_mode="r")
    boundary = len(tokens) * 9 // 10
    found = tokens[:boundary] if part == "training" else tokens[boundary:]
    # An evaluation has at most 2^16 tokens, as that of `jaxopt-tf train`.
    num = len(found) if part == "training" else min(len(found), 2**16)
    num_rows = num // job.block_size // NUM_ROWS * NUM_ROWS
    return found[: num_rows * job.block_size].reshape(num_rows, job.block_size)


def encoded_sentences(folder: Path, name: str) -> list[dict[str, Any]]:
    """Returns the rows of "train" or "dev" as the arguments of a BERT."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return [
        {
            **tokenizer(row["sentence"], truncation=True, max_length=MAX_LENGTH),
            "label": ["negative", "positive"].index(row["label"]),
        }
        for row in labelled.rows_of(folder / f"{name}.jsonl")
    ]


def _class_name(job: Job) -> str:
    return {
        "gpt2": "GPT2LMHeadModel",
        "llama": "LlamaForCausalLM",
        "bert": "BertForSequenceClassification",
    }[job.name]


def _config(job: Job) -> Any:
    import transformers

    if job.name == "llama":
        return transformers.LlamaConfig(**_LLAMA)
    return transformers.GPT2Config(
        vocab_size=_GPT2.vocab_size,
        n_positions=_GPT2.block_size,
        n_embd=_GPT2.n_embd,
        n_layer=_GPT2.n_layer,
        n_head=_GPT2.n_head,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )


def _sentences(num: int, seed: int) -> list[dict[str, Any]]:
    """Returns labelled sentences, each longer than `MAX_LENGTH` tokens.

    All batches then have one shape, for which both sides compile once.
    """
    rng, found = random.Random(seed), []
    for i in range(num):
        words = ("".join(rng.choices("aeioubdst", k=3)) for _ in range(MAX_LENGTH))
        label = ["negative", "positive"][i % 2]
        found.append({"sentence": " ".join(words), "label": label})
    return found
