"""Import and environment of torchax, which executes operations of PyTorch in JAX.

torchax is optional and experimental. Only one nightly version of it is known to work,
with one version of torch.
"""

import contextlib
import functools
import importlib
import importlib.metadata
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

_INSTALL = 'pip install -e ".[torchax]"'
# Errors of JAX where Python needs the value of a traced array.
_NEEDS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


def import_torchax() -> Any:
    """Imports torchax when a function that needs it is called.

    Raises:
        ModuleNotFoundError: if torch or torchax is not installed.
        ImportError: if the installed versions of the two do not fit.
    """
    try:
        return import_package("torchax")
    except ModuleNotFoundError:
        raise
    # torchax looks up the operations of torch when it is imported: with a version of
    # torch that lacks one of them, the import raises any error.
    except Exception as error:
        versions = " and ".join(f"{n} {_version(n)}" for n in ("torchax", "torch"))
        raise ImportError(
            f"torchax must be of a version that fits torch, got {versions}: "
            f"{type(error).__name__}: {error}. Install both with `{_INSTALL}`.",
            name="torchax",
        ) from error


def import_torch() -> Any:
    """Imports torch when a function needs it.

    Raises:
        ModuleNotFoundError: if it is not installed.
    """
    return import_package("torch")


def import_package(name: str) -> Any:
    """Imports a package of the extra `torchax` when a function needs it.

    Raises:
        ModuleNotFoundError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or name).partition(".")[0]
        raise ModuleNotFoundError(
            f"{missing} must be installed to run a torch module in JAX. Install it "
            f"with `{_INSTALL}`.",
            name=missing,
        ) from error


def make_environment(
    *,
    materialize_views: bool = False,
    constrain_table: Callable[[jax.Array], jax.Array] | None = None,
) -> Any:
    """Returns an environment of torchax, with the operations that are replaced here.

    Args:
        materialize_views: whether each view is copied to a new tensor. Mamba needs
            this, because torchax does not support some views of views. Writes into a
            copied view do not reach the original tensor.
        constrain_table: function that constrains the table of an embedding to its
            sharding on a mesh.
    """
    torchax, torch = import_torchax(), import_torch()
    config = torchax.config.Configuration(force_materialize_views=materialize_views)
    # An environment of its own: the replaced operations do not affect other users of
    # torchax in the process.
    env = torchax.tensor.Environment(config)

    def embedding(
        weight: Any,
        indices: Any,
        padding_idx: int = -1,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> Any:
        del sparse  # only selects a sparse gradient in torch
        if scale_grad_by_freq:
            raise ValueError(
                "`module` must have no Embedding with `scale_grad_by_freq`, which JAX "
                "does not have. Build it without."
            )
        table, ids = env.t2j_iso((weight, indices))
        if constrain_table is not None:
            table = constrain_table(table)
        return env.j2t_iso(embed(table, ids, padding_idx))

    def cross_entropy(
        input: Any,
        target: Any,
        weight: Any = None,
        size_average: Any = None,
        ignore_index: int = -100,
        reduce: Any = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> Any:
        is_plain = weight is size_average is reduce is None and not label_smoothing
        if not is_plain or input.ndim != 2 or target.dtype.is_floating_point:
            reduction_index = torch.nn._reduction.get_enum(reduction)
            return torch._C._nn.cross_entropy_loss(
                input, target, weight, reduction_index, ignore_index, label_smoothing
            )
        logits, labels = env.t2j_iso((input, target))
        losses = nll(logits, labels, ignore_index)
        if reduction != "none":
            losses = jnp.sum(losses)
        if reduction == "mean":
            losses /= jnp.sum(labels != ignore_index)
        return env.j2t_iso(losses.astype(logits.dtype))

    env.override_op_definition(torch.ops.aten.embedding, embedding)
    env.override_op_definition(torch.nn.functional.cross_entropy, cross_entropy)
    return env


def embed(table: jax.Array, ids: jax.Array, padding_idx: int = -1) -> jax.Array:
    """Looks up rows of a table; the padding row has no gradient.

    torchax sets the row `padding_idx` of the gradient to 0. Under JAX 0.10.2 that
    gradient is wrong if the rows of the table are sharded: XLA updates the row of that
    number in each shard. Here the looked up rows are excluded from the gradient.

    Args:
        table: [num_rows, width].
        ids: [...], integers.
        padding_idx: row without a gradient; -1 for none.

    Returns:
        [..., width], in the dtype of the table; NaN for an id outside the table.

    Source: torch 2.13 `nn.functional.embedding`.
    Differs: torch raises an error for an id outside the table.
    """
    # `jnp.take` counts negative indices from the end.
    index = jnp.where(ids < 0, table.shape[0], ids)
    rows = jnp.take(table, index, axis=0, mode="fill")
    if padding_idx == -1:
        return rows
    is_padding = (ids == padding_idx)[..., None]
    return jnp.where(is_padding, jax.lax.stop_gradient(rows), rows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def nll(logits: jax.Array, labels: jax.Array, ignore_index: int) -> jax.Array:
    """Computes the negative log-likelihood of the label of each row.

    torchax's gradient is a scatter into an array of zeros. Under JAX 0.10.2 this
    gradient is wrong on a mesh that divides rows and classes, and needs three more
    passes over the logits. Here the gradient is softmax minus a comparison with the
    label.

    Args:
        logits: [N, C], any floating-point dtype; the arithmetic is in float32, or in
            float64 for float64 logits.
        labels: [N], integers from 0 to C - 1, or `ignore_index`.
        ignore_index: label of rows that have no loss and no gradient.

    Returns:
        [N], float32 or float64; NaN for a label that is not a class.

    Source: torch 2.13 `nn.functional.cross_entropy`.
    Differs: torch raises an error for a label that is not a class.
    """
    return _nll_and_residuals(logits, labels, ignore_index)[0]


def _nll_and_residuals(
    logits: jax.Array, labels: jax.Array, ignore_index: int
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    largest = jnp.max(wide, axis=1, keepdims=True)
    total = jnp.sum(jnp.exp(wide - largest), axis=1, keepdims=True)
    log_total = largest + jnp.log(total)
    # `jnp.take_along_axis` counts negative indices from the end.
    index = jnp.where(labels < 0, logits.shape[1], labels)[:, None]
    of_labels = jnp.take_along_axis(wide, index, axis=1, mode="fill")
    losses = (log_total - of_labels)[:, 0]
    losses = jnp.where(labels == ignore_index, 0.0, losses)
    return losses, (logits, labels, log_total)


def _nll_gradient(
    ignore_index: int, residuals: tuple[jax.Array, ...], cotangent: jax.Array
) -> tuple[jax.Array, None]:
    logits, labels, log_total = residuals
    classes = jax.lax.broadcasted_iota(labels.dtype, logits.shape, 1)
    is_label = (classes == labels[:, None]).astype(log_total.dtype)
    scale = jnp.where(labels == ignore_index, 0.0, cotangent)[:, None]
    wide = logits.astype(log_total.dtype)
    gradient = scale * (jnp.exp(wide - log_total) - is_label)
    return gradient.astype(logits.dtype), None


nll.defvjp(_nll_and_residuals, _nll_gradient)


@contextlib.contextmanager
def explain_errors(module: Any) -> Iterator[None]:
    """Converts errors of an execution under torchax to errors that name a way out.

    Errors that the module raises itself are not converted.

    Args:
        module: the torch module that is executed.

    Raises:
        ValueError: if torchax lacks an operation, if the module needs the values of
            tensors during tracing, or if an operation fails under JAX.
    """
    torchax = import_torchax()
    class_name = type(module).__name__
    try:
        yield
    except torchax.tensor.OperatorNotFound as error:
        raise ValueError(
            f"`module` must consist of operations that torchax has, got {class_name}, "
            f"{_error_location(error)}: {error}. Replace the operation; in a model of "
            'Transformers, try `attn_implementation="eager"`.'
        ) from error
    except _NEEDS_VALUES as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            "`module` must be traceable: its operations must not depend on the values "
            f"of tensors, got {class_name}, {_error_location(error)}: {reason} "
            "Replace the branch or the shape that depends on a value; in a model of "
            'Transformers with experts, use `experts_implementation="batched_mm"`.'
        ) from error
    except Exception as error:
        if isinstance(error, AssertionError) and "mixed math" in str(error):
            raise ValueError(
                "`module` must hold its tensors as parameters, buffers or attributes "
                f"of its modules, got {class_name}, which uses a tensor held elsewhere "
                f"{_error_location(error)}. Register it with `register_buffer`."
            ) from error
        if not _is_of_jax(error):
            raise
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise ValueError(
            f"`module` must run under torchax, got {class_name}, "
            f"{_error_location(error)}: {reason}. Replace the operation, or train "
            "the model with PyTorch."
        ) from error


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _error_location(error: BaseException) -> str:
    """Returns the line of the module's code at which an error was raised."""
    libraries = _folders("torch", "torchax", "jax", "jaxlib", "jaxopt_tf")
    frames = traceback.extract_tb(error.__traceback__)
    module_frames = [f for f in frames if not f.filename.startswith(libraries)]
    if not module_frames:
        return "in its forward pass"
    last = module_frames[-1]
    return f"at {last.filename}:{last.lineno} ({last.line})"


def _is_of_jax(error: BaseException) -> bool:
    """Returns whether an error was raised in code of torchax or JAX."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1].filename if frames else ""
    return last.startswith(_folders("torchax", "jax", "jaxlib"))


def _folders(*packages: str) -> tuple[str, ...]:
    """Returns the folders of packages, with a separator at the end."""
    paths = [getattr(sys.modules.get(name), "__file__", None) for name in packages]
    return tuple(os.path.join(os.path.dirname(path), "") for path in paths if path)
