"""Folders with the format of old versions of Trainer."""

import json
import pathlib
import re
from typing import Any

DATA = pathlib.Path(__file__).parents[1] / "files"
RECORDED = json.loads((DATA / "decay_of_trainer.json").read_text())
ARGUMENTS = json.loads((DATA / "training_arguments_4.46.json").read_text())
RATE, DECAY = 1e-2, 0.5
_SIZES = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "vocab_size": 32,
    "pad_token_id": 0,
}
# Fields that versions before these do not have.
_SINCE = {
    "average_tokens_across_devices": "4.46",
    "include_for_metrics": "4.46",
    "use_liger_kernel": "4.45",
}
_T5 = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
_OPTIONS = {"T5ForConditionalGeneration": {**_T5, "vocab_size": 32}}


def module(architecture: str) -> Any:
    """A small model with weights that are not 1 or 0."""
    import torch
    import transformers

    torch.manual_seed(0)
    kind = getattr(transformers, architecture)
    made = kind(kind.config_class(**_OPTIONS.get(architecture, _SIZES)))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape) + 0.1)
    return made


def groups(made: Any, version: str) -> tuple[list[str], list[str]]:
    """Names of the parameters that Trainer of a version decays, and of the others."""
    record = RECORDED[type(made).__name__]
    digits = next(d for vs, d in record["decayed"].items() if version in vs.split())
    decays = dict(zip(map(_kind, record["names"]), digits, strict=True))
    names = [name for name, _ in made.named_parameters()]
    return (
        [name for name in names if decays[_kind(name)] == "1"],
        [name for name in names if decays[_kind(name)] == "0"],
    )


def write(
    folder: Any,
    made: Any,
    version: str,
    named: list[list[str]],
    decays: tuple[float, ...] = (DECAY, 0.0),
    weight_decay: float = DECAY,
) -> Any:
    """Takes two steps and writes the folder; returns the optimizer, to continue."""
    import torch
    from transformers import get_scheduler

    from tests.references import torch_models

    own = dict(made.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [own[name] for name in group], "weight_decay": decay}
            for group, decay in zip(named, decays, strict=True)
        ],
        lr=RATE,
    )
    scheduler = get_scheduler("constant", optimizer)
    for seed in range(2):
        torch_models.set_gradients(made, seed)
        optimizer.step()
        scheduler.step()
    made.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["transformers_version"] = version
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    torch.save(scheduler.state_dict(), folder / "scheduler.pt")
    state = {"global_step": 2, "max_steps": 9, "epoch": 0.1, "log_history": []}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    arguments = {
        **{name: v for name, v in ARGUMENTS.items() if _SINCE.get(name, "") <= version},
        "max_steps": 9,
        "learning_rate": RATE,
        "weight_decay": weight_decay,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
    }
    (folder / "training_args.json").write_text(json.dumps(arguments))
    return optimizer


def _kind(name: str) -> str:
    return re.sub(r"\b\d+\b", "#", name)
