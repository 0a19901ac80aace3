"""What each field of Transformers' `TrainingArguments` is here: the table.

Fields that a `Recipe` or a job has under the same name are taken under it. All others
of 5.23, and those that 4.0 to 4.57 had besides, stand below.

Source: transformers 5.23 and 4.0 to 4.57, `training_args.py`.
"""

from typing import Any, Literal, NamedTuple

from .._io import is_set


class Field(NamedTuple):
    """What a field of TrainingArguments that has no namesake comes to."""

    # "neutral": it changes no numbers. "refused": it would change them, and is not
    # here. "elsewhere": it changes numbers, but not those of the optimizer. "devices":
    # it says how many took part. "translated": it has another name or meaning here.
    kind: Literal["neutral", "refused", "elsewhere", "devices", "translated"]
    usual: tuple[Any, ...] = ()  # values that say nothing; null, "" and [] never do
    reason: str = ""  # why another value is refused


_IGNORE = "leave it out, or name it in `ignore_fields`"
_ONE_PROCESS = (
    "the file does not say how many took part, and the batch was as many times larger; "
    f"{_IGNORE}, and take a `mesh` of as many devices, or multiply "
    "`gradient_accumulation_steps` by it"
)
_ONE_LOSS = (
    f"the metric here is the evaluation loss, of which less is better; {_IGNORE}"
)
_PRECISION = f"the evaluation loss would have another precision; {_IGNORE}"
_SHARDED = f"how the model is split over devices is set by `mesh` here; {_IGNORE}"

_TRANSLATED = """accelerator_config activation_checkpointing adafactor data_seed
eval_strategy evaluation_strategy num_train_epochs save_strategy warmup_ratio"""

_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "auto_find_batch_size": (
        (False,),
        "the batch is as large as it was asked for; lower "
        "`per_device_train_batch_size` and raise `gradient_accumulation_steps`",
    ),
    "deepspeed": ((), _SHARDED),
    "fp16": (
        (False,),
        f"float16 needs a loss scale, which is not here; take `bf16`, and {_IGNORE}",
    ),
    "model_parallel": ((False,), _SHARDED),
    "mp_parameters": ((), _SHARDED),
    "neftune_noise_alpha": ((), f"no noise is added to embeddings here; {_IGNORE}"),
    "optim_target_modules": (
        (),
        f"no optimizer here treats some modules otherwise; {_IGNORE}",
    ),
    "parallelism_config": ((), _SHARDED),
    "per_gpu_train_batch_size": ((), "write `per_device_train_batch_size`"),
    "split_batches": ((False,), _ONE_PROCESS),
    "tp_size": ((0,), _SHARDED),
}

# Of the data, the model, the evaluation or the precision.
_ELSEWHERE: dict[str, tuple[tuple[Any, ...], str]] = {
    "bf16_full_eval": ((False,), _PRECISION),
    "eval_delay": ((0,), f"evaluation starts before the first step; {_IGNORE}"),
    "fp16_full_eval": ((False,), _PRECISION),
    "fsdp": ((False,), _SHARDED),
    "greater_is_better": ((False,), _ONE_LOSS),
    "group_by_length": (
        (False,),
        f"all sequences are of one length, as text is packed; {_IGNORE}",
    ),
    "ignore_data_skip": (
        (False,),
        f"a resumed run continues with the batch that is next; {_IGNORE}",
    ),
    "metric_for_best_model": (("loss", "eval_loss"), _ONE_LOSS),
    "sharded_ddp": ((False,), _SHARDED),
    "past_index": ((-1,), f"the model carries no state from batch to batch; {_IGNORE}"),
    "train_sampling_strategy": (("random",), f"text is shuffled; {_IGNORE}"),
}

_DEVICES: dict[str, tuple[tuple[Any, ...], str]] = {
    "_n_gpu": ((-1, 0, 1), _ONE_PROCESS),
    "local_rank": ((-1, 0), _ONE_PROCESS),
    "tpu_num_cores": ((1,), _ONE_PROCESS),
}

# Without effect on the numbers of a run here, by the value that Transformers gives
# where nobody does. Any other is named in a note.
_NEUTRAL = (
    (
        None,
        """activation_checkpointing_kwargs ddp_backend ddp_broadcast_buffers
        ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph
        dataloader_multiprocessing_context dataloader_prefetch_factor dispatch_batches
        eval_accumulation_steps fsdp_config fsdp_transformer_layer_cls_to_wrap
        gradient_checkpointing_kwargs hub_model_id hub_revision
        label_names liger_kernel_config logging_dir per_gpu_eval_batch_size
        push_to_hub_model_id push_to_hub_organization run_name torch_compile_backend
        torch_compile_mode torch_empty_cache_steps torchdynamo trackio_bucket_id
        trackio_space_id trackio_static_space_id xpu_backend""",
    ),
    (
        False,
        """batch_eval_metrics dataloader_drop_last dataloader_persistent_workers
        disable_tqdm do_predict enable_jit_checkpoint eval_on_start
        eval_use_gather_object full_determinism hub_always_push
        include_inputs_for_metrics include_tokens_per_second jit_mode_eval
        logging_first_step no_cuda overwrite_output_dir prediction_loss_only push_to_hub
        restore_callback_states_from_checkpoint save_on_each_node save_only_model
        torch_compile tpu_metrics_debug use_cache use_cpu use_ipex
        use_legacy_prediction_loop use_liger_kernel use_mps_device""",
    ),
    (
        True,
        """average_tokens_across_devices dataloader_in_order dataloader_pin_memory
        eval_do_concat_batches log_on_each_node logging_nan_inf_filter
        remove_unused_columns save_safetensors skip_memory_metrics""",
    ),
    (0, "dataloader_num_workers fsdp_min_num_params"),
    ("auto", "fp16_backend half_precision_backend"),
)

_NEUTRAL_BY_NAME: dict[str, tuple[Any, ...]] = {
    **{name: (usual,) for usual, names in _NEUTRAL for name in names.split()},
    "ddp_timeout": (1800,),
    "debug": (),
    "do_eval": (False, True),
    "do_train": (False, True),
    "fp16_opt_level": ("O1",),
    "hub_private_repo": (False,),
    "hub_strategy": ("every_save",),
    "hub_token": ("<HUB_TOKEN>",),
    "include_for_metrics": (),
    "include_num_input_tokens_seen": (False, "no"),
    "length_column_name": ("length",),
    "log_level": ("passive",),
    "log_level_replica": ("warning",),
    "logging_strategy": ("steps",),
    "per_device_eval_batch_size": (8,),
    "project": ("huggingface",),
    "push_to_hub_token": ("<PUSH_TO_HUB_TOKEN>",),
    "ray_scope": ("last",),
    "report_to": ("none",),
}


# Each field of TrainingArguments without a namesake in a `Recipe`: what it comes to.
TRAINING_ARGUMENTS: dict[str, Field] = {
    **{name: Field("translated") for name in _TRANSLATED.split()},
    **{name: Field("neutral", usual) for name, usual in _NEUTRAL_BY_NAME.items()},
    **{name: Field("refused", *entry) for name, entry in _REFUSED.items()},
    **{name: Field("elsewhere", *entry) for name, entry in _ELSEWHERE.items()},
    **{name: Field("devices", *entry) for name, entry in _DEVICES.items()},
}


# Fields of a job, under whose names a recipe has nothing.
OF_A_JOB = {
    "bf16": "elsewhere",
    "eval_steps": "neutral",
    "gradient_checkpointing": "neutral",
    "load_best_model_at_end": "elsewhere",
    "logging_steps": "neutral",
    "output_dir": "neutral",
    "resume_from_checkpoint": "neutral",
    "save_steps": "neutral",
    "save_total_limit": "neutral",
    "tf32": "elsewhere",
    # Of Seq2SeqTrainingArguments.
    "generation_config": "neutral",
    "generation_max_length": "neutral",
    "generation_num_beams": "neutral",
    "predict_with_generate": "neutral",
    "sortish_sampler": "elsewhere",
}
# Fields that say when is evaluated, and by what: they decide numbers where evaluations
# drive the schedule or pick the model.
OF_AN_EVALUATION = (
    "eval_delay",
    "eval_steps",
    "eval_strategy",
    "evaluation_strategy",
    "greater_is_better",
    "metric_for_best_model",
)


def is_usual(value: Any, usual: tuple[Any, ...]) -> bool:
    """Whether the value is what it is where nobody sets it, or as good as that."""
    # 4.x fills a dict that nobody gave with entries that are all off.
    is_off = isinstance(value, dict) and not any(value.values())
    return not is_set(value) or is_off or value in usual
