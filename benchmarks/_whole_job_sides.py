"""The sides of `end_to_end.py`, each in a process of its own.

    python -m benchmarks._whole_job_sides SIDE JOB '{...}'

The process writes a line with the times at which a step ended and began, for each step
whose result it waits for, and waits for its parent at some of them, so that several
processes train in turn.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Places(NamedTuple):
    """Arguments of the process, in the order of the command line as JSON."""

    folder: Path  # of the job
    output_dir: Path  # of the run
    pauses: list[int]  # steps after which the process waits for its parent
    timed: list[int]  # further steps that are waited for
    first_timed: int  # step from which on each step is waited for
    eval_steps: int
    save_steps: int
    steps_fd: int  # to which times of steps are written
    go_fd: int  # from which a byte is read after each pause


class Steps:
    """Times of steps, and the pauses between them."""

    def __init__(self, places: Places) -> None:
        """Starts before the first step."""
        self._places, self._is_first = places, True

    def is_timed(self, step: int) -> bool:
        """Returns whether the result of a step is waited for."""
        is_listed = step in self._places.pauses or step in self._places.timed
        return self._is_first or is_listed or step >= self._places.first_timed

    def ended(self, step: int, begin: float = math.nan) -> None:
        """Writes the times of a step, and waits for the parent at a pause."""
        self._is_first = False
        line = f"{step} {time.monotonic()} {begin}\n"
        os.write(self._places.steps_fd, line.encode())
        if step in self._places.pauses:
            os.read(self._places.go_fd, 1)


# Sides


def ours(job: str, places: Places) -> None:
    """Runs `jaxopt-tf train`."""
    import jax

    from benchmarks import _whole_jobs as jobs
    from jaxopt_tf.cli import main
    from jaxopt_tf.jobs import _run_core

    steps = Steps(places)

    class TimedStep(_run_core.FirstStep):
        step: int | None = None  # number of steps so far

        def __call__(self, state: Any, *args: Any) -> Any:
            begin = time.monotonic()
            self.step = (int(state.step) if self.step is None else self.step) + 1
            results = super().__call__(state, *args)
            if steps.is_timed(self.step):
                jax.block_until_ready(results)
                steps.ended(self.step, begin)
            return results

    _run_core.FirstStep = TimedStep  # type: ignore[misc]  # replaced in this process
    chosen = jobs.JOBS[job]
    settings = {
        **jobs.data_settings(chosen, places.folder),
        **jobs.SETTINGS,
        "output_dir": places.output_dir,
        "eval_steps": places.eval_steps,
        "save_steps": places.save_steps,
    }
    flags = [text for setting in settings.items() for text in _flag(*setting)]
    sys.exit(main(["train", *flags]))


def _flag(name: str, value: Any) -> list[str]:
    if value is False:
        return [f"--no_{name}"]
    return [f"--{name}", *map(str, value if isinstance(value, list) else [value])]


def by_trainer(job: str, places: Places, *, compiled: bool) -> None:
    """Runs Trainer with the same settings, and with its checkpoint at SIGTERM."""
    import torch
    import transformers

    from benchmarks import _whole_jobs as jobs

    steps, chosen = Steps(places), jobs.JOBS[job]

    class Timed(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if steps.is_timed(state.global_step):
                steps.ended(state.global_step)

    class Windows(torch.utils.data.Dataset):
        def __init__(self, part: str):
            self.rows = jobs.rows_of_tokens(chosen, places.folder, part)

        def __len__(self):
            return len(self.rows)

        def __getitem__(self, i):
            row = torch.from_numpy(self.rows[i].astype("int64"))
            return {"input_ids": row, "labels": row}

    if chosen.is_labelled:
        data = [jobs.encoded_sentences(places.folder, x) for x in ("train", "dev")]
        tokenizer = transformers.AutoTokenizer.from_pretrained(places.folder)
        parts = {"processing_class": tokenizer}
    else:
        data, parts = [Windows("training"), Windows("evaluation")], {}
    is_resumed = any(places.output_dir.glob("checkpoint-*"))
    trainer = transformers.Trainer(
        jobs.torch_model(chosen, places.folder),
        transformers.TrainingArguments(
            output_dir=str(places.output_dir),
            eval_steps=places.eval_steps,
            save_steps=places.save_steps,
            eval_on_start=not is_resumed,  # as `jaxopt-tf train`
            enable_jit_checkpoint=True,
            torch_compile=compiled,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            **jobs.SETTINGS,
        ),
        train_dataset=data[0],
        eval_dataset=data[1],
        callbacks=[Timed()],
        **parts,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train(resume_from_checkpoint=is_resumed)


def plain(job: str, places: Places) -> None:
    """Runs a loop over optax's optimizer, with neither monitors nor checkpoints."""
    import jax
    import numpy as np
    import optax

    from benchmarks import _whole_jobs as jobs

    chosen, rng = jobs.JOBS[job], np.random.default_rng(0)
    params, loss_fn, has_dropout = _model(chosen, places.folder)
    rate = optax.linear_schedule(1e-4, 0.0, jobs.SETTINGS["max_steps"])
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.1)
    )

    def train_step(state: Any, batch: Any) -> Any:
        step, params, opt_state = state
        key = [jax.random.fold_in(jax.random.key(0), step)] if has_dropout else []

        def mean_loss(params: Any) -> Any:
            total, num_items = loss_fn(params, batch, *key)
            return total / num_items

        loss, grads = jax.value_and_grad(mean_loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (step + 1, optax.apply_updates(params, updates), opt_state), loss

    compiled = jax.jit(train_step, donate_argnums=0)
    state: Any = (0, params, optimizer.init(params))
    if chosen.is_labelled:
        rows = jobs.encoded_sentences(places.folder, "train")
        table = {
            "labels" if key == "label" else key: np.array([x[key] for x in rows], "i4")
            for key in rows[0]
        }
        num_rows = len(rows)
    else:
        tokens = np.load(places.folder / "tokens.npy", mmap_mode="r")
        num_rows = (len(tokens) - 1) // chosen.block_size
    steps = Steps(places)
    for step in range(1, max(places.pauses) + 1):
        chosen_rows = rng.integers(0, num_rows, jobs.NUM_ROWS)
        if chosen.is_labelled:
            batch = {key: column[chosen_rows] for key, column in table.items()}
        else:
            size = chosen.block_size
            batch = np.stack([tokens[i * size :][: size + 1] for i in chosen_rows])
            batch = batch.astype(np.int32)
        state, loss = compiled(state, batch)
        if steps.is_timed(step):
            jax.block_until_ready((state, loss))
            steps.ended(step)


def _model(job: Any, folder: Path) -> tuple[Any, Any, bool]:
    """Returns parameters, the loss function and whether it takes a key."""
    from benchmarks import _whole_jobs as jobs
    from jaxopt_tf.jobs import RunConfig
    from jaxopt_tf.models import build_model, from_transformers

    if job.is_labelled:
        model = from_transformers(jobs.torch_model(job, folder))
    else:
        settings = {**jobs.data_settings(job, folder), "max_steps": 1}
        config = RunConfig.from_dict(settings)
        model = build_model(config.model)
    return model.init(0), model.make_loss(), model.has_dropout


SIDES: dict[str, Callable[[str, Places], None]] = {
    "ours": ours,
    "plain": plain,
    "trainer": lambda job, places: by_trainer(job, places, compiled=False),
    "compiled": lambda job, places: by_trainer(job, places, compiled=True),
}

if __name__ == "__main__":
    _, side, job, arguments = sys.argv
    found = Places(**json.loads(arguments))
    folders = Path(found.folder), Path(found.output_dir)
    SIDES[side](job, found._replace(folder=folders[0], output_dir=folders[1]))
