"""Generation from runs and model folders, and samples during a run."""

import contextlib
import io
import json
import re

import jax
import pytest

from jaxopt_tf import interop
from jaxopt_tf.checkpoints import _orbax
from jaxopt_tf.data import byte_codec
from jaxopt_tf.jobs import (
    Job,
    Run,
    RunConfig,
    build_setup,
    first_run_state,
    generate,
    make_sampler,
    pretrain,
    write_run,
)
from jaxopt_tf.jobs._generate import with_samples
from jaxopt_tf.models import GPT2Config, build_model
from jaxopt_tf.recipes import Recipe
from jaxopt_tf.sharding import make_mesh
from tests import references
from tests.references import decoders as reference

pytestmark = [
    pytest.mark.promotion_of_others,  # flax's layers
    pytest.mark.usefixtures("compiled_quickly", "compiled_once"),
]

RECIPE = Recipe(
    max_steps=4, learning_rate=1e-2, optim="sgd", per_device_train_batch_size=2
)
TINY = GPT2Config(n_layer=1, n_head=2, n_embd=8, block_size=16)
TEXT = "the quick brown fox jumps over the lazy dog\n" * 40
WORDS = sorted(set(TEXT.split()))


def run_in(folder, **settings):
    """Trains; returns the result and the lines that it printed."""
    (folder / "text.txt").write_text(TEXT)
    job = Job(
        text=(folder / "text.txt",),
        output_dir=folder / "run",
        eval_steps=2,
        save_steps=2,
        **settings,
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        outcome = pretrain(RunConfig(recipe=RECIPE, model=TINY, job=job))
    return outcome, printed.getvalue().splitlines()


def samples_of(lines):
    return [line for line in lines if line.startswith("sample")]


@pytest.fixture(scope="module")
def run(tmp_path_factory, compiled_quickly, compiled_once):
    """A run with samples, and its lines."""
    return run_in(tmp_path_factory.mktemp("run"), sample_prompt="the ")


def test_samples_are_printed_at_each_evaluation(run):
    outcome, lines = run
    samples = samples_of(lines)
    assert len(samples) == 3  # before step 1, and after steps 2 and 4
    assert all(sample.startswith("sample  'the ") for sample in samples)
    # The same text after training, from the checkpoint.
    assert samples[-1] == f"sample  {generate(outcome.folder, 'the ')!r}"


def test_samples_do_not_change_the_numbers_of_a_run(run, tmp_path):
    without, lines = run_in(tmp_path)
    assert not samples_of(lines)
    logs = [r.folder / "metrics.jsonl" for r in (without, run[0])]
    assert logs[0].read_bytes() == logs[1].read_bytes()


def test_samples_of_sharded_parameters_are_those_of_one_device(run, capsys):
    outcome, lines = run
    mesh = make_mesh("fsdp=4,tensor=2", jax.devices()[:8])
    config = RunConfig(recipe=RECIPE, model=TINY, job=Job(sample_prompt="the "))
    setup = build_setup(config, mesh, num_sequences=4)
    shardings = jax.tree.map(lambda p: p.sharding, setup.run_state.state.params)
    assert not all(s.is_fully_replicated for s in jax.tree.leaves(shardings))
    evaluate = with_samples(lambda params: {"loss": 1.0}, config, setup)
    assert evaluate(jax.device_put(outcome.params, shardings)) == {"loss": 1.0}
    assert capsys.readouterr().out == f"{samples_of(lines)[-1]}\n"


def test_a_run_with_samples_is_resumed_without_them(run):
    outcome, lines = run_in(run[0].folder.parent)
    assert lines[0].startswith("this run is finished")
    assert outcome.last_loss == run[0].last_loss
    assert not samples_of(lines)


def test_text_of_a_run_and_of_its_checkpoints(run):
    folder = run[0].folder
    text = generate(folder, "", temperature=3.0)  # the start of a document
    named = folder / "checkpoint-4"
    assert text == generate(named, "", temperature=3.0, bf16=False)
    assert text != generate(named, "", temperature=3.0, seed=1)


def test_a_sampler_takes_any_parameters(run):
    outcome, _ = run
    sampler = make_sampler(build_model(TINY), byte_codec(), bf16=True)
    new = sampler(outcome.params, "the ", max_new_tokens=3)
    # 3 bytes, fewer after an end of the text; each is at most one character.
    assert len(new) <= 3


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder of Transformers, and its model and tokenizer there."""
    tokenizers = pytest.importorskip("tokenizers")
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("llama")
    model = reference.save({**reference.CASES["llama"], "vocab_size": 12}, folder)
    tokens = ["<unk>", "<s>", "</s>", *WORDS]
    content = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(
            {word: i for i, word in enumerate(tokens)}, unk_token="<unk>"
        )
    )
    content.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    content.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=content, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)
    return folder, model, fast


@references.needs_transformers
@pytest.mark.parametrize("prompt", ["the quick fox", "dog", ""])
def test_text_of_a_folder_is_that_of_transformers(prompt, llama):
    folder, model, tokenizer = llama
    inputs = tokenizer(prompt, return_tensors="pt")
    out = model.generate(
        inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        do_sample=False,
        max_new_tokens=20,
        pad_token_id=0,
    )
    expected = tokenizer.decode(out[0], skip_special_tokens=True)
    assert generate(folder, prompt, max_new_tokens=20) == expected


TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'assistant' %}over {% endif %}{{ message.content }} "
    "{% endfor %}{% if add_generation_prompt %}over {% endif %}"
)


def untrained_run(rows, llama, tmp_path):
    """A run on rows that starts from the folder, before its first step."""
    folder, out = llama[0], tmp_path / "run"
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows))
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    settings = {
        "max_steps": 1,
        "model_name_or_path": str(folder),
        "train_file": [str(tmp_path / "rows.jsonl")],
        "chat_template": str(tmp_path / "template.jinja"),
        "output_dir": str(out),
    }
    config = RunConfig.from_dict(settings)
    model = build_model(config.model)
    params = interop.read_params(folder, model.shapes, model.names)
    state = first_run_state(config.recipe, config.model, params)
    write_run(Run(config.recipe, config.model, config.job, state))
    return out


def continued(llama, text, **options):
    """What Transformers writes after a text."""
    _, model, tokenizer = llama
    inputs = tokenizer(text, return_tensors="pt", **options)["input_ids"]
    out = model.generate(
        inputs,
        attention_mask=inputs != -1,
        do_sample=False,
        max_new_tokens=9,
        pad_token_id=0,
    )
    return tokenizer.decode(out[0, inputs.shape[1] :], skip_special_tokens=True)


@references.needs_transformers
def test_a_run_on_prompts_reads_them_as_transformers(llama, tmp_path, monkeypatch):
    rows = {"prompt": "the quick", "completion": " fox"}
    run = untrained_run(rows, llama, tmp_path)
    lines = []

    def read_arrays(path, like, **options):
        lines.extend(str(path) for path, _ in jax.tree.leaves_with_path(like))
        return read(path, like, **options)

    read = _orbax.read_arrays
    monkeypatch.setattr(_orbax, "read_arrays", read_arrays)
    text = generate(run, "jumps", max_new_tokens=9, report=lines.append)
    assert text == f"jumps {continued(llama, 'jumps')}"
    # Neither the state of the optimizer nor anything else is read.
    assert all("'params'" in line for line in lines[:-1])
    assert lines[-1] == (
        f"{run / 'checkpoint-0'}: the prompt is text; it is continued up to </s> (2)"
    )


@references.needs_transformers
def test_a_run_on_messages_answers_as_transformers(llama, tmp_path):
    message = {"role": "user", "content": "the quick"}
    answer = {"role": "assistant", "content": "fox"}
    run = untrained_run({"messages": [message, answer]}, llama, tmp_path)
    options = {"max_new_tokens": 9}
    expected = continued(llama, "<s>jumps over", add_special_tokens=False)
    assert generate(run, "jumps", **options).strip() == expected
    # The same for a folder, with `chat`.
    folder, template = llama[0], tmp_path / "template.jinja"
    assert generate(folder, "jumps", chat_template=template, **options).strip() == (
        expected
    )
    # As text, and with a system message.
    expected = continued(llama, "jumps")
    assert generate(run, "jumps", chat=False, **options) == f"jumps {expected}"
    expected = continued(llama, "<s>lazy jumps over", add_special_tokens=False)
    assert generate(run, "jumps", system_prompt="lazy", **options).strip() == expected
    with pytest.raises(ValueError, match="`prompt` must be a user message"):
        generate(run, "")
    with pytest.raises(ValueError, match="`chat` must be used with a chat template, b"):
        generate(folder, "jumps", chat=True)
    with pytest.raises(ValueError, match="`system_prompt` must be left out without"):
        generate(run, "jumps", chat=False, system_prompt="lazy")


def test_a_run_on_bytes_is_no_chat(run):
    with pytest.raises(ValueError, match="`chat` must be left out for a run on bytes"):
        generate(run[0].folder, "dog", chat=True)


@references.needs_transformers
def test_refuses_a_folder_without_a_tokenizer(llama, tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(ValueError, match="`tokenizer` must be the path") as refusal:
        generate(llama[0], "the", tokenizer=path)
    assert repr(str(path)) in str(refusal.value)


def test_refuses_folders_without_a_model(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "started").mkdir()
    (tmp_path / "started" / "starts.jsonl").write_text("")
    for name, message in (
        ("none", "`folder` must be a run's folder or a folder of Transformers, but"),
        ("none", "does not exist. Check the path."),
        ("file", "is a file. Check the path."),
        ("empty", "`folder` must be a run's folder, one of its checkpoints, or a"),
        ("started", "`folder` must contain a checkpoint, but the run in"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            generate(tmp_path / name, "the")


def test_refuses_prompts_that_do_not_fit(run):
    folder = run[0].folder
    with pytest.raises(ValueError, match="`prompt` must have fewer tokens than the"):
        generate(folder, "the quick brown fox")
    with pytest.raises(ValueError, match="`max_new_tokens` must be at most 13"):
        generate(folder, "the", max_new_tokens=14)
    with pytest.raises(TypeError, match="`prompt` must be a string, got 3"):
        generate(folder, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample_prompt": "the quick brown fox"}, "`sample_prompt` must have fewer"),
        ({"sample_prompt": "a", "text": ("a.npy",)}, "`tokenizer` must be given for"),
    ],
)
def test_refuses_samples_before_the_run_starts(settings, message):
    config = RunConfig(recipe=RECIPE, model=TINY, job=Job(**settings))
    setup = build_setup(config, make_mesh("data=1", jax.devices()[:1]))
    with pytest.raises(ValueError, match=message):
        with_samples(lambda params: {}, config, setup)


def test_sample_prompt_must_be_a_string():
    with pytest.raises(TypeError, match="`sample_prompt` must be a name or None"):
        Job(sample_prompt=3)
