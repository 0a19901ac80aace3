"""State dicts of torch's Muon and AdamW, in and out, and the updates that follow."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxopt_tf.interop import (
    match_names,
    muon_state_from_torch,
    torch_from_muon_state,
    torch_model_from_module,
)
from jaxopt_tf.optimizers import TorchLayout, clip, get_learning_rate, muon_tf

pytestmark = [
    pytest.mark.promotion_of_others,
    pytest.mark.usefixtures("compiled_quickly"),
]

LAYOUTS = {r"up\.kernel": TorchLayout.dense()}
MATRICES = ["up.weight"]
GROUPS = (["up.weight"], ["up.bias"])


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up = torch.nn.Linear(6, 4)


def set_gradients(module, seed):
    rng = np.random.default_rng(seed)
    for p in module.parameters():
        p.grad = torch.tensor(rng.standard_normal(tuple(p.shape)), dtype=p.dtype)


def of_torch(module, *, has_names=False):
    named = dict(module.named_parameters())
    weight = [(n, named[n]) if has_names else named[n] for n in GROUPS[0]]
    bias = [(n, named[n]) if has_names else named[n] for n in GROUPS[1]]
    return (
        torch.optim.Muon(weight, lr=0.02),
        torch.optim.AdamW(bias, lr=0.01, weight_decay=0.0),
    )


def step(module, optimizers, seed):
    set_gradients(module, seed)
    for optimizer in optimizers:
        optimizer.step()


def tree_of(module):
    weight, bias = (p.detach().numpy().copy() for p in module.parameters())
    return {"up": {"kernel": weight.T.copy(), "bias": bias}}


def grads_of(module):
    weight, bias = (p.grad.numpy().copy() for p in module.parameters())
    return {"up": {"kernel": weight.T.copy(), "bias": bias}}


def start(has_names=False):
    torch.manual_seed(0)
    module = Model()
    optimizers = of_torch(module, has_names=has_names)
    for seed in range(3):
        step(module, optimizers, seed)
    params = tree_of(module)
    names = match_names(params, torch_model_from_module(module), layouts=LAYOUTS)
    ours = optax.chain(clip(1e9), muon_tf(0.02, adamw_rate_factor=0.5, layouts=LAYOUTS))
    return module, optimizers, params, names, ours


@pytest.mark.parametrize("has_names", [True, False], ids=["names", "groups"])
def test_a_run_of_torch_continues_here_and_there_again(has_names):
    module, optimizers, params, names, ours = start(has_names)
    muon, adamw = (optimizer.state_dict() for optimizer in optimizers)
    groups = None if has_names else ([GROUPS[0]], [GROUPS[1]])
    state = muon_state_from_torch(
        ours.init(params), params, muon, adamw, names, groups=groups
    )
    assert get_learning_rate(state) == np.float32(0.02)
    node = state[1]
    buffer = muon["state"][0]["momentum_buffer"]
    np.testing.assert_array_equal(node.momentum["up"]["kernel"].T, buffer)
    assert (int(node.count), int(node.step)) == (3, 3)

    back = torch_from_muon_state(
        state,
        params,
        names,
        muon["param_groups"][0],
        adamw["param_groups"],
        groups=GROUPS,
    )
    for ours_dict, theirs in zip(back, (muon, adamw), strict=True):
        for key, value in theirs["state"][0].items():
            assert torch.equal(ours_dict["state"][0][key], value), key
    for optimizer, state_dict in zip(optimizers, back, strict=True):
        optimizer.load_state_dict(state_dict)

    step(module, optimizers, 3)
    updates, _ = jax.jit(ours.update)(grads_of(module), state, params)
    expected = tree_of(module)
    for name, update in updates["up"].items():
        found, before = params["up"][name] + update, params["up"][name]
        moved = np.abs(expected["up"][name] - before).max()
        limit = 1e-2 if name == "kernel" else 1e-5  # in bfloat16 and in float32
        assert np.abs(found - expected["up"][name]).max() < limit * moved, name


def test_refuses_files_that_do_not_fit():
    _, optimizers, params, names, ours = start(has_names=True)
    muon, adamw = (optimizer.state_dict() for optimizer in optimizers)
    state = ours.init(params)

    def read(state=state, muon=muon, adamw=adamw, **options):
        return muon_state_from_torch(state, params, muon, adamw, names, **options)

    with pytest.raises(ValueError, match="`muon` must be the state dict of `torch.op"):
        read(muon=adamw, adamw=muon)
    with pytest.raises(ValueError, match="`opt_state` must contain one `MuonState`"):
        read(state=optax.adam(1e-3).init(params))
    for_bias = muon_tf(0.02, matrices=lambda p: jax.tree.map(lambda x: False, p))
    with pytest.raises(ValueError, match="must have a matrix"):
        for_bias.init(params)
    others = {**adamw, "param_groups": [{**adamw["param_groups"][0],
                                         "param_names": ["up.weight"]}]}  # fmt: skip
    with pytest.raises(
        ValueError, match="got 2 in the other one or in none.*'up.bias'"
    ):
        read(adamw=others)
    unnamed = {**muon, "param_groups": [dict(muon["param_groups"][0])]}
    del unnamed["param_groups"][0]["param_names"]
    with pytest.raises(ValueError, match=r"`groups` must have the names of the \[1\]"):
        read(muon=unnamed)
    infinite = {**muon, "state": {0: {"momentum_buffer": torch.full((4, 6), jnp.inf)}}}
    with pytest.raises(ValueError, match="momentum_buffer"):
        read(muon=infinite)
