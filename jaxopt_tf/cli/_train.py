"""`jaxopt-tf train`: pretrain a small GPT-2."""

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, get_type_hints

import tyro

from .. import pretraining
from ..pretraining import GPT2Config
from ..recipes import Recipe

# Found by trying, for the default model on the default text.
_RECIPE = Recipe(
    max_steps=2_000,
    learning_rate=3e-3,
    lr_scheduler_type="linear",
    warmup_steps=100,
    weight_decay=0.1,
    adam_beta2=0.97,
)
_MODEL = GPT2Config()

REGISTRY = tyro.constructors.ConstructorRegistry()


@REGISTRY.primitive_rule
def _json_for_kwargs(type_info):
    """`--lr_scheduler_kwargs` takes JSON, as the Trainer's scripts do."""
    if type_info.type != get_type_hints(Recipe)["lr_scheduler_kwargs"]:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=lambda args: json.loads(args[0]),
        is_instance=lambda value: isinstance(value, dict | tuple),
        str_from_instance=lambda pairs: [json.dumps(dict(pairs))],
    )


def train(
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = _RECIPE,
    model: Annotated[GPT2Config, tyro.conf.arg(name="")] = _MODEL,
    text: tuple[Path, ...] = (),
    per_device_train_batch_size: int = 8,
    eval_steps: int = 400,
    output_dir: Path | None = None,
) -> None:
    """Pretrains a small GPT-2 on bytes of text.

    Args:
        recipe: the numbers of the run.
        model: the model's size.
        text: files or folders of text; the sources of Python's standard library if none
            are given.
        per_device_train_batch_size: windows of `block_size` bytes in a batch.
        eval_steps: steps from one held-out evaluation to the next.
        output_dir: where metrics.jsonl and curves.png are written; a folder in runs/,
            named by the time, if not given.
    """
    pretraining.pretrain(
        recipe,
        model,
        pretraining.read_text(text) if text else pretraining.standard_library(),
        per_device_train_batch_size=per_device_train_batch_size,
        eval_steps=eval_steps,
        output_dir=output_dir or Path("runs", f"{datetime.now():%Y-%m-%d_%H-%M-%S}"),
    )
