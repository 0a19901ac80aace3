"""Table of the fields of Transformers' `TrainingArguments` and their equivalents.

Fields that `Recipe` also has keep their name and are not listed. `TRAINING_ARGUMENTS`
contains all other fields of version 5.23 and of versions 4.0 to 4.57.

Source: transformers 5.23 and 4.0 to 4.57, `training_args.py`.
"""

from collections.abc import Collection
from typing import Any, Literal, NamedTuple

from .._io import JSON_OR_TEXT, NUMBER, SWITCH, Kind, is_set

Effect = Literal["ignored", "refused", "non_optimizer", "devices", "translated"]


class Field(NamedTuple):
    """Meaning of a field of `TrainingArguments` that `Recipe` does not have.

    A field is "ignored" if it does not change the results, "refused" if it changes them
    and has no equivalent, "non_optimizer" if it changes results other than the
    updates, "devices" if it shows the number of devices, and "translated" if it has
    another name or meaning in this package. `RunConfig` has some of the "ignored" and
    "non_optimizer" fields under the same name.
    """

    effect: Effect  # see above
    defaults: tuple[Any, ...]  # values that are treated as "not set"
    reason: str  # why other values are refused
    value_kind: Kind | None  # how values are parsed; None: they are left unchanged
    setting: str  # name of the equivalent setting; "" for none

    def is_default(self, value: Any) -> bool:
        """Returns True for a default, an empty value, or a dict of false values."""
        # Transformers 4 writes a dict such as {"min_num_params": 0, "xla": False} for
        # an `fsdp_config` that was not set.
        is_off = isinstance(value, dict) and not any(value.values())
        return not is_set(value) or is_off or value in self.defaults


def _fields(
    effect: Effect,
    names: str,
    *defaults: Any,
    reason: str = "",
    value_kind: Kind | None = None,
    setting: str = "",
) -> dict[str, Field]:
    """Returns one `Field` for each name; defaults imply `value_kind` if it is None."""
    # `bool` is tested first because it is a subclass of `int`.
    if value_kind is None and any(isinstance(default, bool) for default in defaults):
        value_kind = SWITCH
    elif value_kind is None and any(isinstance(default, int) for default in defaults):
        value_kind = NUMBER
    row = Field(effect, defaults, reason, value_kind, setting)
    return dict.fromkeys(names.split(), row)


_IGNORE = "leave this field out, or name it in `ignore_fields`"
_NUM_DEVICES = (
    "these arguments do not contain the number of devices, by which Trainer multiplies "
    f"the batch size; {_IGNORE}, and use a `mesh` with the same number of devices, or "
    "multiply `gradient_accumulation_steps` by that number"
)
_METRIC = f"the metric is always the evaluation loss, and lower is better; {_IGNORE}"
_EVAL = f"the evaluation loss is computed in the model's precision; {_IGNORE}"
_SHARDED = f"`mesh` determines how the model is sharded; {_IGNORE}"
_BATCH_SIZE = (
    "the batch size is never adapted; lower `per_device_train_batch_size` and "
    "raise `gradient_accumulation_steps`"
)
_FP16 = f"float16 needs loss scaling, which is not available; set `bf16`, and {_IGNORE}"
_NOISE = f"noise on embeddings is not supported; {_IGNORE}"
_MODULES = f"optimizers cannot select modules; {_IGNORE}"
_DELAY = f"evaluation starts before the first step; {_IGNORE}"
_LENGTHS = f"text is packed into sequences of equal length; {_IGNORE}"
_RESUMED = f"a resumed run always continues with the next batch; {_IGNORE}"
_SAMPLING = f"the training data are always shuffled; {_IGNORE}"
_RECOMPUTE, _BATCH = "gradient_checkpointing", "per_device_train_batch_size"
_PER_GPU = f"use `{_BATCH}`"
_PAST = f"the model keeps no state between batches; {_IGNORE}"

# Fields of TrainingArguments that `Recipe` does not have, by name.
TRAINING_ARGUMENTS: dict[str, Field] = {
    **_fields("translated", "accelerator_config", value_kind=JSON_OR_TEXT),
    **_fields(
        "translated", "activation_checkpointing", value_kind=SWITCH, setting=_RECOMPUTE
    ),
    **_fields("translated", "adafactor", value_kind=SWITCH, setting="optim"),
    **_fields("translated", "data_seed", value_kind=NUMBER),
    **_fields("translated", "eval_strategy evaluation_strategy", setting="eval_steps"),
    **_fields("translated", "num_train_epochs", value_kind=NUMBER, setting="max_steps"),
    **_fields("translated", "save_strategy", setting="save_steps"),
    **_fields("translated", "warmup_ratio", value_kind=NUMBER, setting="warmup_steps"),
    **_fields("refused", "auto_find_batch_size", False, reason=_BATCH_SIZE),
    **_fields("refused", "deepspeed mp_parameters parallelism_config", reason=_SHARDED),
    **_fields("refused", "fp16", False, reason=_FP16),
    **_fields("refused", "model_parallel", False, reason=_SHARDED),
    **_fields("refused", "neftune_noise_alpha", reason=_NOISE),
    **_fields("refused", "optim_target_modules", reason=_MODULES),
    **_fields("refused", "per_gpu_train_batch_size", reason=_PER_GPU, setting=_BATCH),
    **_fields("refused", "split_batches", False, reason=_NUM_DEVICES),
    **_fields("refused", "tp_size", 0, reason=_SHARDED),
    # Settings of the data, the model, the evaluation or the precision.
    **_fields("non_optimizer", "bf16_full_eval fp16_full_eval", False, reason=_EVAL),
    **_fields("non_optimizer", "eval_delay", 0, reason=_DELAY),
    **_fields("non_optimizer", "fsdp sharded_ddp", False, reason=_SHARDED),
    **_fields("non_optimizer", "greater_is_better", False, reason=_METRIC),
    **_fields("non_optimizer", "group_by_length", False, reason=_LENGTHS),
    **_fields("non_optimizer", "ignore_data_skip", False, reason=_RESUMED),
    **_fields(
        "non_optimizer", "metric_for_best_model", "loss", "eval_loss", reason=_METRIC
    ),
    **_fields("non_optimizer", "past_index", -1, reason=_PAST),
    **_fields("non_optimizer", "train_sampling_strategy", "random", reason=_SAMPLING),
    # `_n_gpu` is -1 until Trainer sets up its device, then 0 on a CPU. `local_rank` is
    # -1 or 0 in a run of one process.
    **_fields("devices", "_n_gpu", -1, 0, 1, reason=_NUM_DEVICES),
    **_fields("devices", "local_rank", -1, 0, reason=_NUM_DEVICES),
    **_fields("devices", "tpu_num_cores", 1, reason=_NUM_DEVICES),
    # Fields that `RunConfig` has, too. `sortish_sampler`, `predict_with_generate` and
    # the names that start with `generation` are fields of Seq2SeqTrainingArguments.
    **_fields("non_optimizer", "bf16 load_best_model_at_end tf32", False),
    **_fields("ignored", "gradient_checkpointing resume_from_checkpoint", False),
    **_fields("ignored", "eval_steps logging_steps save_steps", value_kind=NUMBER),
    **_fields("ignored", "save_total_limit", value_kind=NUMBER),
    **_fields("ignored", "output_dir"),
    **_fields("non_optimizer", "sortish_sampler", False, reason=_LENGTHS),
    **_fields("ignored", "predict_with_generate", False),
    **_fields(
        "ignored", "generation_config generation_max_length generation_num_beams"
    ),
    # Fields without effect on the results. Values other than the default are
    # reported as ignored.
    **_fields(
        "ignored",
        """activation_checkpointing_kwargs ddp_backend ddp_broadcast_buffers
        ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph
        dataloader_multiprocessing_context dataloader_prefetch_factor debug
        dispatch_batches eval_accumulation_steps fsdp_config
        fsdp_transformer_layer_cls_to_wrap gradient_checkpointing_kwargs hub_model_id
        hub_revision include_for_metrics label_names liger_kernel_config logging_dir
        per_gpu_eval_batch_size push_to_hub_model_id push_to_hub_organization run_name
        torch_compile_backend torch_compile_mode torch_empty_cache_steps torchdynamo
        trackio_bucket_id trackio_space_id trackio_static_space_id xpu_backend""",
    ),
    **_fields(
        "ignored",
        """batch_eval_metrics dataloader_drop_last dataloader_persistent_workers
        disable_tqdm do_predict enable_jit_checkpoint eval_on_start
        eval_use_gather_object full_determinism hub_always_push hub_private_repo
        include_inputs_for_metrics include_tokens_per_second jit_mode_eval
        logging_first_step no_cuda overwrite_output_dir prediction_loss_only push_to_hub
        restore_callback_states_from_checkpoint save_on_each_node save_only_model
        torch_compile tpu_metrics_debug use_cache use_cpu use_ipex
        use_legacy_prediction_loop use_liger_kernel use_mps_device""",
        False,
    ),
    **_fields(
        "ignored",
        """average_tokens_across_devices dataloader_in_order dataloader_pin_memory
        eval_do_concat_batches log_on_each_node logging_nan_inf_filter
        remove_unused_columns save_safetensors skip_memory_metrics""",
        True,
    ),
    **_fields("ignored", "dataloader_num_workers fsdp_min_num_params", 0),
    **_fields("ignored", "per_device_eval_batch_size", 8),
    **_fields("ignored", "ddp_timeout", 1800),
    **_fields("ignored", "do_eval do_train", False, True),
    **_fields("ignored", "include_num_input_tokens_seen", False, "no"),
    **_fields("ignored", "fp16_backend half_precision_backend", "auto"),
    **_fields("ignored", "fp16_opt_level", "O1"),
    **_fields("ignored", "hub_strategy", "every_save"),
    # `TrainingArguments.to_dict` replaces tokens by their names in angle brackets.
    **_fields("ignored", "hub_token", "<HUB_TOKEN>"),
    **_fields("ignored", "length_column_name", "length"),
    **_fields("ignored", "log_level", "passive"),
    **_fields("ignored", "log_level_replica", "warning"),
    **_fields("ignored", "logging_strategy", "steps"),
    **_fields("ignored", "project", "huggingface"),
    **_fields("ignored", "push_to_hub_token", "<PUSH_TO_HUB_TOKEN>"),
    **_fields("ignored", "ray_scope", "last"),
    **_fields("ignored", "report_to", "none"),
}

# Fields that determine when and by which metric a run is evaluated. They change the
# results if evaluations drive the schedule or select the best model.
EVALUATION_FIELDS = """eval_delay eval_steps eval_strategy evaluation_strategy
greater_is_better metric_for_best_model"""

# Fields that every version from 4.0 to 5.23 writes and that a person would not list
# together. A source with all of them is a complete TrainingArguments, so an unknown
# name in it belongs to a subclass and is not a misspelling.
_IN_EVERY_FILE = """adam_epsilon disable_tqdm do_predict eval_accumulation_steps
label_names logging_first_step prediction_loss_only remove_unused_columns"""


def has_all_fields(names: Collection[str]) -> bool:
    """Returns True if the names include those of a complete `TrainingArguments`."""
    return set(names) >= set(_IN_EVERY_FILE.split())
