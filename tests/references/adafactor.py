"""Adafactor of Transformers on torch, in float32, float64, bfloat16 or float16.

The module also has the leaves of the runs, each with its form in torch.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxopt_tf.optimizers import TorchLayout

# Maps the name of a parameter to its values. Gradients have a leading axis of steps.
Arrays = Mapping[str, np.ndarray]


class Leaf(NamedTuple):
    """Leaf as stored by Flax, with its form in torch: one or more parameters."""

    shape: tuple[int, ...]
    layout: TorchLayout | None = None  # None if no layout is declared
    view: Callable[[np.ndarray], np.ndarray | list[np.ndarray]] = lambda x: x


# The views are written explicitly, so that they test the layouts too.
LEAVES = {
    "scalar": Leaf(()),
    "bias": Leaf((7,)),
    "embedding": Leaf((16, 9)),
    "three": Leaf((3, 5, 4)),
    "four": Leaf((2, 3, 4, 5)),
    "conv2d.kernel": Leaf((3, 2, 4, 6), None, lambda x: x.transpose(3, 2, 0, 1)),
    "dense": Leaf((6, 9), TorchLayout.dense(), lambda x: x.T),
    "conv1d": Leaf((3, 4, 5), TorchLayout.conv(1), lambda x: x.transpose(2, 1, 0)),
    "query": Leaf(
        (6, 2, 4), TorchLayout.dense_general(1, 2), lambda x: x.reshape(6, 8).T
    ),
    "query_bias": Leaf((2, 4), TorchLayout.flat(2), lambda x: x.reshape(8)),
    "out": Leaf(
        (2, 4, 6), TorchLayout.dense_general(2, 1), lambda x: x.reshape(8, 6).T
    ),
    "layers.query": Leaf(
        (3, 6, 2, 4),
        TorchLayout.dense_general(1, 2).stacked(),
        lambda x: [layer.reshape(6, 8).T for layer in x],
    ),
    "layers.scale": Leaf((5, 3), TorchLayout().stacked(1), lambda x: list(x.T)),
}
UNDECAYED = ("bias", "query_bias", "layers.scale")


def random_run(
    rng: np.random.Generator, num_steps: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Draws parameters, and gradients whose size jumps, so that clipping is active."""
    params, grads = {}, {}
    size = np.exp(rng.normal(size=num_steps)) * 1e-2
    for name, leaf in LEAVES.items():
        params[name] = (0.02 * rng.normal(size=leaf.shape)).astype(np.float32)
        noise = rng.normal(size=(*leaf.shape, num_steps)) * size
        grads[name] = np.moveaxis(noise, -1, 0).astype(np.float32)
    params["scalar"] = np.full((), 0.7, np.float32)
    params["bias"] = np.zeros(7, np.float32)
    return params, grads


def layouts_of(tree: Arrays) -> dict[str, TorchLayout]:
    """Returns the layouts that are declared for these leaves."""
    layouts = {re.escape(name): LEAVES[name].layout for name in tree}
    return {pattern: layout for pattern, layout in layouts.items() if layout}


def torch_views(tree: Arrays) -> dict[str, np.ndarray]:
    """Returns the leaves in torch's form: a stack becomes a parameter per layer."""
    views = {}
    for name, array in tree.items():
        view = LEAVES[name].view(np.asarray(array))
        layers = view if isinstance(view, list) else [view]
        views |= {f"{name}#{i}": layer for i, layer in enumerate(layers)}
    return views


def transformers_run(
    params: Arrays, grads: Arrays, **options: Any
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    """Runs `transformers_adafactor` on the views of `LEAVES`."""
    steps = [
        torch_views({name: g[i] for name, g in grads.items()})
        for i in range(len(next(iter(grads.values()))))
    ]
    views = torch_views(params)
    undecayed = [name for name in views if name.split("#")[0] in UNDECAYED]
    stacked = {name: np.stack([step[name] for step in steps]) for name in views}
    return transformers_adafactor(views, stacked, undecayed=undecayed, **options)


class Distance(NamedTuple):
    """Distance of a parameter from the reference, relative to how far it moved."""

    ours: float  # of our run from the float32 reference
    exact: float  # of our run from the float64 reference
    reference: float  # between the two reference runs

    def reaches(self, limit: float) -> bool:
        """Whether it is near the float32 run, or as near to float64 as that run is."""
        return self.ours <= limit or self.exact <= max(limit, self.reference)


def distances(
    ours: Arrays, f32: Arrays, f64: Arrays, start: Arrays
) -> dict[str, Distance]:
    """Returns the distances of all parameters, in torch's form."""

    def distance(a: Arrays, b: Arrays, name: str) -> float:
        moved = np.max(np.abs(f64[name] - start[name]))
        return float(np.max(np.abs(np.float64(a[name]) - b[name])) / moved)

    return {
        name: Distance(
            distance(ours, f32, name),
            distance(ours, f64, name),
            distance(f32, f64, name),
        )
        for name in f32
    }


def transformers_adafactor(
    params: Arrays,
    grads: Arrays,
    *,
    dtype: str = "float32",
    rates: Sequence[float] | None = None,
    weight_decay: float = 0.0,
    undecayed: Sequence[str] = (),
    **options: Any,
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    """Runs `transformers.optimization.Adafactor` over all gradients.

    Args:
        params: the parameters, in torch's form.
        grads: one gradient per step for each parameter.
        dtype: dtype of torch's parameters and gradients.
        rates: the learning rate of every step; None with `relative_step`.
        weight_decay: weight decay of all parameters except `undecayed`.
        undecayed: names of parameters in a group without decay.
        **options: other options of Adafactor.

    Returns:
        The parameters after the last step and their states in torch, in float64.
    """
    import torch
    from transformers.optimization import Adafactor

    torch.set_num_threads(1)
    kind = getattr(torch, dtype)
    tensors = {
        name: torch.nn.Parameter(torch.tensor(value, dtype=kind))
        for name, value in params.items()
    }
    groups = [
        {
            "params": [t for name, t in tensors.items() if name not in undecayed],
            "weight_decay": weight_decay,
        },
        {
            "params": [t for name, t in tensors.items() if name in undecayed],
            "weight_decay": 0.0,
        },
    ]
    groups = [group for group in groups if group["params"]]
    optimizer = Adafactor(groups, lr=None if rates is None else rates[0], **options)
    num_steps = len(next(iter(grads.values())))
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = None if rates is None else rates[step]
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(grads[name][step], dtype=kind)
        optimizer.step()
    states = {
        name: {key: _numpy(value) for key, value in optimizer.state[tensor].items()}
        for name, tensor in tensors.items()
    }
    return {name: _numpy(tensor) for name, tensor in tensors.items()}, states


def refusal(**options: Any) -> str:
    """Returns the message with which Transformers refuses options."""
    import torch
    from transformers.optimization import Adafactor

    try:
        Adafactor([torch.nn.Parameter(torch.zeros(2))], **options)
    except ValueError as error:
        return str(error)
    raise AssertionError(f"Transformers takes {options}.")


def _numpy(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().double().numpy()
    return np.array(value, np.float64)
