"""Which rules of Transformers a set of TrainingArguments was made for."""

from collections.abc import Iterable
from typing import NamedTuple

from ._hf_before_4_40 import is_before_4_4, is_before_4_40
from ._hf_subclass import holds_all_fields


class Era(NamedTuple):
    """What the versions that have these fields do alike."""

    versions: str  # for the reader
    decay_rule: str  # as `decay_mask` takes it
    rounds_up: bool  # whether the last, shorter accumulation of an epoch is an update
    reads_optim_args: bool  # for sgd, adagrad and rmsprop


_V5 = Era("5", "transformers_v5", rounds_up=True, reads_optim_args=True)
_LATE_V4 = Era("4.53 to 4.57", "transformers_v5", True, reads_optim_args=False)
_V4_52 = Era("4.52", "transformers_v4", rounds_up=True, reads_optim_args=False)
_EARLY_V4 = Era("4, up to 4.51", "transformers_v4", False, reads_optim_args=False)
_BEFORE_4_40 = _EARLY_V4._replace(versions="4, before 4.40")
_BEFORE_4_4 = Era("4, before 4.4", "examples", False, reads_optim_args=False)

# Each stands in all files that the versions write by themselves.
_ONLY_V4 = """adafactor evaluation_strategy fp16_backend fp16_opt_level
fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap group_by_length
half_precision_backend include_inputs_for_metrics include_tokens_per_second
jit_mode_eval logging_dir mp_parameters no_cuda overwrite_output_dir past_index
per_gpu_eval_batch_size per_gpu_train_batch_size push_to_hub_model_id
push_to_hub_organization push_to_hub_token ray_scope save_safetensors torchdynamo
tpu_metrics_debug tpu_num_cores use_ipex use_legacy_prediction_loop use_mps_device
dispatch_batches split_batches tp_size warmup_ratio"""
_SINCE_4_53 = """hub_revision liger_kernel_config parallelism_config project
trackio_space_id"""
# `tp_size` was in 4.50 and 4.51 only, the others until 4.50.
_UNTIL_4_51 = "dispatch_batches evaluation_strategy split_batches tp_size"


def era_of(names: Iterable[str]) -> Era:
    """The era whose fields these are; that of version 5 where none tells.

    Args:
        names: of the fields that there are, whatever their values.

    Source: transformers 4.40, 4.46, 4.48 to 4.57 and 5.23, `training_args.py` and
        `trainer.py`, `get_decay_parameter_names` and `set_initial_training_values`.
    """
    found = frozenset(names)
    if is_before_4_4(found):
        return _BEFORE_4_4
    if is_before_4_40(found):
        return _BEFORE_4_40
    # A subclass of version 5 may have a field of 4 that 5 has not, `warmup_ratio` say.
    is_of_5 = holds_all_fields(found) and "overwrite_output_dir" not in found
    if is_of_5 or found.isdisjoint(_ONLY_V4.split()):
        return _V5
    if not found.isdisjoint(_SINCE_4_53.split()):
        return _LATE_V4
    is_whole = {"overwrite_output_dir", "warmup_ratio"} <= found
    is_early = not is_whole or not found.isdisjoint(_UNTIL_4_51.split())
    return _EARLY_V4 if is_early else _V4_52
