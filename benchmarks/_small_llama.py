"""Folder of a small Llama, as Transformers writes it, and text to train it on."""

import json
from pathlib import Path
from typing import Any

import numpy as np

_WORDS = 200
_VOCAB = 256  # larger than that of the tokenizer, and divisible by 8


def write_llama(
    folder: Path, *, hidden_size: int, context: int, with_weights: bool
) -> tuple[str, ...]:
    """Writes the folder of a Llama with grouped queries, and documents beside it.

    The model has 2 layers, 4 heads of queries and 2 of keys. Several documents share a
    row of a batch, each with its own attention and positions.

    Args:
        folder: new folder.
        hidden_size: width, a multiple of 4.
        context: number of tokens in a training sequence.
        with_weights: write random weights with Transformers; otherwise the weights are
            initialized by each run.

    Returns:
        The flags of `jaxopt-tf train` for the model and the documents.
    """
    folder.mkdir(parents=True)
    sizes = {
        "vocab_size": _VOCAB,
        "hidden_size": hidden_size,
        "intermediate_size": 3 * hidden_size,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": context,
    }
    if with_weights:
        _save_model(folder, sizes)
    else:
        config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **sizes}
        (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    letters = list("abcdefgh")
    words = [f"{i}{''.join(rng.choice(letters, 4))}" for i in range(_WORDS)]
    _save_tokenizer(folder, words)
    rows = [
        {"text": " ".join(_sentence(words, rng.integers(4, 3 * context), rng))}
        for _ in range(400)
    ]
    documents = folder / "documents.jsonl"
    documents.write_text("\n".join(map(json.dumps, rows)))
    flags = ["--model_name_or_path", str(folder), "--train_file", str(documents)]
    flags += ["--packing", "--block_size", str(context)]
    return (*flags, *(() if with_weights else ("--from_scratch",)))


def _sentence(words: list[str], length: int, rng: np.random.Generator) -> list[str]:
    """Returns random words; each is followed by one of three, which can be learnt."""
    word, found = int(rng.integers(len(words))), []
    for _ in range(length):
        found.append(words[word])
        word = (7 * word + int(rng.integers(3))) % len(words)
    return found


def _save_model(folder: Path, sizes: dict[str, Any]) -> None:
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def _save_tokenizer(folder: Path, words: list[str]) -> None:
    import tokenizers

    vocab = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *words])}
    model = tokenizers.models.WordLevel(vocab, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
