"""`--config FILE`: round trip of settings, and errors of invalid files."""

import json
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxopt_tf.cli._run_flags import parse
from jaxopt_tf.cli._train import Train
from jaxopt_tf.jobs import Job, RunConfig
from jaxopt_tf.models import GPT2Config
from jaxopt_tf.recipes import ParamGroup, Recipe, layer_wise_decay


@pytest.fixture
def config(tmp_path):
    """Writes a file and parses the command line with it."""

    def config(content, *args):
        path = tmp_path / "settings.json"
        if not isinstance(content, str | bytes):
            content = json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return parsed("--config", str(path), *args)

    return config


def parsed(*args):
    run = parse(Train, args).run
    return run.recipe, run.model, run.job


floats = st.floats(0, 1e6)
shares = st.floats(0, 1, exclude_max=True)
counts = st.integers(1, 2**31 - 1)
names = st.text("abcxyz/._-0", min_size=1).filter(lambda name: name != "None")


GROUPS = [
    (),
    layer_wise_decay(0.8, ["wte|wpe", r"h\.0\."]),
    [
        ParamGroup(
            pattern="wte",
            lr_scheduler_type="polynomial",
            lr_scheduler_kwargs={"lr_end": 0.0},
            warmup_steps=0.1,
        )
    ],
    [
        ParamGroup(
            pattern="kernel$",
            optim="muon",
            optim_args="ns_steps=4,adjust_lr_fn=match_rms_adamw",
            weight_decay=0.0,
            adam_beta2=0.9,
        )
    ],
]


@st.composite
def recipes(draw):
    max_steps = draw(st.integers(100, 10**6))
    name, options = draw(
        st.sampled_from(
            [
                ("linear", {}),
                ("cosine", {"num_cycles": 0.25}),
                ("polynomial", {"power": 2.0, "lr_end": 0.0}),
                ("inverse_sqrt", {}),
            ]
        )
    )
    optim, optim_args = draw(
        st.sampled_from(
            [
                ("adamw_torch", {}),
                ("adafactor", ()),
                ("sgd", "momentum=0.9,nesterov=true"),
                ("rmsprop", {"centered": True, "alpha": 0.9}),
            ]
        )
    )
    return Recipe(
        max_steps=max_steps,
        learning_rate=draw(st.floats(1e-6, 1.0)),
        lr_scheduler_type=name,
        lr_scheduler_kwargs=options,
        warmup_steps=draw(st.integers(0, 99) | st.floats(0.0, 0.9)),
        optim=optim,
        optim_args=optim_args,
        decay_rule=draw(st.sampled_from(["default", "transformers_v5", "examples"])),
        rate_groups=draw(st.sampled_from(GROUPS)),
        weight_decay=draw(floats),
        adam_beta1=draw(shares),
        adam_beta2=draw(shares),
        adam_epsilon=draw(floats),
        max_grad_norm=draw(floats),
        per_device_train_batch_size=draw(st.integers(1, 99)),
        gradient_accumulation_steps=draw(st.integers(1, 99)),
        label_smoothing_factor=draw(shares),
        seed=draw(st.integers(0, 2**31 - 1)),
    )


models = st.builds(
    lambda heads, size, **rest: GPT2Config(n_head=heads, n_embd=heads * size, **rest),
    st.integers(1, 16),
    st.integers(1, 64),
    n_layer=st.integers(1, 99),
    block_size=st.integers(1, 4096),
    vocab_size=st.integers(256, 10**6),
    resid_pdrop=shares,
    embd_pdrop=shares,
    gradient_checkpointing=st.booleans(),
    scan_layers=st.booleans(),
)


@st.composite
def jobs(draw):
    patience = draw(st.none() | counts)
    policy = draw(st.sampled_from(["stop", "skip", "propagate"]))
    text = draw(st.lists(names.map(lambda name: f"{name}.txt")))
    return Job(
        text=text,
        tokenizer=draw(st.none() | names) if text else None,
        output_dir=draw(st.none() | names),
        eval_steps=draw(st.integers(1, 99)),
        save_steps=draw(counts),
        save_total_limit=draw(st.none() | counts),
        early_stopping_patience=patience,
        early_stopping_threshold=0.0 if patience is None else draw(floats),
        logging_steps=draw(counts),
        bf16=draw(st.booleans()),
        on_non_finite=policy,
        max_skipped_in_a_row=draw(counts) if policy == "skip" else 10,
        log_layers=draw(st.booleans()),
    )


@settings(max_examples=40, deadline=None)
@given(recipe=recipes(), model=models, job=jobs())
def test_what_a_run_wrote_gives_equal_records(recipe, model, job):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.json")
        config = RunConfig(recipe=recipe, model=model, job=job)
        path.write_text(json.dumps(config.to_dict()))
        assert parse(Train, ["--config", str(path)]).run == config


def test_the_command_line_wins_over_the_file(config):
    recipe, _, job = config(
        {"learning_rate": 1e-4, "max_steps": 50, "bf16": True},
        *("--learning_rate", "1e-5", "--no_bf16"),
    )
    assert (recipe.learning_rate, recipe.max_steps, job.bf16) == (1e-5, 50, False)


def test_what_the_file_leaves_out_has_the_default_of_the_command_line(config):
    recipe, _, _ = config({"learning_rate": 1e-4})
    assert recipe == parsed("--learning_rate", "1e-4")[0]


def test_unset_values_of_a_file_are_defaults(config):
    empty = {"learning_rate": None, "optim": "", "text": [], "tokenizer": "None"}
    empty |= {"output_dir": "", "save_steps": []}
    assert config(empty) == parsed()


def test_none_is_a_value_where_it_is_one(config):
    assert config({"save_total_limit": None})[2].save_total_limit is None


def test_options_that_are_all_zero_are_kept(config):
    recipe, _, _ = config(
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 0}}
    )
    assert recipe.lr_scheduler_kwargs == (("lr_end", 0),)


def test_one_path_needs_no_list(config):
    assert config({"text": "a.txt"})[2].text == (Path("a.txt"),)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            '{"max_steps": 5,\n "seed" 1}',
            "settings.json is not: Expecting ':' delimiter: line 2 column 9",
        ),
        ("", "Expecting value: line 1 column 1"),
        ("[1, 2]", "`config` must be a JSON object"),
        (b'{"optim": "\xff"}', "'utf-8' codec can't decode byte 0xff"),
        ('{"seed": 1, "seed": 2}', "`seed` occurs twice; delete one of them"),
        (
            '{"learning_rat": 1}',
            "TrainingArguments or a setting. Did you mean `learning_rate`",
        ),
        ('{"group_by_lenght": true}', "Did you mean `group_by_length`?"),
        (
            '{"config": "other.json"}',
            "`config` must be a field of TrainingArguments or a setting",
        ),
        ('{"seed": "one"}', "settings.json: `seed` must be a number, got 'one'"),
        ('{"bf16": 1}', "`bf16` must be true or false, got 1"),
        ('{"learning_rate": NaN}', "`learning_rate` must be finite"),
        ('{"preset": "gtp2"}', "Did you mean 'gpt2'"),
    ],
)
def test_refuses_a_file_that_is_no_good(config, content, words):
    with pytest.raises(ValueError, match=re.escape(words)) as refused:
        config(content)
    assert "\n" not in str(refused.value)


def test_names_all_that_is_wrong_with_a_file_at_once(config):
    with pytest.raises(ValueError, match="seed") as refused:
        config({"seed": "one", "sed": 1, "fp16": True})
    assert str(refused.value).count("\n") == 2


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"`config` must be a file .*no\.json': No su"):
        parsed("--config", str(tmp_path / "no.json"))


def test_folder_of_a_run_suggests_its_settings_file(tmp_path):
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(ValueError, match=r"Did you mean '.*settings\.json'"):
        parsed("--config", str(tmp_path))
