"""Float32 arithmetic with the accuracy that torch's doubles have."""

from ._dtypes import has_float64 as has_float64
from ._dtypes import is_narrow as is_narrow
from ._dtypes import unsupported as unsupported
from ._dtypes import wide_dtype as wide_dtype
from ._dtypes import widest_dtype as widest_dtype
from ._rounding import as_stored as as_stored
from ._rounding import difference as difference
from ._scalars import computed_once as computed_once
from ._scalars import is_zero as is_zero
from ._scalars import one_minus as one_minus
from ._scalars import scalar as scalar
