"""Settings of a job: data, output folder, evaluations, checkpoints and devices."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax

from .. import _checks, training
from .._io import Kind, kinds_of
from ..sharding import axis_sizes

# Supported mesh axes; the batch is sharded over `sharding.BATCH_AXES`.
MESH_AXES = ("data", "fsdp", "tensor")


@dataclass(frozen=True, kw_only=True)
class Job:
    """Settings of a run other than those of its recipe and its model.

    Attributes:
        model_name_or_path: folder of a model of Transformers: config.json, weights and
            tokenizer.json. Default: a GPT-2 with the sizes of the flags.
        model_implementation: "flax" for a model of this package, "torchax" for the code
            of Transformers under torchax (experimental; `pip install -e ".[torchax]"`).
            Default: the first of the two that has the architecture.
        from_scratch: whether the weights are initialized as Transformers does, instead
            of read from `model_name_or_path`.
        lora_r: rank of a LoRA adapter, which is trained instead of the weights in
            `model_name_or_path`, by the torchax implementation; requires PEFT. Default:
            all weights are trained.
        lora_alpha: numerator of the factor `lora_alpha / lora_r` of the adapter's
            output.
        lora_dropout: dropout rate of the adapter's input.
        lora_target_modules: names of the layers with an adapter, such as q_proj v_proj,
            or all-linear. Default: those that PEFT lists for the architecture.
        freeze: patterns of the names of parameters that are not trained, such as
            "model.embed_tokens.*"; regular expressions for whole names. May be
            repeated.
        text: files or folders of text (UTF-8), or pretokenized files: .npy, or .bin of
            raw uint16 (uint32 if `vocab_size` is above 65,536). Default: the sources of
            Python's standard library.
        train_file: files of rows to train on, instead of `text`: .jsonl, .json, .csv,
            .parquet or .txt. Rows have a column of text, or are rows for fine-tuning:
            `prompt` and `completion`, or `messages`.
        validation_file: files of rows to evaluate on, like `train_file`. Default: about
            a tenth of the documents or rows of `train_file`.
        text_column: column of the text in `train_file`.
        packing: whether several documents share a row of a batch, each with its own
            attention and positions. Otherwise documents of text are concatenated, and
            rows for fine-tuning are padded.
        completion_only_loss: whether the loss of rows for fine-tuning is on completions
            and answers only.
        chat_template: file of a Jinja template for `messages`. Default: the template of
            the tokenizer.
        tokenizer: path of a tokenizer.json. Default: one token per byte.
        eos_token_id: token that ends a document in pretokenized files, which are read
            as a whole to find the documents. Default: each file is one document, and of
            files of more than 1 GiB in all samples are read before the first step.
        output_dir: folder of the run. If it contains a run, that run is resumed.
            Default: a new folder in runs/, named by the time.
        num_train_epochs: number of passes over the data, which determines `max_steps`
            by the rule of Trainer; may be a fraction. `max_steps` takes precedence.
        eval_strategy: "steps" evaluates every `eval_steps`, "epoch" after each epoch,
            "no" only before the first step and after the last one.
        eval_steps: number of updates between evaluations; a value below 1 on the
            command line is a fraction of `max_steps`, rounded up.
        sample_prompt: text of which a continuation by the model is printed at each
            evaluation; "" for the start of a document. Default: none.
        per_device_eval_batch_size: sequences per batch and device in an evaluation.
            Default: as many as in a micro-batch of training.
        save_strategy: "steps" saves a checkpoint every `save_steps`, "epoch" after each
            epoch, "no" at neither. The last step and the step of the best evaluation so
            far are saved in addition.
        save_steps: number of updates between checkpoints, or a fraction as
            `eval_steps`.
        save_total_limit: number of checkpoints that are kept, including the best one;
            None keeps all checkpoints of `save_steps`.
        load_best_model_at_end: whether the final parameters are those with the lowest
            evaluation loss instead of the last ones.
        early_stopping_patience: number of consecutive evaluations without a lower
            evaluation loss after which the run ends; None trains up to `max_steps`.
        early_stopping_threshold: minimum decrease of the evaluation loss, in nats per
            token, that counts as an improvement.
        logging_steps: number of updates between entries of trainer_state.json and
            TensorBoard, or a fraction as `eval_steps`. metrics.jsonl contains every
            update.
        logging_first_step: whether trainer_state.json and TensorBoard have an entry for
            the first update, too.
        bf16: whether the model computes in bfloat16, with parameters in float32.
        tf32: whether matrix products of float32 arrays use TF32 on GPUs, or three
            passes in bfloat16 on TPUs, which is faster. Otherwise they have full
            float32 precision, as in PyTorch, whatever JAX's default precision is.
        on_non_finite: response to a loss or gradient that is not finite. "stop" keeps
            the last parameters and ends the run, "skip" leaves the update out,
            "propagate" applies the update, as PyTorch does.
        max_skipped_in_a_row: number of consecutive skipped updates that ends the run;
            for "skip" only.
        log_layers: whether metrics.jsonl contains the norms of every layer.
        resume_from_checkpoint: checkpoint folder of this or another run to resume from.
            Default: the newest valid checkpoint in `output_dir`.
        intended_changes: names of settings that may differ from the resumed run's.
        mesh: sizes of the mesh axes, for example data=2,fsdp=4. data shards the batch,
            fsdp the batch and the parameters, tensor the parameters. The product is the
            number of devices. Default: one device, or with several processes all
            devices along data.
        zero_1: whether the optimizer state is also sharded along data.

    Raises:
        ValueError: if a value is out of range.
        TypeError: if a value has the wrong type.

    Source: transformers 5.23 `training_args.py`, for the names that it has.
    Differs: three checkpoints are kept by default instead of all. A long run does not
        fill the disk, and two older checkpoints remain if the newest is damaged.
    """

    model_name_or_path: Path | None = None
    model_implementation: Literal["flax", "torchax"] | None = None
    from_scratch: bool = False
    lora_r: int | None = None
    lora_alpha: float = 8.0
    lora_dropout: float = 0.0
    lora_target_modules: tuple[str, ...] | None = None
    freeze: tuple[str, ...] = ()
    text: tuple[Path, ...] = ()
    train_file: tuple[Path, ...] = ()
    validation_file: tuple[Path, ...] = ()
    text_column: str = "text"
    packing: bool = False
    completion_only_loss: bool = True
    chat_template: Path | None = None
    tokenizer: Path | None = None
    eos_token_id: int | None = None
    output_dir: Path | None = None
    num_train_epochs: float | None = None
    eval_strategy: Literal["no", "steps", "epoch"] = "steps"
    eval_steps: int = 400
    sample_prompt: str | None = None
    per_device_eval_batch_size: int | None = None
    save_strategy: Literal["no", "steps", "epoch"] = "steps"
    save_steps: int = 400
    save_total_limit: int | None = 3
    load_best_model_at_end: bool = False
    early_stopping_patience: int | None = None
    early_stopping_threshold: float = 0.0
    logging_steps: int = 10
    logging_first_step: bool = False
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
        """Checks every field; converts strings to paths and whole floats to ints."""
        for name, kind in kinds_of(type(self)).items():
            value = _checked(name, kind, getattr(self, name))
            object.__setattr__(self, name, value)  # the dataclass is frozen

    @property
    def matmul_precision(self) -> str | None:
        """Argument `matmul_precision` of `Model.make_loss`; None for bfloat16."""
        # Products of bfloat16 arrays have a single precision: JAX's setting has no
        # effect on them.
        if self.bf16:
            return None
        # "highest" is set explicitly: the default of JAX is TF32 on GPUs and one pass
        # in bfloat16 on TPUs.
        return "tensorfloat32" if self.tf32 else "highest"

    @property
    def eval_interval(self) -> int | None:
        """Number of updates between evaluations; None without any in between."""
        return None if self.eval_strategy == "no" else self.eval_steps

    @property
    def save_interval(self) -> int | None:
        """Number of updates between checkpoints; None without any in between."""
        return None if self.save_strategy == "no" else self.save_steps

    @property
    def selection(self) -> training.Selection:
        """Rule by which `training.train` compares evaluations."""
        return training.Selection(
            early_stopping_patience=self.early_stopping_patience,
            early_stopping_threshold=self.early_stopping_threshold,
        )


def mesh_axes(job: Job) -> str:
    """Returns the mesh axes of the run.

    The default is one device, or with several processes all devices.
    """
    if job.mesh is not None:
        return job.mesh
    return f"data={jax.device_count() if jax.process_count() > 1 else 1}"


def _checked(name: str, kind: Kind, value: Any) -> Any:
    """Converts a value to the type of its field; raises if that is not possible."""
    if value is None and kind.is_optional:
        return None
    if kind.is_list:
        # A single string is rejected: it would be read as a sequence of letters.
        if not isinstance(value, tuple | list):
            raise TypeError(f"`{name}` must be a list or a tuple, got {value!r}.")
        one = kind._replace(is_list=False)
        return tuple(_checked(name, one, item) for item in value)
    if name == "mesh":  # canonical form, so that equal meshes compare equal
        return _mesh(value)
    # `kind.metavar` is the placeholder in the help; "" is a switch, "{a,b}" a choice.
    match kind.metavar:
        case "INT":
            minimum = 0 if name in ("eos_token_id", "data_seed") else 1
            return _checks.whole_number(name, value, minimum=minimum)
        case "NUMBER":
            check = _checks.non_negative
            if name in ("num_train_epochs", "lora_alpha"):
                check = _checks.positive
            elif name == "lora_dropout":
                check = _checks.fraction_below_one
            check(name, value)
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
    _checks.one_of(name, value, kind.metavar.strip("{}").split(","))
    return value


def _mesh(text: Any) -> str:
    """Returns mesh axes in canonical form, such as "data=2,fsdp=4"."""
    if not isinstance(text, str):
        raise TypeError(f"`mesh` must be a string like 'data=2,fsdp=4', got {text!r}.")
    sizes = axis_sizes(text)
    for name in sizes:
        _checks.one_of("mesh", name, MESH_AXES)
    return ",".join(f"{name}={size}" for name, size in sizes.items())
