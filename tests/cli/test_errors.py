"""Errors of Python in the words of a command: flags, and what can be typed."""

import pytest

from jaxopt_tf.cli import main
from jaxopt_tf.cli._errors import in_flags


@pytest.mark.parametrize(
    ("command", "text", "expected"),
    [
        ("train", "`folder` must be new.", "`output_dir` must be new."),
        ("plan", "`name` must be v4.", "`devices` must be v4."),
        ("train", "`name` must be a.", "`name` must be a."),
        (
            "migrate",
            "`folder` must name a model.\n  one. Describe the model with "
            "`torch_model_from_module`, or by `torch_model_from_shapes`.",
            "`FOLDER` must name a model.\n  one. `migrate` takes a GPT2LMHeadModel, "
            "named under `architectures`.",
        ),
        (
            "migrate",
            "`recipe` must have no `rate_groups`. Write the state dict by "
            "`torch_from_opt_state`.",
            "`training_args` must have no `rate_groups`. Such a run cannot be "
            "migrated.",
        ),
    ],
)
def test_python_is_left_out(command, text, expected):
    assert in_flags(text, command) == expected


@pytest.mark.parametrize(
    ("args", "words", "not_there"),
    [
        ("train --mesh data=x", "`mesh` must be names and sizes", "`axes`"),
        ("plan --devices foo", "`devices` must begin with one of v4", "`name`"),
        (
            "train --lr_scheduler_type warmup_stable_decay --lr_scheduler_kwargs {}",
            "Pass it in `lr_scheduler_kwargs`",
            "scheduler_specific_kwargs",
        ),
        ("schedule warmup_stable_decay", "in `scheduler_specific_kwargs`", "lr_s"),
        ("sweep --over weight_decay=0:0.1", "or take low:high:linear", "scale="),
        ("train --rate_groups 3", "a list of objects with `pattern`", "RateGroup"),
        ("train --rate_groups {}", "must have a `pattern` in each group", "__init__"),
        ('train --rate_groups [{"patern":1}]', "Did you mean 'pattern'?", "__init__"),
        ("schedule greedy", "are in its curves.png", "plot_run"),
        ("train --optim paged_ademamix_32bit", "or take 'adamw_torch'", "`folder`"),
        (
            "train --ignore_fields fp16",
            "`ignore_fields` must be given with",
            "`source`",
        ),
    ],
)
def test_a_cure_can_be_typed(capsys, args, words, not_there):
    assert main(args.split()) == 2
    said = capsys.readouterr().err
    assert words in said
    assert not_there not in said


@pytest.mark.parametrize("rule", ["transformers_v5", "transformers_v4", "all"])
def test_a_rule_of_trainer_needs_nothing_but_its_name(capsys, rule):
    sizes = "--n_layer 1 --n_head 1 --n_embd 8 --block_size 8 --max_steps 200"
    assert main(f"explain {sizes} --weight_decay 0.1 --decay_rule {rule}".split()) == 0
    lines = capsys.readouterr().out.splitlines()
    (of_norm,) = [line for line in lines if "ln_f.scale" in line]
    assert ("its layer is a norm" in of_norm) == (rule != "all")
