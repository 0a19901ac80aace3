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

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import _decoder_runs as runs
from benchmarks._compared_runs import carried, difference, num_differing, our_losses
from benchmarks._report import Row, main
from jaxopt_tf._pytrees import named_leaves
from jaxopt_tf.interop import read_params
from jaxopt_tf.jobs import RunConfig, export_run, import_run, pretrain, read_run
from jaxopt_tf.models import build_model
from jaxopt_tf.models._decoder import make_decoder_logits
from jaxopt_tf.optimizers import decay_mask

LIMIT = 1e-5
MODELS: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": True},
    "mistral": {"sliding_window": 16},
}


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
            plan = runs.Plan(12 if smoke else 200, work / "base", work / "text.npy")
            runs.save_documents(plan.tokens)
            runs.save_model(plan.base, name, **MODELS[name])
            yield from _case(name, plan, work)


def _case(name: str, plan: runs.Plan, work: Path) -> Iterator[Row]:
    half = plan.half
    config = runs.our_config(plan, work / "ours")
    batches = runs.batches_of(config)
    their_rows = runs.rows_of(batches, plan.max_steps)
    theirs = runs.by_trainer(plan, work / "theirs", their_rows)
    eager = runs.by_trainer(plan, work / "eager", their_rows, attention="eager")
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
    imported = import_run(
        checkpoint, work / "imported", settings=runs.data_settings(plan)
    )
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
    continued = runs.by_trainer(
        plan, work / "continued", their_rows, resume_from=exported
    )
    yield Row(
        claim=f"{name}: here to step {half}, then Trainer: loss of each step after it",
        value=difference(continued.losses, theirs.losses, half),
        unit="relative",
        limit=LIMIT,
    )
    import_run(exported, work / "again", settings=runs.data_settings(plan))
    begin, end = (read_run(f) for f in (work / "ours" / exported.name, work / "again"))
    states = [carried(run.run_state.state) for run in (begin, end)]
    yield Row(
        claim=f"{name}: Trainer's checkpoint in and out, and ours out and in: elements "
        "of parameters and optimizer that differ in a bit",
        value=num_differing(runs.tensors(checkpoint), runs.tensors(work / "returned"))
        + num_differing(*states),
        unit="elements",
        limit=0,
    )


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
    others = np.where(is_first, (tokens + 1) % runs.END, tokens)
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


if __name__ == "__main__":
    main("Decoders beside Trainer", rows)
