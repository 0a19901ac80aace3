"""Rules of the version of Transformers that made a run.

A version is identified by its number or by the fields of its `TrainingArguments`.

Source: transformers 4.0, 4.1, 4.2, 4.3, 4.4, 4.5, 4.6, 4.8, 4.10, 4.12, 4.15, 4.17,
    4.18, 4.21, 4.24, 4.26 to 4.33, 4.35, 4.37, 4.39, 4.40 to 4.57 and 5.0 to 5.24:
    `training_args.py`, `trainer.py`, `trainer_optimizer.py`.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from .. import _checks
from .._io import is_set
from ..optimizers import TRAINER_DECAY_RULES, trainer_decay_rule
from ..recipes import Recipe
from ._training_arguments import ArgsSource

Version = tuple[int, int]  # major and minor


class ArgsVersion(NamedTuple):
    """Rules of a version of Transformers, or of several with the same fields."""

    label: str  # name of the version or versions, for messages
    number: Version  # the newest of these versions
    decay_rule: str  # rule of `decay_mask`
    # Decay rules of all versions that the fields allow, newest first.
    open_rules: tuple[str, ...]
    notes: tuple[str, ...] = ()  # sentences on why the rules were chosen

    @property
    def rounds_up(self) -> bool:
        """True if the remaining batches of an epoch make up a shorter update."""
        return self.number >= (4, 52)

    @property
    def reads_optim_args(self) -> bool:
        """True if `optim_args` are read for sgd, adagrad and rmsprop."""
        return self.number >= (5, 3)

    @property
    def ratio_replaces_steps(self) -> bool:
        """True if `warmup_ratio` overwrites `warmup_steps`."""
        return (5, 0) <= self.number < (5, 15)

    @property
    def warms_up_from_zero(self) -> bool:
        """True if the warmup of "warmup_stable_decay" ignores `min_lr_ratio`."""
        return self.number < (4, 49)


# Fields by the first version that has them (`_ADDED`) and by the first version that no
# longer has them (`_REMOVED`). A version writes all of its fields to every file, so
# the absence of a field is evidence, too.
_ADDED = {
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
_REMOVED = {
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
# Files written by Transformers have more fields than this, files written by hand fewer.
_NUM_WHOLE = 90
_VERSION = "transformers_version"

# Fields that every version 4 has and version 5 no longer has.
_IN_ALL_OF_4 = """fp16_opt_level no_cuda overwrite_output_dir past_index
per_gpu_eval_batch_size tpu_metrics_debug"""
# Fields that were added in a version or soon after it. A file with none of them was
# written by an earlier version. Several are listed, because one may have been deleted
# by hand.
_ADDED_BEFORE = {
    (4, 4): "warmup_ratio logging_strategy save_strategy",
    (4, 18): "optim data_seed eval_delay",
    (4, 40): "eval_do_concat_batches eval_strategy eval_on_start",
}
# Fields that were removed before 4.40: of 4.1, of 4.1 to 4.34, and of 4.12 to 4.32.
_REMOVED_BEFORE = ("model_parallel", "sharded_ddp", "xpu_backend")


def args_version(names: Iterable[str], version: str | None = None) -> ArgsVersion:
    """Returns the rules of a version, or of the versions that have these fields.

    Args:
        names: names of the fields.
        version: the version of Transformers, if it is known. Otherwise the rules are
            those of the newest version that has the fields. For files written by hand
            with fields of version 4, the rules are those of 4.51, except weight decay.

    Raises:
        ValueError: if `version` is not a version.
    """
    found = frozenset(names)
    if version is not None:
        number = _checks.version(_VERSION, version)
        rule = trainer_decay_rule(version)
        return ArgsVersion(version, number, rule, (rule,))
    if _is_before((4, 4), found):
        # These versions of Trainer do not decay parameters whose name contains `bias`
        # or `LayerNorm.weight`.
        return ArgsVersion("4, before 4.4", (4, 3), "examples", ("examples",))
    if _is_before((4, 40), found) or not found.isdisjoint(_REMOVED_BEFORE):
        rule = trainer_decay_rule("4.40")
        return ArgsVersion("4, before 4.40", (4, 39), rule, (rule,))
    first, end = versions_of(found)
    rules = _open_rules(first, end)
    newest = (4, 57) if end == (5, 0) else (end[0], end[1] - 1)
    if len(found) < _NUM_WHOLE and first < (4, 53) and end <= (5, 15):
        newest = min(newest, (4, 51))
        # The fields exist in version 5 too and do not identify a version.
        rule = rules[0] if end > (5, 0) else trainer_decay_rule("{}.{}".format(*newest))
        return ArgsVersion("4, up to 4.51", newest, rule, rules)
    if first >= (5, 0) or end == _OPEN_END:
        label = "5"
    else:
        ends = ["{}.{}".format(*number) for number in (first, newest)]
        label = " to ".join(dict.fromkeys(ends))
    return ArgsVersion(label, newest, rules[0], rules)


def versions_of(
    names: Iterable[str], *, by_absence: bool = True
) -> tuple[Version, Version]:
    """Returns the first version with these fields, and the next one without them.

    Args:
        names: names of the fields.
        by_absence: True to consider also the fields that a complete file lacks.
    """
    found = frozenset(names)

    def versions_with_fields(
        table: dict[Version, str], *, present: bool
    ) -> list[Version]:
        return [v for v, f in table.items() if found.isdisjoint(f.split()) != present]

    first_versions = [_OLDEST, *versions_with_fields(_ADDED, present=True)]
    first, end = (
        max(first_versions),
        min([_OPEN_END, *versions_with_fields(_REMOVED, present=True)]),
    )
    if first >= end:
        # A field of a subclass has the name of a field of another version, such as
        # `warmup_ratio` in a file of 5.23 or `use_cache` in a file of 4.57. The field
        # `overwrite_output_dir`, which version 5 removed, decides between 4 and 5.
        if "overwrite_output_dir" in found:
            first = max(version for version in first_versions if version < end)
        else:
            end = _OPEN_END
    if not by_absence or len(found) < _NUM_WHOLE:
        return first, end
    later, earlier = (
        versions_with_fields(_REMOVED, present=False),
        versions_with_fields(_ADDED, present=False),
    )
    if "tp_size" not in found:
        # Only 4.50 and 4.51 have `tp_size`, so a file without it may be older or newer.
        # `evaluation_strategy`, which 4.51 removed, shows which.
        if "evaluation_strategy" in found:
            later.remove((4, 52))
        else:
            earlier.remove((4, 50))
    narrow = max([first, *later]), min([end, *earlier])
    # Fields that contradict each other do not narrow the range.
    return narrow if narrow[0] < narrow[1] else (first, end)


def source_version(source: ArgsSource, given: str | None) -> ArgsVersion:
    """Returns the rules of the version that made a run, with notes on the choice.

    Args:
        source: the TrainingArguments and the version of their source, if it is known.
        given: version given by the user; None for the version of the source.

    Raises:
        ValueError: if the fields contradict the version given by the user.
    """
    version = given or source.version
    number = _OLDEST if version is None else _checks.version(_VERSION, version)
    if number < _OLDEST and given is not None:
        raise ValueError(
            f"`transformers_version` must be 4.40 or later, got {given!r}. Leave it "
            "out: older versions are identified by their fields."
        )
    by_fields = args_version(source.values)
    if version is None or number < _OLDEST:
        return by_fields
    first, end = versions_of(source.values, by_absence=False)
    # Builds between two releases, such as "4.53.0.dev0", may have the fields of either
    # release.
    if first <= number < end or not re.fullmatch(r"[\d.]+", version):
        return args_version(source.values, version)
    versions = "{}.{} or later".format(*first)
    if number >= end:
        versions = "a version before {}.{}".format(*end)
    problem = f"the arguments have fields of {versions}"
    if given is not None:
        raise ValueError(
            f"`transformers_version` must be the version that made {source.name}, got "
            f"{version!r}, but {problem}."
        )
    note = (
        f"config.json is of Transformers {version}, but {problem}: the rules are "
        "chosen by the fields"
    )
    return by_fields._replace(notes=(note,))


def default_optimizer(values: Mapping[str, Any]) -> str | None:
    """Returns the optimizer of a version without the field `optim`; None for others.

    Raises:
        ValueError: if the fields belong to an old version that is not identified, so
            that its default is unknown: "adamw_hf" until 4.31, then "adamw_torch".
    """
    if "optim" in values:
        return None
    if _is_before((4, 18), values):
        return "adamw_hf"
    for name in _REMOVED_BEFORE:
        if is_set(values.get(name)):
            raise ValueError(
                f"`optim` must be given with `{name}`, a field of a version before "
                "4.40: 'adamw_hf' was the default until 4.31, then 'adamw_torch'."
            )
    return None


def note_on_decay(version: ArgsVersion, recipe: Recipe) -> list[str]:
    """Returns a note if the run may have used another decay rule than the recipe."""
    other_rules = [rule for rule in version.open_rules if rule != version.decay_rule]
    if not other_rules or recipe.weight_decay == 0:
        return []
    return [
        f"`decay_rule` is {version.decay_rule!r}: the version of Transformers is not "
        f"known, and others used {', '.join(map(repr, other_rules))}; pass "
        "`transformers_version`"
    ]


def _is_before(version: Version, names: Collection[str]) -> bool:
    """Returns True for a complete version 4 file without the fields of `version`."""
    later = _ADDED_BEFORE[version].split()
    return set(names) >= {*_IN_ALL_OF_4.split()} and set(names).isdisjoint(later)


def _open_rules(first: Version, end: Version) -> tuple[str, ...]:
    """Returns the names of Trainer's rules in a range of versions, newest first."""
    # A rule applies from its own first version up to that of the next newer rule.
    found, next_first = [], _OPEN_END
    for rule, rule_first in TRAINER_DECAY_RULES.items():
        if rule_first < end and first < next_first:
            found.append(rule)
        next_first = rule_first
    return tuple(found)
