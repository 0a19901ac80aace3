"""Names, checks, norms, layouts and shardings of the leaves of a tree."""

from ._arrays import check_arrays as check_arrays
from ._arrays import check_grads as check_grads
from ._arrays import check_params as check_params
from ._arrays import check_real as check_real
from ._arrays import explicit_sharding as explicit_sharding
from ._arrays import global_norm as global_norm
from ._arrays import is_floating as is_floating
from ._arrays import reshard_like as reshard_like
from ._arrays import varying_axes as varying_axes
from ._torch_layout import TorchLayout as TorchLayout
from ._torch_layout import resolve_layouts as resolve_layouts
from ._tree import has_masked_nodes as has_masked_nodes
from ._tree import is_labelled as is_labelled
from ._tree import is_masked as is_masked
from ._tree import is_name as is_name
from ._tree import leaf_name as leaf_name
from ._tree import leaf_names as leaf_names
from ._tree import map_leaves as map_leaves
from ._tree import match_rules as match_rules
from ._tree import named_leaves as named_leaves
from ._tree import owner_names as owner_names
from ._tree import path_keys as path_keys
from ._tree import path_name as path_name
from ._tree import unnamed_leaves as unnamed_leaves
