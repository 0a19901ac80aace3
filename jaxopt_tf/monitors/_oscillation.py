"""A loss that swings about a level that it could leave."""

import numpy as np

from ._blocks import Memory

# To first order an update changes the loss by at most the gradient's norm times its
# own. Where that is a quarter of the largest loss that there was, the gradient does not
# hold for the length of a step, which goes past the bottom of the valley and up its
# other side. Healthy runs come to 0.15 where they are flat, and most to 0.05; at ten
# times a good rate it is 0.4 and more.
_STEP_PULL = 0.25
# And in 400 steps parameters have gone twice as far as they are long: not so where a
# large gradient is but the noise of small batches, or of many parameters.
_UPDATE_RATIO = 5e-3


def oscillating(memory: Memory) -> str | None:
    """Steps are longer than the valley is wide, and the loss does not fall."""
    if not memory.is_flat:
        return None
    blocks = memory.recent
    step_pull = np.median([block.step_pull for block in blocks])
    ratio = np.median([block.update_ratio for block in blocks])
    largest = max(memory.scale, abs(memory.start))
    if ratio < _UPDATE_RATIO or step_pull < _STEP_PULL * largest:
        return None
    level = np.mean([block.loss for block in blocks])
    return (
        f"the loss stays at {level:.4g} and swings by {memory.noise:.2g}, while "
        f"parameters change by {ratio:.0e} a step, enough by their gradient to change "
        f"the loss by {step_pull:.2g}, training oscillates; lower `learning_rate`, let "
        "it decay, or take larger batches"
    )
