"""Recipes come in, many at once; runs, and the best of their numbers, go out.

runs = train_many(task, [replace(recipe, learning_rate=rate) for rate in rates])
print(runs.best_recipe)
"""

from ._decay_path import decay_path as decay_path
from ._decay_path_result import DecayPath as DecayPath
from ._learning_rate import find_learning_rate as find_learning_rate
from ._many import train_many as train_many
from ._pictures import plot_rates as plot_rates
from ._pictures import plot_sweep as plot_sweep
from ._range_test import range_test as range_test
from ._rate_found import RateFound as RateFound
from ._runs import Runs as Runs
from ._space import Between as Between
from ._space import drawn as drawn
from ._space import grid as grid
from ._space import recipes_to_try as recipes_to_try
from ._sweep import Sweep as Sweep
from ._sweep import sweep as sweep
from ._task import Task as Task
from ._trials import Trial as Trial
