"""Schedules and run folders come in, pictures go out.

plot_schedule({"cosine": schedule, "mine": other}, num_steps=10_000)
plot_runs(["runs/ours", "trainer_output"], path="compared.png")
"""

from ._layers import plot_layers as plot_layers
from ._run import plot_run as plot_run
from ._runs import plot_runs as plot_runs
from ._sampled import sample_schedule as sample_schedule
from ._schedule import plot_schedule as plot_schedule
