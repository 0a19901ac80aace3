"""Writes bitsandbytes_checkpoint/: a checkpoint of Trainer with `optim="adamw_8bit"`.

pip install bitsandbytes==0.50.2 torch==2.13.0 transformers==5.23.0 accelerate
python tests/files/record_bitsandbytes_checkpoint.py

The weights are left out: `optimizer.pt` is what bitsandbytes writes. The first moments
of a Llama's tensors are codes where it has at least 4,096 elements: kernels of the MLP,
whose rows are an eighth of a block or a whole block, and the head, which ends in a part
of a block. Other kernels are smaller, and embeddings are float32 by Trainer's rule.
"""

import os
import pathlib
import shutil
import tempfile

import torch
import transformers

FILES = ("config.json", "optimizer.pt", "scheduler.pt", "trainer_state.json")
SIZES = {
    "vocab_size": 131,
    "hidden_size": 32,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 17,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}


def record() -> None:
    transformers.set_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    tokens = torch.randint(131, (32, 17), generator=torch.Generator().manual_seed(1))
    target = pathlib.Path(__file__).with_name("bitsandbytes_checkpoint")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        arguments = transformers.TrainingArguments(
            "trainer",  # a relative path, which training_args.bin contains
            optim="adamw_8bit",
            max_steps=4,
            save_steps=2,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            weight_decay=0.1,
            logging_steps=1,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        rows = [{"input_ids": row, "labels": row} for row in tokens]
        transformers.Trainer(model, arguments, train_dataset=rows).train()
        target.mkdir(exist_ok=True)
        for name in (*FILES, "training_args.bin"):
            shutil.copy(pathlib.Path("trainer", "checkpoint-2", name), target)


if __name__ == "__main__":
    record()
