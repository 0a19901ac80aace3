"""Muon and AdamW of torch, as two optimizers of one model."""

import contextlib
from unittest import mock

from .adamw import _numpy, _tensor


def torch_muon(
    params, grads_of, lrs, matrices, *, ns_dtype="bfloat16", adamw=None, **options
):
    """Runs `torch.optim.Muon` for `matrices` and `torch.optim.AdamW` for the rest.

    Args:
        params: arrays in torch's shapes, by name.
        grads_of: function of the step and of the parameters, by name.
        lrs: learning rate of Muon at each step.
        matrices: names of the parameters of Muon.
        ns_dtype: "float32" replaces the dtype of torch's iteration.
        adamw: options of AdamW; `lrs` are multiplied by `factor`.
        **options: of Muon.

    Returns:
        The parameters, and both optimizers.
    """
    import torch

    tensors = {
        k: torch.nn.Parameter(_tensor(v, torch.float32)) for k, v in params.items()
    }
    adamw = dict(adamw or {})
    factor, exempt = adamw.pop("factor", 1.0), adamw.pop("exempt", ())
    rest = [k for k in tensors if k not in matrices]
    groups = [
        {"params": [tensors[k] for k in rest if k not in exempt]},
        {"params": [tensors[k] for k in rest if k in exempt], "weight_decay": 0.0},
    ]
    muon = torch.optim.Muon([tensors[k] for k in matrices], **options)
    other = torch.optim.AdamW(groups, foreach=False, **adamw)
    # torch converts to bfloat16 inside of its iteration, by this method only.
    patch = contextlib.nullcontext()
    if ns_dtype == "float32":
        patch = mock.patch.object(torch.Tensor, "bfloat16", torch.Tensor.clone)
    with patch:
        for step, lr in enumerate(lrs):
            grads = grads_of(step, {k: _numpy(t) for k, t in tensors.items()})
            for name, tensor in tensors.items():
                tensor.grad = _tensor(grads[name], torch.float32)
            for optimizer, rate in ((muon, lr), (other, factor * lr)):
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
    return {k: _numpy(t) for k, t in tensors.items()}, muon, other
