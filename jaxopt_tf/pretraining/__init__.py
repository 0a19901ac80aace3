"""The main job: a language model, its text, and the run that ties all together.

outcome = pretrain(
    Recipe(max_steps=1_000, learning_rate=4e-3, warmup_steps=50),
    GPT2Config(),
    standard_library(),
    per_device_train_batch_size=16,
    eval_steps=250,
    output_dir=Path("runs/first"),
)
"""

from ._job import Outcome as Outcome
from ._job import pretrain as pretrain
from ._model import GPT2 as GPT2
from ._model import GPT2Config as GPT2Config
from ._model import make_loss_fn as make_loss_fn
from ._text import Text as Text
from ._text import held_out_batches as held_out_batches
from ._text import read_text as read_text
from ._text import standard_library as standard_library
from ._text import training_batches as training_batches
