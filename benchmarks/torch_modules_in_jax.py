"""Models of Transformers in JAX by torchax, beside PyTorch.

For each architecture, built small from its config: distance of loss and gradient to
PyTorch, losses of 20 steps beside PyTorch's AdamW with Trainer's clipping and decay
groups, equality of the decay groups, of written and read checkpoints, and seconds to
the first step.

    python -m benchmarks.torch_modules_in_jax [--smoke] [ARCHITECTURE ...]
"""

import dataclasses
import functools
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import rich.console
import rich.table

from benchmarks._report import Row, report
from jaxopt_tf import Recipe, build_optimizer, interop, models, training
from jaxopt_tf.optimizers import decay_mask

NUM_STEPS = 20
ROWS, LENGTH, VOCABULARY = 4, 16, 96
# Relative to PyTorch's loss, the largest of all steps; see issue "Reach".
MAX_LOSS_DISTANCE = 1e-5
# Relative to the largest element of each gradient. Both compute in float32.
MAX_GRAD_DISTANCE = 1e-4
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {"num_key_value_heads": 2}
SEQ2SEQ = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
IMAGES = {**TOWER, "image_size": 16, "patch_size": 8}
# Class of the model and its settings, by `model_type`.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("ForCausalLM", SIZES),
    "bert": ("ForMaskedLM", SIZES),
    "t5": ("ForSeq2SeqLM", T5),
    "llama": ("ForCausalLM", SIZES | GROUPED),
    "roberta": ("ForMaskedLM", SIZES),
    "distilbert": (
        "ForMaskedLM",
        {"vocab_size": VOCABULARY, "dim": 32, "hidden_dim": 64, "n_layers": 2}
        | {"n_heads": 4, "max_position_embeddings": 64},
    ),
    "bart": ("ForSeq2SeqLM", SEQ2SEQ),
    "qwen2": ("ForCausalLM", SIZES | GROUPED),
    "qwen3": ("ForCausalLM", SIZES | GROUPED | {"head_dim": 8}),
    "gemma2": ("ForCausalLM", SIZES | GROUPED | {"head_dim": 8}),
    "mistral": ("ForCausalLM", SIZES | GROUPED),
    "vit": ("ForImageClassification", IMAGES),
    "mixtral": ("ForCausalLM", SIZES | GROUPED | {"num_local_experts": 4}),
    "mamba": (
        "ForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2}
        | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    ),
    "deberta-v2": ("ForMaskedLM", SIZES | {"relative_attention": True}),
    "modernbert": ("ForMaskedLM", SIZES | {"cls_token_id": 1, "sep_token_id": 2}),
    "gemma3_text": ("ForCausalLM", SIZES | GROUPED | {"head_dim": 8}),
    "clip": (
        "",
        {
            "text_config": SIZES,
            "vision_config": IMAGES,
            "projection_dim": 16,
        },
    ),
    "whisper": (
        "ForSpeechSeq2Seq",
        SEQ2SEQ
        | {"num_mel_bins": 8, "max_source_positions": 8}
        | {"max_target_positions": 64, "suppress_tokens": None}
        | {"begin_suppress_tokens": None},
    ),
    "electra": ("ForMaskedLM", SIZES | {"embedding_size": 32}),
    "albert": ("ForMaskedLM", SIZES | {"embedding_size": 16}),
    "xlm-roberta": ("ForSequenceClassification", SIZES),
    "gpt_neox": ("ForCausalLM", SIZES),
    "opt": ("ForCausalLM", SIZES | {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "phi3": ("ForCausalLM", SIZES | GROUPED),
    "olmo2": ("ForCausalLM", SIZES | GROUPED),
    "smollm3": ("ForCausalLM", SIZES | GROUPED),
    "granite": ("ForCausalLM", SIZES | GROUPED),
    "cohere": ("ForCausalLM", SIZES | GROUPED),
    "starcoder2": ("ForCausalLM", SIZES | GROUPED),
    "falcon": ("ForCausalLM", SIZES),
    "bloom": ("ForCausalLM", SIZES),
    "qwen3_moe": (
        "ForCausalLM",
        SIZES
        | GROUPED
        | {"num_experts": 4, "num_experts_per_tok": 2}
        | {"moe_intermediate_size": 32, "head_dim": 8},
    ),
    "deit": ("ForImageClassification", IMAGES),
    "bert-tokens": ("ForTokenClassification", SIZES),
}
SMOKE = ("gpt2", "bert", "t5", "llama")


@dataclasses.dataclass(kw_only=True)
class Result:
    """Figures of one architecture; `error` is not "" if it failed."""

    name: str
    loss: float = float("nan")
    grad: float = float("nan")
    steps: float = float("nan")
    is_decay_equal: bool = False
    is_read: bool = False
    compile_s: float = float("nan")
    error: str = ""

    @property
    def passes(self) -> bool:
        """Whether all figures are within their limits."""
        return (
            self.steps <= MAX_LOSS_DISTANCE
            and self.grad <= MAX_GRAD_DISTANCE
            and self.is_decay_equal
            and self.is_read
        )


def build(name: str) -> Any:
    """Returns a small module of an architecture, without dropout."""
    import torch
    import transformers

    kind, settings = ARCHITECTURES[name]
    config = transformers.AutoConfig.for_model(name.partition("-tokens")[0], **settings)
    parts = [config, *(getattr(config, part) for part in config.sub_configs)]
    for part in parts:
        for field in list(vars(part)):
            value = getattr(part, field)
            if ("drop" in field) and isinstance(value, float):
                setattr(part, field, 0.0)
    torch.manual_seed(0)
    return getattr(transformers, f"AutoModel{kind}").from_config(config)


def batches(name: str, module: Any) -> list[dict[str, np.ndarray]]:
    """Returns two batches for the module's `forward`."""
    kind = ARCHITECTURES[name][0]
    rng, config = np.random.default_rng(0), module.config

    def batch() -> dict[str, np.ndarray]:
        ids = rng.integers(3, VOCABULARY, (ROWS, LENGTH)).astype(np.int32)
        labels = np.where(rng.random(ids.shape) < 0.7, ids, -100).astype(np.int32)
        text = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        text["attention_mask"][0, -3:] = 0
        if kind == "ForImageClassification":
            images = rng.normal(size=(ROWS, 3, 16, 16)).astype(np.float32)
            return {"pixel_values": images, "labels": np.arange(ROWS) % 2}
        if kind == "ForSpeechSeq2Seq":
            sound = rng.normal(size=(ROWS, 8, 16)).astype(np.float32)
            return {"input_features": sound, "labels": labels}
        if kind == "ForSequenceClassification":
            return {**text, "labels": np.arange(ROWS) % config.num_labels}
        if kind == "ForTokenClassification":
            return {**text, "labels": np.where(labels < 0, labels, labels % 2)}
        if kind == "":  # CLIP
            images = rng.normal(size=(ROWS, 3, 16, 16)).astype(np.float32)
            return {**text, "pixel_values": images}
        return {**text, "labels": labels}

    return [batch(), batch()]


def torch_inputs(batch: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns a batch as tensors, integers as int64."""
    import torch

    return {
        name: torch.tensor(x.astype(np.int64) if x.dtype.kind == "i" else x)
        for name, x in batch.items()
    }


def torch_loss(module: Any, batch: dict[str, np.ndarray]) -> Any:
    """Returns the loss of a batch as the real Trainer computes it."""
    import transformers

    inputs = torch_inputs(batch)
    if "labels" not in batch:
        return module(**inputs, return_loss=True).loss
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder, use_cpu=True, report_to=[], disable_tqdm=True
        )
        trainer = transformers.Trainer(module, arguments)
    number = trainer._get_num_items_in_batch([inputs], "cpu")
    return trainer.compute_loss(module, inputs, num_items_in_batch=number)


def trained_by_torch(module: Any, described: Any, all_batches: list) -> list[float]:
    """Returns the losses of AdamW with Trainer's clipping and decay groups."""
    import torch

    named = dict(module.named_parameters())
    decayed, others = described.groups
    optimizer = torch.optim.AdamW(
        [
            {"params": [named[n] for n in decayed], "weight_decay": 0.1},
            {"params": [named[n] for n in others], "weight_decay": 0.0},
        ],
        lr=1e-3,
    )
    losses = []
    for step in range(NUM_STEPS):
        loss = torch_loss(module, all_batches[step % 2])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def model_of(name: str, module: Any) -> Any:
    """Returns the module as a model; DeBERTa's own loss has data-dependent shapes."""
    import torch

    if name != "deberta-v2":
        return models.from_transformers(module)

    def loss_fn(module: Any, batch: Any) -> tuple[Any, Any]:
        inputs = {name: x for name, x in batch.items() if name != "labels"}
        logits = module(**inputs).logits.flatten(0, 1)
        labels = batch["labels"].flatten().long()
        sums = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        return sums, labels.ne(-100).sum()

    return models.from_torch(module, loss_fn)


def measure(name: str) -> Result:
    """Measures one architecture."""
    result = Result(name=name)
    module = build(name).train()
    all_batches = batches(name, module)
    model = model_of(name, module)
    params, described = model.init(0), model.names.model
    recipe = Recipe(
        max_steps=NUM_STEPS,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        weight_decay=0.1,
        max_grad_norm=1.0,
        decay_rule="transformers_v5",
    )
    mask = decay_mask(params, rule="transformers_v5", layer_norms=model.layer_norms)
    decayed, _ = described.groups
    result.is_decay_equal = {n for n in mask if mask[n]} == set(decayed)

    loss_fn = model.make_loss()
    gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    # The key of the training mode: there is no dropout.
    (total, number), grads = gradient(params, all_batches[0], jax.random.key(0))
    theirs = torch_loss(module, all_batches[0])
    theirs.backward()
    result.loss = abs(float(total / number) / theirs.item() - 1)
    result.grad = max(
        float(np.abs(grads[n] / number - p.grad.numpy()).max() / p.grad.abs().max())
        for n, p in module.named_parameters()
        if n in grads and p.grad is not None and p.grad.abs().max() > 1e-6
    )
    module.zero_grad()

    optimizer = build_optimizer(recipe, layer_norms=model.layer_norms)
    step = training.make_train_step(loss_fn, optimizer)
    state = training.init_train_state(params, optimizer, rng=0)
    begin, losses = time.perf_counter(), []
    for number_of_step in range(NUM_STEPS):
        state, metrics = step(state, all_batches[number_of_step % 2])
        losses.append(float(metrics.loss))
        if number_of_step == 0:
            result.compile_s = time.perf_counter() - begin
    with tempfile.TemporaryDirectory() as folder:
        # Otherwise the experts of a stack are written one by one.
        module.save_pretrained(folder, save_original_format=False)
        read = interop.read_params(folder, model.shapes, model.names)
        fresh = model.init(0)
        is_equal = all(np.array_equal(read[n], fresh[n]) for n in fresh)
        interop.write_weights(folder, model.all_params(fresh), model.names, stored=None)
        again = type(module).from_pretrained(folder)
        named = dict(again.named_parameters())
        result.is_read = is_equal and all(
            np.array_equal(named[n].detach().numpy(), fresh[n]) for n in fresh
        )
    beside = trained_by_torch(module, described, all_batches)
    result.steps = max(
        abs(ours / torchs - 1) for ours, torchs in zip(losses, beside, strict=True)
    )
    return result


def measured(name: str) -> Result:
    """Measures one architecture, and records its error if it fails."""
    try:
        return measure(name)
    except Exception as error:
        traceback.print_exc(limit=-3)
        text = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return Result(name=name, error=text)


def print_table(results: list[Result]) -> None:
    """Prints one row per architecture, and the errors."""
    table = rich.table.Table(title="Torch modules in JAX, beside PyTorch")
    columns = ("architecture", "loss", "gradient", "20 steps", "decay set")
    for column in (*columns, "checkpoint", "seconds to compile"):
        table.add_column(column)
    for r in results:
        flags = ["equal" if x else "NO" for x in (r.is_decay_equal, r.is_read)]
        figures = (f"{x:.1e}" for x in (r.loss, r.grad, r.steps))
        table.add_row(r.name, *figures, *flags, f"{r.compile_s:.1f}")
    console = rich.console.Console(width=120)
    console.print(table)
    for r in results:
        if r.error:
            console.print(f"{r.name}: {r.error}", markup=False)


def rows(names: list[str]) -> Iterator[Row]:
    """Yields the distance of each architecture, and the number that pass."""
    results = []
    for name in names:
        results.append(measured(name))
        print(results[-1], flush=True)
    print_table(results)
    for r in results:
        yield Row(
            claim=f"{r.name}: losses of {NUM_STEPS} steps, distance to PyTorch's",
            value=r.steps,
            unit="relative",
            limit=MAX_LOSS_DISTANCE,
            detail=r.error or f"gradient {r.grad:.1e}, compiled in {r.compile_s:.1f} s",
        )
    yield Row(
        claim="share of architectures whose figures are all within limits",
        value=sum(r.passes for r in results) / len(results),
        unit="of all",
        limit=0.9,
        at_least=True,
    )


if __name__ == "__main__":
    given = [name for name in sys.argv[1:] if not name.startswith("--")]
    chosen = given or list(SMOKE if "--smoke" in sys.argv else ARCHITECTURES)
    run: Callable[[], bool] = functools.partial(
        report, "Torch modules in JAX", rows(chosen)
    )
    sys.exit(0 if run() else 1)
