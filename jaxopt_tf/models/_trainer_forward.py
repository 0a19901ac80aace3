"""Calls of a module of Transformers as Trainer makes them, and their number of items.

Source: transformers 5.23 `trainer.py`, `compute_loss` and `_get_num_items_in_batch`.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from .. import _checks
from ._inputs import IGNORE_INDEX
from ._torchax import import_package

# Key of a batch: number of items of all micro-batches of an update.
NUM_ITEMS = "num_items_in_batch"


class TrainerForward:
    """Calls of a module as Trainer makes them.

    Attributes:
        columns: names of the arguments of `forward`.
        label_names: names of the arguments that are labels.
        shifts_labels: whether the loss predicts each label from the position before.
        takes_loss_kwargs: whether `forward` takes the number of items.
    """

    def __init__(self, module: Any):
        """Reads the signature of `forward` and the kind of the loss."""
        losses = import_package("transformers.loss.loss_utils")
        auto = import_package("transformers.models.auto.modeling_auto")
        parameters = inspect.signature(module.forward).parameters
        kinds = {p.kind for p in parameters.values()}
        has_kwargs = inspect.Parameter.VAR_KEYWORD in kinds
        self._name = type(module).__name__
        self._names = {
            name
            for name, p in parameters.items()
            if p.kind is not inspect.Parameter.VAR_KEYWORD
        }
        self.columns = tuple(n for n in parameters if n in self._names)
        is_answering = "QuestionAnswering" in self._name
        positions = ("start_positions", "end_positions") if is_answering else ()
        self.label_names = tuple(
            n for n in self.columns if "label" in n or n in positions
        )
        self._ignored = getattr(
            module.config, "keys_to_ignore_at_inference", ["past_key_values"]
        )
        # Arguments of inner modules that pass through `**kwargs`.
        self._further = {"position_ids", "shift_labels"} if has_kwargs else set()
        self._further.add(NUM_ITEMS)
        self.takes_loss_kwargs = getattr(module, "accepts_loss_kwargs", has_kwargs)
        loss = losses.LOSS_MAPPING.get(getattr(module, "loss_type", None))
        is_seq2seq = getattr(module.config, "is_encoder_decoder", False)
        self.shifts_labels = loss is losses.ForCausalLMLoss and not is_seq2seq
        causal = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        self.is_causal_lm = self._name in causal

    @property
    def differences(self) -> tuple[str, ...]:
        """Sentences on how training on rows of tokens differs from Trainer's."""
        if not self.is_causal_lm or self.shifts_labels:
            return ()
        return (
            "the loss here is the mean over all predicted tokens; Trainer 5.23 divides "
            f"the loss of {self._name} by the number of all labels, including the "
            "first of each row, so that its losses and gradients are (L - 1) / L of "
            "those here for rows of L tokens",
        )

    def check_batch(self, batch: Any) -> None:
        """Raises unless a batch is a mapping with arguments of `forward`."""
        if not isinstance(batch, Mapping):
            raise TypeError(
                f"`batch` must be a dict of the arguments of {self._name}.forward, got "
                f"{type(batch).__name__}."
            )
        unknown = [name for name in batch if name not in self._names | self._further]
        if unknown:
            known = sorted(self._names)
            raise ValueError(
                f"`batch` must have keys that {self._name}.forward takes, got "
                f"{unknown[0]!r}.{_checks.suggest(unknown[0], known)} Remove the key; "
                f"the arguments are {', '.join(known)}."
            )

    def loss(self, module: Any, batch: Mapping[str, Any]) -> tuple[Any, Any]:
        """Returns the summed loss and the number of items, as Trainer divides them."""
        if NUM_ITEMS in batch:
            return self._loss_of_update(module, batch)
        inputs = self._inputs(batch)
        labels = batch.get("shift_labels", batch.get("labels"))
        if labels is None or not self.takes_loss_kwargs:
            # The module computes the mean over the batch.
            first = next(iter(batch.values()))
            if labels is None and "return_loss" in self._names:
                inputs["return_loss"] = True
            number = first.shape[0]
            return self._loss_in(module(**inputs)) * number, float(number)
        counted = self._counted(batch)
        # At least 1: a batch without labels has the loss 0, not 0 / 0.
        number = counted.ne(IGNORE_INDEX).sum().float().clamp(min=1.0)
        return self._loss_in(module(**inputs, num_items_in_batch=number)) * number, (
            counted.ne(IGNORE_INDEX).sum()
        )

    def _loss_of_update(self, module: Any, batch: Mapping[str, Any]) -> tuple[Any, Any]:
        """Returns a loss and a number; the quotient of their sums is the update's loss.

        The sum of the losses of all micro-batches, over the sum of their numbers, is
        the loss of Trainer. A module that takes the number of items and does not use it
        returns means; Trainer adds these means, without a division by the number of
        micro-batches.
        """
        batch = dict(batch)
        num_items = batch.pop(NUM_ITEMS)
        inputs = self._inputs(batch)
        if self.takes_loss_kwargs and self.has_counted_labels(batch):
            # At least 1: a batch without labels has the loss 0, not 0 / 0.
            num_items = num_items.float().clamp(min=1.0)
            loss = self._loss_in(module(**inputs, num_items_in_batch=num_items))
            return loss * num_items, self._counted(batch).ne(IGNORE_INDEX).sum()
        if "labels" not in batch and "return_loss" in self._names:
            inputs["return_loss"] = True
        # Trainer takes the mean over the micro-batches.
        return self._loss_in(module(**inputs)), 1.0

    def has_counted_labels(self, batch: Mapping[str, Any]) -> bool:
        """Returns whether Trainer counts the labels of a batch as its items."""
        return self.takes_loss_kwargs and "labels" in batch

    def num_items(self, batch: Mapping[str, Any]) -> int:
        """Returns the number of items of a batch of NumPy arrays, as Trainer counts."""
        if not self.has_counted_labels(batch):
            return 1
        return int((self._counted(batch) != IGNORE_INDEX).sum())

    def predictions(self, module: Any, batch: Mapping[str, Any]) -> Any:
        """Returns the outputs that Trainer passes to `compute_metrics`."""
        inputs = {n: x for n, x in self._inputs(batch).items() if n != NUM_ITEMS}
        outputs = module(**inputs)
        left_out = {"loss", *self._ignored}
        found = tuple(x for name, x in outputs.items() if name not in left_out)
        return found[0] if len(found) == 1 else found

    def _counted(self, batch: Mapping[str, Any]) -> Any:
        if "shift_labels" in batch:
            return batch["shift_labels"]
        labels = batch["labels"]
        return labels[..., 1:] if self.shifts_labels else labels

    def logits(self, module: Any, batch: Mapping[str, Any]) -> Any:
        """Returns the logits."""
        outputs = module(**self._inputs(batch))
        return outputs["logits"] if "logits" in outputs else outputs[0]

    def _inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        inputs = dict(batch)
        # A cache of keys and values is not used in training.
        if "use_cache" in self._names:
            inputs.setdefault("use_cache", False)
        return inputs

    def _loss_in(self, outputs: Any) -> Any:
        loss = outputs.get("loss")
        if loss is None:
            raise ValueError(
                f"`batch` must have the arguments from which {self._name} computes a "
                f"loss, but its output has only {', '.join(outputs)}. Add `labels`, or "
                "use `from_torch` with a loss function."
            )
        return loss
