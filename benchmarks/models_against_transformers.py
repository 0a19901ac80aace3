"""Logits and gradients of each architecture beside those of Transformers.

    python -m benchmarks.models_against_transformers            # 3 minutes on 2 cores
    python -m benchmarks.models_against_transformers --smoke    # one model of each type

Models of Transformers with random weights, biases and gains, of two or four layers, are
written by `save_pretrained` and read by `read_params`. Both sides compute the logits
and the gradients of the same texts, which are longer than the windows and, for
"dynamic", than the context. The printed table is Markdown, as in docs/parity.md; the
exit status is 1 if a limit is missed.

- float32: largest difference of a logit, relative to the largest logit; and 2-norm of
  the difference of a tensor's gradient, relative to the gradient, for the worst tensor.
- bfloat16: distance to the float32 run of Transformers with the same rounded weights,
  of the logits (2-norm) and of the gradients (geometric mean over the tensors).
"""

import dataclasses
import functools
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._report import Row, versions
from jaxopt_tf._pytrees import _tree
from jaxopt_tf.interop import (
    ParamNames,
    match_names,
    read_params,
    torch_model_from_config,
)
from jaxopt_tf.interop._tensor_slices import tensor_from_leaves
from jaxopt_tf.models._decoder import make_decoder_logits, make_decoder_loss
from jaxopt_tf.models._decoder_config import DecoderConfig
from jaxopt_tf.models._decoder_params import draw_decoder_params
from jaxopt_tf.models._transformers_decoder_config import (
    decoder_config_from_transformers,
)
from tests.references import decoders as reference

_SIZES = {
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
}
_SHAPE = (8, 129)  # rows and tokens of a batch
_LIMIT = 1e-5
_BFLOAT16_LIMIT = 1.1  # of the distance of Transformers' own bfloat16 run
_COLUMNS = (
    "model",
    "logits",
    "gradients",
    "bfloat16 logits: here",
    "Transformers",
    "bfloat16 gradients: here",
    "Transformers",
)


def rows(smoke: bool) -> Iterator[Row]:
    """Yields four figures for each model."""
    for name, case in reference.CASES.items():
        if not smoke or name == case["model_type"]:
            yield from _figures(name, {**_SIZES, **case})


def _figures(name: str, case: Mapping[str, Any]) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        model = reference.save(case, Path(folder))
        config = decoder_config_from_transformers(folder)
        shapes = jax.eval_shape(lambda: draw_decoder_params(config, 0))
        names = match_names(shapes, torch_model_from_config(folder))
        params = read_params(folder, shapes, names)
    rng = np.random.default_rng(0)
    batch = rng.integers(0, _SIZES["vocab_size"], _SHAPE).astype(np.int32)
    run = _compiled(config)

    ours, theirs = _here(run, params, names, batch), _in_torch(model, batch)
    logits = np.max(np.abs(ours["logits"] - theirs["logits"]))
    logits = logits / np.max(np.abs(theirs["logits"]))
    worst = max(_distance(ours[n], theirs[n]) for n in theirs if n != "logits")
    for quantity, value in (("logits", logits), ("gradients", worst)):
        yield Row(
            claim=f"{name}: {quantity}",
            value=float(value),
            unit="relative",
            limit=_LIMIT,
        )

    narrow = jax.tree.map(lambda p: np.asarray(p).astype(jnp.bfloat16), params)
    model = reference.with_weights_in(model, "bfloat16")
    ours, theirs = _here(run, narrow, names, batch), _in_torch(model, batch)
    exact = _in_torch(reference.with_weights_in(model, "float32"), batch)
    for quantity, tensors in (
        ("bfloat16 logits", ["logits"]),
        ("bfloat16 gradients", [n for n in exact if n != "logits"]),
    ):
        here, there = (
            np.exp(np.mean([np.log(_distance(run[n], exact[n])) for n in tensors]))
            for run in (ours, theirs)
        )
        yield Row(
            claim=f"{name}: {quantity}",
            value=float(here),
            unit="relative",
            limit=float(_BFLOAT16_LIMIT * there),
            torch=float(there),
        )


def _compiled(config: DecoderConfig) -> Any:
    # "dynamic" has an effect on texts that are longer than the context, which no
    # configuration permits for training.
    config = dataclasses.replace(config)
    object.__setattr__(config, "block_size", _SHAPE[1])
    logits = make_decoder_logits(config)
    gradient = jax.grad(make_decoder_loss(config), has_aux=True)
    return jax.jit(lambda p, batch: (logits(p, batch[:, :-1]), gradient(p, batch)[0]))


def _here(
    run: Any, params: Any, names: ParamNames, batch: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns the logits, and the gradients by the names of torch."""
    logits, grads = run(params, batch)
    leaves = {n: np.asarray(g, np.float32) for n, g in _tree.named_leaves(grads)}
    of_tensor = functools.partial(tensor_from_leaves, leaf=leaves.__getitem__)
    tensors = {name: of_tensor(slices) for name, slices in names.by_tensor.items()}
    return {"logits": np.asarray(logits, np.float32), **tensors}


def _in_torch(model: Any, batch: np.ndarray) -> dict[str, np.ndarray]:
    logits, _, grads = reference.logits_loss_and_grads(model, batch)
    return {"logits": logits, **grads}


def _distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def _main() -> NoReturn:
    print(f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}")
    missed, cells = [], []
    for row in rows("--smoke" in sys.argv[1:]):
        if not row.reached:
            missed.append(f"{row.claim}: {row.value:.2g}, limit {row.limit:.2g}")
        cells.append(f"{row.value:.1e}")
        if row.torch is not None:
            cells.append(f"{row.torch:.1e}")
        if len(cells) == len(_COLUMNS) - 1:
            print(
                f"| {row.claim.partition(':')[0]} | {' | '.join(cells)} |", flush=True
            )
            cells = []
    print(f"\nVersions: {json.dumps(versions())}.")
    print("\n".join(["Limits missed:", *missed]) if missed else "All limits reached.")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    _main()
