"""Script that runs Trainer of any version of Transformers since 4.40.

    python -P _trainer_script.py PLAN.json

Runs in environments without this package and without JAX. The plan is a list of objects
with `model`, `output_dir` and `resume_from` (a folder or null). Each run writes its
checkpoints to `output_dir`, and its losses, parameter groups and error to `ended.json`
there.
"""

import dataclasses
import json
import pathlib
import sys
import traceback
import zlib

import numpy as np

MAX_STEPS, BATCH_SIZE = 5, 4
GIVEN_STEP = 3  # uses the gradients of `given_gradient`
_VOCAB, _LENGTH = 48, 10
_SIZES = {
    "vocab_size": _VOCAB,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

# Maps names in the table to classes and the options of their configurations.
MODELS = {
    "Llama": ("LlamaForCausalLM", {**_SIZES, **_IDS, "num_key_value_heads": 1}),
    "T5": (
        "T5ForConditionalGeneration",
        {
            "vocab_size": _VOCAB,
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 32,
            "num_layers": 2,
            "num_heads": 2,
            "dropout_rate": 0.0,
            "decoder_start_token_id": 0,
        },
    ),
    "BERT": (
        "BertForMaskedLM",
        {**_SIZES, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    ),
    "Qwen2": ("Qwen2ForCausalLM", {**_SIZES, **_IDS, "num_key_value_heads": 1}),
    "GPT-2": (
        "GPT2LMHeadModel",
        {
            "vocab_size": _VOCAB,
            "n_positions": 32,
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
}


def given_gradient(name, shape):
    """Returns the gradient of a parameter at step `GIVEN_STEP`, float32."""
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    return (generator.normal(size=shape) * 0.1).astype(np.float32)


def _run(model_name, output_dir, resume_from):
    import torch
    import transformers

    losses = {}

    class Trainer(transformers.Trainer):
        def training_step(self, model, *args, **kwargs):
            loss = super().training_step(model, *args, **kwargs)
            step = self.state.global_step + 1
            losses[step] = loss.item()  # the log is rounded to 4 digits
            if step == GIVEN_STEP:
                for name, parameter in model.named_parameters():
                    gradient = given_gradient(name, tuple(parameter.shape))
                    parameter.grad = torch.from_numpy(gradient)
            return loss

    class_name, options = MODELS[model_name]
    model_class = getattr(transformers, class_name)
    transformers.set_seed(0)
    model = model_class(model_class.config_class(**options))
    with torch.no_grad():
        # Norms and biases of a new model are 1 and 0. Decay of 0 could not be detected.
        for name, parameter in model.named_parameters():
            noise = given_gradient(f"start of {name}", tuple(parameter.shape))
            parameter.add_(torch.from_numpy(noise))
    rows = np.random.default_rng(0).integers(3, _VOCAB, (32, _LENGTH))
    tokens = torch.from_numpy(rows)
    trainer = Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir,
            max_steps=MAX_STEPS,
            per_device_train_batch_size=BATCH_SIZE,
            learning_rate=1e-2,
            weight_decay=0.5,
            warmup_steps=1,
            lr_scheduler_type="cosine",
            save_steps=1,
            logging_steps=1,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            **_weights_by_torch(transformers.TrainingArguments, model_name),
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
    )
    trainer.train(resume_from_checkpoint=resume_from)
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    groups = optimizer.param_groups
    return {
        "losses": losses,
        "optimizer": type(optimizer).__name__,
        "groups": [[names[id(p)] for p in group["params"]] for group in groups],
        "weight_decay": [group["weight_decay"] for group in groups],
    }


def _weights_by_torch(arguments, model_name):
    """Saves GPT-2 in pytorch_model.bin, which versions before 5 support."""
    names = [field.name for field in dataclasses.fields(arguments)]
    is_torch = model_name == "GPT-2" and "save_safetensors" in names
    return {"save_safetensors": False} if is_torch else {}


def main():
    (plan,) = sys.argv[1:]
    for entry in json.loads(pathlib.Path(plan).read_text()):
        try:
            ended = _run(entry["model"], entry["output_dir"], entry["resume_from"])
        except Exception:  # every error of a version is recorded
            ended = {"error": traceback.format_exc()}
        folder = pathlib.Path(entry["output_dir"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ended.json").write_text(json.dumps(ended))


if __name__ == "__main__":
    main()
