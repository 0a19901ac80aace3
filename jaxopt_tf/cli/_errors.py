"""Errors in the words of the command line: flags, and cures that can be typed.

Errors come from functions that Python calls, too. Their arguments have the names of the
flags, with the exceptions below. A sentence that is of use in Python only is left out,
with what to type in its place.
"""

import re

# An argument of a function, and the flag that sets it.
_FLAGS = {
    "axes": "mesh",
    "folder": "output_dir",
    "scheduler_specific_kwargs": "lr_scheduler_kwargs",
}
_FLAGS_OF = {
    "plan": {"name": "devices"},
    "schedule": {"scheduler_specific_kwargs": "scheduler_specific_kwargs"},
    "migrate": {"folder": "FOLDER", "recipe": "training_args"},
}
_PHRASES = {
    ", or name them with `layer_norms=`": "",
    "`scale='linear'`": "low:high:linear",
    "a list of `RateGroup` or of mappings of their fields": "a list of objects with "
    "`pattern` and `factor`, `learning_rate`, `lr_scheduler_type`, "
    "`lr_scheduler_kwargs` or `warmup_steps`",
}
_PHRASES_OF = {
    "migrate": {
        "Take the recipe that the run was begun with.": "Give the TrainingArguments "
        "that the run was begun with, by `training_args`.",
        "the recipe's": "that of `training_args`",
        "the recipe": "`training_args`",
    },
}
_MODEL = "`migrate` takes a GPT2LMHeadModel, named under `architectures`."
# Words of sentences that are of use in Python only, and what to say instead.
_PYTHON_ONLY = {
    "`torch_model_from_module`": _MODEL,
    "`torch_model_from_shapes`": _MODEL,
    "Name leaves by `table`": _MODEL,
    "`torch_from_opt_state`": "Such a run cannot be migrated.",
    "`metric_state_from_torch`": "Give the TrainingArguments that the run was begun "
    "with, by `training_args`.",
}


def in_flags(text: str, command: str) -> str:
    """Returns an error's text for someone who types `jaxopt-tf COMMAND`.

    Args:
        text: of the error; several lines are several errors.
        command: the name of the command.
    """
    lines = [_without_python(line) for line in text.split("\n")]
    text = "\n".join(lines)
    for phrases in (_PHRASES, _PHRASES_OF.get(command, {})):
        for python, typed in phrases.items():
            text = text.replace(python, typed)
    flags = {**_FLAGS, **_FLAGS_OF.get(command, {})}
    return re.sub(r"`(\w+)`", lambda found: f"`{flags.get(found[1], found[1])}`", text)


def _without_python(line: str) -> str:
    sentences: list[str] = []
    for sentence in re.split(r"(?<=\.) (?=[A-Z])", line):
        cure = next((c for w, c in _PYTHON_ONLY.items() if w in sentence), sentence)
        if cure and cure not in sentences:
            sentences.append(cure)
    return " ".join(sentences)
