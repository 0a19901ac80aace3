"""Imports what a run needs, once, in the process that others are forked from."""

import importlib

for name in ("grain", "matplotlib.figure", "orbax.checkpoint", "tensorboardX"):
    importlib.import_module(name)
importlib.import_module("jaxopt_tf.cli")
