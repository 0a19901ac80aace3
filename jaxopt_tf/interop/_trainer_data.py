"""Objects of Transformers that Trainer uses for its data."""

from collections.abc import Callable
from typing import Any

from ._extras import import_extra


def padding_collator(processing_class: Any) -> Callable[[list[Any]], Any] | None:
    """Returns the collator that Trainer uses with a tokenizer; None for other classes.

    Source: transformers 5.23 `trainer.py`, `Trainer.__init__`.
    """
    transformers = import_extra("transformers")
    kinds: tuple[Any, ...] = (
        transformers.PreTrainedTokenizerBase,
        transformers.SequenceFeatureExtractor,
    )
    if not isinstance(processing_class, kinds):
        return None
    return transformers.DataCollatorWithPadding(processing_class)
