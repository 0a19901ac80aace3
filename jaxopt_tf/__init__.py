"""The optimization stack of Hugging Face Transformers as optax transformations.

    optimizer = optax.chain(clip(1.0), adamw_tf(schedule, weight_decay=0.01))

What is typed every day, in the order of the trip; each station has more:
`jaxopt_tf.schedules`, `.optimizers`, `.recipes`, `.training`, `.checkpoints`,
`.sharding`, `.planning`, `.monitors`, `.plots`, `.interop`, `.models`, `.data`,
`.tuning`, `.jobs`.
"""

from .optimizers import adafactor_tf as adafactor_tf
from .optimizers import adafactor_trainer as adafactor_trainer
from .optimizers import adamw_hf_v4 as adamw_hf_v4
from .optimizers import adamw_tf as adamw_tf
from .optimizers import clip as clip
from .optimizers import decay_mask as decay_mask
from .optimizers import get_learning_rate as get_learning_rate
from .optimizers import set_learning_rate as set_learning_rate
from .recipes import Recipe as Recipe
from .recipes import build_optimizer as build_optimizer
from .recipes import build_schedule as build_schedule
from .schedules import get_scheduler as get_scheduler
from .training import init_train_state as init_train_state
from .training import make_train_step as make_train_step

__version__ = "0.1.0"
