"""Shardings of parameters, optimizer state and batches on a mesh.

Rules determine the shardings of the parameters, and these determine the shardings of
the optimizer's state.
"""

from ._batch import BATCH_AXES as BATCH_AXES
from ._batch import batch_sharding as batch_sharding
from ._batch import constrain_batch as constrain_batch
from ._batch import constrain_batch_and_width as constrain_batch_and_width
from ._batch import gather_columns as gather_columns
from ._batch import num_batch_shards as num_batch_shards
from ._mesh import abstract_mesh as abstract_mesh
from ._mesh import axis_sizes as axis_sizes
from ._mesh import make_mesh as make_mesh
from ._params import RuleFallback as RuleFallback
from ._params import param_shardings as param_shardings
from ._params import unmet_rules as unmet_rules
from ._state import state_shardings as state_shardings
