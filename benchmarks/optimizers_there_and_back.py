"""Runs of Trainer with each name of `optim`, continued here, and the reverse.

    python -m benchmarks.optimizers_there_and_back                 # 10 minutes, 2 cores
    python -m benchmarks.optimizers_there_and_back --name lion_8bit,sgd
    python -m benchmarks.optimizers_there_and_back --smoke         # 3 names, 20 steps

Needs transformers 5.23, bitsandbytes 0.50.2, torchao 0.18, torch-optimi 0.3.3,
schedulefree 1.4.1 and lomo-optim 0.1.1; names whose package is missing are counted.

Trainer trains a small Llama on packed documents for 200 steps, with clipping, warmup
and weight decay. The job continues its checkpoint of step 100, and Trainer continues
that of a run of the job; losses are compared with the uninterrupted run. Checkpoints
are converted by `import_run` and `export_run`, as by `jaxopt-tf migrate`. "torch
itself" is Trainer with another attention kernel in the same half. Names that are one
algorithm with one file format share a row.

Differences grow with the number of steps and with the rate, as between two runs of
Trainer. Rates here are those at which these two stay within the limit. With 5 times as
much for sgd, adagrad and rmsprop, losses of a run that begins here differ by 8e-2, 8e-3
and 8e-3, and those of Trainer itself by 6e-2, 6e-3 and 1e-2.

For `adamw_8bit` with a rate of 1e-3 the figures are 7.6e-4 and 2.8e-4. Codes of two
runs become different: from an equal state a step of a GPT-2 gives equal codes in
99.9996 %, and runs have 99.88 % after 10 steps, 98.2 % after 20 and 88.6 % after 50.
Each other code is a moment that differs by the distance of two levels, up to tens of
percent, and so changes a parameter, and with it all following gradients.

On CPUs bitsandbytes rounds moments of 8 bits through a table. Here it rounds them to
the nearest levels, which is the rule of its CUDA kernel and of `adamw_8bit_tf`.
"""

import importlib.metadata
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # torchao compiles for minutes

import jax

from benchmarks import _decoder_runs as runs
from benchmarks._bitsandbytes import replace_rounding
from benchmarks._compared_runs import difference, num_differing, our_losses
from benchmarks._report import Row, main
from jaxopt_tf.jobs import export_run, import_run, pretrain
from jaxopt_tf.recipes import optimizer_refusal

LIMIT = 1e-4
SMOKE = ("adamw_torch", "sgd", "adamw_8bit")
# Names that Trainer starts with libraries for other devices, or with one that is not on
# PyPI. Here they are `adamw_tf`.
NOT_STARTED = ("adamw_torch_xla", "adamw_torch_npu_fused", "adamw_anyprecision")


class Case(NamedTuple):
    """Names with one algorithm and one file format, and the arguments of their runs."""

    names: tuple[str, ...]  # the first is run
    package: str = "torch"
    learning_rate: float = 1e-3
    optim_args: str | None = None
    lr_scheduler_type: str = "cosine"
    is_evaluated: bool = False
    is_converted: bool = True  # whether optimizer.pt contains a state that is converted

    def __str__(self) -> str:
        """Name in a table."""
        args = f" ({self.optim_args})" if self.optim_args else ""
        evaluated = ", evaluated at half" if self.is_evaluated else ""
        return f"{', '.join(self.names)}{args}{evaluated}"


_BNB, _FREE = "bitsandbytes", "schedulefree"
_SCHEDULES = "t_alpha=60,t_beta3=80"
CASES = (
    Case(("adamw_torch", "adamw_torch_fused")),
    Case(("adafactor",), "transformers"),
    Case(("sgd",), learning_rate=0.02, optim_args="momentum=0.9"),
    Case(("adagrad",), learning_rate=2e-3),
    Case(("rmsprop",), learning_rate=2e-4, optim_args="momentum=0.5,centered=true"),
    Case(("stable_adamw",), "torch-optimi"),
    Case(("paged_adamw_32bit",), _BNB),
    Case(("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit"), _BNB, 3e-4),
    Case(("lion_32bit", "paged_lion_32bit"), _BNB, 1e-4),
    Case(("lion_8bit", "paged_lion_8bit"), _BNB, 1e-4),
    Case(("rmsprop_bnb", "rmsprop_bnb_32bit"), _BNB, 2e-4),
    Case(("rmsprop_bnb_8bit",), _BNB, 2e-4),
    Case(("ademamix", "paged_ademamix_32bit"), _BNB, 3e-4, _SCHEDULES),
    Case(("ademamix_8bit", "paged_ademamix_8bit"), _BNB, 3e-4, _SCHEDULES),
    Case(("schedule_free_adamw",), _FREE, lr_scheduler_type="constant"),
    Case(
        ("schedule_free_adamw",),
        _FREE,
        lr_scheduler_type="constant",
        is_evaluated=True,
    ),
    Case(("schedule_free_radam",), _FREE),
    Case(("schedule_free_sgd",), _FREE, 0.05, lr_scheduler_type="constant"),
    Case(("adamw_torch_8bit",), "torchao", 3e-4),
    Case(("adamw_torch_4bit",), "torchao", 3e-4),
    Case(("lomo",), "lomo-optim", 0.02, is_converted=False),
    Case(("adalomo",), "lomo-optim", is_converted=False),
)


def rows(smoke: bool) -> Iterator[Row]:
    """Yields the figures of each case, and the numbers of names."""
    import torch
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    torch.Tensor.cuda = lambda self: self  # AdaLomo allocates its state on a GPU
    replace_rounding()
    selected = _selected(smoke)
    missing = {case.package for case in selected if not _is_installed(case.package)}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # torch's notes on the scheduler of a resumed run, and those of bitsandbytes on
        # pages without a GPU.
        warnings.simplefilter("ignore")
        work = Path(folder)
        jax.config.update("jax_compilation_cache_dir", str(work / "cache"))
        runs.save_documents(work / "text.npy")
        runs.save_model(work / "base", "llama")
        for i, case in enumerate(selected):
            if case.package in missing:
                continue
            plan = runs.Plan(
                20 if smoke else 200,
                work / "base",
                work / "text.npy",
                lr_scheduler_type=case.lr_scheduler_type,
                num_micro=1,
                optim=case.names[0],
                optim_args=case.optim_args,
                learning_rate=case.learning_rate,
                is_evaluated=case.is_evaluated,
            )
            (work / str(i)).mkdir()
            figures = _both_directions if case.is_converted else _apart
            yield from figures(str(case), plan, work / str(i))
    yield Row(
        claim="packages of references that are missing here",
        value=len(missing),
        unit="packages",
        limit=0,
        detail=", ".join(sorted(missing)),
    )
    if selected == CASES:
        yield _names_row(transformers.training_args.OptimizerNames)


def _selected(smoke: bool) -> tuple[Case, ...]:
    if "--name" in sys.argv:
        given = sys.argv[sys.argv.index("--name") + 1].split(",")
        known = [name for case in CASES for name in case.names]
        if not set(given) <= set(known):
            sys.exit(f"`--name` must be some of {', '.join(known)}, got {given}.")
        return tuple(case for case in CASES if set(given) & set(case.names))
    if smoke:
        return tuple(case for case in CASES if case.names[0] in SMOKE)
    return CASES


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _names_row(names: Any) -> Row:
    """Returns the number of names that run here, and are in no case."""
    run = {name.value for name in names if not optimizer_refusal(name.value)}
    of_cases = {name for case in CASES for name in case.names}
    left = run - of_cases - set(NOT_STARTED)
    return Row(
        claim="names of Trainer that run here and are not in this table",
        value=len(left),
        unit="names",
        limit=0,
        detail=f"{len(of_cases)} are; Trainer does not start {', '.join(NOT_STARTED)}",
    )


def _both_directions(title: str, plan: runs.Plan, work: Path) -> Iterator[Row]:
    """Yields the figures of a run that Trainer begins, and of one that begins here."""
    half = plan.half
    config = runs.our_config(plan, work / "ours")
    their_rows = runs.rows_of(runs.batches_of(config), plan.max_steps)

    def by_trainer(name: str, **options: Any) -> dict[int, float]:
        return runs.by_trainer(plan, work / name, their_rows, **options).losses

    def checkpoint(name: str) -> Path:
        return work / name / f"checkpoint-{half}"

    whole = by_trainer("theirs")
    imported = import_run(
        checkpoint("theirs"), work / "imported", settings=runs.data_settings(plan)
    )
    export_run(work / "imported", work / "returned", like=checkpoint("theirs"))
    pretrain(imported.config)
    eager = by_trainer(
        "eager half", resume_from=checkpoint("theirs"), attention="eager"
    )
    yield Row(
        claim=f"{title}: Trainer to step {half}, then here: loss of each step after it",
        value=difference(our_losses(work / "imported"), whole, half),
        unit="relative",
        limit=LIMIT,
        torch=difference(eager, whole, half),
        detail=f"{whole[1]:.3f} to {whole[plan.max_steps]:.3f}",
    )
    yield Row(
        claim=f"{title}: Trainer's checkpoint in and out: elements that differ",
        value=_num_differing(plan, checkpoint("theirs"), work / "returned"),
        unit="elements",
        limit=0,
    )
    pretrain(config)
    exported = checkpoint("continued")
    export_run(checkpoint("ours"), exported, like=checkpoint("theirs"))
    continued = by_trainer("continued", resume_from=exported)
    by_trainer("eager", attention="eager")
    eager = by_trainer("eager then", resume_from=checkpoint("eager"))
    yield Row(
        claim=f"{title}: here to step {half}, then Trainer: loss of each step after it",
        value=difference(continued, whole, half),
        unit="relative",
        limit=LIMIT,
        torch=difference(eager, whole, half),
    )
    yield Row(
        claim=f"{title}: the same, against a run here alone",
        value=difference(continued, our_losses(work / "ours"), half),
        unit="relative",
        limit=LIMIT,
    )


def _num_differing(plan: runs.Plan, theirs: Path, ours: Path) -> int:
    """Returns the number of elements of two checkpoints that differ in a bit."""
    pair = [runs.tensors(folder) for folder in (theirs, ours)]
    if plan.is_evaluated:
        # Trainer saved the mean of the parameters, and here those of training are
        # saved; `train_mode` and its rounding to and fro are tested elsewhere.
        pair = [{k: v for k, v in found.items() if k[0].isdigit()} for found in pair]
    return num_differing(*pair)


def _apart(title: str, plan: runs.Plan, work: Path) -> Iterator[Row]:
    """Yields the figures of two whole runs, where the file is not converted."""
    config = runs.our_config(plan, work / "ours")
    their_rows = runs.rows_of(runs.batches_of(config), plan.max_steps)
    theirs = runs.by_trainer(plan, work / "theirs", their_rows).losses
    eager = runs.by_trainer(plan, work / "eager", their_rows, attention="eager").losses
    pretrain(config)
    yield Row(
        claim=f"{title}: loss of each of {plan.max_steps} steps, against Trainer's",
        value=difference(our_losses(work / "ours"), theirs, 0),
        unit="relative",
        limit=LIMIT,
        torch=difference(eager, theirs, 0),
        detail=f"{theirs[1]:.3f} to {theirs[plan.max_steps]:.3f}",
    )
    checkpoint = work / "theirs" / f"checkpoint-{plan.half}"
    refusal = ""
    try:
        import_run(checkpoint, work / "imported", settings=runs.data_settings(plan))
    except ValueError as error:
        refusal = str(error)
    yield Row(
        claim=f"{title}: checkpoints of Trainer that are refused, not converted",
        value=int(bool(refusal)),
        unit="of 1",
        limit=1,
        at_least=True,
        detail=refusal[-160:],
    )


if __name__ == "__main__":
    main("Optimizers there and back", rows)
