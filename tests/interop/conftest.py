"""Fixtures with checkpoints of torch and Transformers."""

import importlib.util

# Without them there is no reference: the files import both.
_HAS_TWINS = all(importlib.util.find_spec(n) for n in ("torch", "transformers"))
collect_ignore_glob = [] if _HAS_TWINS else ["test_*.py"]
