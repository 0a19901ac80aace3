"""Learning rate schedules: functions of the step, and metric-driven schedules.

The rate is float32 for a Python int or a 32-bit step, and float64 for a 64-bit step
(which requires `jax_enable_x64`); see `join`.

schedule = join(3e-4, warmup(linear, 500), constant(8_000), decay(cosine, 1_500))
schedule = get_scheduler(
    "cosine", 3e-4, num_warmup_steps=500, num_training_steps=10_000
)
"""

from ._curves import Curve as Curve
from ._curves import cosine as cosine
from ._curves import linear as linear
from ._curves import one_minus_sqrt as one_minus_sqrt
from ._curves import polynomial as polynomial
from ._curves import sqrt as sqrt
from ._metric_driven import AverageState as AverageState
from ._metric_driven import GreedyState as GreedyState
from ._metric_driven import MetricDrivenSchedule as MetricDrivenSchedule
from ._metric_driven import PlateauState as PlateauState
from ._metric_driven import greedy as greedy
from ._metric_driven import reduce_lr_on_plateau as reduce_lr_on_plateau
from ._phases import Phase as Phase
from ._phases import constant as constant
from ._phases import cycles as cycles
from ._phases import decay as decay
from ._phases import hard_restarts as hard_restarts
from ._phases import join as join
from ._phases import shift as shift
from ._phases import warmup as warmup
from ._progress import rate_dtype as rate_dtype
from ._scheduler import get_scheduler as get_scheduler
from ._transformers import get_constant_schedule as get_constant_schedule
from ._transformers import (
    get_constant_schedule_with_warmup as get_constant_schedule_with_warmup,
)
from ._transformers import (
    get_cosine_schedule_with_warmup as get_cosine_schedule_with_warmup,
)
from ._transformers import (
    get_cosine_with_hard_restarts_schedule_with_warmup as get_cosine_with_hard_restarts_schedule_with_warmup,  # noqa: E501 - one name of Transformers, twice
)
from ._transformers import get_inverse_sqrt_schedule as get_inverse_sqrt_schedule
from ._transformers import (
    get_linear_schedule_with_warmup as get_linear_schedule_with_warmup,
)
from ._transformers import (
    get_polynomial_decay_schedule_with_warmup as get_polynomial_decay_schedule_with_warmup,  # noqa: E501 - one name of Transformers, twice
)
from ._transformers_floors import (
    get_cosine_with_min_lr_schedule_with_warmup as get_cosine_with_min_lr_schedule_with_warmup,  # noqa: E501 - one name of Transformers, twice
)
from ._transformers_floors import (
    get_cosine_with_min_lr_schedule_with_warmup_lr_rate as get_cosine_with_min_lr_schedule_with_warmup_lr_rate,  # noqa: E501 - one name of Transformers, twice
)
from ._transformers_floors import get_wsd_schedule as get_wsd_schedule
