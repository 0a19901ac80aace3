"""Every name of Trainer's `optim`: its function here, and its distance to the original.

    python -m benchmarks.optim_names            # 5 minutes on 2 cores
    python -m benchmarks.optim_names --smoke    # fewer steps
    python -m benchmarks.optim_names --write    # also writes the table of the pages

Needs transformers 5.23, bitsandbytes 0.50.2, torchao 0.18, torch-optimi 0.3.3,
schedulefree 1.4.1 and lomo-optim 0.1.1; rows whose package is missing say so.

Trainer builds the optimizer of each name, with its two decay groups. It and the one of
`build_optimizer` receive the same gradients, clipped by their joint norm, and the rates
of a cosine schedule. Parameters are matrices of 4,095, 4,096 and more elements, of
which one is no multiple of a block, an embedding, vectors and a scalar. Distances are
relative to the largest distance that an element moves in the reference.

On CPUs bitsandbytes rounds moments of 8 bits through a table. Here it rounds them to
the nearest levels, which is the rule of its CUDA kernel. Codes are compared after the
last step of two independent runs from equal gradients.

Levels, their middles and the means are rounded as in the libraries. The gradients still
differ: their norm for clipping is another sum, and may differ in its last bit.
"""

import functools
import importlib.metadata
import math
import os
import pathlib
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # torchao compiles for minutes

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._bitsandbytes import replace_rounding
from benchmarks._report import Row, main
from jaxopt_tf.interop import (
    match_names,
    opt_state_from_torch,
    torch_from_opt_state,
    torch_model_from_module,
)
from jaxopt_tf.optimizers import QuantizedMoment, decay_mask
from jaxopt_tf.recipes import Recipe, build_optimizer, optimizer_refusal

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "optimizers_of_trainer.md"
LIMIT, EQUAL_CODES, SCALES = 5e-6, 0.9999, 1e-6
RATE, MAX_NORM, WEIGHT_DECAY = 1e-2, 1.0, 0.1
NESTED = "__bnb_optimizer_quant_state__"

# Package of the reference of each name, by pattern; torch for all others.
PACKAGES = {
    r"adafactor": "transformers",
    r"(paged_)?(adamw_8bit|lion_.*|ademamix.*|adamw_32bit)|adamw_bnb_8bit|rmsprop_bnb.*"
    r"|paged_adamw_8bit": "bitsandbytes",
    r"adamw_torch_[48]bit": "torchao",
    r"stable_adamw": "torch-optimi",
    r"schedule_free_.*": "schedulefree",
    r"(ada)?lomo": "lomo-optim",
}
# Kernels of AdamW for other devices, and AnyPrecisionAdamW, whose package cannot be
# installed from PyPI and which is AdamW at Trainer's settings.
AS_ADAMW_TORCH = ("adamw_torch_xla", "adamw_torch_npu_fused", "adamw_anyprecision")
SCHEDULED_ARGS = {"ademamix": "t_alpha=60,t_beta3=80", "sgd": "momentum=0.9"}


class Result(NamedTuple):
    """Comparison of one name with its reference."""

    reference: str
    function: str
    bytes_per_param: float
    distance: float = math.nan
    # Of the reference and of the run here, from a float64 run here.
    of_reference: float = math.nan
    of_ours: float = math.nan
    equal_codes: float = math.nan
    scales: float = math.nan
    file: str = ""
    missing: str = ""  # name of a package


def module() -> Any:
    """Returns a module of torch with all kinds of parameters."""
    import torch

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embed = torch.nn.Embedding(100, 64)
            self.square = torch.nn.Linear(64, 64, bias=True)
            self.below = torch.nn.Linear(65, 63, bias=False)
            self.odd = torch.nn.Linear(67, 67, bias=False)
            self.rows = torch.nn.Linear(256, 24, bias=False)
            self.norm = torch.nn.LayerNorm(64)
            self.gain = torch.nn.Parameter(torch.tensor(0.7))

    return Module()


def gradients(step: int, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Returns gradients, of which two in three steps are clipped."""
    rng = np.random.default_rng(1 + step)
    num = sum(math.prod(shape) for shape in shapes.values())
    size = (0.5, 2.0, 4.0)[step % 3] * MAX_NORM / math.sqrt(num)
    return {
        name: (size * rng.normal(size=shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def rate(step: int, num_steps: int) -> float:
    return RATE * (0.55 + 0.45 * math.cos(math.pi * step / num_steps))


class Reference:
    """The optimizer that Trainer builds for a name, on a module."""

    def __init__(self, name: str):
        """Builds a module, and its optimizer by Trainer's function."""
        import transformers

        self.name, self.module = name, module()
        if name == "adalomo":  # fails for scalars
            del self.module.gain
        self.params = dict(self.module.named_parameters())
        self.decayed = decay_mask(
            {n: np.zeros(p.shape) for n, p in self.params.items()},
            layer_norms=["norm"],
        )
        self.start = {n: p.detach().numpy().copy() for n, p in self.params.items()}
        base = "adamw_torch" if name in AS_ADAMW_TORCH else name
        with tempfile.TemporaryDirectory() as folder:
            self.arguments = transformers.TrainingArguments(
                folder,
                optim=name,
                optim_args=optim_args(name),
                learning_rate=RATE,
                weight_decay=WEIGHT_DECAY,
                max_grad_norm=MAX_NORM,
                report_to=[],
                use_cpu=True,
            )
            self.arguments.optim = transformers.training_args.OptimizerNames(base)
        trainer = transformers.Trainer
        kind, options = trainer.get_optimizer_cls_and_kwargs(
            self.arguments, self.module
        )
        if base.endswith("8bit") and kind.__module__.startswith("bitsandbytes"):
            self._keep_embedding_in_32_bits()
        groups = [
            {"params": self._group(True), "weight_decay": WEIGHT_DECAY},
            {"params": self._group(False), "weight_decay": 0.0},
        ]
        self.in_backward = "model" in options
        first = () if self.in_backward else (groups,)
        self.optimizer = kind(*first, **options)
        if hasattr(self.optimizer, "train"):
            self.optimizer.train()
        self.kind = kind.__name__

    def _group(self, is_decayed: bool) -> list[Any]:
        return [p for n, p in self.params.items() if self.decayed[n] == is_decayed]

    def names(self) -> list[list[str]]:
        """Returns the names of the parameters of each group."""
        return [[n for n in self.params if self.decayed[n] == d] for d in (True, False)]

    def _keep_embedding_in_32_bits(self) -> None:
        from bitsandbytes.optim import GlobalOptimManager

        manager = GlobalOptimManager.get_instance()
        manager.initialize()
        manager.register_module_override(
            self.module.embed, "weight", {"optim_bits": 32}
        )

    def run(self, num_steps: int) -> dict[str, np.ndarray]:
        """Returns the parameters after all steps."""
        import torch

        shapes = {name: p.shape for name, p in self.params.items()}
        for step in range(num_steps):
            now = rate(step, num_steps)
            for name, grad in gradients(step, shapes).items():
                self.params[name].grad = torch.tensor(grad)
            if self.in_backward:
                pairs = [(p, p.grad) for p in self.params.values()]
                self.module.zero_grad()
                loss = sum((p * g).sum() for p, g in pairs)
                self.optimizer.fused_backward(loss, now)
                continue
            torch.nn.utils.clip_grad_norm_(self.params.values(), MAX_NORM)
            for group in self.optimizer.param_groups:
                if isinstance(group["lr"], torch.Tensor):
                    group["lr"].fill_(now)
                else:
                    group["lr"] = now
            self.optimizer.step()
        return {name: p.detach().numpy().copy() for name, p in self.params.items()}


def optim_args(name: str) -> str | None:
    """Returns arguments for names whose defaults leave out a part of the formula."""
    for part, args in SCHEDULED_ARGS.items():
        if re.fullmatch(f"(paged_)?{part}(_.*)?", name):
            return args
    return None


def ours(
    recipe: Recipe, reference: Reference, num_steps: int, dtype: Any
) -> tuple[dict[str, np.ndarray], Any]:
    """Returns the parameters and the state here after all steps."""
    wide = np.float64 if dtype == jnp.float64 else np.float32
    rates = np.array([rate(step, num_steps) for step in range(num_steps)], wide)
    optimizer = build_optimizer(
        recipe,
        schedule=lambda step: jnp.asarray(rates)[step],
        layer_norms=["norm"],
    )
    params = {n: jnp.asarray(p, dtype) for n, p in reference.start.items()}
    state = jax.jit(optimizer.init)(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    shapes = {name: p.shape for name, p in params.items()}
    for i in range(num_steps):
        grads = {n: jnp.asarray(g, dtype) for n, g in gradients(i, shapes).items()}
        params, state = step(params, state, grads)
    return {n: np.asarray(p, np.float64) for n, p in params.items()}, state


def distance(a: Any, b: Any, start: Any) -> float:
    moved = max(np.abs(b[n] - start[n]).max() for n in start)
    return float(max(np.abs(a[n] - b[n]).max() for n in start) / moved)


@functools.cache
def compared(name: str, num_steps: int) -> Result:
    """Compares one name with the optimizer that Trainer builds for it."""
    package = next((v for p, v in PACKAGES.items() if re.fullmatch(p, name)), "torch")
    try:
        version = importlib.metadata.version(package).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return Result(package, "", math.nan, missing=package)
    reference = Reference(name)
    recipe = Recipe(
        max_steps=num_steps,
        optim=name,
        optim_args=optim_args(name) or (),
        learning_rate=RATE,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=MAX_NORM,
    )
    theirs = reference.run(num_steps)
    found, state = ours(recipe, reference, num_steps, jnp.float32)
    result = Result(
        f"{package} {version}, `{reference.kind}`",
        function_of(recipe),
        bytes_per_param(recipe),
        distance(found, theirs, reference.start),
        file=file_of(reference, theirs, state),
    )
    if jax.tree.leaves(moments_of(state)):
        codes, scales = compared_codes(state, reference)
        return result._replace(equal_codes=codes, scales=scales)
    with jax.enable_x64(True):
        exact, _ = ours(recipe, reference, num_steps, jnp.float64)
    return result._replace(
        of_reference=distance(theirs, exact, reference.start),
        of_ours=distance(found, exact, reference.start),
    )


def moments_of(state: Any) -> list[tuple[str, str, QuantizedMoment]]:
    """Returns the quantized moments, with the names of field and parameter."""
    found = []
    leaves = jax.tree_util.tree_leaves_with_path(
        state, is_leaf=lambda node: isinstance(node, QuantizedMoment)
    )
    for path, leaf in leaves:
        if isinstance(leaf, QuantizedMoment):
            field, key = path[-2], path[-1]
            found.append((field.name, key.key, leaf))
    return found


def compared_codes(state: Any, reference: Reference) -> tuple[float, float]:
    """Returns the share of equal codes, and the largest difference of scales."""
    num_equal = num_codes = 0
    largest = 0.0
    for field, name, moment in moments_of(state):
        entry = reference.optimizer.state[reference.params[name]]
        codes, scales = codes_of(entry, field)
        num_equal += int((np.asarray(moment.codes).reshape(-1) == codes).sum())
        num_codes += codes.size
        differences = np.abs(np.asarray(moment.scales).reshape(-1) / scales - 1)
        largest = max(largest, float(differences.max()))
    return num_equal / num_codes, largest


def codes_of(entry: Any, field: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns codes and scales of a moment in the state of the reference."""
    if "exp_avg" in entry:  # torchao
        array = entry["exp_avg" if field == "mu" else "exp_avg_sq"]
        return array.codes.numpy().reshape(-1), array.scale.numpy().reshape(-1)
    number = 2 if field == "nu" and "state2" in entry else 1
    codes, scales = entry[f"state{number}"], entry[f"absmax{number}"]
    if number == 1 and scales.ndim == 2:
        index = int(field == "mu_slow")
        codes, scales = codes[index], scales[index]
    return codes.numpy().reshape(-1), scales.numpy().reshape(-1)


def function_of(recipe: Recipe) -> str:
    """Returns the function that is called for a name."""
    from jaxopt_tf.recipes._optimizers import ALGORITHMS

    build: Any = ALGORITHMS[recipe.optim].build
    args = []
    while isinstance(build, functools.partial):
        args += [f"{k}={v!r}" for k, v in build.keywords.items()]
        build = build.args[0] if build.args else build.func
    known = {
        "anyprecision": "adamw_tf",
        "stable_adamw": "stable_adamw_tf",
        "lomo": "sgd_tf",
        "adalomo": "adafactor_tf(relative_step=False)",
    }
    text = known.get(build.__name__, build.__name__)
    return f"`{text}({', '.join(args)})`" if args else f"`{text}`"


def bytes_per_param(recipe: Recipe) -> float:
    params = {"kernel": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}
    state = jax.eval_shape(build_optimizer(recipe).init, params)
    num_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state) if x.ndim)
    return num_bytes / 2**20


def file_of(reference: Reference, params: Any, state: Any) -> str:
    """Returns whether the reference's state dict is read and written bit for bit."""
    saved = reference.optimizer.state_dict()
    if reference.in_backward:
        return "no state is saved"
    if reference.name == "adamw_anyprecision":
        return "not converted"  # its own package writes other groups
    names = match_names(reference.start, torch_model_from_module(reference.module))
    groups = reference.names()
    try:
        read = opt_state_from_torch(
            jax.eval_shape(lambda: state),
            reference.start,
            saved,
            names,
            groups=groups,
        )
        written = torch_from_opt_state(
            read, params, names, saved["param_groups"], groups=groups
        )
    except (ValueError, TypeError):
        return "not converted"
    return "in and out" if same_bits(written["state"], saved["state"]) else "DIFFERS"


def same_bits(a: Any, b: Any) -> bool:
    if isinstance(b, dict):
        # `RMS` of Adafactor is that of the parameter before or after the last update.
        keys = b.keys() - {"RMS"}
        return a.keys() == b.keys() and all(same_bits(a[k], b[k]) for k in keys)
    if hasattr(b, "codes"):  # a tensor of torchao
        parts = ("codes", "scale", "qmap", "signed", "shape", "dtype")
        same_type = type(a) is type(b)
        return same_type and all(
            same_bits(getattr(a, part), getattr(b, part)) for part in parts
        )
    if hasattr(b, "numpy") and hasattr(a, "numpy"):
        return a.dtype == b.dtype and bool((a == b).all())
    return bool(a == b)


def rows(smoke: bool) -> Iterator[Row]:
    """Yields one row for each name, and one for their number."""
    import torch
    import transformers

    replace_rounding()

    torch.Tensor.cuda = lambda self: self  # AdaLomo allocates its state on a GPU
    num_steps = 10 if smoke else 100
    names = [n.value for n in transformers.training_args.OptimizerNames]
    lines, num_run, missing = [], 0, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            if refusal := optimizer_refusal(name):
                reason = refusal.rpartition(f"got {name!r}: ")[2].rstrip(".")
                lines.append(f"| `{name}` | refused: {reason} | | | | |")
                continue
            num_run += 1
            result = compared(name, num_steps)
            if result.missing:
                missing.append(result.missing)
                continue
            lines.append(line_of(name, result))
            yield from rows_of(name, result, num_steps)
    yield Row(
        claim="names of Trainer's `optim` that run; others are refused with a reason",
        value=num_run,
        unit=f"of {len(names)}",
        limit=32,
        at_least=True,
    )
    yield Row(
        claim="packages of references that are missing here",
        value=len(set(missing)),
        unit="packages",
        limit=0,
        detail=", ".join(sorted(set(missing))),
    )
    if "--write" in sys.argv and not missing:
        write(lines)


def rows_of(name: str, result: Result, num_steps: int) -> Iterator[Row]:
    if math.isnan(result.equal_codes):
        # Where float32 is noisy, the reference's own distance to float64 counts.
        is_near = result.of_ours <= result.of_reference
        yield Row(
            claim=f"{name}: distance to {result.reference} after {num_steps} steps",
            value=result.distance,
            unit="of the distance moved",
            limit=max(LIMIT, result.distance if is_near else 0.0),
            torch=result.of_reference,
            detail=f"to float64: {result.of_ours:.1e}; file {result.file}",
        )
        return
    yield Row(
        claim=f"{name}: codes equal to those of {result.reference}",
        value=result.equal_codes,
        unit="of all codes",
        limit=EQUAL_CODES,
        at_least=True,
        detail=f"distance {result.distance:.1e}; file {result.file}",
    )
    yield Row(
        claim=f"{name}: largest difference of the scales of blocks",
        value=result.scales,
        unit="relative",
        limit=SCALES,
    )


def line_of(name: str, result: Result) -> str:
    distance = f"{result.distance:.0e}"
    if not math.isnan(result.equal_codes):
        distance = f"{100 * result.equal_codes:.3f} % of codes equal"
    cells = (
        f"`{name}`",
        result.function,
        result.reference,
        f"{result.bytes_per_param:.2f}",
        distance,
        result.file,
    )
    return f"| {' | '.join(cells)} |"


def write(lines: list[str]) -> None:
    """Replaces the table of the page."""
    header = "| `optim` | function | reference | bytes | distance | `optimizer.pt` |"
    table = "\n".join([header, "|---|---|---|---|---|---|", *lines])
    pattern = re.compile(r"^\| `optim` \|.*?(?=\n\n)", re.M | re.S)
    text = pattern.sub(lambda _: table, PAGE.read_text(), count=1)
    PAGE.write_text(text)


if __name__ == "__main__":
    main("Names of Trainer's optimizers", rows)
