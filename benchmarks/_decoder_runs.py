"""Equal runs of a small decoder by Trainer and by the job, on packed documents."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks._compared_runs import (
    Ended,
    arguments_of,
    optimizer_arrays,
    schedule_array,
    trained,
)
from jaxopt_tf.data import PackedBatches, PackedRows, standard_library
from jaxopt_tf.interop import recipe_from_transformers
from jaxopt_tf.jobs import RunConfig, read_corpus
from jaxopt_tf.recipes import recipe_settings

BLOCK_SIZE, BATCH_SIZE = 63, 4
END = 256  # token that ends a document; the others are bytes

_SIZES = {
    "vocab_size": 257,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": BLOCK_SIZE + 1,
    "bos_token_id": None,
    "eos_token_id": END,
    "pad_token_id": None,
}


class Plan(NamedTuple):
    """Length, files and arguments of the runs of a model."""

    max_steps: int
    base: Path  # folder of the initial model
    tokens: Path  # file of the documents
    lr_scheduler_type: str = "cosine"
    num_micro: int = 2  # batches per update
    optim: str = "adamw_torch"
    optim_args: str | None = None
    learning_rate: float = 1e-3
    is_evaluated: bool = False  # by Trainer, when half of the steps are done

    @property
    def half(self) -> int:
        """Step at which the other side continues."""
        return self.max_steps // 2


# Data: functions of the standard library as documents of bytes.


def save_documents(path: Path) -> None:
    """Writes documents of 8 to 60 tokens, each with its last token `END`."""
    text = standard_library().training.read(0, 2**17).astype(np.uint16)
    rng = np.random.default_rng(0)
    bounds = np.cumsum(rng.integers(8, 61, 2**12))
    np.save(path, np.insert(text, bounds[bounds < len(text)], END))


def save_model(folder: Path, model_type: str, **sizes: Any) -> None:
    """Writes a model with random weights by Transformers."""
    import transformers

    transformers.set_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **{**_SIZES, **sizes})
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def data_settings(plan: Plan) -> dict[str, Any]:
    """Returns the settings of the data, which no file of Trainer contains."""
    return {
        "text": [str(plan.tokens)],
        "eos_token_id": END,
        "packing": True,
        "block_size": BLOCK_SIZE,
        "eval_strategy": "no",
        "save_total_limit": None,
    }


def our_config(plan: Plan, folder: Path) -> RunConfig:
    """Returns the configuration of the job with the recipe of Trainer's arguments."""
    recipe = recipe_from_transformers(_arguments(plan, folder)).recipe
    return RunConfig.from_dict(
        {
            **recipe_settings(dataclasses.replace(recipe, decay_rule="default")),
            **data_settings(plan),
            "model_name_or_path": str(plan.base),
            "output_dir": str(folder),
            # Trainer reads both from the checkpoint that it resumes.
            "logging_steps": 1,
            "save_steps": plan.half,
        }
    )


def batches_of(config: RunConfig) -> PackedBatches:
    """Returns the batches on which the job trains."""
    recipe, folder = config.recipe, config.job.output_dir
    assert folder is not None
    corpus = read_corpus(config.job, config.model, folder)
    return PackedBatches(
        PackedRows(corpus, "training", block_size=BLOCK_SIZE, packing="bfd"),
        batch_size=BATCH_SIZE,
        seed=recipe.seed,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
    )


def rows_of(batches: PackedBatches, num_batches: int) -> list[dict[str, Any]]:
    """Returns the rows of the batches in order, with the keys of Transformers."""
    keys = ("input_ids", "labels", "position_ids")
    found = []
    for n in range(num_batches):
        batch = {key: batches[n][key].reshape(-1, BLOCK_SIZE + 1) for key in keys}
        found += [
            {key: batch[key][i].tolist() for key in keys}
            for i in range(len(batch[keys[0]]))
        ]
    return found


# Trainer


def _arguments(plan: Plan, folder: Path) -> Any:
    at_half = {"eval_strategy": "steps", "eval_steps": plan.half}
    return arguments_of(
        folder,
        max_steps=plan.max_steps,
        num_rows=BATCH_SIZE,
        save_steps=plan.half,
        learning_rate=plan.learning_rate,
        lr_scheduler_type=plan.lr_scheduler_type,
        warmup_steps=plan.max_steps // 10,
        gradient_accumulation_steps=plan.num_micro,
        optim=plan.optim,
        optim_args=plan.optim_args,
        **(at_half if plan.is_evaluated else {}),
    )


def by_trainer(
    plan: Plan,
    folder: Path,
    their_rows: list[dict[str, Any]],
    *,
    resume_from: Path | None = None,
    attention: str = "sdpa",
) -> Ended:
    """Runs Trainer on the rows, from the start or from a checkpoint."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        plan.base, attn_implementation=attention
    )
    trainer = transformers.Trainer(
        model,
        _arguments(plan, folder),
        train_dataset=their_rows,
        eval_dataset=their_rows[:8] if plan.is_evaluated else None,
    )
    return trained(trainer, resume_from)


def tensors(checkpoint: Path) -> dict[str, np.ndarray]:
    """Returns the parameters, moments and counters of a checkpoint of Trainer."""
    from safetensors.numpy import load_file

    found = dict(load_file(checkpoint / "model.safetensors"))
    found.update(optimizer_arrays(checkpoint))
    found["schedule"] = schedule_array(checkpoint)
    return found
