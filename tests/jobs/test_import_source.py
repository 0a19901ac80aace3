"""Folders of adapters that Trainer saved: their base model and their settings."""

import json

import pytest

from jaxopt_tf.jobs._import_source import (
    adapter_settings,
    base_of_adapter,
    notes_on_base,
)
from jaxopt_tf.jobs._job import Job

CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "org/base",
    "r": 4,
    "lora_alpha": 16,
    "lora_dropout": 0.1,
    "target_modules": ["v_proj", "q_proj"],
    "bias": "none",
    "use_dora": False,
    "modules_to_save": None,
}


@pytest.fixture
def write(tmp_path):
    def write(**changes):
        content = json.dumps({**CONFIG, **changes})
        (tmp_path / "adapter_config.json").write_text(content)
        return tmp_path

    return write


def test_settings_are_those_of_the_adapter(write, tmp_path):
    assert adapter_settings(write(), tmp_path) == {
        "model_name_or_path": tmp_path,
        "model_implementation": "torchax",
        "lora_r": 4,
        "lora_alpha": 16,
        "lora_dropout": 0.1,
        "lora_target_modules": ("q_proj", "v_proj"),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "got `use_dora` True"),
        ({"peft_type": "IA3", "modules_to_save": ["x"]}, "'IA3', `modules_to_save`"),
        ({"target_modules": ".*proj"}, "'.*proj', a regular expression"),
    ],
)
def test_refuses_settings_that_a_run_does_not_have(write, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        adapter_settings(write(**changes), tmp_path)


def test_the_base_model_must_be_a_folder_that_exists(write, tmp_path):
    with pytest.raises(ValueError, match="got 'org/base', which has no config.json"):
        base_of_adapter(write(), {})
    with pytest.raises(ValueError, match="none was given and the adapter names none"):
        base_of_adapter(write(base_model_name_or_path=None), {})
    with pytest.raises(ValueError, match="got 'no', .* Download the model 'org/base'"):
        base_of_adapter(write(), {"model_name_or_path": "no"})
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    assert base_of_adapter(write(), {"model_name_or_path": base}) == base
    assert base_of_adapter(write(base_model_name_or_path=str(base)), {}) == base


def test_notes_a_base_model_with_another_name(write, tmp_path):
    job = Job(lora_r=4, model_name_or_path=tmp_path / "other")
    assert "'org/base'; the run reads" in notes_on_base(write(), job)[0]
    same = write(base_model_name_or_path=str(tmp_path / "other"))
    assert notes_on_base(same, job) == []
