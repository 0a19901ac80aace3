"""One pretraining run: a recipe, a model and its data in a run folder.

outcome = pretrain(
    Recipe(max_steps=1_000, learning_rate=3e-3, warmup_steps=0.05),
    gpt2_preset("micro"),
    Job(text=(Path("books"),), eval_steps=250, output_dir=Path("runs/books")),
)
"""

from ._contradictions import check_settings as check_settings
from ._contradictions import contradictions as contradictions
from ._data import read_corpus as read_corpus
from ._job import Outcome as Outcome
from ._job import pretrain as pretrain
from ._moved import Run as Run
from ._moved import first_position as first_position
from ._moved import read_run as read_run
from ._moved import write_run as write_run
from ._placed import Placed as Placed
from ._placed import gpt2_rules as gpt2_rules
from ._placed import place as place
from ._placed import run_steps as run_steps
from ._plan import compare_plans as compare_plans
from ._plan import plan as plan
from ._run_folder import read_config as read_config
from ._run_folder import write_config as write_config
from ._settings import Job as Job
from ._settings import flat as flat
from ._settings import held_out_loss_decides as held_out_loss_decides
