"""`train`: a module and examples in place of a model folder and text."""

import dataclasses
import json

import numpy as np
import pytest

from jaxopt_tf import jobs, models, training
from jaxopt_tf.jobs import Job, read_settings
from jaxopt_tf.models import GPT2Config, build_model
from jaxopt_tf.recipes import Recipe

TINY = GPT2Config(vocab_size=32, block_size=8, n_layer=1, n_head=1, n_embd=8)
RECIPE = Recipe(
    max_steps=4,
    learning_rate=1e-2,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=2,
    max_grad_norm=0.0,
)

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def rows(number, length=8):
    ids = np.random.default_rng(0).integers(0, 32, (number, length))
    return [
        {"id": i, "input_ids": row.tolist(), "labels": row.tolist()}
        for i, row in enumerate(ids)
    ]


@pytest.fixture(scope="module")
def model():
    return build_model(TINY)


@pytest.fixture
def run(model, tmp_path):
    def train(folder="run", arguments=RECIPE, **options):
        options = {
            "train_dataset": rows(7),
            "eval_dataset": rows(2),
            "eval_steps": 2,
            "save_steps": 2,
            "output_dir": tmp_path / folder,
            **options,
        }
        return jobs.train(model, arguments, **options)

    return train


def lines(result):
    text = (result.folder / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_run_stops_and_resumes_with_equal_numbers(run, capsys):
    whole = run("whole")
    # 7 examples: updates of 2 + 2 and of 2 + 1 rows, which cannot be stacked.
    assert whole.num_programs == 2
    assert [r["num_items"] for r in lines(whole) if "loss" in r][:2] == [28, 21]
    printed = capsys.readouterr().out
    assert "columns that are not used: id" in printed
    assert "7 examples to train on, 2 examples to evaluate on" in printed

    class StopError(Exception):
        pass

    def stop(window):
        if window.first_step + len(window.metrics.loss) > 4:
            raise StopError

    nothing = lambda _=None: None  # noqa: E731
    with pytest.raises(StopError):
        run("broken", monitors=[training.Monitor(stop, nothing, nothing)])
    resumed = run("broken")
    assert "resumed at step" in capsys.readouterr().out
    assert lines(resumed) == lines(whole)
    assert resumed.metrics == whole.metrics
    for name in ("model.safetensors", "config.json", "trainer_state.json"):
        assert (resumed.folder / name).exists()
    again = run("broken")
    assert again.last_loss == whole.last_loss
    assert "nothing left to train" in capsys.readouterr().out


def test_a_job_and_arguments_of_transformers_make_equal_runs(tmp_path):
    transformers = pytest.importorskip("transformers", reason="its arguments are read")
    pytest.importorskip("accelerate", reason="TrainingArguments need it")
    job = Job(
        output_dir=tmp_path / "job",
        save_strategy="no",
        eval_strategy="no",
        logging_steps=3,
    )
    data = {"train_dataset": rows(4), "eval_dataset": rows(2)}
    recipe = dataclasses.replace(RECIPE, gradient_accumulation_steps=1)
    first = jobs.train(build_model(TINY), recipe, job=job, **data)
    arguments = transformers.TrainingArguments(
        str(tmp_path / "arguments"),
        num_train_epochs=2,
        learning_rate=1e-2,
        per_device_train_batch_size=2,
        max_grad_norm=0.0,
        eval_strategy="epoch",
        use_cpu=True,
    )
    second = jobs.train(build_model(TINY), arguments, **data)
    assert second.folder == tmp_path / "arguments"
    saved = read_settings(second.folder / "settings.json")
    assert (saved["max_steps"], saved["eval_steps"]) == (4, 2)
    losses = [
        [r["loss"] for r in lines(result) if "loss" in r] for result in (first, second)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
    # Event files are written by default, and not for the default of Transformers.
    assert (first.folder / "tensorboard").exists()
    assert not (second.folder / "tensorboard").exists()


def test_another_run_or_other_data_in_the_folder_are_refused(run, model, tmp_path):
    recipe = dataclasses.replace(RECIPE, max_steps=1)
    options = {"eval_strategy": "no", "eval_dataset": None}
    result = run(arguments=recipe, **options)
    assert np.isnan(result.last_loss)
    with pytest.raises(ValueError, match=r"`data` changed .*\n.*intended_changes=\["):
        run(arguments=recipe, train_dataset=rows(6), **options)
    with pytest.raises(ValueError, match="a GPT-2.* was given in Python"):
        jobs.read_run(result.folder)
    with pytest.raises(ValueError, match="`model` must be given to export"):
        jobs.export_run(result.folder, tmp_path / "out")
    (tmp_path / "t" / "checkpoint-3").mkdir(parents=True)
    (tmp_path / "t" / "checkpoint-3" / "trainer_state.json").write_text("{}")
    with pytest.raises(ValueError, match="another folder than that of Trainer"):
        run("t", **options)
    config = {"architectures": ["T5ForConditionalGeneration"]}
    path = tmp_path / "t" / "checkpoint-3"
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="class of `model`, GPT2LMHeadModel, got one"):
        run("new", resume_from_checkpoint=path, **options)


class EarlyStoppingCallback:
    """Named as the callback of Transformers."""


class Mine(EarlyStoppingCallback):
    """A callback of the user."""


class Module:
    """Named as `torch.nn.Module`."""


def test_callbacks_and_reports_are_refused_with_what_serves_instead(run):
    with pytest.raises(TypeError, match="got Mine; pass `early_stopping_patience`"):
        run(callbacks=[Mine()])
    with pytest.raises(TypeError, match="got dict; pass a `training.Monitor`"):
        run(monitors=[{}])
    with pytest.raises(ValueError, match="'tensorboard' or 'none', got 'wandb'.*Moni"):
        run(report_to=["wandb", "tensorboard"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"train_dataset": []}, ValueError, "`train_dataset` must contain at least 1"),
        ({"eval_dataset": []}, ValueError, "`eval_dataset` must contain at least 1"),
        ({"train_dataset": {"a": []}}, TypeError, "one dataset, got a dictionary"),
        ({"train_dataset": iter([])}, TypeError, "can be read again, got an iterator"),
        ({"train_dataset": 3}, TypeError, "`train_dataset` must be a `datasets.Data"),
        ({"train_dataset": [{"a": 1}]}, ValueError, "a column that the model takes"),
        ({"text": ("a",)}, ValueError, "`text` must be left out"),
        ({"eval_step": 3}, TypeError, "`eval_step` must be a setting.*'eval_steps'"),
        ({"model_init": 3}, TypeError, "`model_init` must be left out"),
        ({"compute_metrics": len}, ValueError, "`compute_metrics` must be left out"),
        (
            {"eval_dataset": None, "load_best_model_at_end": True},
            ValueError,
            "`eval_dataset` must be given if a metric drives",
        ),
        (
            {"train_dataset": [{"input_ids": [1, 2]}, {"input_ids": [1]}] * 4},
            ValueError,
            "'input_ids' has rows of shapes",
        ),
        ({"data_collator": list}, TypeError, "`data_collator` must return a dict"),
        ({"arguments": 3}, TypeError, "`arguments` must be a TrainingArguments"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_other_arguments_are_refused(run, options, error, message):
    with pytest.raises(error, match=message):
        run(**options)


def test_a_bare_module_needs_a_loss_function():
    with pytest.raises(TypeError, match=r"got Module. Pass `models.from_torch\("):
        jobs.train(Module(), RECIPE, train_dataset=rows(2))


def test_fields_that_change_numbers_are_refused_by_name(run, tmp_path):
    transformers = pytest.importorskip("transformers", reason="its arguments are read")
    pytest.importorskip("accelerate", reason="TrainingArguments need it")
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        train_sampling_strategy="group_by_length",
        include_for_metrics=["loss"],
        ignore_data_skip=True,
        report_to=[],
        use_cpu=True,
    )
    with pytest.raises(ValueError, match="`ignore_data_skip`") as raised:
        run(arguments=arguments)
    for name in ("train_sampling_strategy", "include_for_metrics"):
        assert f"`{name}`" in str(raised.value)


# Modules under torchax


@pytest.fixture(scope="module")
def bert():
    pytest.importorskip("torchax", reason="torchax is an optional, experimental extra")
    transformers = pytest.importorskip("transformers", reason="it builds the module")
    transformers.set_seed(0)
    config = transformers.BertConfig(
        vocab_size=32,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=16,
        max_position_embeddings=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=3,
    )
    return transformers.BertForSequenceClassification(config)


def labelled(number):
    ids = np.random.default_rng(1).integers(0, 32, (number, 6))
    return [{"input_ids": row.tolist(), "label": int(row[0] % 3)} for row in ids]


@pytest.mark.promotion_of_others
@pytest.mark.filterwarnings("ignore")  # of torch and Transformers
def test_a_module_has_the_losses_and_metrics_of_trainer(bert, tmp_path):
    import copy

    import transformers

    def accuracy(prediction):
        found = prediction.predictions.argmax(-1) == prediction.label_ids
        return {"accuracy": float(found.mean())}

    def arguments(folder):
        return transformers.TrainingArguments(
            str(tmp_path / folder),
            num_train_epochs=2,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            weight_decay=0.1,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="accuracy",
            logging_steps=1,
            use_cpu=True,
            disable_tqdm=True,
            report_to=[],
        )

    data = {
        "train_dataset": labelled(7),
        "eval_dataset": labelled(9),
        "compute_metrics": accuracy,
    }
    result = jobs.train(bert, arguments("ours"), **data)
    trainer = transformers.Trainer(copy.deepcopy(bert), arguments("theirs"), **data)
    trainer.train()
    history = trainer.state.log_history
    ours = {r["step"]: r["loss"] for r in lines(result) if "loss" in r}
    theirs = {r["step"]: r["loss"] for r in history if "loss" in r}
    assert ours.keys() == theirs.keys()
    for step, loss in theirs.items():
        # Losses of 1 to 2, of which Trainer adds two per update.
        assert ours[step] == pytest.approx(loss, rel=1e-5)
    found = [
        [
            (r["step"], r["eval_accuracy"])
            for r in log
            if r.get("step") and "eval_loss" in r
        ]
        for log in (lines(result), history)
    ]
    assert found[0] == found[1]
    best = read_settings(result.folder / "trainer_state.json")["best_global_step"]
    assert best == trainer.state.best_global_step
    module = type(bert).from_pretrained(result.folder)
    for name, p in module.named_parameters():
        np.testing.assert_array_equal(p.detach(), result.params[name])
    jobs.export_run(result.folder, tmp_path / "out", model=bert)
    assert (tmp_path / "out" / "optimizer.pt").exists()


@pytest.mark.promotion_of_others
@pytest.mark.filterwarnings("ignore")  # of torch and Transformers
def test_trainer_resumes_a_run_with_frozen_parameters(bert, tmp_path):
    import copy

    import transformers

    module = copy.deepcopy(bert)
    frozen = [n for n, _ in module.named_parameters() if "embeddings" in n]
    for name in frozen:
        module.get_parameter(name).requires_grad_(False)

    def arguments(folder):
        return transformers.TrainingArguments(
            str(tmp_path / folder),
            max_steps=4,
            save_steps=2,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            weight_decay=0.1,
            logging_steps=1,
            use_cpu=True,
            disable_tqdm=True,
            report_to=[],
        )

    result = jobs.train(module, arguments("ours"), train_dataset=labelled(8))
    out = tmp_path / "theirs" / "checkpoint-2"
    exported = jobs.export_run(result.folder / "checkpoint-2", out, model=module)
    assert set(exported.frozen) == set(frozen)
    trainer = transformers.Trainer(
        module, arguments("theirs"), train_dataset=labelled(8)
    )
    trainer.train(resume_from_checkpoint=str(out))
    losses = [
        {r["step"]: r["loss"] for r in log if "loss" in r and r["step"] > 2}
        for log in (lines(result), trainer.state.log_history)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, p in type(bert).from_pretrained(result.folder).named_parameters():
        np.testing.assert_allclose(
            p.detach(), module.get_parameter(name).detach(), atol=1e-5, err_msg=name
        )
    with pytest.raises(ValueError, match="or other frozen parameters"):
        jobs.export_run(result.folder, tmp_path / "other", model=bert)


def test_a_key_that_forward_does_not_take_is_named(bert, tmp_path):
    examples = [{**row, "extra": 1} for row in labelled(2)]
    with pytest.raises(ValueError, match="`batch` must have keys that .*'extra'"):
        jobs.train(
            bert,
            dataclasses.replace(RECIPE, gradient_accumulation_steps=1),
            train_dataset=examples,
            remove_unused_columns=False,
            output_dir=tmp_path,
        )


def test_models_has_what_the_job_needs(model):
    assert models.trainer_forward(model) is None
