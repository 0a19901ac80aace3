"""The main job: a language model, its text, and the run that ties all together.

outcome = pretrain(
    Recipe(max_steps=1_000, learning_rate=3e-3, warmup_steps=0.05),
    gpt2_preset("micro"),
    Job(text=(Path("books"),), eval_steps=250, output_dir=Path("runs/books")),
)
"""

from ._batches import Batches as Batches
from ._batches import held_out_batches as held_out_batches
from ._batches import training_windows as training_windows
from ._contradictions import check_settings as check_settings
from ._contradictions import contradictions as contradictions
from ._corpus import Corpus as Corpus
from ._data import read_corpus as read_corpus
from ._job import Outcome as Outcome
from ._job import pretrain as pretrain
from ._loss import loss_of as loss_of
from ._loss import make_loss_fn as make_loss_fn
from ._model import GPT2 as GPT2
from ._moved import Run as Run
from ._moved import first_position as first_position
from ._moved import read_run as read_run
from ._moved import write_run as write_run
from ._placed import Placed as Placed
from ._placed import gpt2_rules as gpt2_rules
from ._placed import place as place
from ._placed import run_steps as run_steps
from ._presets import GPT2_PRESETS as GPT2_PRESETS
from ._presets import GPT2Config as GPT2Config
from ._presets import flops_per_token as flops_per_token
from ._presets import gpt2_layer_norms as gpt2_layer_norms
from ._presets import gpt2_layout as gpt2_layout
from ._presets import gpt2_preset as gpt2_preset
from ._ready_tokens import is_ready_tokens as is_ready_tokens
from ._ready_tokens import read_tokens as read_tokens
from ._run_folder import read_config as read_config
from ._run_folder import write_config as write_config
from ._settings import Job as Job
from ._settings import flat as flat
from ._settings import held_out_loss_decides as held_out_loss_decides
from ._text import read_text as read_text
from ._text import standard_library as standard_library
from ._tokenize import tokenize_text as tokenize_text
