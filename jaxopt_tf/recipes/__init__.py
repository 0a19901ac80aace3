"""The numbers of a run come in, its schedule and its optimizer go out.

recipe = Recipe(learning_rate=3e-4, max_steps=10_000, warmup_steps=500)
schedule, optimizer = build_schedule(recipe), build_optimizer(recipe)
"""

from ._build import build_optimizer as build_optimizer
from ._build import build_schedule as build_schedule
from ._doctor import Finding as Finding
from ._doctor import doctor as doctor
from ._explain import ExplainedLeaf as ExplainedLeaf
from ._explain import Explanation as Explanation
from ._explain import explain as explain
from ._optim_args import TAKES_OPTIM_ARGS as TAKES_OPTIM_ARGS
from ._optim_args import read_optim_args as read_optim_args
from ._optimizer_names import OPTIMIZERS as OPTIMIZERS
from ._optimizer_names import REFUSED_OPTIMIZERS as REFUSED_OPTIMIZERS
from ._optimizer_names import optimizer_refusal as optimizer_refusal
from ._rate_groups import REST as REST
from ._rate_groups import RateGroup as RateGroup
from ._rate_groups import layer_wise_decay as layer_wise_decay
from ._recipe import Recipe as Recipe
from ._recipe import recipe_settings as recipe_settings
from ._recipe_schedule import METRIC_DRIVEN as METRIC_DRIVEN
from ._vary import VARIED as VARIED
from ._vary import Varied as Varied
from ._vary import same_program as same_program
from ._vary import vary as vary
