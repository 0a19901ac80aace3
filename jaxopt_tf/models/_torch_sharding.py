"""Sharding rules of a torch module, from the types and sizes of its layers."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from jax.sharding import PartitionSpec

from .._pytrees import match_rules
from ._torchax import import_torch

Mesh = Any  # `Mesh` or `AbstractMesh`; they have no common base class to annotate

# Layers that have one input in common, such as projections to queries, keys and values.
# By their sizes alone, one could seem to follow another. Such pairs are excluded by
# name.
_SIBLINGS = re.compile(
    r"(q|k|v|query|key|value|gate|up|qkv|wi_0|wi_1|w1|w3)(_?proj|_?lin|_?layer)?"
)
# Output projections of attention and MLPs. They are matched by name, because some
# modules define them before the projections that they follow.
_OUTPUT = re.compile(r"(o|out|down|c)_proj")
# Weights of LoRA. The layer beside them has the path `<layer>.base_layer`.
_LORA = re.compile(r"(?P<layer>.*)\.lora_(?P<kind>[AB])\.[^.]+\.weight")
# Maximum number of projections in a fused layer; queries, keys and values are three.
_MAX_FUSED = 4


def module_rules(
    module: Any, params: Mapping[str, Any], overrides: Mapping[str, PartitionSpec]
) -> dict[str, PartitionSpec]:
    """Returns the sharding rules of a module, for `param_shardings`.

    The mesh axes `fsdp` and `tensor` each divide one axis of every matrix:

        embedding [V, d]: V over tensor, d over fsdp.
        linear layer, weight [out, in]: out over tensor, in over fsdp; the bias over
            tensor.
        linear layer that follows another one, such as the output of attention or of an
            MLP: in over tensor, out over fsdp; the bias is replicated. The activations
            in between stay sharded, and one all-reduce follows (Megatron-LM, arXiv
            1909.08053, section 3).
        stack of experts [E, ., .]: E over tensor, the larger other axis over fsdp.
        matrices of LoRA, [r, in] and [out, r]: in and out as in the layer's own weight.
        other arrays of two or more axes: the largest axis over fsdp.
        vectors: replicated.

    A layer B follows an earlier layer A if two conditions hold: A has 1 to 4 times as
    many outputs as B has inputs (more than once in a fused projection); B has as many
    outputs as A has inputs.

    Args:
        module: the torch module; weights of its `Conv1D` layers are [in, out].
        params: the parameters to which the rules apply, by torch's name.
        overrides: rules by pattern, which replace those of the parameters they match.

    Returns:
        One rule per parameter, by its escaped name.

    Raises:
        TypeError, ValueError: as `param_shardings`, for `overrides`.
    """
    specs = _with_adapters(dict(_specs(module)), module)
    given = match_rules(
        "sharding_rules", overrides, PartitionSpec, "PartitionSpec", dict(params)
    )
    # `match_rules` returns the values in the order of `jax.tree.leaves`: sorted keys.
    override_of = dict(zip(sorted(params), given, strict=True))
    rules = {}
    for name in params:
        spec = override_of[name]
        derived = PartitionSpec(*specs[name])
        rules[re.escape(name)] = derived if spec is None else spec
    return rules


def on_mesh(rules: Mapping[str, PartitionSpec], mesh: Mesh) -> dict[str, PartitionSpec]:
    """Returns the rules without axes that the mesh does not have."""

    def on_axes(entry: Any) -> Any:
        names = entry if isinstance(entry, tuple) else (entry,)
        found = tuple(name for name in names if name in mesh.shape)
        return None if not found else found[0] if len(found) == 1 else found

    return {name: PartitionSpec(*map(on_axes, spec)) for name, spec in rules.items()}


def linear_layers(module: Any) -> dict[str, tuple[Any, int, int]]:
    """Returns the linear layers by path, each with its numbers of inputs and outputs.

    Layers of Transformers' `Conv1D` are included.
    """
    nn = import_torch().nn
    found = {}
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            found[path] = (layer, layer.in_features, layer.out_features)
        elif is_conv1d(layer):
            num_in, num_out = layer.weight.shape
            found[path] = (layer, num_in, num_out)
    return found


def is_conv1d(layer: Any) -> bool:
    """Returns whether a layer is a `Conv1D` of Transformers, a transposed Linear."""
    layer_type = type(layer)
    names = layer_type.__module__, layer_type.__name__
    return names == ("transformers.pytorch_utils", "Conv1D")


def _specs(module: Any) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yields the name of each parameter and the mesh axis along each of its axes.

    A tied parameter is yielded once.
    """
    nn = import_torch().nn
    followers = following_layers(module)
    seen = set()
    for path, layer in module.named_modules():
        for last, p in layer.named_parameters(recurse=False):
            if id(p) in seen:
                continue
            seen.add(id(p))
            name = f"{path}.{last}" if path else last
            if isinstance(layer, nn.Embedding):
                yield name, ("tensor", "fsdp")
            elif path in followers and last == "weight":
                # The inputs are sharded over `tensor`. The weight of a Conv1D is
                # [in, out].
                is_in_out = is_conv1d(layer)
                yield name, ("tensor", "fsdp") if is_in_out else ("fsdp", "tensor")
            elif path in followers:
                yield name, ()
            elif is_conv1d(layer) and last == "weight":
                yield name, ("fsdp", "tensor")
            elif isinstance(layer, nn.Linear) or is_conv1d(layer):
                yield name, ("tensor", "fsdp")[: p.ndim]
            else:
                yield name, _by_shape(tuple(p.shape), name)


def _with_adapters(
    specs: dict[str, tuple[Any, ...]], module: Any
) -> dict[str, tuple[Any, ...]]:
    """Replaces the mesh axes of LoRA's matrices by those of the layers beside them."""
    layers = linear_layers(module)
    for name in specs:
        found = _LORA.fullmatch(name)
        base = found and f"{found['layer']}.base_layer"
        if not found or base not in layers:
            continue
        out, in_ = (*specs[f"{base}.weight"], None, None)[:2]
        if is_conv1d(layers[base][0]):
            out, in_ = in_, out
        specs[name] = (None, in_) if found["kind"] == "A" else (out, None)
    return specs


def _by_shape(shape: tuple[int, ...], name: str) -> tuple[Any, ...]:
    if len(shape) < 2:
        return ()
    if len(shape) == 3 and "expert" in name:
        return ("tensor", "fsdp") if shape[1] >= shape[2] else ("tensor", None, "fsdp")
    spec: list[Any] = [None] * len(shape)
    spec[shape.index(max(shape))] = "fsdp"
    return tuple(spec)


def following_layers(module: Any) -> set[str]:
    """Returns the paths of linear layers that follow another one."""
    found = set()
    # Inputs and outputs of the layers that the next one may follow. The list is emptied
    # when a layer follows one of them.
    candidates: list[tuple[int, int]] = []
    for path, (_, num_in, num_out) in linear_layers(module).items():
        if _LORA.fullmatch(f"{path}.weight"):
            continue
        last = path.removesuffix(".base_layer").rpartition(".")[2]
        follows = any(
            width_out % num_in == 0
            and width_out <= _MAX_FUSED * num_in
            and width_in == num_out
            for width_in, width_out in candidates
        )
        if _OUTPUT.fullmatch(last) or (follows and not _SIBLINGS.fullmatch(last)):
            found.add(path)
            candidates = []
        else:
            candidates.append((num_in, num_out))
    return found
