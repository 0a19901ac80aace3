"""Version of Transformers by which a run was made, and the rules of that version."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from .. import _checks
from ..optimizers import TRAINER_DECAY_RULES, trainer_decay_rule
from ..recipes import Recipe
from ._hf_before_4_40 import is_before_4_4, is_before_4_40
from ._hf_source import Source

Version = tuple[int, int]  # major and minor


class Era(NamedTuple):
    """Rules of one version of Transformers, or of several that cannot be told apart."""

    versions: str  # for the reader
    decay_rule: str  # as `decay_mask` takes it
    rounds_up: bool  # whether the last, shorter accumulation of an epoch is an update
    reads_optim_args: bool  # for sgd, adagrad and rmsprop
    ratio_replaces_steps: bool = False  # `warmup_ratio` overwrites `warmup_steps`
    warms_up_from_zero: bool = (
        False  # "warmup_stable_decay", whatever its `min_lr_ratio`
    )
    # Decay rules of the versions that cannot be told apart, newest first.
    open_rules: tuple[str, ...] = ()


# First version that has a field, and the first that no longer has it. Each is in all
# files that these versions write by themselves.
_FIRST = {
    (4, 41): "batch_eval_metrics eval_strategy restore_callback_states_from_checkpoint",
    (4, 42): "eval_on_start",
    (4, 43): "eval_use_gather_object torch_empty_cache_steps",
    (4, 45): "use_liger_kernel",
    (4, 46): "include_for_metrics",
    (4, 50): "tp_size",
    (4, 53): "hub_revision liger_kernel_config",
    (4, 56): "parallelism_config",
    (4, 57): "project trackio_space_id",
    (5, 0): "enable_jit_checkpoint use_cache",
    (5, 2): "train_sampling_strategy",
    (5, 6): "ddp_static_graph trackio_bucket_id trackio_static_space_id",
    (5, 15): "dataloader_in_order dataloader_multiprocessing_context",
    (5, 23): "activation_checkpointing activation_checkpointing_kwargs",
}
_GONE = {
    (4, 51): "dispatch_batches evaluation_strategy split_batches",
    (4, 52): "tp_size",
    (4, 57): "use_ipex",
    (5, 0): """adafactor fp16_backend fp16_opt_level fsdp_min_num_params
    fsdp_transformer_layer_cls_to_wrap half_precision_backend include_inputs_for_metrics
    include_tokens_per_second jit_mode_eval mp_parameters no_cuda overwrite_output_dir
    past_index per_gpu_eval_batch_size per_gpu_train_batch_size push_to_hub_model_id
    push_to_hub_organization push_to_hub_token ray_scope save_safetensors torchdynamo
    tpu_metrics_debug tpu_num_cores use_legacy_prediction_loop use_mps_device""",
    (5, 2): "group_by_length",
    (5, 15): "logging_dir warmup_ratio",
}
_OLDEST, _OPEN_END = (4, 40), (1_000, 0)
# Files that Transformers wrote have more fields than this, those of a person fewer.
_NUM_WHOLE = 90
_VERSION = "transformers_version"


def era_of(names: Iterable[str], version: str | None = None) -> Era:
    """Returns the rules of a version, or of those versions that have these fields.

    Args:
        names: the fields that are there, whatever their values.
        version: the version of Transformers, if it is known. Else, of several versions
            that have the fields, the newest counts; of fields that a person wrote and
            that are of version 4, 4.51 for all but decay.

    Raises:
        ValueError: if `version` is no version.

    Source: transformers 4.40.0 to 4.57.6 and 5.0.0 to 5.24.0, each minor version:
        `training_args.py`, `trainer.py`, `trainer_optimizer.py`.
    """
    found = frozenset(names)
    if version is not None:
        number = _checks.version(_VERSION, version)
        return _era(version, trainer_decay_rule(version), number)
    if is_before_4_4(found):
        return _era("4, before 4.4", "examples", (4, 3))
    if is_before_4_40(found):
        return _era("4, before 4.40", trainer_decay_rule("4.40"), (4, 39))
    since, end = versions_of(found)
    rules = _open_rules(since, end)
    newest = (4, 57) if end == (5, 0) else (end[0], end[1] - 1)
    if len(found) < _NUM_WHOLE and since < (4, 53) and end <= (5, 15):
        newest = min(newest, (4, 51))
        # These fields were in version 5 too, and show no version.
        rule = rules[0] if end > (5, 0) else trainer_decay_rule("{}.{}".format(*newest))
        return _era("4, up to 4.51", rule, newest)._replace(open_rules=rules)
    label = "5" if since >= (5, 0) or end == _OPEN_END else _label(since, newest)
    return _era(label, rules[0], newest)._replace(open_rules=rules)


def versions_of(
    names: Iterable[str], *, by_absence: bool = True
) -> tuple[Version, Version]:
    """Returns the first version that has these fields, and the next that has not.

    Args:
        names: the fields that are there.
        by_absence: whether to go by fields that a file of Transformers lacks, too.
    """
    found = frozenset(names)

    def of(table: dict[Version, str], *, present: bool) -> list[Version]:
        return [v for v, f in table.items() if found.isdisjoint(f.split()) != present]

    firsts = [_OLDEST, *of(_FIRST, present=True)]
    since, end = max(firsts), min([_OPEN_END, *of(_GONE, present=True)])
    if since >= end:
        # A field of a subclass has the name of one of another version: `warmup_ratio`
        # in a file of 5.23, `use_cache` in one of 4.57.
        if "overwrite_output_dir" in found:
            since = max(first for first in firsts if first < end)
        else:
            end = _OPEN_END
    if not by_absence or len(found) < _NUM_WHOLE:
        return since, end
    later, earlier = of(_GONE, present=False), of(_FIRST, present=False)
    if "tp_size" not in found:
        # 4.50 and 4.51 alone have it: a file without it is older or newer.
        if "evaluation_strategy" in found:
            later.remove((4, 52))
        else:
            earlier.remove((4, 50))
    narrow = max([since, *later]), min([end, *earlier])
    return narrow if narrow[0] < narrow[1] else (since, end)


def known_version(found: Source, given: str | None) -> tuple[str | None, list[str]]:
    """Returns the version that made the run, None if unknown; and notes on it."""
    version = given or found.version
    if version is None:
        return None, []
    number = _checks.version(_VERSION, version)
    if number < _OLDEST:
        if given is None:
            return None, []
        raise ValueError(
            f"`transformers_version` must be 4.40 or later, got {given!r}. Leave it "
            "out: the rules of older versions are chosen by the fields."
        )
    since, end = versions_of(found.given, by_absence=False)
    # Builds between two releases may have the fields of either.
    if since <= number < end or not re.fullmatch(r"[\d.]+", version):
        return version, []
    has = "{}.{} or later".format(*since)
    if number >= end:
        has = "a version before {}.{}".format(*end)
    problem = f"the arguments have fields of {has}"
    if given is None:
        return None, [
            f"config.json is of Transformers {version}, but {problem}: the rules are "
            "chosen by the fields"
        ]
    raise ValueError(
        f"`transformers_version` must be the version that made {found.name}, got "
        f"{version!r}, but {problem}."
    )


def open_rules_note(era: Era, recipe: Recipe) -> list[str]:
    """Returns a note if decay may have been by another rule than the recipe's."""
    others = [rule for rule in era.open_rules if rule != era.decay_rule]
    if not others or recipe.weight_decay == 0:
        return []
    return [
        f"`decay_rule` is {era.decay_rule!r}: the arguments do not show their version "
        f"of Transformers, and others decayed by {', '.join(map(repr, others))}; pass "
        "`transformers_version`"
    ]


def _era(label: str, decay_rule: str, version: Version) -> Era:
    return Era(
        versions=label,
        decay_rule=decay_rule,
        rounds_up=version >= (4, 52),
        reads_optim_args=version >= (5, 3),
        ratio_replaces_steps=(5, 0) <= version < (5, 15),
        warms_up_from_zero=version < (4, 49),
        open_rules=(decay_rule,),
    )


def _open_rules(since: Version, end: Version) -> tuple[str, ...]:
    """Names of Trainer's rules in a range of versions, newest first."""
    found, next_first = [], _OPEN_END
    for rule, first in TRAINER_DECAY_RULES.items():
        if first < end and since < next_first:
            found.append(rule)
        next_first = first
    return tuple(found)


def _label(since: Version, last: Version) -> str:
    ends = [f"{major}.{minor}" for major, minor in (since, last)]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)
