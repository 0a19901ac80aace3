"""`jaxopt-tf generate`."""

import pytest

from jaxopt_tf import jobs
from jaxopt_tf.cli import main
from jaxopt_tf.models import GPT2Config, build_model
from jaxopt_tf.recipes import Recipe

pytestmark = [
    pytest.mark.promotion_of_others,  # flax's layers
    pytest.mark.usefixtures("compiled_quickly", "compiled_once"),
]


@pytest.fixture
def folder(text, tmp_path):
    """A run before its first step."""
    recipe = Recipe(max_steps=2)
    model = GPT2Config(n_layer=1, n_head=2, n_embd=8, block_size=16)
    state = jobs.first_run_state(recipe, model, build_model(model).init(0))
    job = jobs.Job(text=(text,), output_dir=tmp_path / "run")
    jobs.write_run(jobs.Run(recipe, model, job, state))
    return tmp_path / "run"


def refused(capsys, *args):
    assert main(["generate", *map(str, args)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    return shown.err


def test_prints_the_prompt_and_its_continuation(folder, capsys):
    flags = "--prompt the --max_new_tokens 8 --temperature 0.8 --top-p 0.9 --seed 3"
    assert main(["generate", str(folder), *flags.split()]) == 0
    expected = jobs.generate(
        folder, "the", max_new_tokens=8, temperature=0.8, top_p=0.9, seed=3
    )
    assert capsys.readouterr().out == f"{expected}\n"
    assert expected.startswith("the")


def test_passes_all_flags_on(monkeypatch, capsys, tmp_path):
    received = {}

    def generate(folder, **flags):
        received.update(flags, folder=folder)
        return "text"

    monkeypatch.setattr(jobs, "generate", generate)
    flags = "--max_new_tokens 1e2 --top_k 5 --tokenizer t.json --no_bf16 --no_chat"
    assert main(["generate", str(tmp_path), *flags.split(), "--prompt", "a b"]) == 0
    assert capsys.readouterr().out == "text\n"
    received.pop("report")("a line")
    assert capsys.readouterr().err == "jaxopt-tf: a line\n"
    assert received == {
        "folder": tmp_path,
        "prompt": "a b",
        "max_new_tokens": 100,
        "temperature": 0.0,
        "top_k": 5,
        "top_p": 1.0,
        "seed": 0,
        "chat": False,
        "system_prompt": None,
        "chat_template": None,
        "tokenizer": tmp_path.__class__("t.json"),
        "bf16": False,
    }


def test_refuses_folders_without_a_model(capsys, tmp_path):
    assert "`generate` must be given the folder of a run, got 'none'" in refused(capsys)
    shown = refused(capsys, "--prompt", "a")
    assert "The usage is `jaxopt-tf generate RUN`, followed by flags." in shown
    shown = refused(capsys, tmp_path / "none", "--prompt", "a")
    assert "`RUN` must be a run's folder or a folder of Transformers" in shown
    shown = refused(capsys, tmp_path, "--prompt", "a")
    assert "`RUN` must be a run's folder, one of its checkpoints, or" in shown


def test_refuses_prompts_and_settings_that_do_not_fit(capsys, folder):
    shown = refused(capsys, folder, "--prompt", "the quick brown fox")
    assert "`--prompt` must have fewer tokens than the context length" in shown
    shown = refused(capsys, folder, "--prompt", "the", "--max_new_tokens", "14")
    assert "`--max_new_tokens` must be at most 13" in shown
    assert "`--top_p` must be from 0 to 1" in refused(capsys, folder, "--top_p", "2")


def test_help_has_an_example(capsys):
    assert main(["generate", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "usage: jaxopt-tf generate RUN [-h] [OPTIONS]" in shown
    assert "jaxopt-tf generate runs/books --prompt" in shown
    for flag in ("prompt", "max_new_tokens", "temperature", "top_p", "seed"):
        assert f"--{flag}" in shown
