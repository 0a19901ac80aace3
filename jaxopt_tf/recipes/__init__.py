"""Recipes: the hyperparameters of a run, and the schedule and optimizer they define.

recipe = Recipe(learning_rate=3e-4, max_steps=10_000, warmup_steps=500)
schedule, optimizer = build_schedule(recipe), build_optimizer(recipe)
"""

from ._build import RunHyperparams as RunHyperparams
from ._build import build_optimizer as build_optimizer
from ._build import compile_key as compile_key
from ._build import stack_recipes as stack_recipes
from ._doctor import Diagnosis as Diagnosis
from ._doctor import doctor as doctor
from ._explain import ExplainedLeaf as ExplainedLeaf
from ._explain import Explanation as Explanation
from ._explain import explain as explain
from ._optim_args import read_trainer_optim_args as read_trainer_optim_args
from ._optimizers import TAKES_OPTIM_ARGS as TAKES_OPTIM_ARGS
from ._optimizers import ignored_fields as ignored_fields
from ._optimizers import optimizer_refusal as optimizer_refusal
from ._rate_groups import DEFAULT_GROUP as DEFAULT_GROUP
from ._rate_groups import ParamGroup as ParamGroup
from ._rate_groups import layer_wise_decay as layer_wise_decay
from ._recipe import METRIC_DRIVEN as METRIC_DRIVEN
from ._recipe import Recipe as Recipe
from ._recipe import build_schedule as build_schedule
from ._recipe import recipe_settings as recipe_settings
from ._recipe_findings import Finding as Finding
