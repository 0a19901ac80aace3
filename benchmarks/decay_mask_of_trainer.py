"""Differences between our decay rules and the parameters that `Trainer` decays.

The installed version is run on seven models built for it. The parameters that each
minor version of Transformers 4 decays in 33 architectures are recorded in tests/files.
"""

import json
import pathlib
from collections.abc import Iterator

import numpy as np

from benchmarks._report import Row
from jaxopt_tf._pytrees import _tree
from jaxopt_tf.optimizers import decay_mask, trainer_decay_rule
from tests.references import decay_names as reference

_RECORDED = pathlib.Path(__file__).parents[1] / "tests/files/decay_of_trainer.json"


def rows(smoke: bool) -> Iterator[Row]:
    del smoke  # takes seconds
    for name in reference.ARCHITECTURES:
        names, layer_norms, theirs = reference.trainer_decay_names(name)
        ours = _decayed(names, layer_norms, "transformers_v5")
        yield Row(
            claim=f"decay mask of {name}, {len(names)} parameters: differences",
            value=len(ours ^ theirs),
            unit="names",
            limit=0,
        )
    for name, record in json.loads(_RECORDED.read_text()).items():
        by_version = {v: d for vs, d in record["decayed"].items() for v in vs.split()}
        differing = 0
        for version, digits in by_version.items():
            rule = trainer_decay_rule(version)
            ours = _decayed(record["names"], record["layer_norms"], rule)
            decays = zip(record["names"], digits, strict=True)
            differing += len(ours ^ {n for n, digit in decays if digit == "1"})
        yield Row(
            claim=f"decay mask of {name} in {len(by_version)} versions: differences",
            value=differing,
            unit="names",
            limit=0,
        )


def _decayed(names, layer_norms, rule):
    params = {name: np.zeros(()) for name in names}
    mask = decay_mask(params, rule=rule, layer_norms=layer_norms)
    return {name for name, is_decayed in _tree.named_leaves(mask) if is_decayed}
