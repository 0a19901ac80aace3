"""Figures of schedules, runs and searches.

plot_schedule({"cosine": schedule, "mine": other}, num_steps=10_000)
plot_runs(["runs/ours", "trainer_output"], path="compared.png")
"""

from ._layers import plot_layers as plot_layers
from ._run import curves as curves
from ._run import plot_run as plot_run
from ._run import plot_runs as plot_runs
from ._schedule import plot_schedule as plot_schedule
from ._schedule import sample_schedule as sample_schedule
from ._searches import SearchPoints as SearchPoints
from ._searches import plot_losses_by_decay as plot_losses_by_decay
from ._searches import plot_losses_by_rate as plot_losses_by_rate
from ._searches import plot_search as plot_search
