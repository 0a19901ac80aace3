"""Equal runs by Trainer and by jaxopt_tf, from the start or from a checkpoint."""

import functools
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxopt_tf import build_optimizer, build_schedule, init_train_state, make_train_step
from jaxopt_tf.data import Batches, standard_library
from jaxopt_tf.interop import (
    ParamNames,
    match_names,
    read_params,
    read_trainer_checkpoint,
    recipe_from_transformers,
    torch_model_from_config,
    write_trainer_checkpoint,
)
from jaxopt_tf.models import GPT2Config, make_loss_fn
from jaxopt_tf.recipes import Recipe
from jaxopt_tf.schedules import MetricDrivenSchedule
from jaxopt_tf.training import (
    Evaluation,
    Monitor,
    RunState,
    Window,
    make_eval_step,
    make_evaluate,
    train,
)
from tests.references.gpt2 import torch_name

BATCH_SIZE, EVAL_STEPS = 8, 20
MODEL = GPT2Config(n_layer=2, n_head=2, n_embd=64, block_size=65)


class Plan(NamedTuple):
    """Settings of a run that is repeated."""

    optim: str
    lr_scheduler_type: str
    gradient_accumulation_steps: int
    max_steps: int

    def __str__(self) -> str:
        """Name in a table."""
        accumulated = f" x {self.gradient_accumulation_steps}"
        return f"{self.optim}, {self.lr_scheduler_type}, batches of 8{accumulated}"


class Ended(NamedTuple):
    """Result of a run."""

    losses: dict[int, float]  # by step
    params: dict[str, np.ndarray]  # by names in torch


@functools.cache
def _windows(num: int) -> np.ndarray:
    """Returns windows of 65 tokens from the default text, [num, 65]."""
    batches = Batches(_corpus(), block_size=64, batch_size=num, seed=0)
    return np.asarray(batches[0], np.int64)


@functools.cache
def _corpus():
    return standard_library()


def eval_rows(num: int = 32) -> np.ndarray:
    """Returns other windows, for evaluation."""
    batches = Batches(_corpus(), block_size=64, batch_size=num, seed=1)
    return np.asarray(batches[0], np.int64)


def arguments(plan: Plan, folder: Path) -> Any:
    """Returns the run as `TrainingArguments`."""
    import transformers

    is_driven = plan.lr_scheduler_type == "reduce_lr_on_plateau"
    driven: dict[str, Any] = {
        "eval_strategy": "steps",
        "eval_steps": EVAL_STEPS,
        "lr_scheduler_kwargs": {"factor": 0.5, "patience": 0, "threshold": 0.05},
    }
    return transformers.TrainingArguments(
        **{
            "output_dir": str(folder),
            "optim": plan.optim,
            "learning_rate": 1e-3,
            "lr_scheduler_type": plan.lr_scheduler_type,
            "warmup_steps": 0 if is_driven else plan.max_steps // 20,
            "weight_decay": 0.1,
            "max_steps": plan.max_steps,
            "per_device_train_batch_size": BATCH_SIZE,
            "per_device_eval_batch_size": 32,
            "gradient_accumulation_steps": plan.gradient_accumulation_steps,
            "train_sampling_strategy": "sequential",
            "save_steps": plan.max_steps // 2,
            "logging_steps": 1,
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
            **(driven if is_driven else {}),
        }
    )


def torch_model(attention: str = "sdpa", model: GPT2Config = MODEL):
    """Returns the initial model of all runs, or another one of the same kind."""
    import transformers

    transformers.set_seed(0)
    config = transformers.GPT2Config(
        vocab_size=model.vocab_size,
        n_positions=model.block_size,
        n_embd=model.n_embd,
        n_layer=model.n_layer,
        n_head=model.n_head,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation=attention,
    )
    return transformers.GPT2LMHeadModel(config)


def by_trainer(
    plan: Plan,
    folder: Path,
    *,
    resume_from: Path | None = None,
    attention: str = "sdpa",
    stop_at: int | None = None,
) -> Ended:
    """Runs Trainer, from the start or from a checkpoint."""
    import torch
    import transformers

    def rows(windows):
        tokens = torch.from_numpy(windows)
        return [{"input_ids": row, "labels": row} for row in tokens]

    num = plan.max_steps * plan.gradient_accumulation_steps * BATCH_SIZE
    trainer = transformers.Trainer(
        torch_model(attention),
        arguments(plan, folder),
        train_dataset=rows(_windows(num)),
        eval_dataset=rows(eval_rows()),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    if stop_at is not None:
        trainer.add_callback(_stop_at(stop_at))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train(resume_from_checkpoint=resume_from and str(resume_from))
    history = trainer.state.log_history
    return Ended(
        {entry["step"]: entry["loss"] for entry in history if "loss" in entry},
        {
            name: parameter.detach().numpy().copy()
            for name, parameter in trainer.model.named_parameters()
        },
    )


def _stop_at(step: int) -> Any:
    import transformers

    class StopAt(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step >= step

    return StopAt()


class Ours(NamedTuple):
    """Runs jaxopt_tf with the same settings."""

    recipe: Recipe
    names: ParamNames
    loss_fn: Any
    start: RunState

    @classmethod
    def at(cls, plan: Plan, folder: Path, checkpoint: Path) -> "Ours":
        """Starts from a checkpoint of Trainer, or from parameters only."""
        recipe = recipe_from_transformers(arguments(plan, folder)).recipe
        params, loss_fn = make_loss_fn(MODEL, 0)
        names = match_names(params, torch_model_from_config(checkpoint))
        optimizer = build_optimizer(recipe, layer_norms=names.layer_norms)
        if not (checkpoint / "optimizer.pt").exists():
            params = read_params(checkpoint, params, names)
            schedule = build_schedule(recipe)
            is_driven = isinstance(schedule, MetricDrivenSchedule)
            start = RunState(
                init_train_state(params, optimizer),
                schedule_state=schedule.init() if is_driven else None,
            )
            return cls(recipe, names, loss_fn, start)
        read = read_trainer_checkpoint(
            checkpoint,
            params,
            names,
            recipe=recipe,
            opt_state=optimizer.init(params),
        )
        state = init_train_state(read.params, optimizer).replace(
            step=jax.numpy.int32(read.step), opt_state=read.opt_state
        )
        start = RunState(state, schedule_state=read.schedule_state)
        return cls(recipe, names, loss_fn, start)

    def until(self, plan: Plan, step: int) -> tuple[Ended, RunState]:
        """Runs all steps up to this one."""
        losses: dict[int, float] = {}

        def as_trainer_counts(params, batch):
            # All 65 labels of a row, though nothing predicts its first: Trainer knows
            # by the class's name whether labels are shifted, and GPT-2's does not tell;
            # in evaluations too.
            return self.loss_fn(params, batch)[0], batch.size

        def window(window: Window) -> None:
            for i, loss in enumerate(window.metrics.loss):
                losses[window.first_step + i] = float(loss)

        def nothing(_: Evaluation | None = None) -> None:
            pass

        schedule = build_schedule(self.recipe)
        driven = schedule if isinstance(schedule, MetricDrivenSchedule) else None
        k = plan.gradient_accumulation_steps
        windows = _windows(plan.max_steps * k * BATCH_SIZE).astype(np.uint8)
        shape = (plan.max_steps, *([k] if k > 1 else []), BATCH_SIZE, 65)
        evaluate = make_evaluate(make_eval_step(as_trainer_counts), [eval_rows()])
        begun = int(self.start.state.step)
        ended = train(
            make_train_step(
                as_trainer_counts,
                build_optimizer(self.recipe, layer_norms=self.names.layer_norms),
                gradient_accumulation_steps=k,
            ),
            self.start,
            iter(windows.reshape(shape)[begun:]),
            max_steps=step,
            monitors=[Monitor(window, nothing, nothing)],
            evaluate=evaluate if driven else None,
            eval_steps=EVAL_STEPS,
            metric_schedule=driven,
        )
        return Ended(losses, _by_torch_names(ended.state.params)), ended.run_state

    def hand_over(self, folder: Path, position: RunState, like: Path) -> None:
        """Writes the folder from which Trainer resumes."""
        schedule = build_schedule(self.recipe)
        is_driven = isinstance(schedule, MetricDrivenSchedule)
        step = int(position.state.step)
        write_trainer_checkpoint(
            folder,
            position.state.params,
            position.state.opt_state,
            self.names,
            recipe=self.recipe,
            step=step,
            schedule_step=step // EVAL_STEPS if is_driven else None,
            schedule_state=position.schedule_state,
            # Trainer reads these instead of its arguments.
            trainer_state={"logging_steps": 1, "eval_steps": EVAL_STEPS},
            like=like,
        )


def _by_torch_names(params: Any) -> dict[str, np.ndarray]:
    # Shapes are equal on both sides: kernels of torch's GPT-2 are [in, out], too.
    return {
        torch_name(".".join(str(key.key) for key in path)): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def begin(folder: Path) -> Path:
    """Writes the initial parameters of all runs as a folder of Trainer."""
    torch_model().save_pretrained(folder)
    return folder


def distance(a: Ended, b: Ended) -> float:
    """Returns the Euclidean distance without biases of keys, whose gradient is 0."""
    total = 0.0
    for name, of_a in a.params.items():
        difference = np.float64(of_a) - b.params[name]
        if name.endswith("c_attn.bias"):
            queries, _, values = np.split(difference, 3)
            difference = np.concatenate([queries, values])
        total += np.sum(difference**2)
    return float(np.sqrt(total))


def loss_difference(a: Ended, b: Ended) -> float:
    """Returns the largest relative difference of losses at common steps."""
    steps = sorted(a.losses.keys() & b.losses.keys())
    assert steps
    return max(abs(a.losses[n] - b.losses[n]) / b.losses[n] for n in steps)
