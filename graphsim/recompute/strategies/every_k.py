"""Every k-th block recomputed: half the saving of all blocks for half the extra compute, if k is 2.

Source: the knob of Megatron-LM's block recompute (Korthikanti et al., "Reducing Activation
Recomputation in Large Transformer Models", 2022), spread evenly over the depth of the model.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphsim.core.schedule import Schedule
from graphsim.recompute.case import Case
from graphsim.recompute.strategies.blocks import check_positive, drop_every


@dataclass(frozen=True, slots=True)
class EveryK:
    """Recomputes the first of each *k* blocks; *depth* as in `Blocks`.

    Raises:
        UsageError: k or the depth is less than one.
    """

    k: int = 2
    depth: int | None = None

    def __post_init__(self) -> None:
        check_positive("k", self.k)
        check_positive("depth", self.depth)

    def __call__(self, case: Case, budget: int | None = None, /) -> Schedule:
        """Return the schedule, whatever the budget."""
        return drop_every(case, self.k, self.depth)
