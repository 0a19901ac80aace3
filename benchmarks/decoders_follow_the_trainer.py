"""Runs of the job beside runs of Trainer: the same decoder, rows and recipe.

    python -m benchmarks.decoders_follow_the_trainer            # 3 minutes on 2 cores
    python -m benchmarks.decoders_follow_the_trainer --smoke    # a Llama, 12 steps

Transformers writes a Llama, a Qwen3 with a tied head and a Mistral with a window. The
job trains each of them on packed documents, and Trainer trains it on the same rows, in
float32 and without dropout, with two micro-batches per update, clipping, warmup, a
cosine schedule and weight decay. Halfway, each side continues the other's checkpoint.
Trainer receives position ids that restart with each document; Transformers derives the
attention mask from them. "torch itself" is Trainer with another attention kernel.
"""

import dataclasses
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks._compared_runs import (
    Ended,
    arguments_of,
    carried,
    difference,
    num_differing,
    optimizer_arrays,
    our_losses,
    schedule_array,
    trained,
)
from benchmarks._report import Row, main
from jaxopt_tf._pytrees import named_leaves
from jaxopt_tf.data import PackedBatches, PackedRows, standard_library
from jaxopt_tf.interop import read_params, recipe_from_transformers
from jaxopt_tf.jobs import (
    RunConfig,
    export_run,
    import_run,
    pretrain,
    read_corpus,
    read_run,
)
from jaxopt_tf.models import build_model
from jaxopt_tf.models._decoder import make_decoder_logits
from jaxopt_tf.optimizers import decay_mask
from jaxopt_tf.recipes import recipe_settings

LIMIT = 1e-5
BLOCK_SIZE, BATCH_SIZE, NUM_MICRO = 63, 4, 2
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
MODELS: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": True},
    "mistral": {"sliding_window": 16},
}


class Plan(NamedTuple):
    """A model and the length of its runs."""

    model_type: str
    max_steps: int
    base: Path  # folder of the initial model
    tokens: Path  # file of the documents

    @property
    def half(self) -> int:
        """Step at which the other side continues."""
        return self.max_steps // 2


def rows(smoke: bool) -> Iterator[Row]:
    """Yields the figures of each model."""
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    names = ["llama"] if smoke else list(MODELS)
    for name in names:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            # torch's notes on the scheduler of a resumed run.
            warnings.simplefilter("ignore")
            work = Path(folder)
            jax.config.update("jax_compilation_cache_dir", str(work / "cache"))
            plan = Plan(name, 12 if smoke else 200, work / "base", work / "text.npy")
            np.save(plan.tokens, _documents())
            _save_model(name, plan.base)
            yield from _case(plan, work)


def _case(plan: Plan, work: Path) -> Iterator[Row]:
    name, half = plan.model_type, plan.half
    config = _our_config(plan, work / "ours")
    batches = _batches(config)
    their_rows = _rows_of(batches, plan.max_steps)
    theirs = _by_trainer(plan, work / "theirs", their_rows)
    eager = _by_trainer(plan, work / "eager", their_rows, attention="eager")
    pretrain(config)
    ours = our_losses(work / "ours")
    num_documents = np.mean([row["position_ids"].count(0) for row in their_rows])
    yield Row(
        claim=f"{name}: loss of each of {plan.max_steps} steps, against Trainer's",
        value=difference(ours, theirs.losses, 0),
        unit="relative",
        limit=LIMIT,
        torch=difference(eager.losses, theirs.losses, 0),
        detail=f"{theirs.losses[1]:.3f} to {theirs.losses[plan.max_steps]:.3f}; "
        f"{num_documents:.1f} documents per row",
    )
    yield Row(
        claim=f"{name}: parameters that one side decays",
        value=len(_decayed(config) ^ theirs.decayed),
        unit="names",
        limit=0,
        detail=f"{len(theirs.decayed)} decayed",
    )
    yield Row(
        claim=f"{name}: logits that depend on other documents of the row, both sides",
        value=_leaks(config, batches[0], plan.base),
        unit="logits",
        limit=0,
    )
    checkpoint = work / "theirs" / f"checkpoint-{half}"
    imported = import_run(checkpoint, work / "imported", settings=_data(plan))
    export_run(work / "imported", work / "returned", like=checkpoint)
    pretrain(imported.config)
    yield Row(
        claim=f"{name}: Trainer to step {half}, then here: loss of each step after it",
        value=difference(our_losses(work / "imported"), theirs.losses, half),
        unit="relative",
        limit=LIMIT,
    )
    exported = work / "continued" / f"checkpoint-{half}"
    export_run(work / "ours" / f"checkpoint-{half}", exported, like=checkpoint)
    continued = _by_trainer(plan, work / "continued", their_rows, resume_from=exported)
    yield Row(
        claim=f"{name}: here to step {half}, then Trainer: loss of each step after it",
        value=difference(continued.losses, theirs.losses, half),
        unit="relative",
        limit=LIMIT,
    )
    import_run(exported, work / "again", settings=_data(plan))
    begin, end = (read_run(f) for f in (work / "ours" / exported.name, work / "again"))
    states = [carried(run.run_state.state) for run in (begin, end)]
    yield Row(
        claim=f"{name}: Trainer's checkpoint in and out, and ours out and in: elements "
        "of parameters and optimizer that differ in a bit",
        value=num_differing(_tensors(checkpoint), _tensors(work / "returned"))
        + num_differing(*states),
        unit="elements",
        limit=0,
    )


# Data: functions of the standard library as documents of bytes.


def _documents() -> np.ndarray:
    """Returns documents of 8 to 60 tokens, each with its last token `END`."""
    text = standard_library().training.read(0, 2**17).astype(np.uint16)
    rng = np.random.default_rng(0)
    bounds = np.cumsum(rng.integers(8, 61, 2**12))
    return np.insert(text, bounds[bounds < len(text)], END)


def _save_model(model_type: str, folder: Path) -> None:
    import transformers

    transformers.set_seed(0)
    sizes = {**_SIZES, **MODELS[model_type]}
    config = transformers.AutoConfig.for_model(model_type, **sizes)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def _data(plan: Plan) -> dict[str, Any]:
    """Returns the settings of the data, which no file of Trainer contains."""
    return {
        "text": [str(plan.tokens)],
        "eos_token_id": END,
        "packing": True,
        "block_size": BLOCK_SIZE,
        "eval_strategy": "no",
        "save_total_limit": None,
    }


def _our_config(plan: Plan, folder: Path) -> RunConfig:
    """Returns the configuration of the job with the recipe of `_arguments`."""
    recipe = recipe_from_transformers(_arguments(plan, folder)).recipe
    return RunConfig.from_dict(
        {
            **recipe_settings(dataclasses.replace(recipe, decay_rule="default")),
            **_data(plan),
            "model_name_or_path": str(plan.base),
            "output_dir": str(folder),
            # Trainer reads both from the checkpoint that it resumes.
            "logging_steps": 1,
            "save_steps": plan.half,
        }
    )


def _batches(config: RunConfig) -> PackedBatches:
    """Returns the batches on which the job trains."""
    recipe, folder = config.recipe, config.job.output_dir
    assert folder is not None
    corpus = read_corpus(config.job, config.model, folder)
    return PackedBatches(
        PackedRows(corpus, "training", block_size=BLOCK_SIZE, packing="bfd"),
        batch_size=BATCH_SIZE,
        seed=recipe.seed,
        gradient_accumulation_steps=NUM_MICRO,
    )


def _rows_of(batches: PackedBatches, num_batches: int) -> list[dict[str, Any]]:
    """Returns the rows of the batches in order, with the keys of Transformers."""
    keys = ("input_ids", "labels", "position_ids")
    found = []
    for n in range(num_batches):
        batch = {key: batches[n][key].reshape(-1, BLOCK_SIZE + 1) for key in keys}
        found += [
            {key: batch[key][i].tolist() for key in keys}
            for i in range(BATCH_SIZE * NUM_MICRO)
        ]
    return found


# Trainer


def _arguments(plan: Plan, folder: Path) -> Any:
    return arguments_of(
        folder,
        max_steps=plan.max_steps,
        num_rows=BATCH_SIZE,
        save_steps=plan.half,
        lr_scheduler_type="cosine",
        warmup_steps=plan.max_steps // 10,
        gradient_accumulation_steps=NUM_MICRO,
    )


def _by_trainer(
    plan: Plan,
    folder: Path,
    their_rows: list[dict[str, Any]],
    *,
    resume_from: Path | None = None,
    attention: str = "sdpa",
) -> Ended:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        plan.base, attn_implementation=attention
    )
    trainer = transformers.Trainer(
        model, _arguments(plan, folder), train_dataset=their_rows
    )
    return trained(trainer, resume_from)


# Comparison


def _decayed(config: RunConfig) -> set[str]:
    """Returns the torch names of the parameters that our optimizer decays."""
    model = build_model(config.model)
    mask = decay_mask(
        model.shapes, rule=config.recipe.decay_rule, layer_norms=model.layer_norms
    )
    is_decayed = dict(named_leaves(mask))
    return {found.torch_name for found in model.names.slices if is_decayed[found.leaf]}


def _leaks(config: RunConfig, batch: Mapping[str, np.ndarray], base: Path) -> int:
    """Returns the number of logits that change with the first document of their row.

    All tokens of this document are replaced. The logits of the others must not change,
    here and in the model of Transformers in the mode in which Trainer runs it.
    """
    import torch
    import transformers

    first = {key: array[0] for key, array in batch.items()}
    is_first = first["segment_ids"] == 1
    tokens = first["input_ids"]
    others = np.where(is_first, (tokens + 1) % END, tokens)
    torch_model = transformers.AutoModelForCausalLM.from_pretrained(base).train()
    model = build_model(config.model)
    params = read_params(base, model.shapes, model.names)
    logits_fn = jax.jit(make_decoder_logits(config.model))

    def here(tokens: np.ndarray) -> np.ndarray:
        keys = ("segment_ids", "position_ids")
        inputs = {"input_ids": tokens, **{key: first[key] for key in keys}}
        return np.asarray(logits_fn(params, inputs))

    def there(tokens: np.ndarray) -> np.ndarray:
        ids = torch.from_numpy(tokens), torch.from_numpy(first["position_ids"])
        with torch.no_grad():
            found = torch_model(input_ids=ids[0], position_ids=ids[1], use_cache=False)
        return found.logits.numpy()

    changed = [side(tokens) != side(others) for side in (here, there)]
    if not all(change[is_first].any() for change in changed):
        raise AssertionError("the tokens of a document have no effect")
    return int(sum(change[~is_first].sum() for change in changed))


def _tensors(checkpoint: Path) -> dict[str, np.ndarray]:
    """Returns the parameters, moments and counters of a checkpoint of Trainer."""
    from safetensors.numpy import load_file

    found = dict(load_file(checkpoint / "model.safetensors"))
    found.update(optimizer_arrays(checkpoint))
    found["schedule"] = schedule_array(checkpoint)
    return found


if __name__ == "__main__":
    main("Decoders beside Trainer", rows)
