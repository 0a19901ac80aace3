"""A torch module as a function of its tensors, executed by JAX.

function = TorchFunction(module)
loss = function(lambda module, batch: module(**batch).loss, params, batch, rng)
"""

import contextlib
import functools
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import sharding
from ._torch_sharding import following_layers, linear_layers
from ._torchax import explain_errors, import_torch, make_environment

Mesh = Any  # `Mesh` or `AbstractMesh`; they have no common base class to annotate
_LOCK = threading.RLock()


def _in_turn(method: Callable[..., Any]) -> Callable[..., Any]:
    """Lets one thread at a time trace: it changes the module and Python's warnings."""

    @functools.wraps(method)
    def locked(*args: Any, **kwargs: Any) -> Any:
        with _LOCK:
            return method(*args, **kwargs)

    return locked


class TorchFunction:
    """A torch module as a function of its parameters, its input and a random key.

    The module is not copied, and its tensors are not changed. The module can be on
    torch's meta device, except for its buffers.

    Attributes:
        module: the module.
        trainable: shape and dtype of every parameter with `requires_grad`, by torch's
            name, tied ones once.
        frozen: the other parameters.
        has_values: False if the parameters of the module are not initialized, so that
            frozen ones must be passed.

    Raises:
        TypeError: if `module` is not a `torch.nn.Module`.
        ValueError: if the module has a buffer that changes in training, or no trainable
            parameter.
    """

    def __init__(
        self,
        module: Any,
        *,
        materialize_views: bool = False,
        settings: Callable[[], contextlib.AbstractContextManager[None]] | None = None,
    ):
        """Reads the names, shapes and dtypes of the module's tensors.

        Args:
            module: the torch module.
            materialize_views: as for `make_environment`.
            settings: context in which the module is executed; None for no context.
        """
        torch = import_torch()
        if not isinstance(module, torch.nn.Module):
            raise TypeError(
                f"`module` must be a torch.nn.Module, got {type(module).__name__}."
            )
        _check_statistics(module)
        named = dict(module.named_parameters())
        self.module = module
        self.trainable = {n: _shape(p) for n, p in named.items() if p.requires_grad}
        self.frozen = {n: _shape(p) for n, p in named.items() if not p.requires_grad}
        if not self.trainable:
            raise ValueError(
                "`module` must have a parameter to train, but none of its "
                f"{len(named)} parameters has `requires_grad`. Set it."
            )
        self.has_values = True
        self._materialize_views = materialize_views
        self._settings = settings or contextlib.nullcontext

    @_in_turn
    def values(self, names: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Returns copies of the module's parameters of these names.

        Raises:
            ValueError: if a parameter is on the meta device.
        """
        named = dict(self.module.named_parameters())
        for name in names:
            if named[name].is_meta:
                raise ValueError(
                    "`module` must have values in its parameters, but "
                    f"{name!r} is on the meta device. Load the weights first."
                )
        return {name: jnp.array(_to_numpy(named[name])) for name in names}

    @_in_turn
    def __call__(
        self,
        function: Callable[[Any, Any], Any],
        params: Mapping[str, Any],
        batch: Any,
        rng: jax.Array | None = None,
        *,
        mesh: Mesh | None = None,
    ) -> Any:
        """Returns `function(module, batch)`, computed by JAX.

        Args:
            function: function of torch code. Its result is a tree of tensors.
            params: trainable parameters by torch's name. Frozen ones are taken from the
                module, as constants of the compiled program, unless they are in
                `params`, too.
            batch: tree of arrays, which the function receives as tensors.
            rng: key for dropout; the module is then in training mode. None for
                evaluation mode.
            mesh: mesh over which the batch and activations are sharded; None for a
                single device.

        Returns:
            The result, with JAX arrays for tensors.

        Raises:
            ValueError: if names in `params` are missing or unknown, if the module
                cannot be executed by torchax, or if it changes a buffer.
        """
        self._check_names(params)
        torch, module = import_torch(), self.module
        env = self._environment(mesh)
        missing = {n: s for n, s in self.frozen.items() if n not in params}
        tensors = env.j2t_iso(
            {**self._buffers(), **self.values(missing)}
            | {name: jnp.asarray(value) for name, value in params.items()}
        )
        batch = jax.tree.map(jnp.asarray, batch)
        if mesh is not None:
            constrain = sharding.constrain_batch(mesh)
            batch = jax.tree.map(lambda x: constrain(x) if x.ndim else x, batch)
        # An environment rotates its key at each random operation. If the caller passes
        # no key, it gets a constant one: its own key would become a traced array.
        key = jax.random.key(0) if rng is None else rng
        # Functions may raise errors of their own, which `explain_errors` passes on.
        with (
            torch.no_grad(),
            # torch promotes dtypes and broadcasts, whatever JAX's settings are.
            jax.numpy_dtype_promotion("standard"),
            jax.numpy_rank_promotion("allow"),
            _without_int64_warnings(),
            explain_errors(module),
            self._settings(),
            _in_mode(module, is_training=rng is not None),
            env.override_property(prng=key),
            env,
            _with_attributes(module, env),
            _with_remat(module, env),
            _with_constraints(module, env, mesh, jax.tree.leaves(batch)),
        ):
            result = torch.func.functional_call(
                _caller_type()(module, tensors),
                {f"module.{name}": tensor for name, tensor in tensors.items()},
                (function, env.j2t_iso(batch)),
                strict=False,
            )
            return env.t2j_iso(env.v2t_iso(result))

    @functools.lru_cache(maxsize=4)  # noqa: B019 - one per mesh, for as long as the model lives
    def _environment(self, mesh: Mesh | None) -> Any:
        def constrain_table(table: jax.Array) -> jax.Array:
            return sharding.gather_columns(mesh, table.shape[0])(table)

        return make_environment(
            materialize_views=self._materialize_views,
            constrain_table=None if mesh is None else constrain_table,
        )

    def _buffers(self) -> dict[str, jax.Array]:
        named = self.module.named_buffers(remove_duplicate=False)
        return {name: jnp.asarray(_to_numpy(buffer)) for name, buffer in named}

    def _check_names(self, params: Mapping[str, Any]) -> None:
        known = self.trainable.keys() | self.frozen.keys()
        required = self.trainable if self.has_values else known
        missing = sorted(name for name in required if name not in params)
        unknown = [name for name in params if name not in known]
        if missing or unknown:
            kind, first = ("missing", missing) if missing else ("unknown", unknown)
            raise ValueError(
                "`params` must be the parameters of the module by torch's names, but "
                f"{len(first)} are {kind}, the first being {first[0]!r}. Pass "
                "`model.init(seed)`, or what was read with `model.names`."
            )


def _shape(p: Any) -> jax.ShapeDtypeStruct:
    name = str(p.dtype).removeprefix("torch.")
    # JAX has float64 only if it is enabled.
    dtype = jax.dtypes.canonicalize_dtype(jnp.dtype(name))
    return jax.ShapeDtypeStruct(tuple(p.shape), dtype)


def _to_numpy(tensor: Any) -> np.ndarray:
    torch = import_torch()
    tensor = tensor.detach().cpu().contiguous()
    # NumPy has no bfloat16 of its own, so its bits are viewed as int16.
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(jnp.bfloat16)
    array = tensor.numpy()
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype))


def _check_statistics(module: Any) -> None:
    """Raises if a normalization updates running statistics in training."""
    found = [
        (path, type(layer).__name__)
        for path, layer in module.named_modules()
        if getattr(layer, "track_running_stats", False)
        and getattr(layer, "running_mean", None) is not None
    ]
    if found:
        path, kind = found[0]
        name = f"{path}.running_mean".lstrip(".")
        raise ValueError(
            "`module` must have no buffer that changes in training, got "
            f"{name!r} of {kind} and the statistics of {len(found) - 1} more "
            "normalizations. Use `track_running_stats=False`, or a normalization "
            "without running statistics, such as GroupNorm."
        )


@functools.cache
def _caller_type() -> Any:
    """Returns the class of a module that calls a function with the inner module."""
    base: Any = import_torch().nn.Module

    class Caller(base):
        """Calls a function, and checks that tensors of the module do not change."""

        def __init__(self, module, tensors):
            super().__init__()
            self.module = module
            self.given = [(name, t, t._elem) for name, t in tensors.items()]

        def forward(self, function, batch):
            result = function(self.module, batch)
            tensors = dict(self.module.named_buffers(remove_duplicate=False))
            tensors |= dict(self.module.named_parameters(remove_duplicate=False))
            changed = [
                name
                for name, tensor, array in self.given
                if tensors.get(name, tensor) is not tensor or tensor._elem is not array
            ]
            if changed:
                raise ValueError(
                    "`module` must not change its buffers and parameters in the "
                    f"forward pass, but it changes {', '.join(map(repr, changed))}. "
                    "JAX would discard the change. Return the value, or compute it "
                    "from the input."
                )
            return result

    return Caller


@contextlib.contextmanager
def _without_int64_warnings() -> Iterator[None]:
    """Ignores JAX's warning that int64, torch's dtype of indices, becomes int32."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Explicitly requested dtype")
        yield


@contextlib.contextmanager
def _in_mode(module: Any, *, is_training: bool) -> Iterator[None]:
    """Sets the training or evaluation mode, and restores the mode of every part."""
    modes = [(part, part.training) for part in module.modules()]
    module.train(is_training)
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextlib.contextmanager
def _with_attributes(module: Any, env: Any) -> Iterator[None]:
    """Replaces tensors that are plain attributes of modules, such as angle tables."""
    torch = import_torch()
    found = [
        (part, name, value)
        for part in module.modules()
        for name, value in vars(part).items()
        if isinstance(value, torch.Tensor)
    ]
    for part, name, value in found:
        setattr(part, name, env.j2t_iso(jnp.asarray(_to_numpy(value))))
    try:
        yield
    finally:
        for part, name, value in found:
            setattr(part, name, value)


@contextlib.contextmanager
def _with_remat(module: Any, env: Any) -> Iterator[None]:
    """Replaces torch's gradient checkpointing, if it is enabled, by JAX's.

    torch's gradient checkpointing recomputes activations when torch's backward pass
    runs, which never happens here.
    """
    name = "_gradient_checkpointing_func"
    found = [
        (part, getattr(part, name))
        for part in module.modules()
        if getattr(part, "gradient_checkpointing", False) and hasattr(part, name)
    ]

    def remat(function: Callable, *args: Any) -> Any:
        torch = import_torch()
        leaves, structure = torch.utils._pytree.tree_flatten(args)
        is_tensor = [isinstance(leaf, torch.Tensor) for leaf in leaves]
        given = [x for x, is_one in zip(leaves, is_tensor, strict=True) if is_one]

        def run(key: jax.Array, arrays: list[jax.Array]) -> Any:
            tensors = iter(env.j2t_iso(arrays))
            inner = [
                next(tensors) if is_one else x
                for x, is_one in zip(leaves, is_tensor, strict=True)
            ]
            # A key of its own: the environment's key would be a traced array of the
            # recomputed function after the call.
            with env.override_property(prng=key):
                result = function(*torch.utils._pytree.tree_unflatten(inner, structure))
            return env.t2j_iso(env.v2t_iso(result))

        key = env.get_and_rotate_prng_key()
        arrays = env.t2j_iso(env.v2t_iso(given))
        return env.j2t_iso(jax.checkpoint(run)(key, arrays))

    for part, _ in found:
        setattr(part, name, remat)
    try:
        yield
    finally:
        for part, original in found:
            setattr(part, name, original)


@contextlib.contextmanager
def _with_constraints(
    module: Any, env: Any, mesh: Mesh | None, batch: list[Any]
) -> Iterator[None]:
    """Shards outputs of embeddings and of layers along the batch only.

    Without the constraint, XLA propagates the shardings of weights to activations. The
    inputs of linear layers that do not follow another one are constrained, too. If they
    are not, as between the two layers of BERT's head, gradients are wrong under JAX
    0.10.2 on a mesh of three axes: rows of the partitioned product are exchanged.
    """
    torch = import_torch()
    num_rows = next((x.shape[0] for x in batch if x.ndim), None)
    handles = []
    if mesh is not None and num_rows is not None:
        constrain = sharding.constrain_batch(mesh)

        def hook(part: Any, args: Any, output: Any) -> Any:
            def constrained(x: Any) -> Any:
                if not isinstance(x, torch.Tensor) or x.ndim < 2:
                    return x
                if x.shape[0] != num_rows:
                    return x
                return env.j2t_iso(constrain(env.t2j_iso(env.v2t_iso(x))))

            return torch.utils._pytree.tree_map(constrained, output)

        def hook_of_input(part: Any, args: Any) -> Any:
            return hook(part, None, args)

        followers = following_layers(module)
        for path, (layer, _, _) in linear_layers(module).items():
            if path not in followers:
                handles.append(layer.register_forward_pre_hook(hook_of_input))
        lists = (torch.nn.ModuleList, torch.nn.Sequential)
        for part in module.modules():
            inner = part.children() if isinstance(part, lists) else ()
            chosen = [part] if isinstance(part, torch.nn.Embedding) else list(inner)
            handles += [one.register_forward_hook(hook) for one in chosen]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
