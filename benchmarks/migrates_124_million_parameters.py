"""Time and memory of reading and writing a Trainer's checkpoint of gpt2.

    python -m benchmarks.migrates_124_million_parameters

The folder is written by torch, in a separate process, into a temporary folder (see
`TMPDIR`). Memory is the increase of the process's peak, as reported by Linux, relative
to the size of the parameters and moments. It includes the arrays that are read.
"""

import contextlib
import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks._report import Row, main
from jaxopt_tf import build_optimizer, interop
from jaxopt_tf.models import gpt2_preset, make_loss_fn
from jaxopt_tf.recipes import Recipe

RECIPE = Recipe(max_steps=100, learning_rate=1e-3, decay_rule="transformers_v5")


def rows(smoke: bool) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        preset = "nano" if smoke else "gpt2"
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=_by_torch, args=(work / "theirs", preset))
        process.start()
        process.join()
        yield from _measured(work, preset, smoke)


def _by_torch(folder: Path, preset: str) -> None:
    import torch
    import transformers

    ours = gpt2_preset(preset)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_layer=ours.n_layer,
            n_head=ours.n_head,
            n_embd=ours.n_embd,
            n_positions=ours.block_size,
            vocab_size=ours.vocab_size,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    parameters = dict(model.named_parameters())
    decayed, undecayed = interop.torch_model_from_module(model).groups
    optimizer = torch.optim.AdamW(
        [
            {"params": [parameters[n] for n in names], "weight_decay": 0.0}
            for names in (decayed, undecayed)
        ],
        lr=RECIPE.learning_rate,
    )
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 0, 100)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    schedule.step()
    model.save_pretrained(folder)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    torch.save(schedule.state_dict(), folder / "scheduler.pt")
    state = json.dumps({"global_step": 1, "epoch": 0.1})
    (folder / "trainer_state.json").write_text(state)


def _measured(work: Path, preset: str, smoke: bool) -> Iterator[Row]:
    params = jax.eval_shape(lambda: make_loss_fn(gpt2_preset(preset), 0)[0])
    names = interop.match_names(
        params, interop.torch_model_from_config(work / "theirs")
    )
    optimizer = build_optimizer(RECIPE, layer_norms=names.layer_norms)
    opt_state = jax.eval_shape(optimizer.init, params)
    size = 4 * sum(leaf.size for leaf in jax.tree.leaves((params, opt_state)))
    jax.block_until_ready(jnp.copy(jnp.ones(3)))  # JAX is initialized
    with _watched() as reading:
        read = interop.read_trainer_checkpoint(
            work / "theirs", params, names, recipe=RECIPE, opt_state=opt_state
        )
        jax.block_until_ready((read.params, read.opt_state))
    with _watched() as writing:
        interop.write_trainer_checkpoint(
            work / "ours",
            read.params,
            read.opt_state,
            names,
            recipe=RECIPE,
            step=1,
            like=work / "theirs",
        )
    what = f"{preset} with AdamW, {size / 1e9:.3g} GB"
    for done, took in (("read", reading), ("written", writing)):
        yield Row(
            claim=f"{what}: a Trainer's checkpoint {done}",
            value=took["seconds"],
            unit="s",
            limit=20.0,
        )
        if not smoke:  # too small to be measured
            yield Row(
                claim=f"{what}: memory beside what there was, a checkpoint {done}",
                value=took["bytes"] / size,
                unit="of its size",
                limit=1.2,
            )
    files = [work / side / "model.safetensors" for side in ("theirs", "ours")]
    yield Row(
        claim=f"{what}: bytes of model.safetensors that came back otherwise",
        value=float(files[0].read_bytes() != files[1].read_bytes()),
        unit="files",
        limit=0.0,
    )


@contextlib.contextmanager
def _watched() -> Iterator[dict[str, float]]:
    """Measures seconds, and the peak of memory above the initial value."""
    took: dict[str, float] = {}
    # The kernel records the peak, and resets it on request.
    Path("/proc/self/clear_refs").write_text("5")
    before, since = _status("VmRSS"), time.perf_counter()
    yield took
    took["seconds"] = time.perf_counter() - since
    took["bytes"] = _status("VmHWM") - before


def _status(field: str) -> float:
    """Returns bytes, as counted by the kernel for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(field))
    return 1024.0 * int(kilobytes)


if __name__ == "__main__":
    main("A migration", rows)
