"""Recipes come in, many at once; runs, and the best of their numbers, go out.

runs = train_many(task, [replace(recipe, learning_rate=rate) for rate in rates])
print(runs.best_recipe)
"""

from ._decay_path import decay_path as decay_path
from ._decay_path_result import DecayPath as DecayPath
from ._many import train_many as train_many
from ._runs import Runs as Runs
from ._task import Task as Task
