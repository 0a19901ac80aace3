"""Names, norms, layouts and shardings of the leaves of a tree."""

from ._patterns import matched_values as matched_values
from ._placement import placed_as as placed_as
from ._placement import shard_axes as shard_axes
from ._torch_layout import TorchLayout as TorchLayout
from ._torch_layout import resolve_layouts as resolve_layouts
from ._tree import check_arrays as check_arrays
from ._tree import check_grads as check_grads
from ._tree import check_params as check_params
from ._tree import check_real as check_real
from ._tree import global_norm as global_norm
from ._tree import is_floating as is_floating
from ._tree import is_labelled as is_labelled
from ._tree import is_masked as is_masked
from ._tree import is_name as is_name
from ._tree import is_part as is_part
from ._tree import leaf_name as leaf_name
from ._tree import leaf_names as leaf_names
from ._tree import map_leaves as map_leaves
from ._tree import named_leaves as named_leaves
from ._tree import nameless_leaves as nameless_leaves
from ._tree import path_keys as path_keys
from ._tree import path_name as path_name
from ._tree import per_leaf as per_leaf
