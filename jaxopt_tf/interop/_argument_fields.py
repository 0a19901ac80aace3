"""Table of the fields of Transformers' `TrainingArguments` and their meaning here.

Fields that a `Recipe` or a job has under the same name are taken under it. All others
of 5.23, and those that 4.0 to 4.57 had besides, are in `TRAINING_ARGUMENTS`.

Source: transformers 5.23 and 4.0 to 4.57, `training_args.py`.
"""

from collections.abc import Collection
from typing import Any, Literal, NamedTuple

from .._io import JSON_OR_TEXT, NUMBER, SWITCH, Kind, is_set, kinds_of
from ..recipes import Recipe

FieldKind = Literal["ignored", "refused", "non_optimizer", "devices", "translated"]


class Field(NamedTuple):
    """Meaning of a field of TrainingArguments that has no namesake here.

    `kind` is "ignored" if the field changes no numbers, "refused" if it would change
    them and is not available here, "non_optimizer" if it changes numbers, but not those
    of the optimizer, "devices" if it shows how many devices took part, and "translated"
    if it has another name or meaning here.
    """

    kind: FieldKind
    defaults: tuple[Any, ...] = ()  # values of a field that was not set
    reason: str = ""  # why another value is refused

    def is_default(self, value: Any) -> bool:
        """Returns True for a default, and for null, "", [], {} and a dict of these."""
        # 4.x fills a dict that nobody gave with entries that are all off.
        is_off = isinstance(value, dict) and not any(value.values())
        return not is_set(value) or is_off or value in self.defaults


_IGNORE = "leave it out, or name it in `ignore_fields`"
_NUM_DEVICES = (
    "the file does not say how many took part, and the batch was as many times larger; "
    f"{_IGNORE}, and take a `mesh` of as many devices, or multiply "
    "`gradient_accumulation_steps` by it"
)
_METRIC = f"the metric here is the evaluation loss, of which less is better; {_IGNORE}"
_PRECISION = f"the evaluation loss would have another precision; {_IGNORE}"
_SHARDED = f"how the model is split over devices is set by `mesh` here; {_IGNORE}"
_BATCH_SIZE = (
    "the batch is as large as it was asked for; lower `per_device_train_batch_size` "
    "and raise `gradient_accumulation_steps`"
)
_FP16 = f"float16 needs a loss scale, which is not here; take `bf16`, and {_IGNORE}"
_NOISE = f"no noise is added to embeddings here; {_IGNORE}"
_MODULES = f"no optimizer here treats some modules otherwise; {_IGNORE}"
_DELAY = f"evaluation starts before the first step; {_IGNORE}"
_LENGTHS = f"all sequences are of one length, as text is packed; {_IGNORE}"
_RESUMED = f"a resumed run continues with the batch that is next; {_IGNORE}"
_PAST = f"the model carries no state from batch to batch; {_IGNORE}"

# By kind: defaults, names, and why another value is refused.
_ROWS: dict[FieldKind, tuple[tuple[tuple[Any, ...], str, str], ...]] = {
    "translated": (
        ((), "accelerator_config activation_checkpointing adafactor data_seed", ""),
        ((), "eval_strategy evaluation_strategy num_train_epochs", ""),
        ((), "save_strategy warmup_ratio", ""),
    ),
    "refused": (
        ((False,), "auto_find_batch_size", _BATCH_SIZE),
        ((), "deepspeed mp_parameters parallelism_config", _SHARDED),
        ((False,), "fp16", _FP16),
        ((False,), "model_parallel", _SHARDED),
        ((), "neftune_noise_alpha", _NOISE),
        ((), "optim_target_modules", _MODULES),
        ((), "per_gpu_train_batch_size", "write `per_device_train_batch_size`"),
        ((False,), "split_batches", _NUM_DEVICES),
        ((0,), "tp_size", _SHARDED),
    ),
    # Settings of the data, the model, the evaluation or the precision.
    "non_optimizer": (
        ((False,), "bf16_full_eval fp16_full_eval", _PRECISION),
        ((0,), "eval_delay", _DELAY),
        ((False,), "fsdp sharded_ddp", _SHARDED),
        ((False,), "greater_is_better", _METRIC),
        ((False,), "group_by_length", _LENGTHS),
        ((False,), "ignore_data_skip", _RESUMED),
        (("loss", "eval_loss"), "metric_for_best_model", _METRIC),
        ((-1,), "past_index", _PAST),
        (("random",), "train_sampling_strategy", f"text is shuffled; {_IGNORE}"),
    ),
    "devices": (
        ((-1, 0, 1), "_n_gpu", _NUM_DEVICES),
        ((-1, 0), "local_rank", _NUM_DEVICES),
        ((1,), "tpu_num_cores", _NUM_DEVICES),
    ),
}

# Fields without effect on the numbers of a run here, by their defaults in Transformers.
# Any other value is named in a note.
_IGNORED: tuple[tuple[tuple[Any, ...], str], ...] = (
    (
        (None,),
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
    (
        (False,),
        """batch_eval_metrics dataloader_drop_last dataloader_persistent_workers
        disable_tqdm do_predict enable_jit_checkpoint eval_on_start
        eval_use_gather_object full_determinism hub_always_push hub_private_repo
        include_inputs_for_metrics include_tokens_per_second jit_mode_eval
        logging_first_step no_cuda overwrite_output_dir prediction_loss_only push_to_hub
        restore_callback_states_from_checkpoint save_on_each_node save_only_model
        torch_compile tpu_metrics_debug use_cache use_cpu use_ipex
        use_legacy_prediction_loop use_liger_kernel use_mps_device""",
    ),
    (
        (True,),
        """average_tokens_across_devices dataloader_in_order dataloader_pin_memory
        eval_do_concat_batches log_on_each_node logging_nan_inf_filter
        remove_unused_columns save_safetensors skip_memory_metrics""",
    ),
    ((0,), "dataloader_num_workers fsdp_min_num_params"),
    ((8,), "per_device_eval_batch_size"),
    ((1800,), "ddp_timeout"),
    ((False, True), "do_eval do_train"),
    ((False, "no"), "include_num_input_tokens_seen"),
    (("auto",), "fp16_backend half_precision_backend"),
    (("O1",), "fp16_opt_level"),
    (("every_save",), "hub_strategy"),
    (("<HUB_TOKEN>",), "hub_token"),
    (("length",), "length_column_name"),
    (("passive",), "log_level"),
    (("warning",), "log_level_replica"),
    (("steps",), "logging_strategy"),
    (("huggingface",), "project"),
    (("<PUSH_TO_HUB_TOKEN>",), "push_to_hub_token"),
    (("last",), "ray_scope"),
    (("none",), "report_to"),
)

# Each field of TrainingArguments without a namesake in a `Recipe` or a job.
TRAINING_ARGUMENTS: dict[str, Field] = {
    **{
        name: Field(kind, defaults, reason)
        for kind, rows in _ROWS.items()
        for defaults, names, reason in rows
        for name in names.split()
    },
    **{
        name: Field("ignored", defaults)
        for defaults, names in _IGNORED
        for name in names.split()
    },
}

# Fields of a job, which a recipe does not have. The last line of each is of
# Seq2SeqTrainingArguments.
_JOB_FIELDS: dict[FieldKind, str] = {
    "non_optimizer": """bf16 load_best_model_at_end tf32
        sortish_sampler""",
    "ignored": """eval_steps gradient_checkpointing logging_steps output_dir
        resume_from_checkpoint save_steps save_total_limit
        generation_config generation_max_length generation_num_beams
        predict_with_generate""",
}
JOB_FIELDS: dict[str, FieldKind] = {
    name: kind for kind, names in _JOB_FIELDS.items() for name in names.split()
}
# Fields that determine when and by which metric a run is evaluated: they decide numbers
# if evaluations drive the schedule or pick the model.
_EVALUATION_FIELDS = """eval_delay eval_steps eval_strategy evaluation_strategy
greater_is_better metric_for_best_model"""
EVALUATION_FIELDS = _EVALUATION_FIELDS.split()

# Fields of every version from 4.0 to 5.23 that nobody writes by hand all together: a
# source that has them is a whole TrainingArguments, in which an unknown name cannot be
# a misspelt one.
_IN_EVERY_FILE = """adam_epsilon disable_tqdm do_predict eval_accumulation_steps
label_names logging_first_step prediction_loss_only remove_unused_columns"""

_SWITCHES = """activation_checkpointing adafactor bf16 gradient_checkpointing
load_best_model_at_end predict_with_generate sortish_sampler tf32"""
_NUMBERS = """data_seed early_stopping_patience early_stopping_threshold eval_delay
eval_steps logging_steps num_train_epochs save_steps save_total_limit warmup_ratio"""


def has_all_fields(names: Collection[str]) -> bool:
    """Returns True for all fields of a TrainingArguments, False for some of them."""
    return set(names) >= set(_IN_EVERY_FILE.split())


def _kind_of(field: Field) -> Kind | None:
    if any(isinstance(value, bool) for value in field.defaults):
        return SWITCH
    if any(isinstance(value, int | float) for value in field.defaults):
        return NUMBER
    return None


# Kinds of the fields whose values are read; those of no kind are left unchanged.
VALUE_KINDS: dict[str, Kind] = {
    "accelerator_config": JSON_OR_TEXT,
    **{n: kind for n, f in TRAINING_ARGUMENTS.items() if (kind := _kind_of(f))},
    **dict.fromkeys(_SWITCHES.split(), SWITCH),
    **dict.fromkeys(_NUMBERS.split(), NUMBER),
    **kinds_of(Recipe),
}
