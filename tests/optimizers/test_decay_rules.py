"""The decay rule of each version of Transformers, against sets recorded from it."""

import json
import pathlib

import numpy as np
import pytest
from flax import nnx

from jaxopt_tf._pytrees import _tree
from jaxopt_tf.optimizers import (
    DECAY_RULES,
    TRAINER_DECAY_RULES,
    decay_mask,
    trainer_decay_rule,
)

# For each architecture: names, classes of norms, and for each range of versions a
# digit per name, which is 1 if `Trainer.get_decay_parameter_names` contains it.
DATA = pathlib.Path(__file__).parents[1] / "files" / "decay_of_trainer.json"
RECORDED = json.loads(DATA.read_text())
VERSIONS = {v for a in RECORDED.values() for vs in a["decayed"] for v in vs.split()}


def decayed(params, **options):
    mask = decay_mask(params, **options)
    return {name for name, decays in _tree.named_leaves(mask) if decays}


@pytest.mark.parametrize("architecture", RECORDED)
def test_decays_what_trainer_of_each_version_decays(architecture):
    record = RECORDED[architecture]
    names, norms = record["names"], record["layer_norms"]
    params = {name: np.zeros(()) for name in names}
    for versions, digits in record["decayed"].items():
        theirs = {n for n, digit in zip(names, digits, strict=True) if digit == "1"}
        for version in versions.split():
            rule = trainer_decay_rule(version)
            assert decayed(params, rule=rule, layer_norms=norms) == theirs, version


def test_every_minor_version_of_4_was_recorded():
    assert {v.rpartition(".")[0] for v in VERSIONS} >= {
        f"4.{minor}" for minor in range(40, 58)
    }
    assert {"5.0.0", "5.24.0"} <= VERSIONS


def test_a_rule_is_named_for_its_first_version():
    assert trainer_decay_rule("4.42.4") == "transformers_4_40"
    assert trainer_decay_rule("4.46.0.dev0") == "transformers_4_46"
    assert trainer_decay_rule("4.52.4") == "transformers_4_49"
    assert trainer_decay_rule("5.0.0rc1") == "transformers_v5"
    for rule, (major, minor) in TRAINER_DECAY_RULES.items():
        assert rule in DECAY_RULES
        assert trainer_decay_rule(f"{major}.{minor}") == rule


@pytest.mark.parametrize("version", ["4.39.3", "3.5"])
def test_older_versions_are_refused(version):
    with pytest.raises(ValueError, match=f"`version` must be 4.40.*got '{version}'"):
        trainer_decay_rule(version)


@pytest.mark.parametrize("version", ["", "four", "4", None, 4.46])
def test_what_is_no_version_is_refused(version):
    with pytest.raises(ValueError, match="`version` must be a version such as"):
        trainer_decay_rule(version)


def test_classes_are_checked():
    params = {"norm": {"scale": np.ones(2)}}
    with pytest.raises(
        ValueError, match="`layer_norms` must be one of.*'LlamaRMSNorm'"
    ):
        decay_mask(params, layer_norms={"norm": "LLamaRMSNorm"})
    with pytest.raises(ValueError, match="`layer_norms` must match.*'nrom'"):
        decay_mask(params, layer_norms={"nrom": "LayerNorm"})


def test_our_own_modules_are_known_by_the_name_of_their_class():
    class LlamaRMSNorm(nnx.RMSNorm):
        pass

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.first = LlamaRMSNorm(2, rngs=rngs)
            self.second = nnx.RMSNorm(2, rngs=rngs)
            self.third = nnx.LayerNorm(2, rngs=rngs)

    model = Model(nnx.Rngs(0))
    assert decayed(model, rule="transformers_4_46") == {"second.scale"}
    assert decayed(model, rule="transformers_v5") == {"first.scale", "second.scale"}
    assert decayed(model, rule="transformers_v4") == set()


def test_everything_may_be_decayed():
    params = {"norm": {"scale": np.ones(2), "bias": np.ones(2)}}
    assert decayed(params, rule="all") == {"norm.scale", "norm.bias"}
    norms = {"norm": "LayerNorm"}
    assert decayed(params, rule="all", layer_norms=norms) == {"norm.scale", "norm.bias"}
