"""How long a step takes at least, if a chip does what its maker says that it can."""

from typing import NamedTuple

from ._cost import Cost
from ._slices import Chip


class Estimate(NamedTuple):
    """Seconds of a step that each of three limits allows: an estimate, not a promise.

    Real steps take longer: no kernel reaches its peak, and what is taken here to run at
    the same time waits in part for each other.
    """

    arithmetic: float  # at the published peaks, products as precise as asked
    memory: float  # at the published bandwidth
    network: float  # at the published rate of all links together

    @property
    def seconds(self) -> float:
        """Of the step: the longest of the three."""
        return max(self)

    @property
    def limit(self) -> str:
        """The name of the longest."""
        return self._fields[self.index(max(self))]


def estimate(cost: Cost, chip: Chip) -> Estimate:
    """The roofline of a compiled step.

    Source: Williams et al., "Roofline: An Insightful Visual Performance Model for
        Multicore Architectures", 2009, with the network as a third roof.
    """
    sent = sum(collective.sent for collective in cost.collectives)
    dearer = zip(cost.products[1:], chip.slower, strict=True)
    work = cost.work + sum(flops * (slower - 1.0) for flops, slower in dearer)
    return Estimate(
        work / chip.flops, cost.moved / chip.bandwidth, sent / chip.interconnect
    )
