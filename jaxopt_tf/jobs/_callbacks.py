"""Refusal of Trainer's callbacks, with a replacement for each."""

from collections.abc import Sequence
from typing import Any

from ..training import Monitor

_MONITOR = (
    "pass a `training.Monitor` in `monitors`, whose functions receive the metrics of "
    "steps and evaluations"
)
_CONSOLE = "leave it out: the console shows steps and evaluations"
_SERVICE = (
    "pass a `training.Monitor` in `monitors` that calls the client of the service"
)
# Replacements for callbacks of Transformers, by the names of their classes.
INSTEAD = {
    "EarlyStoppingCallback": "pass `early_stopping_patience` and "
    "`early_stopping_threshold` to `train`",
    "PrinterCallback": _CONSOLE,
    "ProgressCallback": _CONSOLE,
    "NotebookProgressCallback": _CONSOLE,
    "TensorBoardCallback": 'pass `report_to="tensorboard"`',
    "DefaultFlowCallback": "set the intervals in `arguments`",
    "JITCheckpointCallback": "leave it out: SIGTERM ends a run with a checkpoint",
    **dict.fromkeys(
        (
            *("WandbCallback", "MLflowCallback", "CometCallback", "NeptuneCallback"),
            *("ClearMLCallback", "DVCLiveCallback", "CodeCarbonCallback"),
            *("AzureMLCallback", "DagsHubCallback", "FlyteCallback"),
            *("SwanLabCallback", "TrackioCallback", "KubeflowCallback"),
        ),
        _SERVICE,
    ),
}


def checked_monitors(
    monitors: Sequence[Any], callbacks: Sequence[Any]
) -> list[Monitor]:
    """Returns the monitors; raises if one is a callback, or `callbacks` is given.

    Raises:
        TypeError: for a callback, with its replacement, or for another object.
    """
    for name, given in (("callbacks", callbacks), ("monitors", monitors)):
        for item in given:
            if name == "monitors" and isinstance(item, Monitor):
                continue
            item_type = item if isinstance(item, type) else type(item)
            classes = [c.__name__ for c in item_type.__mro__]
            instead = next((INSTEAD[c] for c in classes if c in INSTEAD), _MONITOR)
            raise TypeError(
                f"`{name}` must contain no callback of Trainer, got "
                f"{item_type.__name__}; {instead}."
                if name == "callbacks" or "TrainerCallback" in classes
                else f"`monitors` must contain `training.Monitor`s, got "
                f"{item_type.__name__}; {_MONITOR}."
            )
    return list(monitors)
