"""Whether `rule="transformers_v5"` decays what `Trainer` decays, on seven models."""

from collections.abc import Iterator

import numpy as np

from benchmarks._report import Row
from jaxopt_tf import _tree
from jaxopt_tf.optimizers import decay_mask
from tests.twins import decay_names as twin


def rows(smoke: bool) -> Iterator[Row]:
    del smoke  # takes seconds
    for name in twin.ARCHITECTURES:
        names, layer_norms, theirs = twin.trainer_decay_names(name)
        params = {n: np.zeros(()) for n in names}
        mask = decay_mask(params, rule="transformers_v5", layer_norms=layer_norms)
        ours = {n for n, is_decayed in _tree.named_leaves(mask) if is_decayed}
        yield Row(
            claim=f"decay mask of {name}, {len(names)} parameters: differences",
            value=len(ours ^ theirs),
            unit="names",
            limit=0,
        )
