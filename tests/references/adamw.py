"""AdamW and clipping of torch, and the AdamW of Transformers 4 in torch operations."""

import numpy as np


def torch_adamw(params, grads_per_step, *, dtype="float32", fused=False, **options):
    """Runs `torch.optim.AdamW`; returns parameters, first and second moments.

    `fused=False` is the for-loop implementation. Gradients are cast to `dtype`; all
    results are float32 or float64. `exempt` has the names that are not decayed.
    """
    import torch

    kind = getattr(torch, dtype)
    options = dict(options)
    lrs = options.pop("lrs", None)
    exempt = set(options.pop("exempt", ()))
    tensors = {k: torch.nn.Parameter(_tensor(v, kind)) for k, v in params.items()}
    groups = [{"params": [t for k, t in tensors.items() if k not in exempt]}]
    if exempt:
        rest = [t for k, t in tensors.items() if k in exempt]
        groups.append({"params": rest, "weight_decay": 0.0})
    implementation = {"fused": True} if fused else {"foreach": False}
    optimizer = torch.optim.AdamW(groups, **options, **implementation)
    for i, grads in enumerate(grads_per_step):
        for name, tensor in tensors.items():
            tensor.grad = _tensor(grads[name], kind)
        if lrs is not None:
            for group in optimizer.param_groups:
                group["lr"] = lrs[i]
        optimizer.step()
    state = {k: optimizer.state[t] for k, t in tensors.items()}
    return (
        {k: _numpy(t) for k, t in tensors.items()},
        {k: _numpy(s["exp_avg"]) for k, s in state.items()},
        {k: _numpy(s["exp_avg_sq"]) for k, s in state.items()},
    )


def transformers_v4_adamw(
    params, grads_per_step, *, lr, betas, eps, weight_decay, correct_bias, dtype
):
    """Runs the arithmetic of `transformers.AdamW` 4.44 in torch operations.

    The class is gone from Transformers 5; this was compared with it once, bit for bit.
    """
    import torch

    kind = getattr(torch, dtype)
    beta1, beta2 = betas
    ps = {name: _tensor(p, kind) for name, p in params.items()}
    ms = {name: torch.zeros_like(p) for name, p in ps.items()}
    vs = {name: torch.zeros_like(p) for name, p in ps.items()}
    for t, grads in enumerate(grads_per_step, start=1):
        size = lr
        if correct_bias:
            size = lr * (1 - beta2**t) ** 0.5 / (1 - beta1**t)
        for name, p in ps.items():
            g = _tensor(grads[name], kind)
            ms[name].mul_(beta1).add_(g, alpha=1 - beta1)
            vs[name].mul_(beta2).addcmul_(g, g, value=1 - beta2)
            p.addcdiv_(ms[name], vs[name].sqrt().add_(eps), value=-size)
            if weight_decay > 0:
                p.add_(p, alpha=-lr * weight_decay)
    return {name: _numpy(p) for name, p in ps.items()}


def torch_clip(grads, max_norm, *, dtype="float32"):
    """Returns the gradients clipped by `clip_grad_norm_`, and their norm."""
    import torch

    kind = getattr(torch, dtype)
    tensors = {name: torch.nn.Parameter(_tensor(g, kind)) for name, g in grads.items()}
    for name, tensor in tensors.items():
        tensor.grad = _tensor(grads[name], kind)
    norm = torch.nn.utils.clip_grad_norm_(list(tensors.values()), max_norm)
    return {name: _numpy(t.grad) for name, t in tensors.items()}, float(norm)


def _tensor(array, kind):
    import torch

    return torch.tensor(np.asarray(array, np.float64)).to(kind)


def _numpy(tensor):
    import torch

    tensor = tensor.detach()
    return (tensor if tensor.dtype == torch.float64 else tensor.float()).numpy()
