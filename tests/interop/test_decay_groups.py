"""Decay groups of runs of old versions, against their Trainer and their files."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest
import torch

from jaxopt_tf.interop import (
    TorchModel,
    TorchParam,
    decay_rule_from_checkpoint,
    load_torch,
    match_names,
    opt_state_from_torch,
    read_trainer_checkpoint,
    recipe_from_transformers,
    torch_model_from_config,
    torch_model_from_shapes,
    write_trainer_checkpoint,
)
from jaxopt_tf.optimizers import adamw_tf
from jaxopt_tf.recipes import Recipe, build_optimizer, recipe_settings
from tests.interop import old_runs
from tests.references import torch_models

LLAMA, MISTRAL = "LlamaForCausalLM", "MistralForCausalLM"


def recipe_of(folder):
    return recipe_from_transformers(folder / "training_args.json").recipe


def template(folder, module):
    params = torch_models.flax_tree(torch_models.flax_leaves(module))
    return params, match_names(params, torch_model_from_config(folder))


def read(folder, module, recipe, **options):
    params, names = template(folder, module)
    optimizer = build_optimizer(recipe, layer_norms=names.layer_norms)
    options = {"opt_state": optimizer.init(params), "recipe": recipe, **options}
    return read_trainer_checkpoint(folder, params, names, **options), optimizer, names


@pytest.mark.parametrize(
    ("architecture", "version"),
    [
        (LLAMA, "4.46.3"),
        ("GemmaForCausalLM", "4.45.2"),
    ],
)
def test_a_run_of_an_old_version_continues_with_its_decay(
    architecture, version, tmp_path
):
    module = old_runs.module(architecture)
    named = old_runs.groups(module, version)
    optimizer = old_runs.write(tmp_path, module, version, named)
    run, ours, _ = read(tmp_path, module, recipe_of(tmp_path))
    grads = torch_models.flax_tree(torch_models.set_gradients(module, 9))
    updates, _ = jax.jit(ours.update)(grads, run.opt_state, run.params)
    optimizer.step()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8),
        optax.apply_updates(run.params, updates),
        torch_models.flax_tree(torch_models.flax_leaves(module)),
    )


@pytest.mark.parametrize(
    ("architecture", "version"),
    [
        (MISTRAL, "4.46.3"),
        (MISTRAL, "4.49.0"),
        ("GemmaForCausalLM", "4.44.2"),
        ("T5ForConditionalGeneration", "4.48.3"),
    ],
)
def test_the_recipe_of_an_old_version_has_the_groups_of_its_file(
    architecture, version, tmp_path
):
    module, folder = old_runs.module(architecture), tmp_path / "checkpoint-2"
    folder.mkdir()
    old_runs.write(folder, module, version, old_runs.groups(module, version))
    recipe = recipe_of(folder)
    run, _, names = read(folder, module, recipe)
    # Trainer of this version takes no groups of other lengths.
    options = {"recipe": recipe, "step": 2}
    new = tmp_path / "checkpoint-3"
    write_trainer_checkpoint(new, run.params, run.opt_state, names, **options)
    theirs, ours = (
        load_torch(path / "optimizer.pt")["param_groups"] for path in (folder, new)
    )
    assert [g["params"] for g in ours] == [g["params"] for g in theirs]


def test_a_model_whose_parameters_had_another_order_needs_the_groups(tmp_path):
    module = old_runs.module("Gemma2ForCausalLM")
    decayed, undecayed = old_runs.groups(module, "4.46.3")
    # In 4.45 and 4.46 the norm after attention stood behind those of the MLP.
    moved = [name for name in decayed if "post_attention" in name]
    last = max(i for i, name in enumerate(decayed) if "post_feedforward" in name)
    rest = [name for name in decayed if name not in moved]
    named = [[*rest[:last], *moved, *rest[last:]], undecayed]
    optimizer = old_runs.write(tmp_path, module, "4.46.3", named)
    with pytest.raises(ValueError, match="`groups` must be given for a 'gemma2'"):
        read(tmp_path, module, recipe_of(tmp_path))
    run, *_ = read(tmp_path, module, recipe_of(tmp_path), groups=named)
    state = optimizer.state[dict(module.named_parameters())[moved[0]]]
    found = optax.tree.get(run.opt_state, "mu")["model"]["layers"]["0"]
    np.testing.assert_array_equal(
        *(jax.tree.leaves(found["post_attention_layernorm"])), state["exp_avg"]
    )


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    module = old_runs.module(LLAMA)
    old_runs.write(folder, module, "4.46.3", old_runs.groups(module, "4.46.3"))
    return folder, module


def test_the_version_is_that_of_the_folder_or_as_given(llama, tmp_path):
    folder, _ = llama
    found = recipe_from_transformers(folder / "training_args.json")
    assert (found.versions, found.recipe.decay_rule) == ("4.46.3", "transformers_4_46")
    given = json.loads((folder / "training_args.json").read_text())
    unknown = recipe_from_transformers(given)
    assert unknown.recipe.decay_rule == "transformers_4_49"
    (note,) = unknown.notes
    assert (
        "'transformers_4_48', 'transformers_4_46'; pass `transformers_version`" in note
    )
    found = recipe_from_transformers(given, transformers_version="4.47.1")
    assert (found.recipe.decay_rule, found.notes) == ("transformers_4_46", ())
    with pytest.raises(ValueError, match="`transformers_version` must be the version"):
        recipe_from_transformers(given, transformers_version="4.40.0")
    with pytest.raises(ValueError, match="`transformers_version` must be a version"):
        recipe_from_transformers(given, transformers_version="four")
    with pytest.raises(ValueError, match="`transformers_version` must be 4.40 or l"):
        recipe_from_transformers(given, transformers_version="4.30.2")
    # The file was put beside the config.json of another run.
    (tmp_path / "training_args.json").write_text(json.dumps(given))
    (tmp_path / "config.json").write_text('{"transformers_version": "5.3.0"}')
    found = recipe_from_transformers(tmp_path / "training_args.json")
    assert found.recipe.decay_rule == "transformers_4_49"
    assert "config.json is of Transformers 5.3.0, but" in found.notes[0]


def test_a_file_of_no_version_has_todays_rule_and_a_note():
    found = recipe_from_transformers({"max_steps": 9, "weight_decay": 0.1})
    assert found.recipe.decay_rule == "transformers_v5"
    assert "the version of Transformers is not known" in found.notes[0]
    assert recipe_from_transformers({"max_steps": 9}).notes == ()


def test_groups_that_the_recipe_does_not_have_are_refused(llama):
    folder, module = llama
    wrong = dataclasses.replace(recipe_of(folder), decay_rule="transformers_v4")
    # Until now this was the rule of 4.46.
    with pytest.raises(
        ValueError,
        match=r"optimizer.pt decay, got the `decay_rule` 'transformers_v4', with which "
        r"3 of 12 differ: 3 are decayed by the recipe only, 'model.layers.0.input_"
        r"layernorm.weight', .*'transformers_v5'",
    ):
        read(folder, module, wrong)
    cured = dataclasses.replace(wrong, decay_rule="transformers_v5")
    read(folder, module, cured)


def test_groups_of_another_version_are_named(tmp_path):
    module = old_runs.module(MISTRAL)
    named = old_runs.groups(module, "4.46.3")
    assert named[1] == []
    old_runs.write(tmp_path, module, "4.46.3", named)
    wrong = dataclasses.replace(recipe_of(tmp_path), decay_rule="transformers_v5")
    with pytest.raises(
        ValueError,
        match=r"3 are decayed by the file only.*decay_rule='transformers_4_48'",
    ):
        read(tmp_path, module, wrong)


def test_without_decay_the_groups_make_no_difference_but_the_order_does(tmp_path):
    module = old_runs.module(MISTRAL)
    named = old_runs.groups(module, "4.46.3")
    optimizer = old_runs.write(
        tmp_path, module, "4.46.3", named, decays=(0.0, 0.0), weight_decay=0.0
    )
    recipe = dataclasses.replace(recipe_of(tmp_path), decay_rule="transformers_v5")
    run, _, _ = read(tmp_path, module, recipe)
    (state,) = run.opt_state
    theirs = optimizer.state[module.model.norm.weight]["exp_avg"]
    np.testing.assert_array_equal(state.mu["model"]["norm"]["scale"], theirs)


def test_one_group_of_a_script_is_decayed_as_a_whole(tmp_path):
    module = old_runs.module(LLAMA)
    named = [[name for name, _ in module.named_parameters()]]
    old_runs.write(tmp_path, module, "4.46.3", named, (old_runs.DECAY,))
    with pytest.raises(ValueError, match="decay_rule='all'"):
        read(tmp_path, module, recipe_of(tmp_path))
    rule = decay_rule_from_checkpoint(tmp_path, template(tmp_path, module)[1])
    assert rule == "all"
    read(tmp_path, module, dataclasses.replace(recipe_of(tmp_path), decay_rule=rule))


def own_groups(module):
    """Groups of a script, which spares the embedding, the decayed ones last."""
    names = [name for name, _ in module.named_parameters()]
    undecayed = [name for name in names if "embed" in name or "lm_head" in name]
    return [undecayed, [name for name in names if name not in undecayed]]


def test_groups_of_a_script_are_taken_from_the_file(tmp_path):
    module = old_runs.module(LLAMA)
    named, folder = own_groups(module), tmp_path / "checkpoint-2"
    folder.mkdir()
    old_runs.write(folder, module, "4.46.3", named, (0.0, old_runs.DECAY))
    options = {"groups": named}
    with pytest.raises(ValueError, match="decay_rule_from_checkpoint"):
        read(folder, module, recipe_of(folder), **options)
    _, names = template(folder, module)
    rule = decay_rule_from_checkpoint(folder, names, **options)
    recipe = dataclasses.replace(recipe_of(folder), decay_rule=rule)
    assert set(rule) == {r"^model\.embed_tokens\.embedding$", r"^lm_head\.kernel$"}
    # A file keeps it.
    assert Recipe(**json.loads(json.dumps(recipe_settings(recipe)))) == recipe
    run, _, _ = read(folder, module, recipe, **options)
    new = tmp_path / "checkpoint-3"
    write_trainer_checkpoint(
        new, run.params, run.opt_state, names, recipe=recipe, step=2, like=folder
    )
    saved = load_torch(new / "optimizer.pt")["param_groups"]
    assert [set(group["param_names"]) for group in saved] == [
        set(named[1]),
        set(named[0]),
    ]
    read(new, module, recipe)


def adamw_state(sizes, decays):
    """State of torch's AdamW after an update, with groups of `sizes` parameters."""
    groups = [
        {"params": [torch.nn.Parameter(torch.ones(2)) for _ in range(n)],
         "weight_decay": decay}
        for n, decay in zip(sizes, decays, strict=True)
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    for group in groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones(2)
    optimizer.step()
    return optimizer.state_dict()


def test_a_leaf_of_parameters_that_are_decayed_in_part_is_refused(tmp_path):
    shapes = {"h.0.norm.weight": [2], "h.1.norm.weight": [2]}
    names = match_names(
        {"h": {"norm": {"scale": np.ones((2, 2), np.float32)}}},
        torch_model_from_shapes(shapes, is_ordered=True),
    )
    torch.save(adamw_state([1, 1], [0.5, 0.0]), tmp_path / "optimizer.pt")
    named = [[name] for name in shapes]
    with pytest.raises(ValueError, match="as a whole, but 1 contain.*'h.norm.scale'"):
        decay_rule_from_checkpoint(tmp_path, names, groups=named)


def test_a_file_that_several_versions_may_have_made_is_refused():
    # 4.45 counts the first as a layer norm, 4.48 the second, 4.46 both.
    norms = {"a": "GraniteRMSNorm", "b": "ZambaRMSNorm"}
    model = TorchModel(
        parameters=tuple(TorchParam(f"{name}.weight", (2,)) for name in "abc"),
        layer_norms=norms,
    )
    params = {name: {"weight": np.ones(2, np.float32)} for name in "abc"}
    names = match_names(params, model)
    saved = adamw_state([2, 1], [0.5, 0.0])
    opt_state = adamw_tf(0.1).init(params)
    with pytest.raises(ValueError, match="'transformers_4_49' and 'transformers_4_45'"):
        opt_state_from_torch(opt_state, params, saved, names)
    opt_state_from_torch(
        opt_state, params, saved, names, decay_rule="transformers_4_45"
    )


def test_frozen_parameters_are_not_compared(tmp_path):
    module = old_runs.module(LLAMA)
    decayed, undecayed = old_runs.groups(module, "4.46.3")
    frozen = "model.norm.weight"
    named = [decayed, [name for name in undecayed if name != frozen]]
    old_runs.write(tmp_path, module, "4.46.3", named)
    params, names = template(tmp_path, module)
    recipe = recipe_of(tmp_path)
    model = dataclasses.replace(
        names.model,
        parameters=tuple(
            p._replace(is_trainable=p.name != frozen) for p in names.model.parameters
        ),
    )
    names = match_names(params, model)
    optimizer = build_optimizer(recipe, layer_norms=names.layer_norms)
    read_trainer_checkpoint(
        tmp_path, params, names, recipe=recipe, opt_state=optimizer.init(params)
    )


def test_a_folder_without_an_optimizer_has_no_groups(llama, tmp_path):
    with pytest.raises(ValueError, match="`folder` must contain optimizer.pt"):
        decay_rule_from_checkpoint(tmp_path, template(*llama)[1])
