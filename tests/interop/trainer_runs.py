"""Short runs of Transformers' Trainer, as starting points of tests."""

from typing import Any

from jaxopt_tf.recipes import Recipe
from tests.references import torch_models

SCHEDULES = {
    "linear": ("linear", {}),
    "cosine": ("cosine", {}),
    "plateau": ("reduce_lr_on_plateau", {"patience": 0, "factor": 0.5}),
    "greedy": ("greedy", {"patience": 0, "min_lr": 1e-5, "max_lr": 1e-2}),
}
OPTIM_ARGS = {
    "sgd": "momentum=0.9,nesterov=true",
    "adagrad": "lr_decay=0.01",
    "rmsprop": "momentum=0.9,centered=true",
}
MAX_STEPS = 8
_SHARED = {
    "max_steps": MAX_STEPS,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
}


def recipe(optim: str, schedule: str) -> Recipe:
    """The run in our words."""
    name, options = SCHEDULES[schedule]
    steps = 0 if schedule in ("plateau", "greedy") else 2
    return Recipe(
        optim=optim,
        optim_args=OPTIM_ARGS.get(optim, ()),
        lr_scheduler_type=name,
        lr_scheduler_kwargs=options,
        warmup_steps=steps,
        decay_rule="transformers_v5",
        **_SHARED,
    )


def trainer(folder: Any, optim: str, schedule: str) -> Any:
    """A Trainer of a small GPT-2 without dropout, which saves every four steps."""
    import torch
    from transformers import Trainer, TrainingArguments

    name, options = SCHEDULES[schedule]
    model = torch_models.gpt2()
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    tokens = torch.randint(32, (12, 9), generator=torch.Generator().manual_seed(1))
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    arguments = TrainingArguments(
        str(folder),
        optim=optim,
        optim_args=OPTIM_ARGS.get(optim),
        lr_scheduler_type=name,
        lr_scheduler_kwargs=options,
        warmup_steps=0 if schedule in ("plateau", "greedy") else 2,
        save_steps=4,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **_SHARED,
    )
    return Trainer(model, arguments, train_dataset=rows, eval_dataset=rows[:4])


def weights(trainer: Any) -> dict[str, Any]:
    """The parameters as they are now."""
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
