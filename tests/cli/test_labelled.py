"""`jaxopt-tf train` on labelled rows: whole runs of tiny models of Transformers."""

import json
import re
import shutil

import numpy as np
import pytest

from jaxopt_tf.cli import main
from jaxopt_tf.cli._run_flags import labelled_run_settings, read_typed
from jaxopt_tf.cli._train import Train

pytest.importorskip("torchax", reason="torchax is an optional, experimental extra")
transformers = pytest.importorskip("transformers", reason="it builds the models")
torch = pytest.importorskip("torch", reason="it runs the models")

pytestmark = [
    pytest.mark.promotion_of_others,
    pytest.mark.filterwarnings("ignore"),  # of torch, Transformers and their packages
    pytest.mark.usefixtures("compiled_quickly", "compiled_once"),
]

WORDS = [
    "a",
    "dull",
    "bad",
    "grim",
    "film",
    "and",
    "good",
    "fine",
    "story",
    "of",
    "sea",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SMALL = {
    "vocab_size": len(SPECIAL) + len(WORDS),
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 16,
}
BERT = transformers.BertConfig(**SMALL, max_position_embeddings=16)
T5 = transformers.T5Config(
    vocab_size=SMALL["vocab_size"],
    d_model=8,
    d_kv=8,
    d_ff=16,
    num_layers=1,
    num_heads=1,
    decoder_start_token_id=0,
    eos_token_id=3,
    dropout_rate=0.0,
)
VIT = transformers.ViTConfig(
    **{n: x for n, x in SMALL.items() if n != "vocab_size"},
    image_size=8,
    patch_size=4,
    num_channels=1,
)


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    ids = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    made = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = ("pad", "unk", "cls", "sep", "mask")
    special = dict(zip((f"{n}_token" for n in names), SPECIAL, strict=True))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special)


def rows(number, seed, **further):
    rng, found = np.random.default_rng(seed), []
    for _ in range(number):
        words = rng.choice(WORDS, rng.integers(5, 7)).tolist()
        is_good = "good" in words or "fine" in words
        row = {"sentence": " ".join(words), "label": "pos" if is_good else "neg"}
        found.append(row | {name: make(words) for name, make in further.items()})
    return found


def write(path, found):
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folders of models and files of rows."""
    path = tmp_path_factory.mktemp("labelled")
    kinds = {
        "bert": (transformers.BertForSequenceClassification, BERT),
        "tagger": (transformers.BertForTokenClassification, BERT),
        "masked": (transformers.BertForMaskedLM, BERT),
        "t5": (transformers.T5ForConditionalGeneration, T5),
        "vit": (transformers.ViTForImageClassification, VIT),
    }
    for name, (kind, config) in kinds.items():
        transformers.set_seed(0)
        kind(config).save_pretrained(path / name)
        tokenizer().save_pretrained(path / name)
    processor = {"size": {"height": 8, "width": 8}, "image_mean": [0.5]}
    processor |= {"image_std": [0.5], "do_resize": False}
    (path / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))
    write(path / "train.jsonl", rows(22, 0))
    write(path / "dev.jsonl", rows(8, 1))
    return path


@pytest.fixture
def run(folder, tmp_path, capsys):
    """Runs the command in a folder; its status and what it printed."""

    def run(flags, name="run", model="bert"):
        line = (
            f"train --model_name_or_path {folder / model} --output_dir "
            f"{tmp_path / name} --report_to none {flags}"
        )
        status = main(line.replace("DATA", str(folder)).split())
        return status, capsys.readouterr()

    return run


def column(path, name):
    lines = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


def predictions(path):
    lines = (path / "predictions.jsonl").read_text().splitlines()
    return [json.loads(line)["prediction"] for line in lines]


def test_a_classifier_is_trained_resumed_and_read_by_transformers(
    run, folder, tmp_path, capsys
):
    texts = [{"sentence": row["sentence"]} for row in rows(8, 2)]
    test = write(tmp_path / "test.jsonl", texts)
    status, printed = run(
        "--train_file DATA/train.jsonl --validation_file DATA/dev.jsonl --test_file "
        f"{test} --num_train_epochs 3 --learning_rate 3e-2 --group_by_length "
        "--metric_for_best_model accuracy --load_best_model_at_end"
    )
    assert status == 0, printed.err
    path = tmp_path / "run"
    # 22 rows are 2 updates of 8 rows and one of 6, which is filled.
    assert "9 steps of 8 examples" in printed.out
    assert re.search(r"padded to 8 tokens\n.*at most 1 program of", printed.out)
    assert len(column(path, "eval_accuracy")) == 4
    state = json.loads((path / "trainer_state.json").read_text())
    assert state["best_metric"] == max(column(path, "eval_accuracy"))

    module = transformers.AutoModelForSequenceClassification.from_pretrained(path)
    assert module.config.id2label == {0: "neg", 1: "pos"}
    assert module.config.problem_type == "single_label_classification"
    read = transformers.AutoTokenizer.from_pretrained(path)
    sentences = [row["sentence"] for row in texts]
    with torch.no_grad():
        logits = module(**read(sentences, return_tensors="pt", padding=True)).logits
    names = [module.config.id2label[int(i)] for i in logits.argmax(-1)]
    assert predictions(path) == names
    weights, losses = (path / "model.safetensors").read_bytes(), column(path, "loss")

    # The folder alone resumes, bit for bit.
    for checkpoint in ("checkpoint-9", "checkpoint-6"):
        shutil.rmtree(path / checkpoint)
    (path / "predictions.jsonl").unlink()
    assert main(["train", "--output_dir", str(path)]) == 0
    assert "resumed at step 3" in capsys.readouterr().out
    assert column(path, "loss") == losses
    assert predictions(path) == names
    if (path / "checkpoint-9").exists():
        assert (path / "model.safetensors").read_bytes() == weights

    assert main(["migrate", str(path), str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "optimizer.pt").exists()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["label2id"] == {"neg": 0, "pos": 1}


def test_texts_are_generated_as_by_transformers(run, folder, tmp_path):
    pytest.importorskip("rouge_score", reason="the extra tasks computes ROUGE")
    found = rows(8, 3, summary=lambda words: " ".join(words[:3]))
    path = write(tmp_path / "rows.jsonl", found)
    status, printed = run(
        f"--train_file {path} --validation_file {path} --test_file {path} "
        "--text_column sentence --target_column summary --max_target_length 6 "
        "--predict_with_generate --label_smoothing_factor 0.1 --optim adafactor "
        "--decay_rule examples --weight_decay 0.1 --max_steps 2 --learning_rate 3e-2 "
        "--source_prefix a: --metric_for_best_model rougeL",
        model="t5",
    )
    assert status == 0, printed.err
    assert len(column(tmp_path / "run", "eval_rougeL")) == 3
    module = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "run")
    read = tokenizer()
    texts = ["a:" + row["sentence"] for row in found]
    inputs = read(texts, return_tensors="pt", padding=True)
    tokens = module.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        num_beams=1,
        do_sample=False,
        max_length=6,
    )
    decoded = read.batch_decode(tokens, skip_special_tokens=True)
    assert predictions(tmp_path / "run") == [text.strip() for text in decoded]


def test_images_are_classified(run, folder, tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (6, 8, 8)).tolist()
    found = [{"image": x, "label": i % 3} for i, x in enumerate(images)]
    path = write(tmp_path / "images.jsonl", found)
    flags = f"--train_file {path} --test_file {path} --max_steps 1"
    status, printed = run(flags, model="vit")
    assert status == 2
    assert "which is 3, got one of 2" in printed.err
    # Without rows to evaluate on there is no evaluation.
    status, printed = run(f"{flags} --ignore_mismatched_sizes", model="vit")
    assert status == 0, printed.err
    assert "parameters drawn from the seed: classifier.bias" in printed.out
    assert {*predictions(tmp_path / "run")} <= {"0", "1", "2"}
    assert (tmp_path / "run" / "preprocessor_config.json").exists()


def test_words_are_tagged(run, folder, tmp_path):
    found = [
        {
            "tokens": (words := row["sentence"].split()),
            "ner_tags": [w[0] for w in words],
        }
        for row in rows(4, 5)
    ]
    path = write(tmp_path / "words.jsonl", found)
    flags = "--max_steps 1 --ignore_mismatched_sizes --metric_for_best_model f1"
    status, printed = run(
        f"--train_file {path} --test_file {path} {flags}", "a", "tagger"
    )
    assert status == 0, printed.err
    lengths = [len(row) for row in predictions(tmp_path / "a")]
    assert lengths == [len(row["tokens"]) for row in found]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--task question-answering", "`jobs.train` in Python"),
        ("--task regression", "`--task` must be one of 'sequence-classification'"),
        ("--num_beams 4 --task seq2seq", "`--num_beams` must be 1, got 4"),
        ("--metric_for_best_model rougeL", "must be a metric of sequence-class"),
        ("--target_column text", "`--target_column` must be left out with `--task` 's"),
        ("--label_column lable", "`--label_column` must be a column of the data"),
        ("--task_name sts-b", "`--task_name` must be one of cola"),
        ("--lora_r 8", "`--lora_r` must be left out for a labelled task.*PeftModel"),
        ("--n_layer 2", "`--n_layer` must be left out for a labelled task"),
        ("--freeze nothing", "`--freeze` must match"),
        ("--train_file a b", "`--train_file` must be one file for a labelled task"),
        ("--load_best_model_at_end --validation_file DATA/dev.jsonl --max_steps 2",
         "`--eval_steps` must be less than `--max_steps`"),
        ("--early_stopping_patience 2", "`--validation_file` must be given if"),
        ("--validation_file DATA/other.jsonl", "row 1 of '.*other.jsonl' has 'great'"),
        ("--model_name_or_path DATA/vit --task masked-lm", "a class of AutoModelForM"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(run, folder, flags, message):
    other = {"sentence": "a film", "label": "great"}
    write(folder / "other.jsonl", [other])
    status, printed = run(f"--train_file DATA/train.jsonl {flags}")
    assert status == 2
    assert re.search(message, printed.err), printed.err


def test_settings_of_labelled_rows_are_refused_for_text(capsys, tmp_path):
    assert main(["train", "--label_column", "label"]) == 2
    assert "`--label_column` must be left out for a run on text" in (
        capsys.readouterr().err
    )
    config = {"architectures": ["BertForQuestionAnswering"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["train", "--model_name_or_path", str(tmp_path)]) == 2
    assert "got 'BertForQuestionAnswering'" in capsys.readouterr().err


def test_a_file_of_settings_and_a_checkpoint_of_trainer_are_recognized(
    folder, tmp_path, capsys
):
    file = {
        "model_name_or_path": str(folder / "bert"),
        "train_file": [str(folder / "train.jsonl")],
        "num_train_epochs": 2,
        "metric_for_best_model": "f1",
        # A field of TrainingArguments, which have a list of integrations.
        "report_to": [],
    }
    (tmp_path / "settings.json").write_text(json.dumps(file))
    typed = read_typed(Train, ["--config", str(tmp_path / "settings.json")])
    settings = labelled_run_settings(typed)
    assert settings["task"] == "sequence-classification"
    assert settings["metric_for_best_model"] == "f1"
    # The defaults are those of Trainer, not those of a run on text.
    assert "learning_rate" not in settings
    assert "report_to" not in settings

    shutil.copytree(folder / "bert", tmp_path / "checkpoint-3")
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text("{}")
    out = ["migrate", str(tmp_path / "checkpoint-3"), str(tmp_path / "out")]
    assert main(out) == 2
    assert "train --resume_from_checkpoint" in capsys.readouterr().err
