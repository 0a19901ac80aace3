"""Models: loss functions, initial parameters, PyTorch layouts and sharding rules.

params, loss_fn = make_loss_fn(gpt2_preset("micro"), seed=42)
"""

from ._attention import make_attention as make_attention
from ._build import build_model as build_model
from ._decoder_config import DecoderConfig as DecoderConfig
from ._from_transformers import from_transformers as from_transformers
from ._generation import GenerateFn as GenerateFn
from ._generation import check_lengths as check_lengths
from ._generation import make_generate as make_generate
from ._gpt2 import GPT2 as GPT2
from ._gpt2_config import GPT2_PRESETS as GPT2_PRESETS
from ._gpt2_config import GPT2Config as GPT2Config
from ._gpt2_config import flops_per_token as flops_per_token
from ._gpt2_config import gpt2_layer_norms as gpt2_layer_norms
from ._gpt2_config import gpt2_layout as gpt2_layout
from ._gpt2_config import gpt2_preset as gpt2_preset
from ._gpt2_config import gpt2_rules as gpt2_rules
from ._gpt2_from_transformers import (
    gpt2_config_for_transformers as gpt2_config_for_transformers,
)
from ._gpt2_from_transformers import (
    gpt2_settings_from_transformers as gpt2_settings_from_transformers,
)
from ._greedy import make_greedy as make_greedy
from ._loss import draw_params as draw_params
from ._loss import make_gpt2_loss as make_gpt2_loss
from ._loss import make_loss_fn as make_loss_fn
from ._model import ARCHITECTURES as ARCHITECTURES
from ._model import CONFIG_TYPES as CONFIG_TYPES
from ._model import Model as Model
from ._model import ModelConfig as ModelConfig
from ._model import config_type as config_type
from ._model import fields_of_other_configs as fields_of_other_configs
from ._model import placeholder_config as placeholder_config
from ._model import (
    settings_from_transformers_config as settings_from_transformers_config,
)
from ._peft import LoraSettings as LoraSettings
from ._peft import lora_from_config as lora_from_config
from ._predictions import make_predict as make_predict
from ._predictions import trainer_forward as trainer_forward
from ._task_module import load_task_module as load_task_module
from ._task_module import num_positions as num_positions
from ._torchax_model import TorchaxModel as TorchaxModel
from ._torchax_model import from_torch as from_torch
from ._trainer_forward import NUM_ITEMS as NUM_ITEMS
from ._transformers_config import TransformersConfig as TransformersConfig
