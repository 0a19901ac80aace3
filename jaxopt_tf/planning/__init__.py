"""Memory, traffic and time of a compiled step, on devices that need not be present."""

from ._cost import Cost as Cost
from ._cost import Estimate as Estimate
from ._cost import estimate as estimate
from ._cost import program_cost as program_cost
from ._hlo import Collective as Collective
from ._plan import LeafBytes as LeafBytes
from ._plan import Part as Part
from ._plan import Plan as Plan
from ._plan import bytes_by_leaf as bytes_by_leaf
from ._plan import plan_shapes as plan_shapes
from ._plan import plan_step as plan_step
from ._slices import Chip as Chip
from ._slices import CompilerMissingError as CompilerMissingError
from ._slices import Slice as Slice
from ._slices import is_compiler_installed as is_compiler_installed
from ._slices import named_slice as named_slice
from ._slices import peak_flops as peak_flops
from ._slices import slice_devices as slice_devices
from ._tables import print_comparison as print_comparison
from ._tables import print_plan as print_plan
