"""Models: loss functions, initial parameters, PyTorch layouts and sharding rules.

params, loss_fn = make_loss_fn(gpt2_preset("micro"), seed=42)
"""

from ._config import GPT2_PRESETS as GPT2_PRESETS
from ._config import GPT2Config as GPT2Config
from ._config import flops_per_token as flops_per_token
from ._config import gpt2_layer_norms as gpt2_layer_norms
from ._config import gpt2_layout as gpt2_layout
from ._config import gpt2_preset as gpt2_preset
from ._config import gpt2_rules as gpt2_rules
from ._loss import draw_params as draw_params
from ._loss import loss_of as loss_of
from ._loss import make_loss_fn as make_loss_fn
from ._model import GPT2 as GPT2
from ._transformers_config import (
    gpt2_config_for_transformers as gpt2_config_for_transformers,
)
from ._transformers_config import (
    gpt2_settings_from_transformers as gpt2_settings_from_transformers,
)
