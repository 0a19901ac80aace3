"""Imports what a run needs, once, in the process that others are forked from."""

import importlib
import os

for name in ("grain", "matplotlib.figure", "orbax.checkpoint", "tensorboardX"):
    importlib.import_module(name)
importlib.import_module("jaxopt_tf.cli")
if "WARM_TORCHAX" in os.environ:
    for name in ("transformers.models.bert.modeling_bert", "torchax"):
        importlib.import_module(name)
