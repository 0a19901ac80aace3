"""The optimization stack of Hugging Face Transformers as optax transformations.

    optimizer = optax.chain(clip(1.0), adamw_tf(schedule, weight_decay=0.01))

This module exports the most frequently used names. The complete API is in the
sub-packages, listed here in the order in which a training run uses them:
`jaxopt_tf.schedules`, `.optimizers`, `.recipes`, `.training`, `.checkpoints`,
`.sharding`, `.planning`, `.monitors`, `.plots`, `.interop`, `.models`, `.data`,
`.tuning`, `.jobs`.
"""

import importlib
import importlib.util
import time as _time
from typing import TYPE_CHECKING, Any

# The form `x as x` marks a name as re-exported, which mypy's strict mode requires.
if TYPE_CHECKING:  # read by type checkers and the documentation generator only
    from .optimizers import adafactor_tf as adafactor_tf
    from .optimizers import adafactor_trainer as adafactor_trainer
    from .optimizers import adamw_hf_v4 as adamw_hf_v4
    from .optimizers import adamw_tf as adamw_tf
    from .optimizers import clip as clip
    from .optimizers import decay_mask as decay_mask
    from .optimizers import get_learning_rate as get_learning_rate
    from .optimizers import set_learning_rate as set_learning_rate
    from .recipes import Recipe as Recipe
    from .recipes import build_optimizer as build_optimizer
    from .recipes import build_schedule as build_schedule
    from .schedules import get_scheduler as get_scheduler
    from .training import init_train_state as init_train_state
    from .training import make_train_step as make_train_step

__version__ = "0.1.0"

# Start of the process, for systems that do not record it.
_IMPORTED_AT = _time.monotonic()

# These names are imported on first use. Otherwise `jaxopt-tf --help`, or an import of
# one sub-package, would import JAX and all sub-packages first.
_SUBPACKAGES = {
    "optimizers": (
        "adafactor_tf",
        "adafactor_trainer",
        "adamw_hf_v4",
        "adamw_tf",
        "clip",
        "decay_mask",
        "get_learning_rate",
        "set_learning_rate",
    ),
    "recipes": ("Recipe", "build_optimizer", "build_schedule"),
    "schedules": ("get_scheduler",),
    "training": ("init_train_state", "make_train_step"),
}
_SUBPACKAGE_OF = {
    name: subpackage for subpackage, names in _SUBPACKAGES.items() for name in names
}


def __getattr__(name: str) -> Any:
    """Imports a name of a sub-package, or a public sub-package, on first use."""
    if name in _SUBPACKAGE_OF:
        value = getattr(
            importlib.import_module(f".{_SUBPACKAGE_OF[name]}", __name__), name
        )
    elif not name.startswith("_") and importlib.util.find_spec(f".{name}", __name__):
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Python calls a module's `__getattr__` (PEP 562) only if the name is missing.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Lists the public names, including those that have not been imported yet."""
    return sorted({*_SUBPACKAGE_OF, *(name for name in globals() if name[:2] == "__")})
