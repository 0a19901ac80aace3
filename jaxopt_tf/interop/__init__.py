"""Reads and writes the checkpoints and `TrainingArguments` of Transformers' Trainer.

torch and Transformers are imported only when a function that needs them is called.
"""

from ._adapter import AdapterFormat as AdapterFormat
from ._argument_fields import TRAINING_ARGUMENTS as TRAINING_ARGUMENTS
from ._argument_translation import Translation as Translation
from ._argument_translation import select_fields as select_fields
from ._argument_translation import (
    translate_training_arguments as translate_training_arguments,
)
from ._arguments_by_version import args_version as args_version
from ._checkpoint_keys import LoadRules as LoadRules
from ._extras import import_extra as import_extra
from ._model_weights import StoredTensor as StoredTensor
from ._model_weights import read_params as read_params
from ._model_weights import stored_tensors as stored_tensors
from ._model_weights import unused_tensors as unused_tensors
from ._model_weights import write_adapter as write_adapter
from ._muon_state import muon_state_from_torch as muon_state_from_torch
from ._muon_state import torch_from_muon_state as torch_from_muon_state
from ._optimizer_state import opt_state_from_torch as opt_state_from_torch
from ._optimizer_state import torch_from_opt_state as torch_from_opt_state
from ._param_groups import DecayGroupsError as DecayGroupsError
from ._param_names import ParamNames as ParamNames
from ._param_names import match_names as match_names
from ._recipe_from_arguments import FromTransformers as FromTransformers
from ._recipe_from_arguments import recipe_from_transformers as recipe_from_transformers
from ._tensor_slices import TensorSlice as TensorSlice
from ._torch_files import load_torch as load_torch
from ._torch_files import save_torch as save_torch
from ._torch_model import TorchModel as TorchModel
from ._torch_model import TorchParam as TorchParam
from ._torch_model import torch_model_from_config as torch_model_from_config
from ._torch_model import torch_model_from_module as torch_model_from_module
from ._torch_model import torch_model_from_shapes as torch_model_from_shapes
from ._trainer_checkpoint import TrainerCheckpoint as TrainerCheckpoint
from ._trainer_checkpoint import (
    decay_rule_from_checkpoint as decay_rule_from_checkpoint,
)
from ._trainer_checkpoint import read_trainer_checkpoint as read_trainer_checkpoint
from ._trainer_checkpoint_write import (
    write_trainer_checkpoint as write_trainer_checkpoint,
)
from ._trainer_data import padding_collator as padding_collator
from ._training_arguments import (
    read_training_arguments as read_training_arguments,
)
from ._weight_shards import write_weights as write_weights
