"""Job: data, output folder, evaluations, checkpoints and devices of a run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax

from .. import _checks, data, training
from .._io import Kind, kinds_of
from ..models import GPT2Config
from ..sharding import axis_sizes

# Axes that a mesh can have, and those of them that divide the batch.
MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = MESH_AXES[:2]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Settings of a run that belong neither to its recipe nor to its model.

    Attributes:
        text: files or folders of text (UTF-8), or files of ready tokens: .npy, or .bin
            of raw uint16 (uint32 where `vocab_size` is above 65,536); the sources of
            Python's standard library if none are given.
        tokenizer: a tokenizer.json; without one, the tokens of a text are its bytes.
        eos_token_id: the token that ends a document in ready tokens; without one, each
            file is one document.
        output_dir: folder of the run; if it contains a run, that run is resumed. A new
            folder in runs/, named by the time, if not given.
        eval_steps: updates from one evaluation to the next.
        save_steps: updates from one checkpoint to the next; besides them, the last one
            and that of the best evaluation so far are always saved.
        save_total_limit: number of checkpoints that are kept, the best among them; None
            for all of `save_steps`.
        load_best_model_at_end: whether the run ends with the parameters of the lowest
            evaluation loss instead of the last ones.
        early_stopping_patience: evaluations in a row without a lower evaluation loss
            after which the run ends; None to train up to `max_steps`.
        early_stopping_threshold: nats per token by which a loss must be lower to count
            as lower.
        logging_steps: updates from one line to the next in trainer_state.json and
            TensorBoard; metrics.jsonl has every update.
        bf16: whether the model computes in bfloat16, with parameters in float32.
        tf32: whether products of float32 are rounded as tensor cores do (TPUs: take
            three passes in bfloat16): faster there. Otherwise they are float32's, as
            torch's are, whatever precision JAX is configured for.
        on_non_finite: what follows a loss or gradient that is not finite: "stop" keeps
            the parameters as they were and ends the run, "skip" leaves the update out,
            "propagate" makes the update, as torch does.
        max_skipped_in_a_row: skipped updates in a row that end the run ("skip" only).
        log_layers: whether metrics.jsonl has the norms of every layer, too.
        resume_from_checkpoint: a checkpoint folder to resume from, of this run or of
            another; the newest valid one in `output_dir` if not given.
        intended_changes: names of settings that may differ from the resumed run's.
        mesh: how devices divide the work: sizes of the axes data (each has a part of
            the batch), fsdp (of the batch and the parameters) and tensor (of the
            parameters), as data=2,fsdp=4; the product is the number of devices. One
            device if not given; of several processes all devices, as data.
        zero_1: whether the optimizer's state is sharded along data, too.

    Raises:
        ValueError, TypeError: if a value is out of range or of another kind.

    Source: transformers 5.23 `training_args.py`, for the names that it has.
    Differs: three checkpoints are kept, not all: a run left overnight must not fill the
        disk, and if the newest is damaged there are two to fall back on.
    """

    text: tuple[Path, ...] = ()
    tokenizer: Path | None = None
    eos_token_id: int | None = None
    output_dir: Path | None = None
    eval_steps: int = 400
    save_steps: int = 400
    save_total_limit: int | None = 3
    load_best_model_at_end: bool = False
    early_stopping_patience: int | None = None
    early_stopping_threshold: float = 0.0
    logging_steps: int = 10
    bf16: bool = False
    tf32: bool = False
    on_non_finite: Literal["stop", "skip", "propagate"] = "stop"
    max_skipped_in_a_row: int = 10
    log_layers: bool = False
    resume_from_checkpoint: Path | None = None
    intended_changes: tuple[str, ...] = ()
    mesh: str | None = None
    zero_1: bool = False

    def __post_init__(self) -> None:
        """Checks every field; makes strings paths and whole floats ints."""
        for name, kind in kinds_of(Job).items():
            value = _checked(name, kind, getattr(self, name))
            object.__setattr__(self, name, value)  # frozen otherwise

    @property
    def matmul_precision(self) -> str | None:
        """Precision of products, as `loss_of` takes it; bfloat16 has only one."""
        if self.bf16:
            return None
        return "tensorfloat32" if self.tf32 else "highest"

    @property
    def selection(self) -> training.Selection:
        """Rule for comparing evaluations, for `training.train`."""
        return training.Selection(
            early_stopping_patience=self.early_stopping_patience,
            early_stopping_threshold=self.early_stopping_threshold,
        )


def mesh_axes(job: Job) -> str:
    """Returns the axes of the run's mesh: by default one device, or all of several."""
    if job.mesh is not None:
        return job.mesh
    return f"data={jax.device_count() if jax.process_count() > 1 else 1}"


def num_batch_shards(sizes: Mapping[str, int]) -> int:
    """Returns the number of parts into which axes of these sizes divide a batch."""
    return math.prod(sizes.get(name, 1) for name in BATCH_AXES)


def read_corpus(job: Job, model: GPT2Config, folder: Path) -> data.Corpus:
    """Reads text as bytes or tokens, ready tokens, or Python's standard library.

    Args:
        job: names the text, and the tokenizer or the end of a document.
        model: must have a row for every token; spare rows are allowed.
        folder: of the run; a tokenizer's tokens are written there.

    Raises:
        ValueError: if the text cannot be read, or does not fit the model.
    """
    if any(map(data.is_ready_tokens, job.text)):
        return data.read_tokens(
            job.text, vocab_size=model.vocab_size, eos_token_id=job.eos_token_id
        )
    if job.tokenizer is None:
        corpus = data.read_text(job.text) if job.text else data.standard_library()
    else:
        corpus = data.tokenize_text(job.text, job.tokenizer, cache_dir=folder)
    if model.vocab_size < corpus.vocab_size:
        whose = "bytes have" if job.tokenizer is None else "the tokenizer has"
        raise ValueError(
            f"`vocab_size` must be at least {corpus.vocab_size}, as many tokens as "
            f"{whose}, got {model.vocab_size!r}. Give that many, or the tokenizer that "
            "the model was made for."
        )
    return corpus


def _checked(name: str, kind: Kind, value: Any) -> Any:
    """Returns a value in the type of its field; raises if it is of another kind."""
    if value is None and kind.is_optional:
        return None
    if kind.is_several:
        # A single string is a sequence, too: of letters.
        if not isinstance(value, tuple | list):
            raise TypeError(f"`{name}` must be a list or a tuple, got {value!r}.")
        one = kind._replace(is_several=False)
        return tuple(_checked(name, one, item) for item in value)
    if name == "mesh":  # its normal form, so that equal meshes compare equal
        return _mesh(value)
    match kind.noun:
        case "INT":
            least = 0 if name == "eos_token_id" else 1
            return _checks.whole_number(name, value, least=least)
        case "NUMBER":
            _checks.non_negative(name, value)
            return value
        case "PATH" if isinstance(value, str | Path) and str(value):
            return Path(value)
        case "NAME" if isinstance(value, str):
            return value
        case "" if isinstance(value, bool):
            return value
        case "PATH" | "NAME" | "" as noun:
            required = {"PATH": "a path", "NAME": "a name", "": "True or False"}[noun]
            required += " or None" if kind.is_optional else ""
            raise TypeError(f"`{name}` must be {required}, got {value!r}.")
    _checks.one_of(name, value, kind.noun.strip("{}").split(","))
    return value


def _mesh(text: Any) -> str:
    """Returns a mesh in its normal form, "data=2,fsdp=4"; raises if it is none."""
    if not isinstance(text, str):
        raise TypeError(f"`mesh` must be text as 'data=2,fsdp=4', got {text!r}.")
    sizes = axis_sizes(text)
    for name in sizes:
        _checks.one_of("mesh", name, MESH_AXES)
    return ",".join(f"{name}={size}" for name, size in sizes.items())
