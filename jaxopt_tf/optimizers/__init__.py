"""Gradients come in, updates go out."""

from ._adafactor import AdafactorState as AdafactorState
from ._adafactor import adafactor_tf as adafactor_tf
from ._adafactor_trainer import adafactor_trainer as adafactor_trainer
from ._adamw import AdamWState as AdamWState
from ._adamw import adamw_tf as adamw_tf
from ._adamw_hf_v4 import adamw_hf_v4 as adamw_hf_v4
from ._clipping import ClipState as ClipState
from ._clipping import clip as clip
from ._clipping import is_clipped as is_clipped
from ._layout import TorchLayout as TorchLayout
from ._learning_rate import get_learning_rate as get_learning_rate
from ._learning_rate import set_learning_rate as set_learning_rate
from ._weight_decay import decay_mask as decay_mask
