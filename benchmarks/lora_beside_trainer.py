"""LoRA runs of the job beside runs of Trainer with PEFT: the same adapter and rows.

    python -m benchmarks.lora_beside_trainer            # 4 minutes on 2 cores
    python -m benchmarks.lora_beside_trainer --smoke    # 12 steps

Transformers writes a small Llama, and PEFT an adapter on its projections of queries,
values and outputs of MLPs. Trainer trains the adapter in float32 and without dropout,
with two micro-batches per update, clipping, warmup, a cosine schedule and weight decay;
the job trains it on the same rows, from the adapter that PEFT draws for the seed.
Halfway, each side continues the other's checkpoint. Both need torch, torchax and PEFT:
`pip install -e ".[torchax]"`. "torch itself" is Trainer with another attention kernel.
"""

import dataclasses
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks._compared_runs import (
    Ended,
    arguments_of,
    difference,
    num_differing,
    optimizer_arrays,
    our_losses,
    trained,
)
from benchmarks._report import Row, main
from jaxopt_tf import training
from jaxopt_tf.data import Batches, standard_library
from jaxopt_tf.interop import recipe_from_transformers
from jaxopt_tf.jobs import (
    RunConfig,
    build_setup,
    export_run,
    import_run,
    pretrain,
    read_corpus,
    read_run,
    run_model,
)
from jaxopt_tf.jobs._base_weights import read_frozen
from jaxopt_tf.recipes import recipe_settings
from jaxopt_tf.sharding import make_mesh

LIMIT = 1e-5
BLOCK_SIZE, BATCH_SIZE, NUM_MICRO, SEED = 63, 4, 2, 42
TARGETS = ("down_proj", "q_proj", "v_proj")


class Plan(NamedTuple):
    """Lengths and files of the runs."""

    max_steps: int
    base: Path  # folder of the base model
    tokens: Path  # file of the text

    @property
    def half(self) -> int:
        """Step at which the other side continues."""
        return self.max_steps // 2


def rows(smoke: bool) -> Iterator[Row]:
    """Yields the figures."""
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # torch's notes on the scheduler of a resumed run.
        warnings.simplefilter("ignore")
        work = Path(folder)
        jax.config.update("jax_compilation_cache_dir", str(work / "cache"))
        plan = Plan(12 if smoke else 100, work / "base", work / "text.npy")
        text = standard_library().training.read(0, 2**17)
        np.save(plan.tokens, text.astype(np.uint16))
        _base_model().save_pretrained(plan.base)
        yield from _figures(plan, work)


def _figures(plan: Plan, work: Path) -> Iterator[Row]:
    half, end = plan.half, plan.max_steps
    config = _our_config(plan, work / "ours")
    their_rows = _rows(config)
    theirs = _by_trainer(plan, work / "theirs", their_rows)
    eager = _by_trainer(plan, work / "eager", their_rows, attention="eager")
    pretrain(config)
    yield Row(
        claim=f"loss of each of {end} steps, against Trainer's with PEFT",
        value=difference(our_losses(work / "ours"), theirs.losses, 0),
        unit="relative",
        limit=LIMIT,
        torch=difference(eager.losses, theirs.losses, 0),
        detail=f"{theirs.losses[1]:.3f} to {theirs.losses[end]:.3f}",
    )
    yield Row(
        claim="logits of the adapter folder in PEFT, against those here",
        value=_logit_difference(config, work / "ours"),
        unit="absolute",
        limit=LIMIT,
    )
    checkpoint = work / "theirs" / f"checkpoint-{half}"
    imported = import_run(checkpoint, work / "imported", settings=_data(plan))
    export_run(work / "imported", work / "returned", like=checkpoint)
    pretrain(imported.config)
    yield Row(
        claim=f"Trainer to step {half}, then here: loss of each step after it",
        value=difference(our_losses(work / "imported"), theirs.losses, half),
        unit="relative",
        limit=LIMIT,
    )
    exported = work / "continued" / f"checkpoint-{half}"
    export_run(work / "ours" / f"checkpoint-{half}", exported, like=checkpoint)
    continued = _by_trainer(plan, work / "continued", their_rows, resume_from=exported)
    yield Row(
        claim=f"here to step {half}, then Trainer: loss of each step after it",
        value=difference(continued.losses, theirs.losses, half),
        unit="relative",
        limit=LIMIT,
    )
    yield Row(
        claim="Trainer's checkpoint in and out: elements of adapter and optimizer that "
        "differ in a bit",
        value=num_differing(_tensors(checkpoint), _tensors(work / "returned")),
        unit="elements",
        limit=0,
    )
    yield _state_row(config, work / "ours")


def _state_row(config: RunConfig, folder: Path) -> Row:
    """Returns the bytes of run state that belong to frozen parameters."""
    model = run_model(config.model, config.job)
    state = read_run(folder).run_state.state
    num_trained = sum(x.size for x in jax.tree.leaves(state.params))
    num_frozen = sum(x.size for x in jax.tree.leaves(model.frozen_shapes))
    arrays = [x for x in jax.tree.leaves((state.params, state.opt_state)) if x.ndim]
    # The adapter and its two moments; counters are scalars.
    extra = sum(x.nbytes for x in arrays) - 3 * 4 * num_trained
    return Row(
        claim="state per frozen parameter, in the run and in its checkpoints",
        value=extra / num_frozen,
        unit="bytes",
        limit=0,
        detail=f"{num_trained:,} parameters trained, {num_frozen:,} frozen",
    )


# Data


def _data(plan: Plan) -> dict[str, Any]:
    """Returns the settings of the data, which no file of Trainer contains."""
    return {
        "text": [str(plan.tokens)],
        "model_name_or_path": str(plan.base),
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
            "lora_r": 8,
            "lora_target_modules": TARGETS,
            "output_dir": str(folder),
            # Trainer reads both from the checkpoint that it resumes.
            "logging_steps": 1,
            "save_steps": plan.half,
        }
    )


def _rows(config: RunConfig) -> list[dict[str, Any]]:
    """Returns the rows of the job's batches in order, with the keys of Transformers."""
    recipe, folder = config.recipe, config.job.output_dir
    assert folder is not None
    corpus = read_corpus(config.job, config.model, folder)
    batches = Batches(
        corpus,
        block_size=BLOCK_SIZE,
        batch_size=BATCH_SIZE,
        seed=recipe.seed,
        gradient_accumulation_steps=NUM_MICRO,
    )
    arrays = (batches[n].reshape(-1, BLOCK_SIZE + 1) for n in range(recipe.max_steps))
    lists = [row.tolist() for array in arrays for row in array]
    return [{"input_ids": row, "labels": row} for row in lists]


# Trainer


def _base_model() -> Any:
    import transformers

    transformers.set_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=257,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=BLOCK_SIZE + 1,
    )
    return transformers.LlamaForCausalLM(config)


def _arguments(plan: Plan, folder: Path) -> Any:
    return arguments_of(
        folder,
        max_steps=plan.max_steps,
        num_rows=BATCH_SIZE,
        save_steps=plan.half,
        learning_rate=1e-2,
        lr_scheduler_type="cosine",
        warmup_steps=plan.max_steps // 10,
        gradient_accumulation_steps=NUM_MICRO,
        seed=SEED,
    )


def _by_trainer(
    plan: Plan,
    folder: Path,
    their_rows: list[dict[str, Any]],
    *,
    resume_from: Path | None = None,
    attention: str = "sdpa",
) -> Ended:
    import peft
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(
        plan.base, attn_implementation=attention
    )
    transformers.set_seed(SEED)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=[*TARGETS])
    trainer = transformers.Trainer(
        peft.get_peft_model(base, config),
        _arguments(plan, folder),
        train_dataset=their_rows,
    )
    return trained(trainer, resume_from)


# Comparison


def _logit_difference(config: RunConfig, folder: Path) -> float:
    """Returns the largest difference of logits of the adapter in a run's folder."""
    import peft
    import torch
    import transformers

    ids = np.arange(2 * BLOCK_SIZE, dtype=np.int32).reshape(2, -1)
    base = transformers.AutoModelForCausalLM.from_pretrained(
        config.job.model_name_or_path
    )
    with torch.no_grad():
        model = peft.PeftModel.from_pretrained(base, folder)
        theirs = model(torch.from_numpy(ids).long()).logits.numpy()
    setup = build_setup(config, make_mesh("data=1", jax.devices()[:1]))
    frozen = read_frozen(setup.model, setup.frozen, config)
    params = training.merge_params(read_run(folder).run_state.state.params, frozen)
    ours = jax.jit(setup.model.make_logits())(params, {"input_ids": ids})
    return float(np.max(np.abs(np.asarray(ours) - theirs)))


def _tensors(checkpoint: Path) -> dict[str, np.ndarray]:
    """Returns the adapter, moments and counters of a checkpoint of Trainer."""
    from safetensors.numpy import load_file

    found = dict(load_file(checkpoint / "adapter_model.safetensors"))
    found.update(optimizer_arrays(checkpoint))
    return found


if __name__ == "__main__":
    main("LoRA beside Trainer", rows)
