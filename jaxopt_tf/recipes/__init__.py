"""The numbers of a run come in, its schedule and its optimizer go out.

recipe = Recipe(learning_rate=3e-4, max_steps=10_000, warmup_steps=500)
schedule, optimizer = build_schedule(recipe), build_optimizer(recipe)
"""

from ._build import build_optimizer as build_optimizer
from ._build import build_schedule as build_schedule
from ._recipe import METRIC_DRIVEN as METRIC_DRIVEN
from ._recipe import Recipe as Recipe
