"""Scalar arithmetic on float32 pairs with nearly the accuracy of torch's doubles."""

from ._compiler_guards import hoist_scalars as hoist_scalars
from ._compiler_guards import join_loops as join_loops
from ._compiler_guards import matmul_precision as matmul_precision
from ._compiler_guards import on_gpu as on_gpu
from ._compiler_guards import prevent_fma as prevent_fma
from ._compiler_guards import round_to_dtype as round_to_dtype
from ._compiler_guards import update_from_new_param as update_from_new_param
from ._scalars import ExactScalar as ExactScalar
from ._scalars import exact_int as exact_int
from ._scalars import exact_maximum as exact_maximum
from ._scalars import exact_one_minus_exp as exact_one_minus_exp
from ._scalars import exact_power as exact_power
from ._scalars import exact_scalar as exact_scalar
from ._scalars import exact_sqrt as exact_sqrt
from ._scalars import has_float64 as has_float64
from ._scalars import is_zero as is_zero
from ._scalars import one_minus as one_minus
from ._scalars import rounded as rounded
from ._scalars import scalar as scalar
from ._scalars import wide_dtype as wide_dtype
from ._scalars import widest_dtype as widest_dtype
