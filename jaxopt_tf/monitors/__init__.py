"""What a run tells comes in; the console, files, pictures and warnings go out.

train(..., monitors=[console(1_000), json_lines(folder / "metrics.jsonl"), watcher()])
"""

from ._console import console as console
from ._curves import curves as curves
from ._history import read_history as read_history
from ._json_lines import json_lines as json_lines
from ._tensorboard import tensorboard as tensorboard
from ._trainer_state import default_trainer_state as default_trainer_state
from ._trainer_state import trainer_state as trainer_state
from ._trainer_state import write_trainer_state as write_trainer_state
from ._watcher import watcher as watcher
