"""Monitors of a run: console, log files, TensorBoard and training health.

train(..., monitors=[console(max_steps=1_000), health_monitor(),
    json_lines(folder / "metrics.jsonl")])
"""

from ._console import console as console
from ._health_monitor import health_monitor as health_monitor
from ._json_lines import json_lines as json_lines
from ._json_lines import read_history as read_history
from ._tensorboard import tensorboard as tensorboard
from ._trainer_state import default_trainer_state as default_trainer_state
from ._trainer_state import trainer_state as trainer_state
from ._trainer_state import write_trainer_state as write_trainer_state
