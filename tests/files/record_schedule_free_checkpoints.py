"""Writes schedule_free_checkpoints/: a run of Trainer with schedulefree, at two steps.

pip install schedulefree==1.4.1 torch==2.13.0 transformers==5.23.0 accelerate
python tests/files/record_schedule_free_checkpoints.py

Trainer evaluates at step 4 only. The weights of checkpoint-2 are those of training, and
those of checkpoint-4 the mean.
"""

import os
import pathlib
import shutil
import tempfile

import numpy as np

TARGET = pathlib.Path(__file__).with_name("schedule_free_checkpoints")
FILES = (
    *("config.json", "model.safetensors", "optimizer.pt", "scheduler.pt"),
    *("trainer_state.json", "training_args.bin"),
)
BATCH_SIZE = 2
SIZES = {
    "vocab_size": 23,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 9,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}


def rows() -> np.ndarray:
    """Returns the rows of the run in their order, and two to evaluate on; [10, 9]."""
    return np.random.default_rng(1).integers(23, size=(10, 9))


def record() -> None:
    import torch
    import transformers

    transformers.set_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    tokens = torch.tensor(rows())
    examples = [{"input_ids": row, "labels": row} for row in tokens]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        arguments = transformers.TrainingArguments(
            "trainer",  # a relative path, which training_args.bin contains
            optim="schedule_free_adamw",
            optim_args="r=0.5",
            max_steps=8,
            save_steps=2,
            eval_strategy="steps",
            eval_steps=4,
            per_device_train_batch_size=BATCH_SIZE,
            per_device_eval_batch_size=BATCH_SIZE,
            train_sampling_strategy="sequential",
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            warmup_steps=3,
            weight_decay=0.1,
            logging_steps=1,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = transformers.Trainer(
            model, arguments, train_dataset=examples[:8], eval_dataset=examples[8:]
        )
        trainer.add_callback(_stop_after_four(transformers))
        trainer.train()
        for name in ("checkpoint-2", "checkpoint-4"):
            (TARGET / name).mkdir(parents=True, exist_ok=True)
            for file in FILES:
                shutil.copy(pathlib.Path("trainer", name, file), TARGET / name)


def _stop_after_four(transformers):
    class StopAfterFour(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step >= 4

    return StopAfterFour()


if __name__ == "__main__":
    record()
