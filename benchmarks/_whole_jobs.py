"""Models, data and settings of the jobs of `end_to_end.py`.

A GPT-2 as `jaxopt-tf train` has it by default, a Llama of 30 million parameters and a
BERT-base that classifies sentences. Each job is a folder, which all sides read. JAX is
imported only where a job is written, and not at the start of Trainer.
"""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks._matrix_products import Shape, shapes_of

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
_LLAMA: Mapping[str, Any] = {
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
    num_gib: float  # upper limit of the memory that a step allocates and frees

    @property
    def is_labelled(self) -> bool:
        """Whether rows have labels, and are not windows of tokens."""
        return self.name == "bert"


JOBS = {
    job.name: job
    for job in (
        Job("gpt2", "the default GPT-2", 64, 50, 24, 1.8, 0.1),
        Job("llama", "a Llama of 30M parameters", 256, 2, 4, 1.3, 3.0),
        Job("bert", "BERT-base with labels", MAX_LENGTH, 1, 4, 1.4, 4.0),
    )
}


def write(job: Job, folder: Path) -> list[Shape]:
    """Writes model and data of a job by Transformers, with random weights.

    Returns:
        The products of matrices in a step.
    """
    import transformers

    from benchmarks import _labelled_runs as labelled
    from benchmarks import _trainer_runs
    from jaxopt_tf.models import GPT2Config

    labelled.quiet()
    transformers.set_seed(0)
    folder.mkdir(parents=True)
    model: Any
    if job.is_labelled:
        rows = _sentences(400, 0), _sentences(EVAL_ROWS, 1)
        for name, found in zip(("train", "dev"), rows, strict=True):
            labelled.write_rows(folder / f"{name}.jsonl", found)
        texts = [row["sentence"] for row in rows[0]]
        labelled.save_tokenizer(folder, texts, vocab_size=500, is_bert=True)
        config = transformers.BertConfig(architectures=[_class_name(job)])
        model = transformers.BertForSequenceClassification(config)
    else:
        if job.name == "llama":
            model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_LLAMA))
        else:
            model = _trainer_runs.torch_model(model=GPT2Config())
        num = 2**21 if job.name == "gpt2" else 2**16
        rng = np.random.default_rng(0)
        tokens = rng.integers(0, model.config.vocab_size, num, np.uint16)
        np.save(folder / "tokens.npy", tokens)
    model.save_pretrained(folder)
    return shapes_of(model, NUM_ROWS * job.block_size)


def torch_model(job: Job, folder: Path) -> Any:
    """Returns the model that Trainer trains."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return getattr(transformers, _class_name(job)).from_pretrained(folder)


def data_settings(job: Job, folder: Path) -> dict[str, Any]:
    """Returns the settings of `jaxopt-tf train` for model and data."""
    tokens = {"text": [str(folder / "tokens.npy")]}
    if job.name == "gpt2":  # the default sizes
        return {**tokens, "vocab_size": 256}
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
    lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {
            **tokenizer(row["sentence"], truncation=True, max_length=MAX_LENGTH),
            "label": ["negative", "positive"].index(row["label"]),
        }
        for row in map(json.loads, lines)
    ]


def _class_name(job: Job) -> str:
    return {
        "gpt2": "GPT2LMHeadModel",
        "llama": "LlamaForCausalLM",
        "bert": "BertForSequenceClassification",
    }[job.name]


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
