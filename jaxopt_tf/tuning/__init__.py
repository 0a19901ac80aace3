"""Hyperparameter search with many runs in one compiled program.

runs = train_many(task, [replace(recipe, learning_rate=rate) for rate in rates])
print(runs.best_recipe)
"""

from ._decay_path import DecayPath as DecayPath
from ._decay_path import decay_path as decay_path
from ._learning_rate import LRFinderResult as LRFinderResult
from ._learning_rate import find_learning_rate as find_learning_rate
from ._learning_rate import plot_rates as plot_rates
from ._learning_rate import range_test as range_test
from ._runs import Runs as Runs
from ._runs import Trial as Trial
from ._runs import train_many as train_many
from ._space import Uniform as Uniform
from ._space import grid as grid
from ._space import random_search as random_search
from ._space import recipes_to_try as recipes_to_try
from ._sweep import Sweep as Sweep
from ._sweep import plot_sweep as plot_sweep
from ._sweep import sweep as sweep
from ._task import Task as Task
